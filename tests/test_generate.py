"""`profusion generate` draws again what a picture says of itself; prompts from a file; the bundled portraits."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import save_file

from concepts import learn
from loras import FILE, make_xl_lora, write_lora
from profusion_pipeline import LearntSubject, ProFusionPipeline, ProFusionXLPipeline, demo_portraits
from profusion_pipeline.cli import main
from profusion_pipeline.common.layout import NAMES
from profusion_pipeline.common.made_with import read_record
from tiny import TEXT_WIDTH, make_components, make_controlnet
from tiny_xl import make_xl_components


@pytest.fixture
def generate(model, tmp_path, monkeypatch, capsys):
    """Run `profusion generate` in an empty folder with two steps; what is said on stderr, or the error's sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*words, again=None, bare=False):
        needed = ["--from", again] if again else ["--model", model, "--image", "demo", "--num-inference-steps", 2]
        needed = [] if bare else needed
        code = main([str(word) for word in ["generate", *needed, *words]])
        said = capsys.readouterr().err
        assert code == 0, said
        return said

    return run


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


# Drawn again


def test_each_picture_of_a_run_is_drawn_again_to_the_bit(generate, model):
    words = ["--prompt", "a photo of S*", "S* on the beach", "--num-images-per-prompt", 2, "--guidance-scale", 3]
    generate(*words, "--negative-prompt", "blue", "red", "--seed", 5, "--out", "a.png")
    for number, (prompt, negative) in enumerate(zip("PPBB", "bbrr", strict=True), start=1):
        said = generate("--model", model, "--out", f"again-{number}.png", again=f"a-{number}.png")
        assert said.endswith(f"seed {5 + number - 1}\n") and "otherwise" not in said
        assert np.array_equal(pixels(f"a-{number}.png"), pixels(f"again-{number}.png"))
        record = read_record(f"again-{number}.png")
        assert record == read_record(f"a-{number}.png")
        assert record["prompt"] == {"P": "a photo of S*", "B": "S* on the beach"}[prompt]
        assert record["settings"]["negative_prompt"] == {"b": "blue", "r": "red"}[negative]


def test_a_moved_picture_is_drawn_again_from_any_format(generate, model):
    for suffix in ("jpg", "webp"):
        generate("--prompt", "S*", "--out", f"a.{suffix}", "--dtype", "bfloat16")
        shutil.move(f"a.{suffix}", "moved")
        generate("--model", model, "--out", f"b.{suffix}", again="moved")
        assert np.array_equal(pixels("moved"), pixels(f"b.{suffix}"))
        assert read_record(f"b.{suffix}")["model"]["dtype"] == "bfloat16"


def test_flags_win_over_the_picture(generate, model):
    generate("--prompt", "S*", "--seed", 5, "--out", "a.png")
    changes = ["--prompt", "a photo of S*", "S* in red", "--seed", 9, "--guidance-scale", 2]
    generate("--model", model, *changes, "--out", "b.png", again="a.png")
    generate(*changes, "--out", "c.png")
    for number in (1, 2):
        assert np.array_equal(pixels(f"b-{number}.png"), pixels(f"c-{number}.png"))
    generate("--model", model, "--num-images-per-prompt", 2, "--out", "d.png", again="a.png")
    assert read_record("d-2.png")["seed"] == 6


def test_what_is_not_the_same_is_said(generate, model):
    generate("--prompt", "S*", "--out", "a.png")
    said = generate("--model", model, "--image", "demo:2", "--out", "b.png", again="a.png")
    assert "The picture may come out otherwise: another photo.\n" in said


def test_a_picture_by_a_concept(model, generate, capsys):
    learn()["ada"].save_pretrained("ada")
    words = ["--prompt", "S*", "--num-inference-steps", 2, "--out", "a.png"]
    assert main([str(word) for word in ["generate", "--model", model, "--concept", "ada", *words]]) == 0
    generate("--model", model, "--concept", "ada", "--out", "b.png", again="a.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert read_record("a.png")["concept"]["source"] == "local"


def test_without_metadata(generate, model):
    generate("--prompt", "S*", "--no-metadata", "--mark-ai", "--out", "a.png")
    with Image.open("a.png") as picture:
        picture.load()
        assert list(picture.info) == ["XML:com.adobe.xmp"] or "xmp" in picture.info
    with pytest.raises(AssertionError, match="`--from` must be a picture that says how it was made"):
        generate("--model", model, again="a.png")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--model must be given, because a picture doesn't say where"),
        (["--image", "f", "--concept", "c"], "one of --image and --concept must say who S[*] is"),
        (["--concept", "a", "b"], "--concept must be given once or for each of 1 prompts, got 2"),
    ],
)
def test_what_a_picture_does_not_say_must_be_given(generate, words, message, model, capsys):
    generate("--prompt", "S*", "--out", "a.png")
    place = ["--model", model] if words else []
    with pytest.raises(SystemExit):
        generate(*place, *words, again="a.png")
    assert message.replace("[*]", "*") in capsys.readouterr().err


# Prompts from a file


