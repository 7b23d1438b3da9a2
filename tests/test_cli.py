"""The commands, run in this process; a few in one of their own, where that is the point."""

import inspect
import io
import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline import CustomizeConfig, ProFusionPipeline, TrainingConfig
from profusion_pipeline.cli import call_flags, main
from profusion_pipeline.commands import RUN
from profusion_pipeline.common.flags import flags_of_dataclass
from profusion_pipeline.method.recipes import RECIPES

COMMANDS = ["demo", "generate", "customize", "app", "evaluate", "train", "convert", "export", "push"]


@pytest.fixture
def generate(model, photo, tmp_path):
    """Run `profusion generate` with what it needs and two steps; further words as given."""

    def run(*words, prompt=("a photo of S*",), image=(photo,), out="out.png"):
        needed = ["--model", model, "--image", *image, "--prompt", *prompt, "--out", tmp_path / out]
        return main([str(word) for word in ["generate", *needed, "--num-inference-steps", 2, *words]])

    return run


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def run_python(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)


# --help


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)], ids=str)
def test_help_imports_nothing_heavy(words):
    code = f"""
import sys
from profusion_pipeline.cli import main
try:
    main({[*words, "--help"]!r})
except SystemExit as stop:
    heavy = {{'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'accelerate'}} & sys.modules.keys()
    print(stop.code, sorted(heavy), file=sys.stderr)
"""
    done = run_python(code)
    assert done.stderr.strip() == "0 []"
    assert done.stdout.startswith("usage: profusion")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_instant(command):
    """At most 0.3 s of processor time over Python's own start, the best of a few tries."""

    def seconds(code):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    start = min(seconds("pass") for _ in range(4))
    code = f"from profusion_pipeline.cli import main; main([{command!r}, '--help'])"
    assert min(seconds(code) for _ in range(4)) - start <= 0.3


# generate: flags


# What can't be typed, or has a flag of another form.
NOT_FLAGS = """self image init_image mask_image control_image subject concept generator latents
    prompt_embeds negative_prompt_embeds output_type return_dict
    cross_attention_kwargs callback_on_step_end callback_on_step_end_tensor_inputs base_inputs""".split()


def test_flags_are_those_of_the_call():
    """Read from the source on one side, from the imported function on the other."""
    signature = inspect.signature(ProFusionPipeline.__call__).parameters
    flags = call_flags()
    assert [flag.name for flag in flags] == [name for name in signature if name not in NOT_FLAGS]
    for flag in flags:
        default = signature[flag.name].default
        assert (flag.default, flag.name) == (default, flag.name) or default is inspect.Parameter.empty
        assert flag.help


# A value for each flag that differs from its default, as words and as the call takes it.
EXAMPLES = {
    "prompt": (["a photo of S*", "S* on a beach"], ["a photo of S*", "S* on a beach"]),
    "class_noun": (["dog"], "dog"),
    "class_prompt": (["a photo of a woman", "a dog"], ["a photo of a woman", "a dog"]),
    "negative_prompt": (["blue"], "blue"),
    "image_weights": (["0.5"], [0.5]),
    "controlnet_conditioning_scale": (["0.5"], 0.5),
    "control_guidance_start": (["0.1"], 0.1),
    "control_guidance_end": (["0.9"], 0.9),
    "recipe": (["best"], "best"),
    "height": (["32"], 32),
    "width": (["32"], 32),
    "crop_face": (["auto"], "auto"),
    "num_inference_steps": (["3"], 3),
    "strength": (["0.7"], 0.7),
    "guidance_scale": (["3"], 3.0),
    "class_guidance_scale": (["2.5"], 2.5),
    "num_fusion_steps": (["2"], 2),
    "fusion_guidance_scale": (["4"], 4.0),
    "fusion_subject_scale": (["0.9"], 0.9),
    "fusion_text": (["mixed"], "mixed"),
    "fusion_eta": (["0.5"], 0.5),
    "fusion_start": (["0.1"], 0.1),
    "fusion_end": (["0.6"], 0.6),
    "guidance_start": (["0.2"], 0.2),
    "guidance_end": (["0.8"], 0.8),
    "guidance_rescale": (["0.5"], 0.5),
    "subject_every": (["2"], 2),
    "num_images_per_prompt": (["2"], 2),
    "eta": (["0.7"], 0.7),
    "long_prompts": ([], True),
    "base_guidance": ([], True),
}


def test_every_flag_has_an_example():
    assert list(EXAMPLES) == [flag.name for flag in call_flags()]


