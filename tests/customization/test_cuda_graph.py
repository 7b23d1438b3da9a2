"""What is replayed is what would have been computed; customising comes out the same. Needs a GPU."""

import pytest
import torch

from calls import picture, rounding
from profusion_pipeline import CustomizeConfig
from profusion_pipeline.customization.cuda_graph import WARM_UP, Replayed
from profusion_pipeline.customization.customize import customizing

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_gpu
def test_replayed_function_on_a_gpu():
    """Gradients are those of the last call, results belong to their own."""
    torch.manual_seed(0)
    line, calls = torch.nn.Linear(4, 4, device="cuda"), []

    def gradients(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        line.zero_grad()
        loss = line(inputs).square().sum()
        loss.backward()
        return loss.detach()

    replayed, other = Replayed(gradients), torch.nn.Linear(4, 4, device="cuda")
    other.load_state_dict(line.state_dict())  # a tensor that two streams know would stop the recording
    results, expected = [], []
    for number in range(WARM_UP + 4):
        inputs = torch.full((2, 4), float(number), device="cuda")
        results.append(replayed(inputs=inputs))
        theirs = other(inputs).square().sum()
        expected.append(theirs.detach())
        assert torch.allclose(line.weight.grad, torch.autograd.grad(theirs, other.weight)[0])
    assert torch.allclose(torch.stack(results), torch.stack(expected))
    assert len(calls) == WARM_UP + 1  # those, and the recording


@on_gpu
@pytest.mark.parametrize("settings", [{}, {"mixed_precision": "bf16"}, {"mixed_precision": "fp16"}, {"mode": "full"}])
def test_customising_replayed_on_a_gpu(pipe, settings):
    pipe.to("cuda")
    losses = {}
    for cuda_graph in (False, True):
        config = CustomizeConfig(steps=8, pool_size=2, cuda_graph=cuda_graph, learning_rate=1e-3, **settings)
        with customizing(pipe, picture(1), config) as run:
            assert isinstance(run.gradients, Replayed) == cuda_graph
            losses[cuda_graph] = [record.loss for record in run.learn()]
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    precision = settings.get("mixed_precision")
    assert losses[True] == pytest.approx(losses[False], rel=rounding(halves[precision]) if precision else 1e-3)


@on_gpu
@pytest.mark.parametrize("way", ["checkpointing", "off-load"])
def test_what_can_not_be_recorded_on_a_gpu(pipe, way):
    config = CustomizeConfig(steps=5, pool_size=1, gradient_checkpointing=way == "checkpointing")
    if way == "off-load":
        pipe.enable_model_cpu_offload()
    else:
        pipe.to("cuda")
    with customizing(pipe, picture(1), config) as run:
        assert not isinstance(run.gradients, Replayed)
        assert len(list(run.learn())) == 5


def test_not_on_a_cpu(pipe):
    with customizing(pipe, picture(1), CustomizeConfig(steps=1, pool_size=1)) as run:
        assert not isinstance(run.gradients, Replayed)
