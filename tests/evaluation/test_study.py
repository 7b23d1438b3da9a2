"""A study from a folder of pictures to a document, with a tiny pipeline on disk and a measure of one's own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluations import write_subjects
from profusion_pipeline.evaluation import study
from profusion_pipeline.evaluation.config import EvaluationConfig
from profusion_pipeline.evaluation.plan import load_plan
from profusion_pipeline.evaluation.rows import read_rows
from profusion_pipeline.evaluation.study import choose_systems, collect_run, evaluate_folder, redraw, shown_columns
from profusion_pipeline.evaluation.systems.baselines import SYSTEMS
from rivals import listening_pipeline

PLACE = dict(device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a pipeline, subjects and prompts."""
    folder = tmp_path_factory.mktemp("study")
    listening_pipeline().save_pretrained(folder / "model")
    write_subjects(folder / "people")
    (folder / "prompts.txt").write_text("a photo of S*\nS* on the beach\n")
    return folder


@pytest.fixture
def make_config(folder):
    base = EvaluationConfig(
        model=str(folder / "model"),
        subjects=str(folder / "people"),
        prompts=str(folder / "prompts.txt"),
        output=str(folder / "out"),
        systems=("Stable Diffusion", "PromptNet"),
        metrics=("evaluations:Brightness",),
        unet_rows=10,
        questions=(1,),
    )
    return lambda **changes: replace(base, **changes)


def test_from_a_folder_to_a_document(folder, make_config):
    *lines, document = evaluate_folder(make_config(), **PLACE)
    assert lines[-1].startswith("worker 0: 24 of 24 pictures")
    text = (folder / "out" / "study.md").read_text()
    assert document == str(folder / "out" / "study.md")
    assert "| PromptNet, m = 1 |  | 2 | 10 | 2 | 8 |" in text
    assert (folder / "out" / "images" / "study_1.png").is_file() and "](images/study_1.png)" in text


def test_a_run_goes_on_only_if_it_is_told_to(folder, make_config):
    list(evaluate_folder(make_config(output=str(folder / "again")), **PLACE))
    with pytest.raises(FileExistsError, match="'.*again' holds rows of a run already: --resume goes on with it"):
        next(evaluate_folder(make_config(output=str(folder / "again")), **PLACE))
    more = make_config(output=str(folder / "again"), resume=True, questions=(1, 2))
    lines = list(evaluate_folder(more, **PLACE))
    assert lines[0].startswith("worker 0: 28 of ")  # the first question's are there
    assert {cell.question for cell in load_plan(folder / "again" / "rows")} == {1, 2}


def test_tables_and_plots_are_made_from_rows_alone(folder, make_config, tmp_path):
    """Of two workers; collected, with another document, and without a model."""
    for worker in range(2):
        list(evaluate_folder(make_config(output=str(tmp_path / "run"), worker=worker, workers=2), **PLACE))
    assert not (tmp_path / "run" / "study.md").exists()
    (document,) = evaluate_folder(EvaluationConfig(output=str(tmp_path / "run"), redraw=True), **PLACE)
    collect_run(tmp_path / "run" / "rows", tmp_path / "home")
    again = redraw(tmp_path / "home", tmp_path / "elsewhere.md")
    assert again.read_text() == Path(document).read_text().replace("study_1", "elsewhere_1")
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == [
        "costs.csv", "plan.jsonl", "rows.csv.gz", "run.json",
    ]  # fmt: skip
    assert list(map(repr, read_rows(tmp_path / "home"))) == list(map(repr, read_rows(tmp_path / "run" / "rows")))


@pytest.mark.slow
def test_costs_are_measured_alone_and_drawn(make_config, tmp_path):
    config = make_config(output=str(tmp_path), systems=("PromptNet",), questions=(6,))
    lines = list(evaluate_folder(config, **PLACE))
    assert [line.split(":")[0] for line in lines[:2]] == ["PromptNet, m = 1", "PromptNet, m = 0"]
    text = (tmp_path / "study.md").read_text()
    assert "<!-- question 6 -->" in text and "| PromptNet, m = 1 | " in text
    assert (tmp_path / "images" / "study_6.png").is_file()


def test_without_weights_all_systems_are_those_that_need_none(tmp_path):
    assert set(choose_systems(EvaluationConfig(output="out"))) == {
        name for name, system in SYSTEMS.items() if not system.pretrained
    }
    assert list(choose_systems(EvaluationConfig(output="out", weights=str(tmp_path)))) == list(SYSTEMS)
    assert list(choose_systems(EvaluationConfig(output="out", systems=("E4T",)))) == ["E4T"]


def test_what_plots_show():
    columns = ["clip-rn50 prompt", "sface image", "dino-vits16 image", "clip-rn50 image", "clip-rn50 diversity"]
    assert shown_columns(columns) == ("clip-rn50 prompt", "sface image")
    with pytest.raises(ValueError, match="must have one that compares with texts, got the scores"):
        shown_columns(["sface image"])


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        (
            dict(systems=("ProFusion", "IP-Adapter")),
            ValueError,
            "must be one of 'Stable Diffusion', .*, got 'IP-Adapter'",
        ),
        (dict(metrics=("FID",)), ValueError, "A metric must be one of clip-vit-b-32, .*, got 'FID'"),
        (
            dict(metrics=("evaluations:Bare",)),
            TypeError,
            "A metric must be called with pictures and name its scores in `columns`",
        ),
        (dict(metrics=("evaluations:Textless",)), ValueError, "must have one that compares with texts"),
        (dict(metrics=("evaluations:Numberless",)), ValueError, "must return one number for each picture"),
        (dict(subjects=None), ValueError, "`subjects` must be given, unless --redraw"),
        (dict(prompts="nowhere.txt"), ValueError, "The file of prompts must exist, 'nowhere.txt' does not"),
        (dict(systems=("E4T",)), FileNotFoundError, "E4T is pre-trained, but its weights 'e4t' are not in None"),
        (dict(output="nowhere", redraw=True), FileNotFoundError, "There is no run in 'nowhere.rows'"),
    ],
)
def test_bad_input(make_config, changes, kind, sentence, tmp_path):
    config = make_config(**{"output": str(tmp_path / "out")} | changes)
    with pytest.raises(kind, match=sentence):
        next(evaluate_folder(config, **PLACE))
    assert not (tmp_path / "out").exists()


def test_a_model_is_a_folder_or_the_demo(folder):
    pipe = study.open_model(str(folder / "model"), "cpu", torch.float32)
    assert pipe.unet.dtype == torch.float32 and pipe._progress_bar_config == {"disable": True}
