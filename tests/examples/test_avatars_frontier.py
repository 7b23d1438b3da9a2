"""The frontier of identity and prompt: its geometry, its rows, and one person from the grid to the tables."""

import json

import numpy as np
import pytest
from frontier import main
from frontier_tables import (
    AREA,
    DOCUMENT,
    PUBLISHED,
    Rows,
    Variant,
    area,
    choose,
    chosen_scales,
    confirmed_table,
    frontier,
    kinds_table,
    plot,
    prompt_at,
    read_scales,
    read_variants,
    redraw,
    validation_people,
    validation_table,
)
from score import reference_portrait
from study import photo_caption

POINTS = np.array([[0.8, 0.6], [0.6, 0.9], [0.7, 0.7], [0.5, 0.8], [0.8, 0.5]])  # the last two are beaten
GRID = ((2.5, 5.0), (5.0, 2.5))


def test_the_frontier_is_what_no_other_point_beats():
    assert frontier(POINTS).tolist() == [[0.6, 0.9], [0.7, 0.7], [0.8, 0.6]]
    assert frontier(POINTS[::-1]).tolist() == frontier(POINTS).tolist()


def test_between_its_points_it_is_straight_and_beyond_them_nothing():
    assert prompt_at(POINTS, 0.65) == pytest.approx(0.8)
    assert prompt_at(POINTS, 0.1) == 0.9
    assert np.isnan(prompt_at(POINTS, 0.81))
    assert area(np.array([[0.9, 0.7]])) == pytest.approx(0.7)
    assert area(np.array([[0.7, 0.7]])) == pytest.approx(0.7 * 41 / len(AREA))
    assert area(POINTS + 0.01) > area(POINTS) > area(POINTS[2:])


def test_the_best_prompt_that_keeps_an_identity_is_chosen():
    assert [choose(POINTS, identity) for identity in (0.55, 0.65, 0.75, 0.85)] == [1, 2, 0, None]


def rows_of(tmp_path, *, ahead: float) -> tuple[Rows, dict[str, Variant]]:
    """Made up: the second variant has `ahead` more of the prompt, everybody else the same."""
    rows, generator = Rows(tmp_path / "rows.jsonl"), np.random.default_rng(0)
    variants = {"shipped": Variant(), "captioned": Variant(caption="right", learning={"steps": 50})}
    for person in [f"validation-{i:03d}" for i in range(5)] + [f"test-{i:03d}" for i in range(4)]:
        shift = generator.normal(0, 0.03, (2, 10))
        for scales, means in zip(GRID, ((0.7, 0.8), (0.8, 0.6)), strict=True):
            for number, variant in enumerate(variants.values()):
                rows.add(variant, scales, person, np.array(means)[:, None] + [[0], [ahead * number]] + shift)
    return rows, variants


def test_rows_come_back_from_the_file(tmp_path):
    rows, _ = rows_of(tmp_path, ahead=0.1)
    again = Rows(tmp_path / "rows.jsonl")
    assert again.known.keys() == rows.known.keys()
    assert all(np.allclose(scores, again.known[key], atol=1e-6) for key, scores in rows.known.items())


def test_the_tables_say_by_how_much_the_second_is_ahead(tmp_path):
    rows, variants = rows_of(tmp_path, ahead=0.1)
    first, second = validation_table(rows, variants, GRID).splitlines()[-2:]
    assert first.split(" | ")[2] == ""
    difference, low = second.split(" | ")[2].split(" (")
    assert float(difference) == pytest.approx(0.1 * np.mean(AREA < 0.8), abs=0.02) and float(low.split()[0]) > 0
    people = validation_people(rows, variants, GRID)
    assert len(people) == 5
    mean = rows.points(variants["captioned"], GRID, people).mean(axis=(0, 1))
    assert mean == pytest.approx([0.75, 0.8], abs=0.03)
    lines = confirmed_table(rows, variants, GRID).splitlines()[2:]
    assert [line.split(" | ")[-1].strip("| ") for line in lines if line.startswith("| captioned")] == [
        "+0.100 (+0.100 to +0.100)"
    ] * sum(line.startswith("| captioned") for line in lines)
    assert len(lines) >= 4 and all(" | 4 | " in line for line in lines)
    plot(rows, variants, GRID, tmp_path / "images" / "frontier.png")
    assert (tmp_path / "images" / "frontier.png").stat().st_size > 0


def test_equal_variants_are_not_told_apart(tmp_path):
    rows, variants = rows_of(tmp_path, ahead=0.0)
    chosen = chosen_scales(rows, variants, GRID)
    assert chosen["shipped"] == chosen["captioned"]
    assert validation_table(rows, variants, GRID).splitlines()[-1].split(" | ")[2] == "0.000 (0.000 to 0.000)"


def test_each_kind_of_prompt_has_its_column(tmp_path):
    rows, variants = rows_of(tmp_path, ahead=0.1)
    header, _, first, second = kinds_table(rows, variants, GRID).splitlines()
    assert "| clothes | glasses | hat | place | colour | expression | style | two things |" in header
    gains = [float(b) - float(a) for a, b in zip(first.split("|")[3:-1], second.split("|")[3:-1], strict=True)]
    assert gains == pytest.approx([0.1] * 8, abs=0.011)


def test_a_caption_is_right_halved_or_has_one_part_wrong():
    for number in range(20):
        control = reference_portrait(number, "validation").control
        right, half, wrong = (photo_caption(control, kind, number).split(", ") for kind in ("right", "half", "wrong"))
        assert len(right) == len(wrong) == 3 and len(half) == 1 + number % 2
        assert set(half) < set(right)
        assert len(set(right) - set(wrong)) == 1


def test_an_unknown_kind_of_caption_is_refused():
    with pytest.raises(ValueError, match="`caption` must be one of"):
        Variant(caption="auto")


def test_variants_and_scales_are_read(tmp_path):
    (tmp_path / "variants.json").write_text(json.dumps({"a": {}, "b": {"call": {"guidance_rescale": 0.5}}}))
    assert read_variants(str(tmp_path / "variants.json")) == {
        "a": Variant(),
        "b": Variant(call={"guidance_rescale": 0.5}),
    }
    assert read_scales("2.5,5") == (2.5, 5.0)


def test_one_person_from_the_grid_to_the_rows(tmp_path):
    variants = {"shipped": Variant(), "captioned": Variant(caption="right", learning={"steps": 1})}
    settings = dict(work=tmp_path, grid=GRID[:1], people=1, test_people=0, num_inference_steps=1)
    rows = main(variants, **settings)
    assert len(rows.known) == 2
    assert all(scores.shape == (2, 10) and np.nanmin(scores) >= 0 for scores in rows.known.values())
    assert len(list(tmp_path.glob("concepts/*/validation-000"))) == 1
    before = (tmp_path / "rows.jsonl").read_text()
    main(variants, **settings)  # nothing is missing
    assert (tmp_path / "rows.jsonl").read_text() == before


def test_the_page_holds_what_the_stored_rows_say(tmp_path):
    document = tmp_path / "study.md"
    document.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    assert redraw(PUBLISHED, document).read_text(encoding="utf-8") == DOCUMENT.read_text(encoding="utf-8")
