"""Rows: what is written comes back, kills cut nothing but the last line, runs are not mixed."""

import csv
import math
from dataclasses import replace

import pytest

from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.evaluation.rows import (
    Row,
    RowWriter,
    Setting,
    check_columns,
    collect_rows,
    learning_text,
    open_run,
    read_rows,
)
from profusion_pipeline.evaluation.systems.system import Sampling

COLUMNS = ["reader identity", "reader prompt"]
SETTINGS = [
    Setting("Stable Diffusion", "", Sampling(num_inference_steps=25, scheduler="DPM++ 2M", guidance=0.5)),
    Setting(
        "PromptNet, L2",
        '{"steps": 50}',
        Sampling(num_fusion_steps=2, fusion_eta=0.3, fusion_text="mixed", subject_every=4, base_guidance=True),
    ),
]


def make_row(setting=SETTINGS[0], subject="ada", prompt='S*, "at sea"', seed=0, identity=0.123456, **changes) -> Row:
    scores = dict(zip(COLUMNS, (identity, math.nan), strict=True))
    given = dict(scores=scores, unet_rows=50, seconds=1.23456, gib=0.5, machine="a laptop, 2 threads") | changes
    return Row(setting, subject, prompt, seed, **given)


def test_rows_come_back(tmp_path):
    rows = [make_row(setting, seed=seed) for setting in SETTINGS for seed in range(2)]
    with RowWriter(tmp_path, 3, COLUMNS) as writer:
        writer.add(rows[:1])
        writer.add(rows[1:])
    found = read_rows(tmp_path)
    assert {row.key for row in found} == {row.key for row in rows}
    row = next(row for row in found if row.key == rows[0].key)
    assert row.scores["reader identity"] == 0.12346 and math.isnan(row.scores["reader prompt"])
    assert (row.unet_rows, row.seconds, row.gib, row.machine) == (50, 1.235, 0.5, "a laptop, 2 threads")


def test_every_setting_has_a_column(tmp_path):
    with RowWriter(tmp_path, 0, COLUMNS) as writer:
        writer.add([make_row(SETTINGS[1])])
    with (tmp_path / "rows-0.csv").open(newline="") as file:
        (cells,) = csv.DictReader(file)
    assert set(vars(Sampling())) < set(cells)
    assert (cells["fusion_eta"], cells["fusion_subject_scale"], cells["base_guidance"]) == ("0.3", "", "True")
    assert (cells["system"], cells["learning"]) == ("PromptNet, L2", '{"steps": 50}')


