"""What the commands do, beside `profusion generate`, with tiny models."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline import Concept, CustomizeConfig, TrainingConfig
from profusion_pipeline.cli import build_parser, main
from profusion_pipeline.commands import config_of
from profusion_pipeline.evaluation.config import EvaluationConfig


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def test_demo(pipe, tmp_path, capsys, monkeypatch):
    """With a tiny model and two portraits in the place of the bundled ones."""
    from profusion_pipeline import demo
    from profusion_pipeline.demo.grid import PROMPTS, render_demo_grid

    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "portraits").mkdir()
    portraits = [Image.new("RGB", (16, 16), color) for color in ("orange", "navy")]
    for i, portrait in enumerate(portraits):
        portrait.save(tmp_path / "portraits" / f"{i}.png")
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    monkeypatch.setattr(
        demo.load_demo_pipeline,
        "__kwdefaults__",
        demo.load_demo_pipeline.__kwdefaults__ | {"folder": tmp_path / "model"},
    )

    out = tmp_path / "grid.png"
    assert main(["demo", "--seed", "3", "--steps", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = render_demo_grid(pipe, portraits, prompts=PROMPTS, seed=3, num_inference_steps=2)
    assert np.array_equal(pixels(out), np.asarray(expected))

    assert main(["demo", "--steps", "2", "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_training_config():
    words = ["train", "--model", "m", "--data", "d", "--output", "o", "--learning-rate", "1e-4", "--no-cache-latents"]
    words += ["--snr-gamma", "5", "--validation-every", "10", "--validation-images", "a.png", "b.png"]
    words += ["--validation-prompts", "S* on a hat"]
    assert config_of(build_parser().parse_args(words), TrainingConfig) == TrainingConfig(
        model="m",
        data="d",
        output="o",
        learning_rate=1e-4,
        cache_latents=False,
        snr_gamma=5.0,
        validation_every=10,
        validation_images=("a.png", "b.png"),
        validation_prompts=("S* on a hat",),
    )


def test_convert(tmp_path, capsys, monkeypatch):
    """One sentence for what is not there; the conversion itself is tested with `convert.py`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    assert main(["convert", "source", "target"]) == 1
    assert capsys.readouterr().err == "profusion: `target` must not exist yet, 'target' does: `force` replaces it.\n"
    assert main(["convert", "source", "target", "--force"]) == 1
    assert "model_index.json" in capsys.readouterr().err


def test_train(model, photo, tmp_path, capsys):
    """One step of a real training."""
    data = tmp_path / "data"
    data.mkdir()
    photo.rename(data / "photo.png")
    words = ["--model", model, "--data", data, "--output", tmp_path / "run", "--max-steps", 1, "--batch-size", 1]
    assert main(["train", *map(str, words)]) == 0
    folder = tmp_path / "run" / "promptnet"
    assert capsys.readouterr().out == f"{folder}\n"
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "PromptNet"
    assert main(["train", *map(str, words)]) == 1
    assert "holds a run already" in capsys.readouterr().err


@pytest.fixture
def customize(model, photo, tmp_path):
    """Run `profusion customize` for one step; further words as given."""

    def run(*words, out="concept"):
        needed = ["--model", model, "--image", photo, "--out", tmp_path / out, "--steps", 1, "--pool-size", 2]
        return main([str(word) for word in ["customize", *needed, *words]])

    return run


