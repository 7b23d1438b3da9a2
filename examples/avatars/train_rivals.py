"""Train what the rivals of ProFusion need beforehand: `python examples/avatars/train_rivals.py --which e4t`.

    e4t     an encoder of word offsets, and offsets of the UNet's attention with it
    l2      a PromptNet with the L2 regulariser on S*, the paper's foil
    plain   a PromptNet without it

All three begin from the same UNet and learn equally long from the same pictures, with the same optimiser settings
(those of `train_promptnet.py`), so that they can be compared with each other; the bundled PromptNet has learnt longer.
`WORK/rivals/WHICH` appears at the end: `profusion evaluate` reads WORK/rivals. A run that was stopped goes on.

The default, 2400 steps of 32 pictures, took 25 to 32 minutes for each of the three, on one core of a busy CPU that
knows bfloat16.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from loop import Schedule, fit, processes
from pictures import pictures
from torch import nn
from tqdm import tqdm
from train_promptnet import write_pictures

from profusion_pipeline import PromptNet, TrainingConfig, load_demo_pipeline
from profusion_pipeline.common.files import whole_folder
from profusion_pipeline.demo import FOLDER
from profusion_pipeline.evaluation.systems.pretraining import pretraining_e4t
from profusion_pipeline.training.batches import CachedPictures, Encoders, Preprocessing
from profusion_pipeline.training.data import read_picture_folder
from profusion_pipeline.training.trainer import train_promptnet

WHICH = ("e4t", "l2", "plain")
L2 = 0.01  # weight of the squared norm of S*, and of E4T's offset
RATE, BETA2, EMA_DECAY, WEIGHT_DECAY = 8e-4, 0.99, 0.999, 1e-2
PROMPT, CLASS_NOUN, REGION_CHANNELS = "a portrait of S*", "a person", 64


def base_without_promptnet(model: Path, folder: Path) -> Path:
    """The model's folder without its PromptNet, so that a new one is begun from the UNet; links, no copies."""
    folder.mkdir(parents=True, exist_ok=True)
    for component in model.iterdir():
        link = folder / component.name
        if component.is_dir() and component.name != "promptnet" and not link.exists():
            link.symlink_to(component.resolve())
    return folder


@dataclass(frozen=True)
class Budget:
    """What all three spend: pictures of `data`, `batch_size` a step, read ahead by `workers` processes."""

    data: Path
    steps: int
    batch_size: int
    workers: int

    @property
    def warmup(self) -> int:
        return min(100, self.steps // 10)


def train_one_promptnet(base: Path, run: Path, budget: Budget, l2: float) -> PromptNet:
    config = TrainingConfig(
        model=str(base),
        data=str(budget.data),
        output=str(run),
        prompt=PROMPT,
        region_proj_channel=REGION_CHANNELS,
        subject_l2=l2,
        max_steps=budget.steps,
        batch_size=budget.batch_size,
        learning_rate=RATE,
        lr_scheduler="cosine",
        warmup_steps=budget.warmup,
        adam_beta2=BETA2,
        ema_decay=EMA_DECAY,
        weight_decay=WEIGHT_DECAY,
        mixed_precision="bf16",
        num_workers=budget.workers,
        checkpoint_every=300,
        resume=True,
    )
    return PromptNet.from_pretrained(train_promptnet(config))


def train_e4t(model: Path, run: Path, budget: Budget, l2: float, weights: Path) -> None:
    pipe = load_demo_pipeline(folder=model, device="cuda" if torch.cuda.is_available() else "cpu")
    source = CachedPictures(
        read_picture_folder(str(budget.data), reference="same"),
        Preprocessing(pipe.unet.config.sample_size * pipe.vae_scale_factor, pipe.feature_extractor),
        Encoders(pipe.vae, pipe.image_encoder),
        seed=0,
        batch_size=budget.batch_size,
        num_workers=budget.workers,
        progress=lambda loader: tqdm(loader, desc="encoding pictures"),
    )
    source.ahead = False  # one batch is asked for at a time
    schedule = Schedule(
        steps=budget.steps,
        learning_rate=RATE,
        warmup=max(1, budget.warmup),
        tail=0.0,
        ema_decay=EMA_DECAY,
        betas=(0.9, BETA2),
        weight_decay=WEIGHT_DECAY,
        checkpoint_every=300,
    )
    settings = dict(class_noun=CLASS_NOUN, prompt=PROMPT, region_proj_channel=REGION_CHANNELS, offset_l2=l2)
    settings |= dict(batch_size=budget.batch_size, frozen_dtype=torch.bfloat16)
    with pretraining_e4t(pipe, source, **settings) as objective:
        fit(objective, schedule, run).save_pretrained(weights)


def main(
    which: str,
    model: Path = FOLDER / "model",
    work: Path = Path("outputs/avatars"),
    steps: int = 2400,
    batch_size: int = 32,
    count: int = 16_000,
    workers: int = 0,
) -> Path:
    """Train one of the three; its folder is made at the end, and found there by a later call."""
    weights, l2 = work / "rivals" / which, 0.0 if which == "plain" else L2
    if (weights / "config.json").exists():
        return weights
    data, run = work / f"portraits_{count}", work / f"{which}_training"
    with processes().main_process_first():
        if not data.exists():
            write_pictures(data, pictures("train", count, work / "data"))
    budget = Budget(data, steps, batch_size, workers)
    if which == "e4t":
        train_e4t(model, run, budget, l2, weights)
    else:
        promptnet = train_one_promptnet(base_without_promptnet(model, work / "base"), run, budget, l2)
        with whole_folder(weights) as folder:
            nn.Module.half(promptnet).save_pretrained(folder)
    about = {"steps": steps, "batch_size": batch_size, "pictures": count, "l2": l2}
    (weights / "training.json").write_text(json.dumps(about))
    return weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--which", required=True, choices=WHICH, help="what to train")
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a ProFusion folder")
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--steps", type=int, default=2400, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a step")
    parser.add_argument("--count", type=int, default=16_000, help="pictures, one of each person")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures ahead")
    parser.add_argument("--quick", action="store_true", help="30 steps, in WORK/quick: to see that everything runs")
    words = vars(parser.parse_args())
    if words.pop("quick"):
        words |= dict(work=words["work"] / "quick", steps=30, batch_size=16, count=300)
    print(main(**words))
