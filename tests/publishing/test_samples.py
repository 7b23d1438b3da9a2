"""Sample pictures in cards, in folders and on a Hub on the loopback."""

import io

import pytest
from PIL import Image

from concepts import tiny_pipeline
from hub_server import on_hub
from profusion_pipeline import Concept, export_pipeline
from profusion_pipeline.cli import main
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from profusion_pipeline.publishing.samples import END, START, Sample, draw_samples, sample_files, with_samples
from tiny_xl import make_xl_components

PROMPTS = ["a photo of S*", "S* on the beach"]
FEW = ["--steps", "1", "--pool-size", "1", "--batch-size", "1"]


def test_small_pictures_become_larger_and_large_ones_smaller():
    sizes = [(64, 32), (300, 300), (1024, 512)]
    files = sample_files([Sample("S*", Image.new("RGB", size)) for size in sizes])
    assert list(files) == ["samples/1.jpg", "samples/2.jpg", "samples/3.jpg"]
    assert [Image.open(io.BytesIO(file)).size for file in files.values()] == [(256, 128), (300, 300), (512, 256)]
    assert max(map(len, files.values())) < 100_000


def test_a_card_keeps_every_other_word():
    own = f"# Mine\n\nMy words.\n\n{START}\nold\n{END}\n\nMore of them.\n"
    card = with_samples(own, [Sample("S* | [x](y)", Image.new("RGB", (8, 8)), "seed 0")])
    assert card.startswith("# Mine\n\nMy words.\n") and card.endswith("\n\nMore of them.\n") and "old" not in card
    assert "| S\\* \\| \\[x\\](y) | seed 0 |" in card
    assert with_samples(card, []).count("samples/") == 0
    assert with_samples("# Mine", []).startswith("# Mine\n\n<!-- samples -->")


@pytest.mark.parametrize("kind", ["2", "xl"])
def test_export_with_samples(kind, tmp_path):
    pipe = tiny_pipeline() if kind == "2" else ProFusionXLPipeline(**make_xl_components())
    pipe.save_pretrained(tmp_path / "model")
    photo, settings = Image.new("RGB", (16, 16), "orange"), {"num_inference_steps": 2}
    facts = dict(base_model="someone/sd", license="openrail++")
    given = dict(sample_prompts=PROMPTS, sample_image=photo, sample_settings=settings)
    target = export_pipeline(tmp_path / "model", tmp_path / "mine", **facts, **given)
    card = (target / "README.md").read_text("utf-8")
    for words in ("base_model: someone/sd", "license: openrail++", "## Settings", "| placeholder | S\\* |"):
        assert words in card
    assert "| scheduler | DDIMScheduler |" in card and "| the UNet predicts | epsilon |" in card
    assert "trust_remote_code=True" in card and f"{type(pipe).__name__}.from_pretrained" in card
    assert "| S\\* on the beach | seed 1, num\\_inference\\_steps 2 |" in card
    assert sorted(path.name for path in (target / "samples").iterdir()) == ["1.jpg", "2.jpg"]
    drawn = draw_samples(pipe, PROMPTS, image=photo, num_inference_steps=2)
    assert (target / "samples" / "2.jpg").read_bytes() == sample_files(drawn)["samples/2.jpg"]


def test_what_is_refused_before_any_work(tmp_path, capsys):
    with pytest.raises(ValueError, match="`sample_image` is for `sample_prompts`, of which there is none"):
        export_pipeline("nowhere", tmp_path / "mine", sample_image=Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match="`sample_image` must be a file that exists, got 'gone.jpg'"):
        export_pipeline("nowhere", tmp_path / "mine", sample_prompts=["S*"], sample_image="gone.jpg")
    words = ["customize", "--model", "nowhere", "--image", "demo", "--out", str(tmp_path / "ada")]
    with pytest.raises(SystemExit):
        main([*words, "--sample-prompts", "S*"])
    assert "--sample-prompts, --license and --base-model are for the card: add --push-to-hub" in capsys.readouterr().err
    assert main([*words, "--license", "two words", "--push-to-hub", "me/ada"]) == 1
    assert "`license` must be the Hub's word" in capsys.readouterr().err


def test_a_concept_on_the_hub_shows_what_it_draws_and_keeps_a_card(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    words = ["customize", "--model", str(tmp_path / "model"), "--image", "demo", *FEW, "--push-to-hub", "me/ada"]
    card = ["--license", "mit", "--base-model", "me/model", "--sample-prompts", *PROMPTS]
    files = on_hub("me/ada", [*words, "--out", str(tmp_path / "ada"), *card], tmp_path, {})
    text = files["README.md"].decode()
    assert "license: mit" in text and "base_model: me/model" in text and "| rank | 4 |" in text
    assert text.count("from_pretrained('me/model'") == 2 and "![S\\* on the beach](samples/2.jpg)" in text
    pipe, concept = tiny_pipeline(), Concept.from_pretrained(tmp_path / "ada")
    pipe.load_concept(concept)
    assert files["samples/1.jpg"] == sample_files(draw_samples(pipe, PROMPTS))["samples/1.jpg"]
    # Published again over a card that somebody has written since.
    before = {"me/ada": {"README.md": b"my own words"}}
    files = on_hub("me/ada", [*words, "--out", str(tmp_path / "again")], tmp_path / "home", before)
    assert files["README.md"] == b"my own words" and "concept.safetensors" in files


def test_a_model_on_the_hub_shows_what_it_draws(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    words = ["push", str(tmp_path / "model"), "me/mine", "--sample-prompts", *PROMPTS, "--sample-image", "demo:2"]
    files = on_hub("me/mine", words, tmp_path, {})
    assert b"![S\\* on the beach](samples/2.jpg)" in files["README.md"] and "samples/2.jpg" in files
    before = {"me/mine": {"README.md": b"my own words"}}
    files = on_hub("me/mine", words, tmp_path / "home", before)
    assert files["README.md"].startswith(b"my own words\n\n<!-- samples -->")