@pytest.mark.parametrize("left_out", ["class_noun", "class_prompt"])  # the latter makes the former idle
def test_flags_reach_the_call(left_out, generate, pipe, photo, tmp_path):
    examples = {name: example for name, example in EXAMPLES.items() if name != left_out}
    typed = {flag.name: flag.option for flag in call_flags()}
    words = [word for name, (words, _) in examples.items() for word in (typed[name], *words)]
    assert generate("--seed", "5", *words) == 0

    settings = {name: value for name, (_, value) in examples.items()}
    subject = pipe.encode_subject(photo, settings.pop("image_weights"), settings.pop("height"), settings.pop("width"))
    generators = [torch.Generator().manual_seed(5 + i) for i in range(4)]
    expected = pipe(subject=subject, generator=generators, **settings).images
    written = [pixels(tmp_path / f"out-{i}.png") for i in (1, 2, 3, 4)]
    assert np.array_equal(written, [np.asarray(picture) for picture in expected])


def test_several_references_are_one_person(generate, pipe, photo, tmp_path):
    mirrored = tmp_path / "mirrored.png"
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    prompts = ["a photo of S*", "S* on the beach"]
    assert generate("--seed", "5", "--image-weights", "1", "0.5", prompt=prompts, image=(photo, mirrored)) == 0
    subject = pipe.encode_subject([photo, mirrored], weights=[1.0, 0.5])
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(5 + i)
        alone = pipe(prompt, subject=subject, num_inference_steps=2, generator=generator).images[0]
        assert np.abs(pixels(tmp_path / f"out-{i + 1}.png") - np.asarray(alone)).max() <= 1


def test_the_drawn_seed_is_said_and_gives_the_picture_again(generate, tmp_path, capsys):
    assert generate(out="a.png") == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'a.png'}\n"
    seed = said.err.splitlines()[-1].removeprefix("seed ")
    assert generate("--seed", seed, out="b.png") == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_dtype_and_device(generate, tmp_path):
    assert generate("--seed", "5", "--dtype", "bfloat16", "--device", "cpu", out="half.png") == 0
    assert generate("--seed", "5", out="full.png") == 0
    assert not np.array_equal(pixels(tmp_path / "half.png"), pixels(tmp_path / "full.png"))


# Outputs and errors


def test_an_existing_picture_is_kept_without_force(generate, tmp_path, capsys):
    old = tmp_path / "out.png"
    old.write_bytes(b"old")
    # The model is not even looked for: the check comes before any work.
    assert generate("--model", "nowhere") == 1
    assert capsys.readouterr().err == f"profusion: {str(old)!r} exists already; --force replaces it.\n"
    assert old.read_bytes() == b"old"
    assert generate("--force") == 0
    assert pixels(old).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "words, message",
    [
        (dict(image=["nowhere.png"]), "`--image`.*nowhere.png"),
        (dict(prompt=["a photo"]), "placeholder 'S[*]'"),
        (dict(out="out.txt"), "--out must end in the extension of a picture format"),
    ],
)
def test_errors_are_one_sentence(generate, capsys, tmp_path, words, message):
    assert generate(**words) == 1
    said = capsys.readouterr()
    assert said.out == ""
    *_, last = said.err.splitlines()
    assert re.search(f"^profusion: .*{message}", last)
    assert "Traceback" not in said.err
    assert not list(tmp_path.glob("*out*"))


def test_a_setting_out_of_range(generate, capsys):
    assert generate("--strength", "1.5") == 1
    assert "`strength`" in capsys.readouterr().err


