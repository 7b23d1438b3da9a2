"""A run: every picture once, the same whoever draws it, going on where it stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evaluations import LEARNING, QUICK, WORDS, Colours, make_subjects, quick_cells
from profusion_pipeline.evaluation.plan import load_plan, make_plan, settings_of
from profusion_pipeline.evaluation.rows import read_about, read_rows
from profusion_pipeline.evaluation.run import describe, evaluate, picture_generator
from profusion_pipeline.evaluation.systems.baselines import SYSTEMS, get_system
from rivals import listening_pipeline, write_rivals

SEEDS = settings_of(quick_cells())
PICTURES = sum(seeds * 2 * 3 for seeds in SEEDS.values())


@pytest.fixture(scope="module")
def pipe():
    return listening_pipeline()


def scores(folder) -> dict:
    """What must be the same, however a run came about: all but seconds and memory."""
    return {row.key: (row.scores, row.unet_rows) for row in read_rows(folder / "rows")}


def assert_same(found: dict, expected: dict) -> None:
    """The same rows; who else is in a batch changes a score by what rounding does to a pixel."""
    assert found.keys() == expected.keys()
    for key, (values, rows) in expected.items():
        assert found[key][0] == pytest.approx(values, abs=1e-3) and found[key][1] == rows


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """(folder, measure, progress) of a run of one process."""
    folder, measure = tmp_path_factory.mktemp("whole"), Colours()
    progress = list(evaluate(pipe, QUICK, make_subjects(), [measure], quick_cells(), folder, **WORDS))
    return folder, measure, progress


def test_every_picture_has_a_row(whole):
    folder, measure, progress = whole
    wanted = {
        (setting, subject.name, prompt, seed)
        for setting, seeds in SEEDS.items()
        for subject in make_subjects()
        for prompt in subject.prompts
        for seed in range(seeds)
    }
    assert scores(folder).keys() == wanted and len(wanted) == PICTURES
    assert load_plan(folder / "rows") == quick_cells()
    assert progress[-1].done == progress[-1].total == sum(one.drawn for one in progress) == PICTURES
    for row in read_rows(folder / "rows"):
        assert row.unet_rows == QUICK[row.setting.system].unet_rows(row.setting.sampling) <= 10
        assert row.seconds > 0 and (row.gib > 0 or np.isnan(row.gib)) and "thread" in row.machine


def test_the_most_important_setting_comes_first(whole):
    seen = list(dict.fromkeys(one.setting for one in whole[2]))
    assert seen == list(SEEDS)


def test_subjects_are_drawn_together_where_a_system_can(pipe, whole, tmp_path):
    """And the scores are those of one after another."""
    together = list(evaluate(pipe, QUICK, make_subjects(), [Colours()], quick_cells(), tmp_path, **WORDS, batch_size=8))
    sizes = {one.setting.system: len(one.subjects) for one in together if one.subjects[0] == "person-0"}
    assert sizes == {"Stable Diffusion": 2, "PromptNet": 2, "ProFusion": 2, "Textual Inversion": 1}
    assert_same(scores(tmp_path), scores(whole[0]))


def test_systems_begin_with_the_same_noise_and_see_their_subject(pipe, whole):
    """A picture drawn by hand is the one that was measured."""
    folder, measure, _ = whole
    subject, prompt = make_subjects()[1], "S* on the beach"
    (setting,) = [one for one in SEEDS if one.system == "PromptNet" and one.sampling.num_fusion_steps == 1]
    image = pipe(
        prompt,
        subject.photos[0],
        class_noun="a man",
        num_inference_steps=setting.sampling.num_inference_steps,
        generator=picture_generator("person-1", prompt, 1),
        output_type="np",
    ).images[0]
    found = scores(folder)[setting, "person-1", prompt, 1][0]
    assert found["colour identity"] == pytest.approx(image.mean(), abs=2e-3)


def test_mixed_precision_is_for_drawing_alone(pipe, whole, tmp_path):
    """What is learnt is the same to the bit; pictures are those of autocast."""
    list(evaluate(pipe, QUICK, make_subjects(), [Colours()], quick_cells(), tmp_path, **WORDS, mixed_precision="bf16"))
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert files
    for file in files:
        there, here = load_file(whole[0] / file.relative_to(tmp_path)), load_file(file)
        assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in here)
    found, full = scores(tmp_path), scores(whole[0])
    pairs = np.array([[list(values.values()) for values in (found[key][0], full[key][0])] for key in full])  # [P, 2, C]
    differences = abs(pairs[:, 0] - pairs[:, 1])
    assert 0 < differences.mean() < 0.02


def test_two_workers_share_a_run(pipe, whole, tmp_path):
    for worker in (1, 0):
        run = evaluate(
            pipe, QUICK, make_subjects(), [Colours()], quick_cells(), tmp_path, **WORDS, worker=worker, workers=2
        )
        assert {name for one in run for name in one.subjects} == {f"person-{i}" for i in range(worker, 3, 2)}
    assert sorted(path.name for path in (tmp_path / "rows").glob("*.csv")) == ["rows-0.csv", "rows-1.csv"]
    assert_same(scores(tmp_path), scores(whole[0]))


def test_a_run_that_was_stopped_goes_on(pipe, whole, tmp_path):
    def run(cells):
        return evaluate(pipe, QUICK, make_subjects(), [Colours()], cells, tmp_path, **WORDS)

    for progress in run(quick_cells()):
        if progress.setting.system == "ProFusion":
            break
    learnt = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert 0 < len(read_rows(tmp_path / "rows")) < PICTURES and learnt
    done = progress.done
    first = next(run(quick_cells()))
    assert first.done == done + first.drawn
    list(run(quick_cells()))
    assert_same(scores(tmp_path), scores(whole[0]))
    assert all(path.stat().st_mtime_ns == when for path, when in learnt.items())  # nothing is learnt twice
    assert list(run(quick_cells())) == []


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from evaluations import QUICK, WORDS, Colours, make_subjects, quick_cells
from profusion_pipeline.evaluation.run import evaluate
from rivals import listening_pipeline
for one in evaluate(listening_pipeline(), QUICK, make_subjects(), [Colours()], quick_cells(), {folder!r}, **WORDS):
    print(one.done, flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_gives_the_same_rows(pipe, whole, tmp_path):
    """Killed in the midst of learning and of writing, at three moments, by a signal that nothing can catch."""
    script = SCRIPT.format(path=[str(Path(__file__).parents[1])], folder=str(tmp_path))
    for lines in (1, 2, 3):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            for _ in range(lines):
                process.stdout.readline()
            time.sleep(0.05 * lines)
            os.kill(process.pid, signal.SIGKILL)
    assert len(read_rows(tmp_path / "rows")) < PICTURES
    list(evaluate(pipe, QUICK, make_subjects(), [Colours()], quick_cells(), tmp_path, **WORDS))
    assert_same(scores(tmp_path), scores(whole[0]))


def test_what_was_learnt_is_kept_with_what_it_cost(whole):
    files = sorted(whole[0].rglob("*.safetensors"))
    assert len(files) == 2 * 3  # Textual Inversion and ProFusion, once for both of its samplings
    with safe_open(files[0], "pt") as file:
        assert set(file.metadata()) == {"seconds", "gib", "machine"} and float(file.metadata()["seconds"]) > 0


def test_another_model_is_another_run(whole):
    other = listening_pipeline()
    with torch.no_grad():
        other.unet.conv_in.weight.neg_()
    run = evaluate(other, QUICK, make_subjects(), [Colours()], quick_cells(), whole[0], **WORDS)
    with pytest.raises(ValueError, match="holds rows of another run: its `model` is"):
        next(run)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"subjects": [make_subjects(4)[3], *make_subjects()[1:]]}, None),  # somebody else is welcome
        ({"class_noun": "a dog"}, "class_noun"),
        ({"learning_prompt": "a picture of S*"}, "learning_prompt"),
        ({"mixed_precision": "bf16"}, "mixed_precision"),
    ],
)
def test_other_settings_are_another_run(pipe, whole, changes, name):
    given = {"subjects": make_subjects(), **WORDS} | changes
    run = evaluate(pipe, QUICK, given.pop("subjects"), [Colours()], [], whole[0], **given)
    if name is None:
        assert list(run) == [] and "person-3" in read_about(whole[0] / "rows")["subjects"]
        return
    with pytest.raises(ValueError, match=f"holds rows of another run: its `{name}` is"):
        next(run)


def test_a_description_holds_weights_by_their_hash_and_not_their_place(tmp_path):
    descriptions = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        weights = write_rivals(tmp_path / name)
        descriptions.append(describe(get_system("PromptNet, L2", weights=weights)))
    assert descriptions[0] == descriptions[1] and len(descriptions[0]["pretrained"]) == 16
    assert descriptions[0] != describe(get_system("PromptNet, plain", weights=weights))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(worker=2, workers=2), "`worker` must be 0 to 1 with 2 workers, got 2"),
        (dict(subjects=[]), "`subjects` must hold one at least, got none"),
        (dict(subjects=make_subjects(1) * 2), "must have names of their own, got several of 'person-0'"),
        (dict(learning_prompt="a photo"), r"exactly once, got it 0 times in 'a photo'"),
    ],
)
def test_bad_input(pipe, tmp_path, settings, sentence):
    given = {"subjects": make_subjects(1), **WORDS} | settings
    run = evaluate(pipe, QUICK, given.pop("subjects"), [Colours()], quick_cells(), tmp_path, **given)
    with pytest.raises(ValueError, match=sentence):
        next(run)


def test_weights_that_are_not_there_are_missed_before_any_work(pipe, tmp_path):
    systems = QUICK | {"E4T": SYSTEMS["E4T"]}
    cells = make_plan(systems, learning=LEARNING, rows=10, questions=[1])
    with pytest.raises(FileNotFoundError, match="E4T is pre-trained, but its weights 'e4t' are not in None"):
        next(evaluate(pipe, systems, make_subjects(), [Colours()], cells, tmp_path, **WORDS))
    assert not list(tmp_path.iterdir())


def test_noise_is_of_subject_prompt_and_seed_alone():
    seeds = {
        picture_generator(*key).initial_seed() for key in [("a", "b", 0), ("a", "b", 1), ("a", "c", 0), ("d", "b", 0)]
    }
    assert len(seeds) == 4
