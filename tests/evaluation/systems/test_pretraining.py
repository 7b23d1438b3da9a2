import pytest
import torch
from safetensors.torch import load_file

from concepts import assert_same, everything
from profusion_pipeline.evaluation.systems.pretraining import pretraining_e4t
from profusion_pipeline.method.modeling_promptnet import PromptNet
from rivals import cached_portraits, listening_pipeline

SETTINGS = dict(class_noun="a man", batch_size=4, rank=2, region_proj_channel=8)


@pytest.fixture
def pipe():
    return listening_pipeline()


@pytest.fixture
def source(pipe, tmp_path):
    (tmp_path / "pictures").mkdir()
    return cached_portraits(tmp_path / "pictures", pipe)


def learn(objective, steps: int) -> list[float]:
    weights = [weight for weight in objective.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.AdamW(weights, lr=3e-3), []
    for draw in range(steps):
        loss = objective(draw)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("frozen_dtype", [torch.float32, torch.bfloat16])
def test_encoder_and_offsets_learn_and_the_pipeline_stays(pipe, source, tmp_path, frozen_dtype):
    before = everything(pipe)
    with pretraining_e4t(pipe, source, **SETTINGS, frozen_dtype=frozen_dtype) as objective:
        learning = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
        assert all(name.startswith("encoder.") or ".lora_" in name for name in learning)
        assert {weight.dtype for weight in learning.values()} == {torch.float32}
        first = {name: weight.detach().clone() for name, weight in learning.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=frozen_dtype == torch.bfloat16):
            losses = learn(objective, 16)
        moved = [name for name, weight in learning.items() if not torch.equal(weight, first[name])]
        assert any(".lora_B." in name for name in moved) and any(name.startswith("encoder.") for name in moved)
        assert sum(losses[-5:]) < sum(losses[:5])
        objective.save_pretrained(tmp_path / "e4t")
        encoder = {name: weight.half() for name, weight in objective.encoder.state_dict().items()}
        offsets = {name: weight.detach().half() for name, weight in objective.offsets.items()}
    assert_same(before, everything(pipe))
    saved = PromptNet.from_pretrained(tmp_path / "e4t", torch_dtype=torch.float16).state_dict()
    assert_same(encoder, saved)
    assert_same(offsets, load_file(tmp_path / "e4t" / "offsets.safetensors"))


def test_a_batch_is_decided_by_its_number(pipe, source):
    with pretraining_e4t(pipe, source, **SETTINGS) as objective, torch.no_grad():
        losses = [objective(draw).item() for draw in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_the_regulariser_shortens_the_offset(pipe, source):
    lengths = []
    for offset_l2 in (0.0, 1.0):
        with pretraining_e4t(pipe, source, **SETTINGS, offset_l2=offset_l2) as objective:
            learn(objective, 12)
            z, states = source.mean[:4].float(), source.states[:4].float()
            with torch.no_grad():
                offset = objective.encoder(z, 500, states, torch.randn_like(z)).prompt_embeds
            lengths.append(offset.norm().item())
    assert lengths[1] < 0.8 * lengths[0]
