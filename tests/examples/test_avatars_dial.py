"""The dial: equal rows and trials for every way to draw, the pair that validation people choose, the figure."""

import numpy as np
import pytest
from dial import DIAL, REFERENCE, ROWS, WAYS, best_scales, confirmed, differences, notches, redraw, table, variants
from frontier import main
from frontier_tables import Rows


def test_every_way_has_as_many_rows_and_trials():
    assert len({len(scales) for _, _, scales in WAYS.values()}) == 1
    for (_, way), variant in variants().items():
        assert ROWS - 3 <= variant.call["num_inference_steps"] * WAYS[way][0] <= ROWS
    assert len(variants()) == len(notches()) * len(WAYS) and len(notches()) == len(DIAL) + 3
    assert len({variant.key for variant in variants().values()}) == len(variants())


@pytest.fixture
def rows(tmp_path) -> Rows:
    """Made up: fusion as published is 0.1 ahead in both where S* drowns the prompt, all else is alike."""
    rows, generator = Rows(tmp_path / "dial.jsonl"), np.random.default_rng(0)
    for person in [f"validation-{i:03d}" for i in range(3)] + [f"test-{i:03d}" for i in range(4)]:
        noise = generator.normal(0, 0.02, (2, 10))
        for (notch, way), variant in variants().items():
            ahead = 0.1 * (way == "fusion as published" and notch in ("200 steps", "400 steps"))
            for number, scales in enumerate(variant.scales):
                rows.add(variant, scales, person, 0.6 + ahead + 0.05 * (number == 2) + noise)
    return rows


def test_the_best_pair_is_chosen_and_confirmed(rows):
    chosen, people = confirmed(rows)
    assert people == [f"test-{i:03d}" for i in range(4)]
    assert all(chosen[notch, way] == [WAYS[way][2][2]] for notch, way in variants())
    assert best_scales(rows, variants(), ()) == chosen


def test_the_difference_from_mixed_is_seen_where_it_is(rows):
    chosen, people = confirmed(rows)
    found = differences(rows, people, chosen)
    assert all(way != REFERENCE for _, way in found)
    for (notch, way), one in found.items():
        wins = way == "fusion as published" and notch in ("200 steps", "400 steps")
        assert one.mean == pytest.approx(0.1 * wins, abs=1e-5) and (one.low > 0) == wins


def test_the_page_gets_table_and_plot(rows, tmp_path):
    document = tmp_path / "study.md"
    document.write_text("<!-- dial -->\n<!-- /dial -->\n")
    redraw(tmp_path, document)
    assert table(rows) in document.read_text(encoding="utf-8")
    assert (tmp_path / "images" / "dial.png").stat().st_size > 0


@pytest.mark.slow
def test_a_person_is_drawn_at_one_notch(tmp_path):
    known = {name: variant for name, variant in variants().items() if name[0] == "0 steps" and name[1] != "S* alone"}
    few = {name: one for name, one in list(known.items())[:1]}
    rows = main(few, work=tmp_path, people=1, test_people=1, chooser=best_scales)
    (variant,) = few.values()
    assert len(rows.known) == len(variant.scales) + 1
