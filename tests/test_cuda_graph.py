"""What is replayed is what would have been computed; customising and training come out the same. Needs a GPU."""

import pytest
import torch

from calls import picture
from profusion_pipeline import CustomizeConfig, TrainingConfig
from profusion_pipeline.cuda_graph import WARM_UP, Replayed
from profusion_pipeline.customize import customizing
from profusion_pipeline.trainer import train_promptnet, train_steps
from training import short_run, start

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
    assert losses[True] == pytest.approx(losses[False], rel=0.02 if settings.get("mixed_precision") else 1e-3)


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


@pytest.mark.parametrize("settings", [{"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_training_settings_that_can_not_be_recorded(settings):
    with pytest.raises(ValueError, match="`cuda_graph` must be False with gradient accumulation or checkpointing"):
        TrainingConfig(model="m", data="d", output="o", cuda_graph=True, **settings)


def test_training_replayed_needs_a_gpu(folders, fresh_accelerate):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, so nothing is refused")
    with pytest.raises(ValueError, match="`cuda_graph` needs one process on a GPU, got 1 on cpu"):
        train_promptnet(short_run(**folders, cuda_graph=True))


@on_gpu
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_training_replayed_on_a_gpu(folders, fresh_accelerate, mixed_precision):
    losses = {}
    settings = dict(max_steps=8, learning_rate=3e-3, mixed_precision=mixed_precision)
    for cuda_graph in (False, True):
        run = start(short_run(**folders, **settings, cuda_graph=cuda_graph), cpu=False)
        losses[cuda_graph] = [record.loss.item() for record in train_steps(run)]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