def test_a_model_that_is_not_there(generate, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert generate("--model", tmp_path / "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


NUMBERS = {
    "nan": "must be a finite number, got 'nan'",
    "1e400": "must be a finite number, got '1e400'",
    "-inf": "must be a finite number, got '-inf'",
    "much": "must be a finite number, got 'much'",
}


@pytest.mark.parametrize("typed", NUMBERS)
@pytest.mark.parametrize(
    "command, flag",
    [("generate", flag) for flag in call_flags() if flag.kind is float]
    + [("train", flag) for flag in flags_of_dataclass(TrainingConfig) if flag.kind is float]
    + [("customize", flag) for flag in flags_of_dataclass(CustomizeConfig) if flag.kind is float],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_numbers_that_are_none(command, flag, typed, capsys):
    with pytest.raises(SystemExit):
        main([command, f"{flag.option}={typed}"])
    assert f"argument {flag.option}: {NUMBERS[typed]}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "generate", "customize", "train"])
@pytest.mark.parametrize(
    "typed, message",
    [
        (str(2**64), "must be a whole number below 2\\*\\*63, got '18446744073709551616'"),
        (str(2**63), "must be a whole number below 2\\*\\*63, got"),
        ("1" + "0" * 400, "got '10{56}[.]{3}'$"),
        ("1" + "0" * 5000, "got '10{56}[.]{3}'$"),
        ("ten", "must be a whole number below 2\\*\\*63, got 'ten'"),
        ("\udcff", r"got '\\udcff'"),
        ("1.0", "must be a whole number"),
        ("-1", "must be at least 0, got -1"),
    ],
)
def test_seeds_that_are_none(command, typed, message, capsys):
    given = {
        "customize": "--model m --image f --out o",
        "train": "--model m --data d --output o",
        "generate": "--model m --prompt S* --image f",
    }
    with pytest.raises(SystemExit):
        main([command, *given.get(command, "").split(), "--seed", typed])
    assert re.search(message, capsys.readouterr().err.strip())


def test_the_greatest_seed_draws(generate):
    assert generate("--seed", 2**63 - 1, "--num-images-per-prompt", 2) == 0


@pytest.mark.parametrize("flag", ["prompt", "class-noun", "class-prompt", "negative-prompt"])
def test_words_that_are_no_text(flag, generate, capsys):
    words = dict(prompt=["S*", "S* \udcff"]) if flag == "prompt" else {}
    assert generate(*([f"--{flag}", "\udcff"] if not words else []), **words) == 1
    assert f"`{flag.replace('-', '_')}` must be a text without lone surrogates, got '" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "train --model m --data d --output o --prompt S*\udcff",
        "train --model m --data d --output o --validation-prompts S* S*\udcff",
        "train --model m --data d --output o --validation-class-noun \udcff",
        "customize --model m --image f --out o --class-noun \udcff",
        "customize --model m --image f --out o --prompt S*\udcff",
        "evaluate --output o --learning-prompt S*\udcff",
        "evaluate --output o --class-noun \udcff",
    ],
)
def test_settings_that_are_no_text(words, capsys):
    with pytest.raises(SystemExit):
        main(words.split())
    assert re.search("` must be a text without lone surrogates, got '.*udcff'[.]$", capsys.readouterr().err.strip())


def test_an_empty_prompt(generate, capsys):
    assert generate(prompt=[""]) == 1
    assert re.search("prompt.*placeholder.*''", capsys.readouterr().err)


def test_a_name_that_is_no_text_is_said_byte_for_byte(generate, tmp_path, monkeypatch):
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, encoding="utf-8"))
    assert generate(out="\udcff.png") == 0
    sys.stdout.flush()
    assert said.getvalue() == os.fsencode(tmp_path) + b"/\xff.png\n"


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there(device, generate, capsys):
    assert generate("--device", device) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"profusion: --device must be one of this machine, such as cpu or cuda:1, got '{device}'."


