"""Loading with this code. How a repository loads elsewhere is shown in fresh processes by `test_hub_ways.py`."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from profusion_pipeline import ProFusionPipeline, PromptNet
from tiny import make_components, make_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved pipeline; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    ProFusionPipeline(**make_components()).save_pretrained(folder)
    return folder


def test_loads_with_this_code(saved):
    pipe = ProFusionPipeline.from_pretrained(saved)
    assert type(pipe) is ProFusionPipeline and type(pipe.promptnet) is PromptNet
    index = ProFusionPipeline.load_config(saved)
    assert index["_class_name"] == "ProFusionPipeline"
    assert index["promptnet"] == ["modeling_promptnet", "PromptNet"]


def test_promptnet_is_the_class_that_was_imported(saved):
    index = ProFusionPipeline.load_config(saved)
    before = copy.deepcopy(index)
    parts, unknown, _ = ProFusionPipeline.extract_init_dict(index)
    assert parts["promptnet"] == ["profusion_pipeline.method.modeling_promptnet", "PromptNet"]
    assert {name: parts[name] for name in parts.keys() - {"promptnet"}} == {
        name: index[name] for name in parts.keys() - {"promptnet"}
    }
    assert unknown == {} and index == before


@pytest.mark.parametrize("entry", [["another_module", "AnotherNet"], [None, None]])
def test_another_class_is_left_alone(entry):
    assert ProFusionPipeline.extract_init_dict({"promptnet": entry})[0] == {"promptnet": entry}


def test_an_index_without_promptnet():
    """Of a Stable Diffusion: the caller brings PromptNet."""
    assert "promptnet" not in ProFusionPipeline.extract_init_dict({"unet": ["diffusers", "UNet2DConditionModel"]})[0]


def test_half_a_tokenizer_is_refused(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "mine"))
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(OSError, match="'.*mine' is not whole, tokenizer/tokenizer_config.json is missing"):
        ProFusionPipeline.from_pretrained(folder)
    tokenizer = make_tokenizer()
    assert ProFusionPipeline.from_pretrained(folder, tokenizer=tokenizer).tokenizer is tokenizer


def test_from_pipe_shares_components_both_ways(components):
    names = (
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
        "safety_checker",
        "image_encoder",
        "feature_extractor",
    )
    sd = StableDiffusionPipeline(**{name: components[name] for name in names}, requires_safety_checker=False)
    extra = {name: components[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
    pipe = ProFusionPipeline.from_pipe(sd, **extra)
    back = StableDiffusionPipeline.from_pipe(pipe)
    again = ProFusionPipeline.from_pipe(back, promptnet=components["promptnet"])
    for other in (pipe, back, again):
        assert all(other.components[name] is components[name] for name in names if name != "safety_checker")
    assert again.config.placeholder == "S*"


# ------------------------------------------------------------------------------------------- a malformed index


@pytest.fixture
def folder(saved, tmp_path):
    """A copy whose index may be changed."""
    return Path(shutil.copytree(saved, tmp_path / "mine"))


def change(folder: Path, **entries) -> None:
    """Put entries into the index; None takes one out."""
    index = json.loads((folder / "model_index.json").read_text()) | entries
    kept = {name: entry for name, entry in index.items() if entry is not None}
    (folder / "model_index.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "must be JSON, got Expecting value"),
        ("{'a': 1}", "must be JSON, got Expecting property name"),
        ("\ufeff{}", "must be JSON, got Unexpected UTF-8 BOM"),
        ("[" * 100_000, "must be JSON, got "),
        ("[]", r"must be a JSON object, got \[\]"),
        ('"ProFusionPipeline"', "must be a JSON object, got 'ProFusionPipeline'"),
        ("null", "must be a JSON object, got None"),
        ("{}", "`_class_name` must be the pipeline's class, alone or with its module in front, got None"),
    ],
)
def test_an_index_that_is_none(folder, text, sentence):
    (folder / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"model_index.json'.*{sentence}") as caught:
        ProFusionPipeline.from_pretrained(folder)
    assert len(str(caught.value)) < 400


def test_an_index_in_another_encoding(folder):
    (folder / "model_index.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="model_index.json' must be JSON, got 'utf-8' codec can't decode"):
        ProFusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", [[], ["pipeline"], ["pipeline", 5], ["", "A"], ["a", "b", "c"], "", 5, {}, [None, None]]
)
def test_a_malformed_class_name(folder, name):
    change(folder, _class_name=name)
    with pytest.raises(ValueError, match="model_index.json', `_class_name` must be the pipeline's class, .* got"):
        ProFusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["unet", "promptnet", "safety_checker", "something_else"])
@pytest.mark.parametrize(
    "entry", [[], ["diffusers"], ["diffusers", None], [None, "A"], [1, 2], ["a", "b", "c"], [["a"]]]
)
def test_a_component_that_is_no_pair(folder, part, entry):
    change(folder, **{part: entry})
    with pytest.raises(ValueError, match=f"model_index.json', '{part}' must be a pair of library and class, got"):
        ProFusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("entry", ["UNet2DConditionModel", 5, {}, True])
def test_a_component_that_is_no_list(folder, entry):
    change(folder, unet=entry)
    with pytest.raises(ValueError, match="model_index.json', 'unet' must be a pair of library and class, got"):
        ProFusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("library", ["diffusers", "transformers", "stable_diffusion"])
def test_a_class_that_is_nowhere(folder, library):
    change(folder, unet=[library, "UNet3000"])
    for given in ({}, {"unet": make_components()["unet"]}):  # diffusers compares what is given with the class
        with pytest.raises(ValueError, match="model_index.json', `unet` must be a class that is installed, got"):
            ProFusionPipeline.from_pretrained(folder, **given)


@pytest.mark.parametrize("entry", [None, [None, None]])
def test_a_component_that_is_missing(folder, entry):
    change(folder, unet=entry, tokenizer=entry)
    sentence = "expected the components `tokenizer` and `unet` in .*model_index.json' or as arguments, got neither"
    with pytest.raises(ValueError, match=sentence):
        ProFusionPipeline.from_pretrained(folder)
    parts = make_components()
    pipe = ProFusionPipeline.from_pretrained(folder, unet=parts["unet"], tokenizer=parts["tokenizer"])
    assert pipe.unet is parts["unet"] and pipe.tokenizer is parts["tokenizer"]


def test_a_component_that_may_be_missing(folder):
    change(folder, image_encoder=None, feature_extractor=None, safety_checker=None)
    assert ProFusionPipeline.from_pretrained(folder).image_encoder is None


@pytest.mark.parametrize(
    ("place", "error"), [("a" * 300, OSError), ("", OSError), ("a\0b", OSError), (None, TypeError), (b"a", TypeError)]
)
def test_a_place_that_is_none(place, error):
    with pytest.raises(error, match="`pretrained_model_name_or_path` must be a folder") as raised:
        ProFusionPipeline.from_pretrained(place)
    assert len(str(raised.value)) < 250
