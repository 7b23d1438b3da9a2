import numpy as np
import torch

from profusion_pipeline.evaluation.machine import GIB, PeakMemory, machine_name


def test_the_name_says_how_many_threads():
    threads = torch.get_num_threads()
    assert machine_name("cpu").endswith(f", {threads} thread{'s' if threads > 1 else ''}")


def test_a_peak_is_of_what_came_since():
    before = PeakMemory("cpu")
    block = np.ones(GIB // 8 // 4)  # a quarter of a GiB
    high = before.gib()
    del block
    after = PeakMemory("cpu")
    if after.known:
        assert high - after.gib() > 0.2
    else:
        assert np.isnan(after.gib())
