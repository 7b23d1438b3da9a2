"""The scorer of the demo model: what it asks, what it counts, and that it reads true renders right."""

import random

import numpy as np
import pytest
import torch
from attributes import VALUES, AttributeReader, accuracy
from pictures import portraits, render_range
from score import MARKS, SCORER, Scored, agreement, control_prompts, reference_portrait, table, update_documents
from world import CONTROL_VALUES, IDENTITY_VALUES, STYLE_WORDS


@pytest.fixture(scope="module")
def reader():
    return AttributeReader.from_pretrained(SCORER / "reader", torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def renders():
    return portraits("test", 1500), render_range("test", 0, 1500)


def test_the_reader_is_right_on_true_renders_of_held_out_people(reader, renders):
    found = accuracy(reader, *renders)
    assert set(found) == set(VALUES)
    assert {name: share for name, (share, count) in found.items() if share < 0.97} == {}


def test_true_renders_agree_with_themselves_and_not_with_others(reader, renders):
    people, images = renders[0][:200], renders[1][:200]
    everything = [set(VALUES)] * 200
    assert np.nanmean(agreement(reader, images, people, everything)) > 0.97
    assert np.nanmean(agreement(reader, images, people[1:] + people[:1], everything)) < 0.5


def test_nothing_asked_or_nothing_visible_is_no_score(reader, renders):
    people, images = renders[0][:1], renders[1][:1]
    assert np.isnan(agreement(reader, images, people, [set()])).all()


def test_eight_prompts_about_the_subject_that_ask_for_what_they_say():
    for seed in range(50):
        prompts = control_prompts(random.Random(seed))
        assert len(prompts) == 8
        for text, asked in prompts:
            assert text.count("S*") == 1 and asked
            for name, value in asked.items():
                assert value in CONTROL_VALUES[name] and value != "none"
                said = STYLE_WORDS[value][0] if name == "style" else value.replace("tongue out", "sticking tongue out")
                assert said in text
        assert len({text for text, _ in prompts}) == 8


def test_a_reference_portrait_hides_nothing_of_the_person():
    for seed in range(20):
        portrait = reference_portrait(seed, "test")
        assert portrait.identity.split == "test"
        bald = portrait.identity.hair in ("bald", "balding")
        assert set(IDENTITY_VALUES) - portrait.visible() == {"brows", "nose"} | ({"hair_colour"} if bald else set())


def test_the_interval_is_over_people_and_holds_the_mean():
    person = np.repeat(np.arange(50), 4)
    values = np.random.default_rng(0).normal(0.5, 0.1, 50)[person]
    mean, low, high = Scored("", {"identity": values}, person).interval("identity")
    assert low < mean < high and mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 50**0.5, rel=0.3)  # pictures of one person are no new evidence
    values[0] = np.nan
    assert np.isfinite(Scored("", {"identity": values}, person).interval("identity")).all()


def test_the_table_stands_between_the_marks(tmp_path):
    row = Scored("one", {"identity": np.ones(4)}, np.arange(4))
    document = tmp_path / "README.md"
    document.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    for _ in range(2):
        update_documents(table([row]), (document,))
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("| one | 4 | 1.000 (1.000-1.000) |") == 1
