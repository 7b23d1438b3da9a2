"""Rows of a small study with known differences, for the tests of tables and plots."""

import numpy as np

from profusion_pipeline.evaluation.plan import Cell
from profusion_pipeline.evaluation.rows import Row, Setting
from profusion_pipeline.evaluation.systems.system import Sampling

OURS, THEIRS, UNDRAWN = (Setting(name, "", Sampling(num_inference_steps=20)) for name in ("ours", "theirs", "undrawn"))
CELLS = [
    Cell(1, "ours", "", OURS, 2),
    Cell(1, "theirs", "", THEIRS, 1, OURS),
    Cell(1, "undrawn", "", UNDRAWN, 1, OURS),
]
PEOPLE = [f"p{number}" for number in range(12)]


def make_rows(setting: Setting, seeds: int, shift: float) -> list[Row]:
    rng = np.random.default_rng(0)
    values = {key: rng.uniform(0, 0.5) for key in ((who, seed) for seed in range(2) for who in PEOPLE)}
    scores = {key: {"reader identity": value + shift, "reader prompt": np.nan} for key, value in values.items()}
    return [
        Row(setting, who, "S*", seed, scores[who, seed], 100, 1.0, 0.5, "m") for who, seed in values if seed < seeds
    ]


ROWS = make_rows(OURS, 2, 0.0) + make_rows(THEIRS, 1, 0.125)
