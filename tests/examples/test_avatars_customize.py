"""The study of what customising gains: which settings it varies, that it goes on where it stopped, what it prints."""

import numpy as np
import pytest
import score_customize
from score_customize import (
    COMPARED_AT,
    DEFAULT,
    FACTORS,
    MARKS,
    SAMPLERS,
    SNAPSHOTS,
    VARIANTS,
    Results,
    Setting,
    plot,
    settings,
    table,
    update_document,
)


def test_one_thing_is_varied_at_a_time():
    chosen = settings()
    assert len(set(chosen)) == len(chosen)
    assert {one.variant for one in chosen} == set(VARIANTS) and {one.sampler for one in chosen} == set(SAMPLERS)
    assert {one.steps for one in chosen} == {0, *SNAPSHOTS} and {one.factor for one in chosen} == {1.0, *FACTORS}
    assert {one.base_guidance for one in chosen} == {True, False}
    for one in chosen:
        changed = {name for name, value in vars(one).items() if value != vars(Setting())[name]}
        # Besides one thing, the sampler; for the curves the guidance, before and after; variants after fewer steps.
        assert len(changed - {"sampler"}) <= 1 or changed - {"sampler"} in ({"steps", "factor"}, {"steps", "variant"})
        assert one.variant == DEFAULT or one.steps == COMPARED_AT


def test_rows_come_back_from_the_file(tmp_path):
    first, second = Results(tmp_path / "scores.csv"), Results(tmp_path / "scores.csv")  # two workers
    first.add(Setting(), 0, 0.5, 0.25)
    second.add(Setting(base_guidance=True, factor=0.5), 1, 1.0, 0.75)
    again = Results(tmp_path / "scores.csv")
    assert again.rows == {(Setting(), 0): (0.5, 0.25), (Setting(base_guidance=True, factor=0.5), 1): (1.0, 0.75)}
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 3  # one line of names


@pytest.fixture
def results(tmp_path):
    """Made up, for every setting and three people."""
    filled, generator = Results(tmp_path / "scores.csv"), np.random.default_rng(0)
    for setting in settings():
        for person in range(3):
            filled.add(setting, person, *generator.uniform(0.3, 0.9, 2))
    return filled


def test_the_table_has_means_over_people_and_no_curves(results):
    lines = table(results).splitlines()
    assert len(lines) == 2 + sum(one.factor == 1 for one in settings())
    values = [results.rows[Setting(), person] for person in range(3)]
    (line,) = [line for line in lines if f"| {DEFAULT} | 100 | Fusion Sampling (m = 1) | the concept | 3 |" in line]
    identity, prompt = (cell.split()[0] for cell in line.strip("| ").split(" | ")[-2:])
    assert identity == f"{np.mean([one for one, _ in values]):.3f}"
    assert prompt == f"{np.mean([one for _, one in values]):.3f}"


def test_a_plot_of_what_is_there(results, tmp_path):
    plot(results, tmp_path / "images" / "whole.png")
    part = {key: scores for key, scores in results.rows.items() if key[0].variant == DEFAULT}
    results.rows = part
    plot(results, tmp_path / "part.png")
    assert (tmp_path / "images" / "whole.png").stat().st_size > (tmp_path / "part.png").stat().st_size > 0


def test_the_table_goes_between_the_marks(tmp_path):
    document = tmp_path / "customize.md"
    document.write_text(f"before {MARKS[0]} old {MARKS[1]} after")
    for _ in range(2):
        update_document("new", document)
    assert document.read_text() == f"before {MARKS[0]}\nnew\n{MARKS[1]} after"
    for mark in MARKS:
        assert score_customize.DOCUMENT.read_text(encoding="utf-8").count(mark) == 1


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """One person, two steps, with the demo model."""
    monkeypatch.setitem(VARIANTS, DEFAULT, {"pool_size": 2})
    wanted = [Setting(steps=0), Setting(steps=1), Setting(steps=2)]
    monkeypatch.setattr(score_customize, "settings", lambda: wanted[:1])
    run = dict(work=tmp_path, people=1, num_inference_steps=2, dtype="float32")
    score_customize.main(**run)
    monkeypatch.setattr(score_customize, "settings", lambda: wanted)
    rows = score_customize.main(**run).rows
    assert list(rows) == [(one, 0) for one in wanted]
    assert all(0 <= score <= 1 for scores in rows.values() for score in scores)
    kept = sorted(tmp_path.rglob("concept.safetensors"))
    assert [path.parent.name for path in kept] == ["1", "2"]
    times = [path.stat().st_mtime_ns for path in kept]
    (tmp_path / "scores.csv").unlink()  # the scores are lost, the concepts are not
    assert score_customize.main(**run).rows == rows
    assert [path.stat().st_mtime_ns for path in kept] == times