def test_prompts_from_a_file(generate):
    with open("prompts.txt", "wb") as file:
        file.write("S* in blue\r\n\r\n  S* in red \r\n".encode("utf-16"))
    generate("--prompts", "prompts.txt", "--seed", 3, "--out", "a.png")
    assert [read_record(f"a-{number}.png")["prompt"] for number in (1, 2)] == ["S* in blue", "S* in red"]


def test_files_of_prompts_that_have_none(generate, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, message in (("empty.txt", "'empty.txt' has none"), ("nowhere.txt", "--prompts must be a file that can")):
        with pytest.raises(AssertionError, match=message):
            generate("--prompts", name)


def test_prompts_twice_or_never(generate, capsys):
    for words, message in (
        (["--prompt", "S*", "--prompts", "f"], "one of --prompt and --prompts must say what to draw"),
        ([], "the following arguments are required: --prompt"),
    ):
        with pytest.raises(SystemExit):
            generate(*words)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "--image", "demo", "--prompt", "S*"])
    assert "the following arguments are required: --model" in capsys.readouterr().err


# The bundled portraits


def test_the_bundled_portraits(generate, model, pipe):
    generate("--prompt", "S*", "--seed", 5, "--out", "a.png")
    demo_portraits()[0].save("ada.png")
    generate("--image", "ada.png", "--prompt", "S*", "--seed", 5, "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert read_record("a.png")["references"][0]["source"] == "demo"
    with pytest.raises(AssertionError, match="`--image` must be one of the portraits demo:1 to demo:4, got 'demo:5'"):
        generate("--image", "demo:5", "--prompt", "S*")


def test_a_detectors_file_is_not_told(generate, model, monkeypatch, tmp_path, capsys):
    """A picture names the detector, not where its file lies; to draw it again the file must be given."""
    cv2, file = pytest.importorskip("cv2"), tmp_path / "of-ada.onnx"
    file.write_bytes(b"weights")
    finds_nobody = SimpleNamespace(detect=lambda picture: (1, None))
    monkeypatch.setattr(cv2, "FaceDetectorYN", SimpleNamespace(create=lambda *given: finds_nobody))
    said = generate("--prompt", "S*", "--crop-face", file, "--out", "a.png")
    assert "No face was found in the photo, so its middle is taken." in said
    record = read_record("a.png")
    assert record["settings"]["crop_face"] == "yunet" and "of-ada" not in str(record)
    with pytest.raises(SystemExit):
        generate("--model", model, "--out", "b.png", again="a.png")
    assert "--crop-face must be given" in capsys.readouterr().err
    generate("--model", model, "--crop-face", file, "--out", "b.png", again="a.png")
    assert np.array_equal(pixels("b.png"), pixels("a.png"))


# What others have learnt


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Stable Diffusion's own parts, a LoRA and a learnt word for them."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("plain")
    diffusers = StableDiffusionPipeline.from_pipe(ProFusionPipeline(**make_components(promptnet=None)))
    diffusers.save_pretrained(folder / "model")
    write_lora(folder / "lora")
    toy = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"<toy>": toy}, folder / "toy.safetensors")
    return folder


def test_a_lora_and_a_learnt_word(generate, plain):
    model = ["--model", plain / "model"]
    settings = ["--class-noun", "hat", "--num-inference-steps", 2, "--seed", 3, "--prompt", "a S*"]
    words = ["--words", "sks hat", "--lora", plain / "lora" / FILE, "--lora-scale", 0.5]
    generate(*model, *settings, *words, "--out", "lora.png", bare=True)
    toy = ["--textual-inversion", plain / "toy.safetensors"]
    generate(*model, *settings, *toy, "--out", "toy.png", bare=True)

    pipe = ProFusionPipeline.from_pretrained(plain / "model")
    pipe.load_lora_weights(str(plain / "lora"), adapter_name="hat")
    pipe.load_textual_inversion(str(plain / "toy.safetensors"))
    subjects = {
        "lora": LearntSubject("sks hat", class_noun="hat", adapter="hat", scale=0.5),
        "toy": LearntSubject("<toy>", class_noun="hat"),
    }
    for name, subject in subjects.items():
        expected = pipe("a S*", subject=subject, num_inference_steps=2, generator=torch.Generator().manual_seed(3))
        assert np.array_equal(pixels(f"{name}.png"), np.asarray(expected.images[0]))
        pipe.unload_lora_weights()

    learnt = read_record("lora.png")["learnt"]
    assert (learnt["words"], learnt["class_noun"], learnt["scales"]) == ("sks hat", "hat", [0.5])
    assert [part["source"] for part in learnt["loras"]] == ["local"] and learnt["textual_inversions"] == []
    said = generate(*model, *words[2:4], "--out", "again.png", again="lora.png")
    assert "otherwise" not in said and np.array_equal(pixels("again.png"), pixels("lora.png"))
    with pytest.raises(SystemExit):
        generate(*model, "--out", "again.png", again="lora.png")


