"""What the tests of training share: a base pipeline's folder, a folder of portraits, settings for a short run."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from profusion_pipeline.training.checkpoints import list_checkpoints
from profusion_pipeline.training.config import TrainingConfig
from profusion_pipeline.training.run import TrainingRun
from tiny import make_components


def write_base(folder: Path, components: dict | None = None) -> Path:
    """A base pipeline without PromptNet; its UNet listens to the text, as a trained one does."""
    components = components or make_components()
    with torch.no_grad():
        for name, parameter in components["unet"].named_parameters():
            if "attn2" in name or "conv_out" in name:
                parameter.mul_(4)
    for name, component in components.items():
        if component is not None and name != "promptnet":
            component.save_pretrained(folder / name)
    return folder


def write_portraits(folder: Path) -> Path:
    """Five pictures of two people; metadata names the others of each."""
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


def write_shards(folder: Path, *, shards: int, pictures: int) -> Path:
    """WebDataset: tar files of pictures, each with a caption beside it."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for i in range(pictures):
                picture, file = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8), io.BytesIO()
                Image.fromarray(picture).save(file, "png")
                for suffix, content in (
                    ("png", file.getvalue()),
                    ("txt", f"a portrait of S*, number {i}, smiling".encode()),
                ):
                    member = tarfile.TarInfo(f"{shard:04d}-{i:02d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def short_run(**settings) -> TrainingConfig:
    """Six steps; `model`, `data` and `output` must be given."""
    defaults = dict(
        batch_size=2,
        max_steps=6,
        learning_rate=1e-3,
        ema_decay=0.9,
        region_proj_channel=8,
        checkpoint_every=0,
        log_every=2,
    )
    return TrainingConfig(**{name: str(v) if isinstance(v, Path) else v for name, v in (defaults | settings).items()})


def start(config: TrainingConfig, *, cpu: bool = True) -> TrainingRun:
    """A run on the CPU, or where accelerate puts it."""
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision or "no",
        gradient_accumulation_steps=config.gradient_accumulation_steps or 1,
        step_scheduler_with_optimizer=False,
    )
    return TrainingRun(config, accelerator)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a saved PromptNet."""
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Same weights to the bit, same last checkpoint, same log but for the speed."""
    assert_same_bits(weights(ours / "promptnet"), weights(theirs / "promptnet"))
    ours_last, theirs_last = (list_checkpoints(path / "checkpoints")[-1] for path in (ours, theirs))
    assert ours_last.name == theirs_last.name
    for name in ("model.safetensors", "ema.safetensors"):
        assert_same_bits(load_file(ours_last / name), load_file(theirs_last / name))
    ours_state, theirs_state = (
        torch.load(path / "optimizer.bin", weights_only=True)["state"] for path in (ours_last, theirs_last)
    )
    for key in theirs_state:
        assert_same_bits(ours_state[key], theirs_state[key])
    assert [line | {"images_per_second": 0} for line in log_of(ours)] == [
        line | {"images_per_second": 0} for line in log_of(theirs)
    ]


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