def test_customize_under_a_launcher(customize, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert customize() == 0
    assert Concept.from_pretrained(tmp_path / "concept").settings["mixed_precision"] == "bf16"
    capsys.readouterr()
    assert customize("--mixed-precision", "fp16", out="other") == 1
    assert "`mixed_precision` must be left out or be 'bf16', as the launcher says" in capsys.readouterr().err
    assert customize("--device", "cuda", out="other") == 1
    assert "`device` must be left out or be 'cpu', as the launcher says, got 'cuda'" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert customize(out="other") == 1
    assert "`profusion customize` must be launched without accumulated gradients" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_evaluation_under_a_launcher(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert EvaluationConfig(output="o").precision == "bf16"
    with pytest.raises(SystemExit):
        main(["evaluate", "--output", "o", "--mixed-precision", "no"])
    assert "`mixed_precision` must be left out or be 'bf16', as the launcher says" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert main(["evaluate", "--output", "o"]) == 1
    assert "`profusion evaluate` must be launched without accumulated gradients" in capsys.readouterr().err


def test_customize_and_generate_with_it(customize, model, pipe, tmp_path, capsys):
    settings = ["--class-noun", "man", "--learning-rate", "0.05"]
    assert customize(*settings) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'concept'}\n" and "1 steps, loss " in captured.err
    assert customize(*settings, "--seed", "1", "--rank", "2", out="other") == 0

    prompts, folders = ["a photo of S*", "S* on the beach"], [tmp_path / "concept", tmp_path / "other"]
    words = ["--model", model, "--concept", *folders, "--prompt", *prompts, "--out", tmp_path / "out.png"]
    assert main([str(word) for word in ["generate", *words, "--num-inference-steps", 2, "--seed", 5]]) == 0
    for folder in folders:
        pipe.load_concept(folder, name=folder.name)
    generators = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    expected = pipe(prompts, concept=["concept", "other"], num_inference_steps=2, generator=generators).images
    assert np.array_equal([pixels(tmp_path / f"out-{i}.png") for i in (1, 2)], [np.asarray(one) for one in expected])


def test_an_existing_concept_is_kept_without_force(customize, tmp_path, capsys):
    (tmp_path / "concept").mkdir()
    assert customize() == 1
    assert "exists already; --force replaces the concept there" in capsys.readouterr().err
    assert customize("--force") == 0


def test_a_loss_that_is_not_a_number_saves_nothing(customize, tmp_path, capsys):
    assert customize() == 0
    before = (tmp_path / "concept" / "concept.safetensors").read_bytes()
    assert customize("--steps", "3", "--learning-rate", "1e30", "--force") == 1
    assert re.search("profusion: The loss is (nan|inf) at step 2 of 3, so nothing was made", capsys.readouterr().err)
    assert (tmp_path / "concept" / "concept.safetensors").read_bytes() == before


def test_customize_cuts_to_the_face_and_warns(customize, tmp_path, capsys):
    from skimage import data

    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    assert customize("--image", tmp_path / "astronaut.png", "--crop-face", "auto", "--keep-thumbnail") == 0
    assert "No face" not in capsys.readouterr().err
    concept = Concept.from_pretrained(tmp_path / "concept")
    assert concept.settings["crop_face"] == "auto"
    # The demo's portraits are drawings, which the cascades don't know.
    assert customize("--image", "demo", "--crop-face", "auto", out="other") == 0
    assert "No face was found in the photo" in capsys.readouterr().err
    assert customize("--image", "demo", "--crop-face", "gone.onnx", out="third") == 1
    assert "`crop_face` must be 'auto' or an ONNX file of YuNet that exists, got 'gone.onnx'" in capsys.readouterr().err


def test_customize_cuts_by_a_detector_whose_file_it_does_not_tell(customize, tmp_path, monkeypatch, capsys):
    cv2, file = pytest.importorskip("cv2"), tmp_path / "of-ada.onnx"
    file.write_bytes(b"weights")
    finds_nobody = SimpleNamespace(detect=lambda picture: (1, None))
    monkeypatch.setattr(cv2, "FaceDetectorYN", SimpleNamespace(create=lambda *given: finds_nobody))
    assert customize("--crop-face", file) == 0
    assert "No face was found in the photo, so its middle is taken." in capsys.readouterr().err
    assert Concept.from_pretrained(tmp_path / "concept").settings["crop_face"] == "yunet"


def test_customize_reads_the_mask(customize, photo, capsys):
    assert customize("--mask", photo, "--background", "keep") == 1
    assert "`mask` is given, but `background` is 'keep'" in capsys.readouterr().err


def test_customize_config():
    words = ["customize", "--model", "m", "--image", "f", "--out", "o", "--mode", "full", "--flip", "--rotation", "5"]
    assert config_of(build_parser().parse_args([*words, "--caption", "in a hat"]), CustomizeConfig) == CustomizeConfig(
        mode="full", flip=True, rotation=5.0, caption="in a hat"
    )


# evaluate


@pytest.fixture
def evaluate(model, photo, tmp_path):
    """Run `profusion evaluate` on one person with a metric that needs no model; further words as given."""
    (tmp_path / "people" / "ada").mkdir(parents=True)
    photo.rename(tmp_path / "people" / "ada" / "photo.png")
    (tmp_path / "prompts.txt").write_text("a photo of S*\n")
    given = {
        "model": [model],
        "subjects": [tmp_path / "people"],
        "prompts": [tmp_path / "prompts.txt"],
        "output": [tmp_path / "out"],
        "systems": ["Stable Diffusion", "PromptNet"],
        "metrics": ["evaluations:Brightness"],
        "questions": [1],
        "unet-rows": [10],
    }

    def run(*words, **changes):
        flags = [[f"--{name}", *values] for name, values in (given | changes).items()]
        return main([str(word) for word in ["evaluate", *sum(flags, []), *words]])

    return run


def test_evaluate_goes_on_and_draws_again(evaluate, tmp_path, capsys):
    assert evaluate() == 0
    document = tmp_path / "out" / "study.md"
    assert capsys.readouterr().out.splitlines()[-1] == str(document)
    text = document.read_text()
    assert "| PromptNet, m = 1 |" in text
    assert evaluate() == 1
    assert "holds rows of a run already: --resume goes on with it." in capsys.readouterr().err
    assert evaluate("--resume", questions=[1, 2]) == 0
    document.unlink()
    assert main(["evaluate", "--output", str(tmp_path / "out"), "--redraw"]) == 0
    assert "<!-- question 2 -->" in document.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ["IP-Adapter"]}, "`name` of a system must be one of 'Stable Diffusion', .*, got 'IP-Adapter'"),
        ({"metrics": ["FID"]}, "A metric must be one of clip-vit-b-32, .*, got 'FID'"),
        ({"metrics": ["clip-rn50"]}, "needs open_clip, which is not installed: `pip install open_clip_torch`"),
        ({"systems": ["E4T"]}, "E4T is pre-trained, but its weights 'e4t' are not in None"),
    ],
)
def test_what_evaluate_refuses_before_any_work(evaluate, capsys, tmp_path, monkeypatch, changes, message):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it were not installed
    assert evaluate(**changes) == 1
    lines = capsys.readouterr().err.splitlines()
    assert re.search(message, lines[-1]) and not (tmp_path / "out").exists()


