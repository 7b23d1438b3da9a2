from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from concepts import QUICK, assert_same, everything, photo
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.customization.customize import customizing
from profusion_pipeline.customization.learning_weights import learning_weights, make_optimizer
from profusion_pipeline.method.modeling_promptnet import PromptNet


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_as_before_afterwards(pipe, mode, dtype):
    pipe.to(dtype)
    before = everything(pipe)
    with learning_weights(pipe, CustomizeConfig(mode=mode)) as learning:
        for weight in learning.weights.values():
            assert weight.dtype == torch.float32 and weight.requires_grad
            weight.grad = torch.ones_like(weight)
            weight.data += 1
    assert_same(before, everything(pipe))


def test_full_is_all_of_promptnet_and_the_projections_of_the_unet(pipe):
    names = [name for name, _ in pipe.unet.named_parameters() if any(p in name for p in ("to_q", "to_k", "to_v"))]
    with learning_weights(pipe, CustomizeConfig(mode="full")) as learning:
        of_unet = [name.removeprefix("unet.") for name in learning.weights if name.startswith("unet.")]
        assert sorted(of_unet) == sorted(names)
        assert len(learning.weights) - len(of_unet) == len(list(pipe.promptnet.parameters()))
        learns = [name for name, weight in pipe.unet.named_parameters() if weight.requires_grad]
        assert sorted(learns) == sorted(names)
        assert not any(weight.requires_grad for weight in pipe.text_encoder.parameters())


@pytest.mark.parametrize("rank", [1, 3])
def test_lora_is_two_factors_of_every_projection_and_begins_at_nothing(pipe, rank):
    shapes = {
        f"{component}.{name.removesuffix('.weight')}": weight.shape
        for component in ("unet", "promptnet")
        for name, weight in getattr(pipe, component).named_parameters()
        if name.split(".")[-2] in ("to_q", "to_k", "to_v")
    }
    with learning_weights(pipe, CustomizeConfig(rank=rank)) as learning:
        assert len(learning.weights) == 2 * len(shapes)
        for layer, (rows, columns) in shapes.items():
            assert learning.weights[f"{layer}.lora_A.weight"].shape == (rank, columns)
            assert learning.weights[f"{layer}.lora_B.weight"].shape == (rows, rank)
            assert not learning.weights[f"{layer}.lora_B.weight"].any()


def test_size_at_that_of_stable_diffusion_2():
    """Counted by hand: q, k, v of self- and cross-attention in 16 blocks of the UNet and 7 of PromptNet."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        base = SimpleNamespace(unet=unet, promptnet=PromptNet(), _text_encoders=[nn.Identity()])
    widths = 5 * [320] + 5 * [640] + 6 * [1280] + 2 * [320] + 2 * [640] + 3 * [1280]
    # A layer from a to b has rank x (a + b): five from c to c, and keys and values from text or picture, 1024, to c.
    per_rank = sum(4 * 2 * c + 2 * (1024 + c) for c in widths)
    subject = 2 * (4 * 64 * 64 + 257 * 1280) + 8  # latents, vision states in float16, a weight
    for rank, megabytes in ((4, 2.5), (8, 4.4), (16, 8.0)):
        with learning_weights(base, CustomizeConfig(rank=rank)) as learning:
            count = sum(weight.numel() for weight in learning.weights.values())
        assert count == rank * per_rank
        assert (2 * count + subject) / 1e6 == pytest.approx(megabytes, abs=0.05) and megabytes < 10


def test_first_factors_depend_on_the_seed_alone(pipe):
    def first(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # the global generator stands elsewhere each time
        state = torch.get_rng_state()
        with learning_weights(pipe, CustomizeConfig(seed=seed)) as learning:
            weight = next(iter(learning.weights.values())).detach().clone()
        assert torch.equal(torch.get_rng_state(), state)
        return weight

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_without_peft_only_full_works(pipe, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    before = everything(pipe)
    with pytest.raises(ImportError, match="needs PEFT: `pip install peft`, or choose `mode='full'`"):
        with learning_weights(pipe, CustomizeConfig()):
            pass
    assert_same(before, everything(pipe))


def test_the_optimizer_is_adamw(pipe):
    weight = torch.nn.Parameter(torch.ones(3))
    (group,) = make_optimizer(QUICK, [weight]).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.02, (0.9, 0.999), 1e-8, 1e-2)


def test_eight_bits_need_bitsandbytes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match="'adamw8bit' needs bitsandbytes: `pip install bitsandbytes`"):
        make_optimizer(CustomizeConfig(optimizer="adamw8bit"), [torch.nn.Parameter(torch.ones(3))])


def assert_eight_bits_follow_thirty_two(device: str) -> None:
    """A descent to a known place; each of many numbers goes nearly the way that it goes in 32 bits."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install .[bitsandbytes]")
    target = torch.linspace(-1, 1, 8192, device=device).view(64, 128)
    ends = {}
    for name in ("adamw", "adamw8bit"):
        weight = nn.Parameter(torch.zeros_like(target))
        optimizer = make_optimizer(CustomizeConfig(optimizer=name, learning_rate=0.01), [weight])
        for _ in range(50):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        ends[name] = weight.detach()
    assert (ends["adamw"] - target).norm() < 0.6 * target.norm()
    assert (ends["adamw8bit"] - ends["adamw"]).norm() < 0.05 * ends["adamw"].norm()
    assert [state.dtype for state in optimizer.state[weight].values() if torch.is_tensor(state)].count(torch.uint8) == 2


def test_eight_bits_follow_thirty_two():
    assert_eight_bits_follow_thirty_two("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_eight_bits_follow_thirty_two_gpu():
    assert_eight_bits_follow_thirty_two("cuda")


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_customising_in_eight_bits_gpu(pipe, mode):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install .[bitsandbytes]")
    pipe.to("cuda")
    losses = {}
    for name in ("adamw", "adamw8bit"):
        config = CustomizeConfig(
            mode=mode, optimizer=name, learning_rate=1e-3, steps=10, pool_size=2, prompt=QUICK.prompt
        )
        with customizing(pipe, photo(), config) as run:
            losses[name] = [record.loss for record in run.learn()]
            run.concept()
    assert losses["adamw8bit"] == pytest.approx(losses["adamw"], rel=0.02)
    assert losses["adamw8bit"] != losses["adamw"] or mode == "lora"  # whose tensors are small here, and kept in 32 bits
