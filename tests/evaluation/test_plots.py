import sys

import numpy as np
import pytest
from PIL import Image

from profusion_pipeline.evaluation.costs import Cost
from profusion_pipeline.evaluation.plots import plot_costs, plot_question
from profusion_pipeline.evaluation.report import Scores
from reports import CELLS, OURS, ROWS

COSTS = [
    Cost("ours", "{}", 17.25, 1.5, 64, 0.5, 0.75, 0.2, "a laptop"),
    Cost("base", "", 0.0, float("nan"), 64, 0.25, 0.5, 0.0, "a laptop"),
]
TWICE = [row._replace(scores=row.scores | {"reader prompt": 1 - row.scores["reader identity"]}) for row in ROWS]


FIRST, SECOND = (31, 119, 180), (255, 127, 14)  # matplotlib's colours


def has(path, colour) -> bool:
    with Image.open(path) as image:
        return bool((np.asarray(image.convert("RGB")) == colour).all(-1).any())


def test_a_plot_shows_what_was_drawn(tmp_path):
    both, one = tmp_path / "images" / "both.png", tmp_path / "one.png"
    plot_question(CELLS, Scores(TWICE), "reader prompt", "reader identity", "Systems", both)
    alone = Scores([row for row in TWICE if row.setting == OURS])
    plot_question(CELLS, alone, "reader prompt", "reader identity", "Systems", one)
    assert has(both, FIRST) and has(both, SECOND) and has(one, FIRST) and not has(one, SECOND)


def test_a_plot_of_costs(tmp_path):
    plot_costs(COSTS, tmp_path / "costs.png")
    plot_costs(COSTS[1:], tmp_path / "one.png")
    assert all(has(tmp_path / name, colour) for name in ("costs.png", "one.png") for colour in (FIRST, SECOND))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(ImportError, match="Plots need matplotlib, which is not installed: `pip install matplotlib`"):
        plot_costs(COSTS, tmp_path / "costs.png")
