import os

import numpy as np
import pytest

from evaluations import QUICK, WORDS, make_subjects
from profusion_pipeline.evaluation.costs import Cost, load_costs, measure_alone, measure_cost, save_costs
from profusion_pipeline.evaluation.rows import Setting, learning_text
from profusion_pipeline.evaluation.systems.system import Sampling
from rivals import listening_pipeline

COST = Cost("ours", '{"steps": 2}', 17.25, 1.5, 64, 0.5, 0.75, 0.25, "a laptop, 2 threads")


@pytest.mark.parametrize("name", ["Stable Diffusion", "Textual Inversion"])
def test_what_a_system_costs(name):
    system = QUICK[name]
    setting = Setting(
        name, learning_text(system.config(pool_size=2)) if system.learns else "", Sampling(num_inference_steps=4)
    )
    cost = measure_cost(listening_pipeline(), system, "it", setting, make_subjects(1)[0], **WORDS)
    assert cost.system == "it" and cost.unet_rows == 8 and cost.drawing_seconds > 0
    assert (cost.learning_seconds > 0) == (cost.stored_mb > 0) == system.learns
    assert "thread" in cost.machine and (cost.drawing_gib > 0 or np.isnan(cost.drawing_gib))


def test_costs_come_back_and_replace_those_of_the_same_machine(tmp_path):
    other = COST._replace(machine="a desk", learning="", learning_gib=float("nan"))
    save_costs(tmp_path, [COST, other])
    save_costs(tmp_path, [COST._replace(drawing_seconds=0.75)])
    found = load_costs(tmp_path)
    assert found[0] == COST._replace(drawing_seconds=0.75)
    assert np.isnan(found[1].learning_gib) and found[1][:3] == other[:3] and len(found) == 2


def test_alone_is_in_another_process():
    assert measure_alone(os.getpid) != os.getpid()
