"""What S* carries over time: two people, and the share that the table says."""

import numpy as np
import pytest
from subject_over_time import TIMES, distances, table

from profusion_pipeline import load_demo_pipeline


def test_two_people_over_all_times():
    found = distances(load_demo_pipeline(), 2)
    assert found.shape == (2, len(TIMES), 2) and (found > 0).all()
    assert found[..., 0].mean() < found[..., 1].mean()  # who it is counts for more than what they wear


def test_the_table_says_the_share():
    apart = np.stack([np.full((5, len(TIMES)), 2.0), np.linspace(4, 10, 5)[:, None].repeat(len(TIMES), 1)], axis=-1)
    first = table(apart).splitlines()[4]
    assert first.startswith("| 20 | 2 | 7 | 0.286 (")
    low, high = (float(word.strip("()|")) for word in first.split() if word.startswith("(0") or word.endswith(")"))
    assert low < 0.286 < high == pytest.approx(0.4, abs=0.1)
