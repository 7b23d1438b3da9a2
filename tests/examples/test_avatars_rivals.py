"""The rivals' pre-training on the avatar world, for a few steps, and that a run goes on."""

import json

import pytest
import torch
from safetensors.torch import load_file
from train_rivals import base_without_promptnet, main

from profusion_pipeline import PromptNet
from profusion_pipeline.demo import FOLDER
from profusion_pipeline.evaluation.systems.e4t import OFFSETS

pytestmark = [
    pytest.mark.skipif(not (FOLDER / "model" / "model_index.json").is_file(), reason="the demo model is not there"),
    pytest.mark.usefixtures("fresh_accelerate"),
]
TINY = dict(steps=2, batch_size=2, count=4)


def test_a_new_promptnet_begins_from_the_unet(tmp_path):
    base = base_without_promptnet(FOLDER / "model", tmp_path / "base")
    assert (base / "unet" / "config.json").is_file() and not (base / "promptnet").exists()
    assert base_without_promptnet(FOLDER / "model", tmp_path / "base") == base


@pytest.mark.parametrize("which", ["l2", "e4t"])
def test_a_rival_is_trained_once(which, tmp_path):
    weights = main(which, work=tmp_path, **TINY)
    assert weights == tmp_path / "rivals" / which
    tensors = load_file(weights / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert PromptNet.from_pretrained(weights).config.region_proj_channel == 64
    about = json.loads((weights / "training.json").read_text())
    assert about == {"steps": 2, "batch_size": 2, "pictures": 4, "l2": 0.01}
    if which == "e4t":
        offsets = load_file(weights / OFFSETS)
        assert any(tensor.any() for name, tensor in offsets.items() if "lora_B" in name)
    written = (weights / "config.json").stat().st_mtime_ns
    assert main(which, work=tmp_path, **TINY) == weights
    assert (weights / "config.json").stat().st_mtime_ns == written


def test_e4t_goes_on_where_it_stopped(tmp_path):
    """A finished training of two steps, taken for an unfinished one of four: it begins at the third."""
    weights = main("e4t", work=tmp_path, **TINY)
    (weights / "config.json").unlink()
    main("e4t", work=tmp_path, **TINY | {"steps": 4})
    lines = (tmp_path / "e4t_training" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