def test_no_plots_without_matplotlib(evaluate, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    assert evaluate() == 1
    assert "Plots need matplotlib, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_subject_with_nothing_in_it(evaluate, capsys, tmp_path):
    (tmp_path / "people" / "bob").mkdir()
    assert evaluate() == 1
    assert "The subject 'bob' has no picture" in capsys.readouterr().err


def test_rows_of_another_run_are_not_mixed(evaluate, capsys):
    assert evaluate() == 0
    assert evaluate("--resume", "--class-noun", "dog") == 1
    assert (
        "its `class_noun` is 'person', that of this run 'dog'. Rows of both can't be mixed" in capsys.readouterr().err
    )


def test_evaluation_config():
    words = "evaluate --output out --questions 1 5 --worker 1 --workers 2 --pool-size 1".split()
    config = config_of(build_parser().parse_args(words), EvaluationConfig)
    assert (config.questions, config.share, config.pool_size) == ((1, 5), (1, 2), 1)


@pytest.mark.parametrize("out", ["/proc/x", "file"])
@pytest.mark.parametrize(
    "words",
    [
        ["customize", "--model", "nowhere", "--image", "photo.png", "--force", "--out"],
        ["train", "--model", "nowhere", "--data", "nowhere", "--output"],
        ["evaluate", "--model", "nowhere", "--subjects", "nowhere", "--prompts", "nowhere", "--output"],
        ["export", "nowhere", "--force"],
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_can_not_be_written_to_is_told_before_any_work(words, out, photo, tmp_path, monkeypatch, capsys):
    """No model is looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main([*words, out]) == 1
    assert re.search(rf"must be a place that can be written to \(.*\), got '{out}'.$", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "mine"
