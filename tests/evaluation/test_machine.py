import subprocess
import sys

import numpy as np
import torch

from profusion_pipeline.evaluation.machine import GIB, PeakMemory, machine_name


def test_the_name_says_how_many_threads():
    threads = torch.get_num_threads()
    assert machine_name("cpu").endswith(f", {threads} thread{'s' if threads > 1 else ''}")


PEAKS = """
import numpy as np
from profusion_pipeline.evaluation.machine import GIB, PeakMemory
before = PeakMemory("cpu")
block = np.ones(GIB // 8 // 4)  # a quarter of a GiB
high = before.gib()
del block
after = PeakMemory("cpu")
assert high - after.gib() > 0.2 or not after.since_now
"""


def test_a_peak_is_of_what_came_since():
    """In a process of its own: one that has done much before may find the block in memory that it keeps."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_linux_the_peak_is_that_of_the_process():
    peak = PeakMemory("cpu")
    peak.since_now = False
    block = np.ones(GIB // 8 // 4)  # a quarter of a GiB
    assert 0.25 < peak.gib() < 64
    del block


def test_without_anything_that_tells_it_is_nan(monkeypatch):
    peak = PeakMemory("cpu")
    peak.since_now = False
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert np.isnan(peak.gib())
