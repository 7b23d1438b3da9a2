import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from profusion_pipeline.config import TrainingConfig
from profusion_pipeline.trainer import train_promptnet, train_steps
from profusion_pipeline.training_run import TrainingRun
from tiny import make_components


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base pipeline's folder without a PromptNet; its UNet listens to the text, as a trained one does."""
    folder = tmp_path_factory.mktemp("base")
    components = make_components()
    with torch.no_grad():
        for name, parameter in components["unet"].named_parameters():
            if "attn2" in name or "conv_out" in name:
                parameter.mul_(4)
    for name, component in components.items():
        if component is not None and name != "promptnet":
            component.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def portraits(tmp_path_factory) -> Path:
    """Five pictures of two people; metadata names the others of each."""
    folder = tmp_path_factory.mktemp("portraits")
    generator = np.random.default_rng(0)
    rows = []
    for person, count in (("anna", 3), ("ben", 2)):
        names = [f"{person}-{i}.png" for i in range(count)]
        colour = generator.integers(0, 256, 3)
        for name in names:
            grain = generator.integers(-20, 20, (16, 16, 3))
            Image.fromarray((colour + grain).clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append({"file_name": name, "ref_img": [other for other in names if other != name]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make_config(base, portraits, tmp_path):
    def make(**settings) -> TrainingConfig:
        settings = (
            dict(
                model=str(base),
                data=str(portraits),
                output=str(tmp_path / "run"),
                batch_size=2,
                max_steps=6,
                learning_rate=1e-3,
                ema_decay=0.9,
                region_proj_channel=8,
                checkpoint_every=0,
                log_every=2,
            )
            | settings
        )
        return TrainingConfig(**settings)

    return make


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its state in class attributes; a test may choose another precision than the one before."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def start(config: TrainingConfig) -> TrainingRun:
    accelerator = Accelerator(
        cpu=True,
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
    )
    return TrainingRun(config, accelerator)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same_bits(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_the_loss_falls_on_a_few_pictures(make_config):
    run = start(make_config(max_steps=30, learning_rate=3e-3, batch_size=8))
    losses = [record.loss.item() for record in train_steps(run)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_only_promptnet_learns(make_config):
    run = start(make_config())
    before = {name: p.clone() for name, p in run.components.promptnet.named_parameters()}
    frozen = [
        (p, p.clone())
        for model in (
            run.components.vae,
            run.components.unet,
            run.components.text_encoder,
            run.components.image_encoder,
        )
        for p in model.parameters()
    ]
    next(train_steps(run))
    assert all(torch.equal(p, old) and p.grad is None and not p.requires_grad for p, old in frozen)
    assert [n for n, p in run.components.promptnet.named_parameters() if torch.equal(p, before[n])] == []


def test_records_say_step_rate_and_time(make_config):
    run = start(make_config(lr_scheduler="linear", warmup_steps=2, max_steps=4))
    records = list(train_steps(run))
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert [record.learning_rate for record in records] == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    assert all(record.seconds > 0 for record in records)


@pytest.mark.parametrize("settings", [{}, {"cache_latents": False, "horizontal_flip": True, "reference": "other"}])
def test_an_interrupted_run_resumes_with_the_same_bits(make_config, tmp_path, settings):
    settings = dict(checkpoint_every=2, max_steps=5, lr_scheduler="cosine", gradient_accumulation_steps=2) | settings
    whole = train_promptnet(make_config(output=str(tmp_path / "whole"), **settings))

    class Killed(Exception):
        pass

    config = make_config(output=str(tmp_path / "cut"), **settings)
    run = start(config)
    for record in train_steps(run):
        if record.step == 2:
            run.save_checkpoint(tmp_path / "cut" / "checkpoints")
        if record.step == 3:  # learnt, but lost
            break
    fresh_state = dataclasses.replace(config, resume=True)
    resumed = train_promptnet(fresh_state)

    assert_same_bits(weights(resumed), weights(whole))
    last = "checkpoints/step-00000005"
    for name in ("model.safetensors", "ema.safetensors"):
        assert_same_bits(load_file(tmp_path / "cut" / last / name), load_file(tmp_path / "whole" / last / name))
    ours, theirs = (
        torch.load(tmp_path / folder / last / "optimizer.bin", weights_only=True)["state"]
        for folder in ("cut", "whole")
    )
    for key in theirs:
        assert_same_bits(ours[key], theirs[key])