def test_rows_from_before_a_setting_was_there_have_its_default(tmp_path):
    with RowWriter(tmp_path, 0, COLUMNS) as writer:
        writer.add([make_row()])
    file = tmp_path / "rows-0.csv"
    with file.open(newline="") as lines:
        cells = [{k: v for k, v in row.items() if k != "subject_every"} for row in csv.DictReader(lines)]
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, cells[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
    assert [row.key for row in read_rows(tmp_path)] == [make_row().key]


def test_what_a_kill_cut_short_is_no_row_and_does_not_stay(tmp_path):
    file = tmp_path / "rows-0.csv"
    with RowWriter(tmp_path, 0, COLUMNS) as writer:
        writer.add([make_row(seed=0)])
    whole = file.read_bytes()
    for cut in (1, 7, 60):
        file.write_bytes(whole + whole[whole.index(b"\n") + 1 :][:cut])
        assert len(read_rows(tmp_path)) == 1
        with RowWriter(tmp_path, 0, COLUMNS) as writer:
            writer.add([make_row(seed=1)])
        assert [row.seed for row in read_rows(tmp_path)] == [0, 1]
    file.write_bytes(whole[:20])  # not even the names are whole
    with RowWriter(tmp_path, 0, COLUMNS) as writer:
        writer.add([make_row(seed=2)])
    assert [row.seed for row in read_rows(tmp_path)] == [2]


def test_of_two_rows_of_the_same_the_later_counts(tmp_path):
    with RowWriter(tmp_path, 0, COLUMNS) as writer:
        writer.add([make_row(identity=0.25)])
        writer.add([make_row(identity=0.75)])
    assert [row.scores["reader identity"] for row in read_rows(tmp_path)] == [0.75]


def test_one_process_is_one_worker(tmp_path):
    with RowWriter(tmp_path, 0, COLUMNS), pytest.raises(ValueError, match="Worker 0 of this run is at work already"):
        RowWriter(tmp_path, 0, COLUMNS)
    with RowWriter(tmp_path, 0, COLUMNS), RowWriter(tmp_path, 1, COLUMNS):
        pass


def test_a_file_with_other_scores(tmp_path):
    RowWriter(tmp_path, 0, COLUMNS).file.close()
    with pytest.raises(ValueError, match="'.*rows-0.csv' has other columns than this run"):
        RowWriter(tmp_path, 0, ["sface image"])


def test_rows_of_another_run_are_not_mixed(tmp_path):
    about = {"model": "a" * 64, "columns": COLUMNS, "systems": {"A": {"scale": 5.0}}, "subjects": {"ada": "1"}}
    open_run(tmp_path, about)
    open_run(tmp_path, about)
    with pytest.raises(ValueError, match="its `model` is 'aaaa.*', that of this run 'b'. Rows of both can't be mixed"):
        open_run(tmp_path, about | {"model": "b"})
    with pytest.raises(ValueError, match=r"its `columns` is \[.*\], that of this run \['sface image'\]"):
        open_run(tmp_path, about | {"columns": ["sface image"]})
    with pytest.raises(
        ValueError, match=r"its `systems\['A'\]` is \{'scale': 5.0\}, that of this run \{'scale': 7.5\}"
    ):
        open_run(tmp_path, about | {"systems": {"A": {"scale": 7.5}}})
    with pytest.raises(ValueError, match=r"its `subjects\['ada'\]` is '1', that of this run '2'"):
        open_run(tmp_path, about | {"subjects": {"ada": "2"}})


def test_a_run_may_get_other_systems_and_subjects(tmp_path):
    open_run(tmp_path, {"subjects": {"ada": "1"}})
    open_run(tmp_path, {"subjects": {"bob": "2"}})
    with pytest.raises(ValueError, match=r"`subjects\['ada'\]`"):
        open_run(tmp_path, {"subjects": {"ada": "3"}})


def test_collected_rows_are_those_of_all_workers(tmp_path):
    run, target = tmp_path / "run", tmp_path / "target"
    open_run(run, {"columns": COLUMNS})
    for worker in range(2):
        with RowWriter(run, worker, COLUMNS) as writer:
            writer.add([make_row(seed=worker), make_row(SETTINGS[1], seed=worker)])
    collect_rows(run, target)
    assert sorted(path.name for path in target.iterdir()) == ["rows.csv.gz", "run.json"]
    # nan is no number, so as texts
    assert list(map(repr, read_rows(target))) == list(map(repr, read_rows(run)))
    collect_rows(run, target)
    assert len(read_rows(target)) == 4


def test_learning_is_what_differs_from_the_defaults():
    personal = dict(class_noun="man", prompt="a portrait of S*", caption="in a hat", seed=4)
    config = CustomizeConfig(steps=50, pool_size=1, **personal)
    with_caption, without = (learning_text(config, captioned=captioned) for captioned in (True, False))
    assert Setting("A", with_caption, Sampling()).config(**personal) == config
    setting = Setting("A", without, Sampling())
    assert setting.config(**personal) == replace(config, caption=None)
    assert Setting("A", with_caption, Sampling()).config() == CustomizeConfig(steps=50, pool_size=1)
    assert learning_text(CustomizeConfig()) == "{}"


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (["prompt"], "must have a name of its own and none of system, .*, got 'prompt'"),
        (["a", "a"], "must have a name of its own .*, got 'a'"),
        ([], "There must be one metric at least, got none"),
    ],
)
def test_bad_columns(columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_columns(columns)


def test_a_row_cut_inside_a_character_is_left_out_with_a_word(tmp_path, caplog):
    setting = Setting("A", "", Sampling(num_inference_steps=1))
    rows = [Row(setting, "zoë", "S*", seed, {"identity": 0.5}, 2, 1.0, 0.1, "a laptop") for seed in range(2)]
    with RowWriter(tmp_path, 0, ["identity"]) as writer:
        writer.add(rows)
    file = tmp_path / "rows-0.csv"
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex("ë".encode()) + 1])
    assert read_rows(tmp_path) == rows[:1]
    assert "rows-0.csv: the last row was cut short and is left out." in caplog.text
    with RowWriter(tmp_path, 0, ["identity"]) as writer:
        writer.add(rows[1:])
    assert read_rows(tmp_path) == rows
    assert file.read_bytes() == whole
