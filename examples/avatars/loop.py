"""One training loop for every part of the demo model: accelerate, EMA, a learning rate that ends in a cosine, resume.

An objective is a module whose `forward(draw)` gives the loss of one batch. `draw` is a number that no other step and no
other process gets; all that is random comes from `draw_generator(seed, draw)`, so that an interrupted run goes on as if
nothing had happened. `torchrun --nproc-per-node 2` shares the work; two processes of one thread each suffer far
less from other programs on the same cores than one process of two threads does.
"""

import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from profusion_pipeline.common.files import whole_file


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        steps: optimizer steps in all.
        learning_rate: peak, after `warmup` steps; from `tail` (a share of all steps) on it falls as a cosine to 2 %.
        ema_decay: of the averaged weights that are kept in the end.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    tail: float = 0.5
    ema_decay: float = 0.999
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3
    checkpoint_every: int = 500

    def rate(self, step: int) -> float:
        progress = step / self.steps
        fall = 0.0 if progress < self.tail else (progress - self.tail) / (1 - self.tail)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * fall)))


def processes() -> PartialState:
    """The processes of this run: `.main_process_first()` where one makes what all read, `.is_main_process` to save."""
    return PartialState(cpu=not torch.cuda.is_available())


def draw_generator(seed: int, draw: int) -> torch.Generator:
    """The random numbers of one batch: a pure function of (seed, draw)."""
    return torch.Generator().manual_seed(seed * 1_000_003 + draw)


def attention_kernel(accelerator: Accelerator) -> AbstractContextManager:
    """On the CPU, plain products: flash attention's backward pass in bfloat16 takes half of a step there."""
    return sdpa_kernel(SDPBackend.MATH) if accelerator.device.type == "cpu" else nullcontext()


def fit(objective: nn.Module, schedule: Schedule, folder: Path, *, precision: str = "bf16") -> nn.Module:
    """Train `objective` in place and return it with its averaged weights, in evaluation mode.

    Args:
        objective: `forward(draw: int) -> loss`; its parameters that require a gradient learn.
        folder: holds `checkpoint.pt` (removed by nobody: a finished run is not trained again) and `log.jsonl`.
        precision: `no`, `fp16` or `bf16` (autocast).
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, schedule.learning_rate, betas=schedule.betas, weight_decay=schedule.weight_decay, foreach=True
    )
    ema = EMAModel(parameters, decay=schedule.ema_decay, foreach=True)
    model, optimizer = accelerator.prepare(objective, optimizer)
    ema.to(accelerator.device)

    checkpoint, start = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        start = state["step"]
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.data.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)

    def save(step: int) -> None:
        state = {
            "step": step,
            "parameters": [parameter.detach().cpu() for parameter in parameters],
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(),
        }
        with whole_file(checkpoint) as path:
            torch.save(state, path)

    began, losses = time.monotonic(), []
    bar = tqdm(
        range(start, schedule.steps),
        initial=start,
        total=schedule.steps,
        desc=folder.name,
        mininterval=10,
        disable=not accelerator.is_main_process,
    )
    objective.train()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with accelerator.autocast(), attention_kernel(accelerator):
            loss = model(step * accelerator.num_processes + accelerator.process_index)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        losses.append(loss.detach())
        if len(losses) == 100 or step + 1 == schedule.steps:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss of {folder.name} is {mean} at step {step + 1}")
            record = {"step": step + 1, "loss": mean, "seconds": time.monotonic() - began, "time": time.time()}
            if accelerator.is_main_process:
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
            bar.set_postfix(loss=f"{mean:.4f}")
            losses = []
        if accelerator.is_main_process and ((step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps):
            save(step + 1)
    accelerator.wait_for_everyone()
    ema.copy_to(parameters)
    return objective.eval()
