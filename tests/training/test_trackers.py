"""A run reports to accelerate's trackers: to tensorboard, and to one of this file that writes JSON lines, offline."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from profusion_pipeline.cli import main
from profusion_pipeline.training import trackers
from profusion_pipeline.training.trackers import chosen_trackers, report_picture
from profusion_pipeline.training.trainer import train_promptnet
from training import log_of, short_run, write_base, write_portraits


class Notes(GeneralTracker):
    """A tracker as somebody writes one: everything that it is told, as lines of JSON."""

    name = "notes"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir, **kwargs):
        super().__init__()
        self.path = Path(logging_dir, f"{run_name}.jsonl")

    @property
    def tracker(self):
        return self.path

    def _write(self, **line) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def store_init_configuration(self, values: dict):
        self._write(settings=values)

    def log(self, values: dict, step: int | None = None, **kwargs):
        self._write(**values | {"step": step})

    def log_images(self, values: dict, step: int | None = None, **kwargs):
        self._write(step=step, pictures={name: [list(one.shape) for one in some] for name, some in values.items()})

    def finish(self):
        self._write(finished=True)


@pytest.fixture
def notes(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notes", Notes)  # as accelerate's register_tracker_class does


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "portraits").mkdir()
    data = write_portraits(tmp_path / "portraits")
    return dict(model=write_base(tmp_path / "base"), data=data, output=tmp_path / "run")


def test_names(monkeypatch, notes):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    assert chosen_trackers([]) == ["tensorboard"] and chosen_trackers(["none"]) == []
    assert chosen_trackers(["all"]) == ["notes", "tensorboard"]
    assert chosen_trackers(["notes", "tensorboard", "notes"]) == ["notes", "tensorboard"]
    with pytest.raises(ValueError, match=r"accelerate's trackers \(.*tensorboard, wandb, .*\), all or none, got 'x'"):
        chosen_trackers(["x"])
    with pytest.raises(ValueError, match="`report_to` must be 'all' or 'none' alone, or names, got .*'all', 'wandb'"):
        chosen_trackers(["all", "wandb"])
    with pytest.raises(ImportError, match="`report_to` names wandb, which isn't installed: `pip install wandb`"):
        chosen_trackers(["wandb"])
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    assert chosen_trackers([]) == []


def test_a_missing_package_is_told_before_any_work(folders, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    words = [f"--{name}={path}" for name, path in folders.items()]
    assert main(["train", *words, "--report-to", "wandb"]) == 1
    assert "`report_to` names wandb, which isn't installed" in capsys.readouterr().err
    assert not folders["output"].exists()


@pytest.mark.usefixtures("fresh_accelerate", "notes")
def test_a_run_tells_two_trackers_all_and_no_place(folders):
    shown = dict(validation_every=4, validation_prompts=("S*",), validation_inference_steps=1)
    photo = str(folders["data"] / "anna-0.png")
    config = short_run(**folders, **shown, validation_images=(photo,), report_to=("tensorboard", "notes"), max_steps=4)
    train_promptnet(config)
    text = (folders["output"] / "profusion.jsonl").read_text()
    first, *lines, last = map(json.loads, text.splitlines())
    assert first["settings"]["learning_rate"] == 1e-3 and "model" not in first["settings"]
    assert str(folders["data"].parent) not in text
    assert [line for line in lines if "loss" in line] == log_of(folders["output"])
    assert [line for line in lines if "pictures" in line] == [{"step": 4, "pictures": {"validation": [[16, 32, 3]]}}]
    assert last == {"finished": True}
    events = EventAccumulator(str(folders["output"] / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4] and events.Images("validation")[0].step == 4


@pytest.mark.usefixtures("fresh_accelerate")
def test_none_writes_nothing_but_the_log(folders):
    train_promptnet(short_run(**folders, report_to=("none",), max_steps=1))
    assert {path.name for path in folders["output"].iterdir() if path.suffix != ".lock"} == {"promptnet", "log.jsonl"}


@pytest.mark.parametrize(("name", "shape"), [("wandb", [(2, 3, 3)]), ("aim", (2, 3, 3)), ("clearml", (2, 3, 3))])
def test_each_tracker_gets_pictures_in_its_form(name, shape):
    """As the docstrings of accelerate's trackers say: a list of them, or the picture itself."""
    shown = {}
    tracker = SimpleNamespace(name=name, log_images=lambda values, step: shown.update(values, step=step))
    report_picture(tracker, "faces", Image.new("RGB", (3, 2)), 7)
    faces = shown["faces"]
    assert shown["step"] == 7
    assert ([one.shape for one in faces] if isinstance(faces, list) else np.shape(faces)) == shape
    report_picture(SimpleNamespace(name="mlflow"), "faces", Image.new("RGB", (3, 2)), 7)  # which takes none