def test_a_lora_of_stable_diffusion_xl(generate, tmp_path):
    pytest.importorskip("peft")
    ours = ProFusionXLPipeline(**make_xl_components(with_promptnet=False))
    StableDiffusionXLPipeline.from_pipe(ours).save_pretrained(tmp_path / "xl")
    save_file(make_xl_lora(), tmp_path / FILE)
    settings = ["--num-inference-steps", 2, "--seed", 3, "--prompt", "a S*"]
    words = ["--words", "red hat", "--class-noun", "hat", "--lora", tmp_path / FILE, "--lora-scale", 0.5]
    generate("--model", tmp_path / "xl", *settings, *words, "--out", "xl.png", bare=True)

    pipe = ProFusionXLPipeline.from_pretrained(tmp_path / "xl")
    pipe.load_lora_weights(make_xl_lora(), adapter_name="hat")
    subject = LearntSubject("red hat", class_noun="hat", adapter="hat", scale=0.5)
    (expected,) = pipe(
        "a S*", subject=subject, num_inference_steps=2, generator=torch.Generator().manual_seed(3)
    ).images
    assert np.array_equal(pixels("xl.png"), np.asarray(expected))
    assert read_record("xl.png")["learnt"]["scales"] == [0.5]
    with pytest.raises(SystemExit):  # without a class noun
        generate("--model", tmp_path / "xl", *settings, *words[:2], *words[4:], "--out", "no.png", bare=True)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--lora", "f", "--class-noun", "dog"], "--words must say what stands for S*"),
        (["--words", "sks dog"], "--class-noun must say once what the words stand for"),
        (
            ["--words", "sks", "--class-noun", "a", "--image", "f"],
            "one of --image and --concept must say who S* is, or",
        ),
        (
            ["--words", "sks", "--class-noun", "a", "--lora-scale", "1"],
            "--lora-scale must be given for each of 0 --lora",
        ),
    ],
)
def test_what_learnt_words_need(generate, words, message, capsys):
    with pytest.raises(SystemExit):
        generate("--model", "m", "--prompt", "S*", *words, bare=True)
    assert message in capsys.readouterr().err


# Another picture's layout


@pytest.fixture
def layout(tmp_path, pipe):
    """Files of a picture to begin with, a mask, edges and a ControlNet."""
    demo_portraits()[1].save(tmp_path / "bob.png")
    mask = Image.new("L", demo_portraits()[1].size)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    demo_portraits()[2].save(tmp_path / "edges.png")
    make_controlnet(pipe.unet).save_pretrained(tmp_path / "canny")
    return tmp_path


def test_a_layout_is_drawn_again_with_its_pictures_at_hand(generate, model, layout, capsys):
    begun = ["--init-image", layout / "bob.png", "--mask-image", layout / "mask.png"]
    controlled = ["--controlnet", layout / "canny", "--control-image", layout / "edges.png"]
    words = [
        "--prompt",
        "a photo of S*",
        "S* in red",
        "--seed",
        5,
        "--strength",
        0.5,
        "--controlnet-conditioning-scale",
        0.7,
    ]
    generate(*words, *begun, *controlled, "--out", "a.png")
    generate("--model", model, *begun, *controlled, "--out", "again.png", again="a-2.png")
    assert np.array_equal(pixels("a-2.png"), pixels("again.png"))
    record = read_record("again.png")
    assert record == read_record("a-2.png") and record["settings"]["controlnet_conditioning_scale"] == 0.7
    assert {name: len(each) for name, each in record["layout"].items()} == dict.fromkeys(NAMES, 1)
    assert all(one["source"] == "local" for each in record["layout"].values() for one in each)
    generate(*words[:-4], "--out", "plain.png")
    assert "layout" not in read_record("plain-1.png") and (pixels("plain-2.png") != pixels("a-2.png")).any()
    for name in ("--init-image", "--control-image"):
        others = [word for pair in zip((begun + controlled)[::2], (begun + controlled)[1::2], strict=True)
                  for word in pair if pair[0] != name]  # fmt: skip
        with pytest.raises(SystemExit):
            main([str(word) for word in ["generate", "--from", "a-2.png", "--model", model, *others]])
        assert f"{name} must be given" in capsys.readouterr().err
    said = generate("--model", model, *controlled, "--mask-image", layout / "mask.png", "--init-image", "demo:3",
                    "--out", "other.png", again="a-2.png")  # fmt: skip
    assert "another init_image" in said and "another mask_image" not in said


def test_a_bundled_portrait_to_begin_with(generate):
    generate("--init-image", "demo:2", "--strength", 0.5, "--prompt", "S*", "--out", "a.png")
    record = read_record("a.png")
    assert record["layout"]["init_image"][0]["source"] == "demo:2"


def test_a_controlnet_needs_a_picture_and_the_other_way_round(model, layout, capsys):
    for words in (["--controlnet", "canny"], ["--control-image", "edges.png"]):
        given = [words[0], layout / words[1]]
        needed = ["generate", "--model", model, "--image", "demo", "--prompt", "S*", "--out", layout / "a.png"]
        assert main([str(word) for word in [*needed, *given]]) == 1
        assert "--controlnet and --control-image must be given together" in capsys.readouterr().err