@pytest.mark.parametrize(
    "error, expected",
    [
        (RuntimeError("Error(s) in loading state_dict for X:\n\tMissing key(s)\n\tb"), "X: Missing key(s)"),
        (OSError("\n\n404 Client Error. (Request ID: 1)\n\nRepository Not Found.\nSee"), "Repository Not Found."),
        (OSError("403 Client Error."), "403 Client Error."),
        (
            RuntimeError("-- Process 0 failed:\nTraceback (most recent call last):\n  File\nValueError: why"),
            "ValueError: why",
        ),
        (ValueError("x" * 10_000), "x..."),
        (ValueError("many words " * 1000), "..."),
        (KeyError("x"), "KeyError 'x'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_one_short_sentence(error, expected, monkeypatch, capsys):
    def demo(args):
        raise error

    monkeypatch.setitem(RUN, "demo", demo)
    assert main(["demo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("profusion: ") and said.endswith(f"{expected}\n")
    assert said.count("\n") == 1 and len(said) <= 312 and "Traceback" not in said


def test_a_broken_picture_is_one_sentence_with_workers_and_without(model, photo, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.png").write_bytes(photo.read_bytes()[:200])
    words = ["train", "--model", model, "--data", tmp_path / "data", "--batch-size", 1, "--max-steps", 1]
    said = set()
    for number, further in enumerate([[], ["--no-cache-latents"]]):
        for workers in (0, 1):
            settings = ["--output", tmp_path / f"{number}-{workers}", "--num-workers", workers]
            assert main([str(word) for word in [*words, *settings, *further]]) == 1
            said.add(capsys.readouterr().err.splitlines()[-1])
    (sentence,) = said
    assert re.search("^profusion: .*0.png.* must be a whole image", sentence) and len(sentence) < 300


def test_debug_shows_the_exception(generate, monkeypatch):
    monkeypatch.setenv("PROFUSION_DEBUG", "1")
    with pytest.raises(ValueError, match="--out must end in"):
        generate(out="out.txt")


def test_an_error_without_words_is_named(monkeypatch, capsys):
    def demo(args):
        return {}["x"]

    monkeypatch.setitem(RUN, "demo", demo)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "profusion: KeyError 'x'\n"


def test_ctrl_c(monkeypatch, capsys):
    def demo(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(RUN, "demo", demo)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "profusion: stopped.\n"


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["generate", "--model", "m", "--prompt", "S*"], "one of --image and --concept must say who S* is"),
        (
            ["generate", "--model", "m", "--prompt", "S*", "--image", "f", "--concept", "c"],
            "one of --image and --concept must say who S* is",
        ),
        (
            ["generate", "--model", "m", "--prompt", "S*", "--concept", "c", "d"],
            "--concept must be given once or for each of 1 prompts, got 2",
        ),
        (["customize", "--model", "m", "--image", "f"], "the following arguments are required: --out"),
        (
            ["customize", "--model", "m", "--image", "f", "--out", "o", "--steps", "0"],
            "`steps` must be at least 1, got 0",
        ),
        (["generate", "--model", "m", "--image", "f"], "the following arguments are required: --prompt"),
        (["demo", "--steps", "many"], "argument --steps: must be a whole number below 2**63, got 'many'"),
        (["convert", "source"], "the following arguments are required: target"),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--batch-size", "0"],
            "`batch_size` must be at least 1",
        ),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--mixed-precision", "fp8"],
            "invalid choice: 'fp8'",
        ),
    ],
)
def test_usage(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "profusion_pipeline", "convert"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: profusion convert")


def test_the_installed_command():
    program = os.path.join(os.path.dirname(sys.executable), "profusion")
    done = subprocess.run([program, "generate", "--model", "m"], capture_output=True, text=True)
    assert done.returncode == 2
    words = ["--model", "m", "--image", "f", "--prompt", "S*", "--out", "nowhere/out.png"]
    done = subprocess.run([program, "generate", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "profusion: --out must lie in an existing folder, 'nowhere' is not one.\n"


def test_generate_with_the_bundled_model(monkeypatch, photo, capsys):
    """`--model demo` is the bundled model (which may not be there yet: then the sentence says so)."""
    from profusion_pipeline.common import open_pipeline

    monkeypatch.setitem(open_pipeline.pipeline_source.__kwdefaults__, "demo", photo.parent)
    assert (
        main(
            [
                "generate",
                "--model",
                "demo",
                "--image",
                str(photo),
                "--prompt",
                "S*",
                "--out",
                str(photo.parent / "o.png"),
            ]
        )
        == 1
    )
    assert "The demo model is not in" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "generate", "customize", "convert", "export", "push"])
def test_two_processes_for_the_work_of_one(command, monkeypatch, capsys):
    given = {
        "generate": "--model m --prompt S* --image f",
        "customize": "--model m --image f --out o",
        "convert": "a b",
        "export": "a b",
        "push": "a b",
    }
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, *given.get(command, "").split()]) == 1
    expected = f"`profusion {command}` must be launched as one process, got 2 (--num_processes 1 is one)."
    assert capsys.readouterr().err == f"profusion: {expected}\n"


def test_a_recipe_is_spelled_out_in_what_a_picture_says(generate, tmp_path, pipe, photo):
    assert generate("--seed", "5", "--recipe", "fast", "--num-inference-steps", "2") == 0
    with Image.open(tmp_path / "out.png") as drawn:
        settings = json.loads(drawn.info["profusion"])["settings"]
    assert settings == settings | RECIPES["fast"] | {"num_inference_steps": 2} and "recipe" not in settings
    subject, generator = pipe.encode_subject(photo), torch.Generator().manual_seed(5)
    found = pipe("a photo of S*", subject=subject, generator=generator, recipe="fast", num_inference_steps=2).images
    assert np.array_equal(pixels(tmp_path / "out.png"), np.asarray(found[0]))
