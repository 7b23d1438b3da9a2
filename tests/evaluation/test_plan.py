"""The list of settings: every question is asked, at equal rows, and nothing is drawn twice."""

import json
from dataclasses import replace

import pytest

from profusion_pipeline.evaluation.plan import (
    FACTORS,
    QUESTIONS,
    SCHEDULES,
    load_plan,
    make_plan,
    save_plan,
    settings_of,
    steps_within,
)
from profusion_pipeline.evaluation.systems.baselines import DEMO_SYSTEMS, SYSTEMS
from profusion_pipeline.evaluation.systems.system import Sampling

ROWS = 64
CELLS = make_plan(DEMO_SYSTEMS, learning={"pool_size": 1}, rows=ROWS)


def of(question: int) -> list:
    return [cell for cell in CELLS if cell.question == question]


def test_every_question_is_asked_and_every_system_is_in_some():
    assert {cell.question for cell in CELLS} == set(QUESTIONS)
    assert {cell.setting.system for cell in CELLS} == set(DEMO_SYSTEMS)
    assert all(cell.setting.learning for cell in CELLS if DEMO_SYSTEMS[cell.setting.system].learns)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.question != 5], ids=lambda cell: "-".join(cell[1:3]))
def test_rows_are_equal(cell):
    """No more than the budget, and one step more would be too much."""
    system, sampling = DEMO_SYSTEMS[cell.setting.system], cell.setting.sampling
    assert system.unet_rows(sampling) <= ROWS
    more = replace(sampling, num_inference_steps=sampling.num_inference_steps + 1)
    assert system.unet_rows(more) > ROWS or "part" in cell.curve


def test_the_first_question_has_seeds_to_compare():
    assert {cell.seeds for cell in of(1)} == {2} and {cell.seeds for cell in CELLS if cell.question > 1} == {1}
    assert settings_of(CELLS)[of(1)[0].setting] == 2


def test_guidance_is_varied_for_every_system():
    curves = {cell.curve for cell in of(2)}
    assert curves == {cell.curve for cell in of(1)}
    for curve in curves:
        factors = [cell.setting.sampling.guidance for cell in of(2) if cell.curve == curve]
        assert sorted(factors) == sorted(FACTORS)


def test_of_fusion_one_thing_is_varied_at_a_time():
    (usual,) = {cell.reference for cell in of(3) if cell.reference}
    for cell in of(3):
        ours, theirs = vars(cell.setting.sampling), vars(usual.sampling)
        changed = {name for name in ours if ours[name] != theirs[name]} - {"num_inference_steps"}
        if cell.curve == "part of the steps":
            assert changed <= {"fusion_start", "fusion_end"}
        elif cell.curve == "∅ and C by the customised model":
            assert changed - {"num_fusion_steps"} == {"base_guidance"}
        else:
            assert len(changed) == (cell.reference is not None)
    assert {cell.setting.sampling.num_fusion_steps for cell in of(3)} == {0, 1, 2, 3}


def test_regulariser_augmentation_and_customising_are_compared_with_and_without():
    pairs = {(cell.setting.system, cell.reference.system) for cell in of(4) if cell.reference}
    assert {("ProFusion", "PromptNet"), ("PromptNet, L2", "PromptNet, plain")} < pairs
    for cell in of(4):
        if cell.label == "augmentations":
            ours, theirs = (one.config(class_noun="a", prompt="S*", seed=0) for one in (cell.setting, cell.reference))
            assert (ours.pool_size, theirs.pool_size) == (32, 1) and replace(ours, pool_size=1) == theirs
    learning = {name for name, system in DEMO_SYSTEMS.items() if system.learns and "," not in name}
    assert {cell.setting.system for cell in of(4) if cell.label == "augmentations"} == learning


def test_captions_are_learnt_with_and_question_4_leaves_them_out():
    cells = make_plan(DEMO_SYSTEMS, learning={"pool_size": 1}, captioned=True, rows=ROWS)
    said = [json.loads(cell.setting.learning) for cell in cells if cell.setting.learning]
    assert all(one.get("captioned") for one in said[:3]) and not all(one.get("captioned") for one in said)
    without = [cell for cell in cells if cell.label == "the photo without its caption"]
    assert {cell.setting.system for cell in without} == {name for name, one in DEMO_SYSTEMS.items() if one.learns} - {
        "ProFusion, plain",
        "ProFusion, L2",
    }
    for cell in without:
        learning = json.loads(cell.setting.learning)
        assert cell.question == 4 and json.loads(cell.reference.learning) == learning | {"captioned": True}
        assert cell.reference.config("at sea").caption == "at sea" and cell.setting.config("at sea").caption is None


def test_schedulers():
    found = {(cell.setting.sampling.scheduler, cell.setting.sampling.num_inference_steps) for cell in of(5)}
    assert found == set(SCHEDULES)


def test_a_study_without_ours_asks_what_it_can():
    cells = make_plan({"Stable Diffusion": SYSTEMS["Stable Diffusion"]})
    assert {cell.question for cell in cells} == {1, 2} and not any(cell.reference for cell in cells)


def test_plans_come_back_and_add_up(tmp_path):
    save_plan(tmp_path, of(1))
    assert load_plan(tmp_path) == of(1)
    save_plan(tmp_path, of(5))
    save_plan(tmp_path, of(3))
    assert load_plan(tmp_path) == of(1) + of(3) + of(5)
    save_plan(tmp_path, CELLS)
    assert sorted(map(repr, load_plan(tmp_path))) == sorted(map(repr, dict.fromkeys(CELLS)))


def test_bad_input():
    with pytest.raises(ValueError, match="A question must be one of 1, 2, 3, 4, 5, got 6"):
        make_plan(SYSTEMS, questions=[6])
    with pytest.raises(ValueError, match="`rows` must allow one step of PromptNet at least, got 4"):
        steps_within(SYSTEMS["PromptNet"], Sampling(), 4)
