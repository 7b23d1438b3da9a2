"""Loading with this code. How a repository loads elsewhere is shown in fresh processes by `test_hub_ways.py`."""

import copy
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
    with pytest.raises(ValueError, match="expected .*promptnet"):
        ProFusionPipeline.from_pipe(sd)
