"""Train PromptNet on a data set of pictures: VAE, text encoder, vision tower and UNet stay frozen.

[`train_promptnet`] is the whole: it drives the generator [`train_steps`] and looks after checkpoints, log, validation
pictures and signals. The objective is in `losses.py`; what sample number n is, in `data.py`.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import create_repo, get_token
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ..common.files import check_folder, only_process, shown_path, write_or_keep
from ..common.launcher import check_launcher, launched_accumulation, launched_precision
from ..common.open_pipeline import pipeline_source
from ..common.picture_files import write_pictures
from ..method.modeling_promptnet import PromptNet
from ..method.quoting import brief, quote
from ..method.reference_images import load_reference_image
from .batches import Batch
from .checkpoints import list_checkpoints
from .components import load_training_components
from .config import TrainingConfig
from .data import NoiseDraws, batch_numbers, draw_noise, load_batches
from .log import StopSignal, TrainingLog
from .losses import promptnet_loss
from .run import TrainingRun
from .validation import assemble_pipeline, draw_validation_grid

try:
    from accelerate import Accelerator

    from .trackers import chosen_trackers, report_picture, start_trackers
except ImportError as error:
    raise ImportError("Training needs accelerate: `pip install accelerate`.") from error


class TrainingStep(NamedTuple):
    """What [`train_steps`] yields.

    Args:
        step: Steps done, this one included.
        loss: Mean over the step's samples of this process `[]`, on the device: `.item()` waits for it.
        learning_rate: With which the step was taken.
        seconds: Time from the consumer's request to the answer; on a GPU, work may still be queued.
    """

    step: int
    loss: torch.Tensor
    learning_rate: float
    seconds: float


def train_steps(run: TrainingRun) -> Iterator[TrainingStep]:
    """One optimiser step after another, from `run.step` to `max_steps`.

    The consumer may save checkpoints or draw pictures between two steps, and stop when it likes.

    Args:
        run: What learns; changed by every step.

    Yields:
        A record of each step.

    Example:
        >>> for record in train_steps(run):  # doctest: +SKIP
        ...     print(record.step, record.loss.item())
    """
    config, accelerator = run.config, run.accelerator
    numbers, for_pictures, for_noise = itertools.tee(
        batch_numbers(
            run.step,
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
        ),
        3,
    )
    draw = partial(
        draw_noise,
        seed=config.seed,
        num_timesteps=run.components.noise_schedule.config.num_train_timesteps,
        latent_shape=run.latent_shape,
    )
    draws = load_batches(draw, for_noise, ahead=config.num_workers > 0, pin_memory=accelerator.device.type == "cuda")
    batches = zip(numbers, run.source.batches(for_pictures), draws, strict=True)
    while run.step < config.max_steps:
        started = time.perf_counter()
        learning_rate = run.lr_scheduler.get_last_lr()[0]
        losses = [_learn(run, *next(batches)) for _ in range(config.gradient_accumulation_steps)]
        if run.ema:
            run.ema.step(run.promptnet.parameters())
        run.step += 1
        yield TrainingStep(run.step, sum(losses) / len(losses), learning_rate, time.perf_counter() - started)


def _learn(run: TrainingRun, numbers: Sequence[int], batch: Batch, draws: NoiseDraws) -> torch.Tensor:
    """Forward and backward pass of one batch; the optimiser's step if it is the last of an accumulation."""
    config, accelerator = run.config, run.accelerator
    batch = batch.to(accelerator.device)
    draws = NoiseDraws(*(part.to(accelerator.device, non_blocking=True) for part in draws))
    input_ids, positions = run.prompt_tokens(numbers, batch.captions)
    with accelerator.accumulate(run.promptnet):
        loss = _gradients(
            run,
            latents=batch.mean + batch.std * draws.posterior_noise,
            reference_latents=batch.reference_latents,
            image_states=batch.image_states,
            noise=draws.noise,
            timesteps=draws.timesteps,
            input_ids=input_ids,
            positions=positions,
        )
        if accelerator.sync_gradients and config.max_grad_norm:
            accelerator.clip_grad_norm_(run.promptnet.parameters(), config.max_grad_norm)
        run.optimizer.step()
        if accelerator.sync_gradients:
            run.lr_scheduler.step()
        run.optimizer.zero_grad()
    return loss


def _gradients(run: TrainingRun, **pairs: torch.Tensor) -> torch.Tensor:
    components = run.components
    with run.accelerator.autocast(), _attention_kernel(run.accelerator):
        loss = promptnet_loss(components.unet, components.text_encoders, run.promptnet, **pairs, **run.constants).loss
    run.accelerator.backward(loss)
    return loss.detach()


def _attention_kernel(accelerator: Accelerator) -> AbstractContextManager:
    # On the CPU flash attention's backward pass in bfloat16 takes half of a step: plain products make the step 1.5
    # times faster (torch 2.13, a Xeon with AMX).
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def train_promptnet(config: TrainingConfig) -> Path:
    """Train a PromptNet on a data set of pictures, from nothing or from the newest checkpoint.

    In `config.output` appear: `checkpoints/step-.../` (the newest few), `log.jsonl`, `validation/step-....png`,
    what trackers write, such as `tensorboard/`, and in the end `promptnet/`, the averaged weights, to be used as
    `ProFusionPipeline.from_pretrained(base, promptnet=PromptNet.from_pretrained(folder))`.

    A run can be stopped at any time, also by `kill -9`, and goes on from its newest checkpoint with `resume=True`; on
    the same CPU it ends with the same bits as if nothing had happened. SIGTERM and Ctrl-C end it after the step under
    way and a checkpoint; several processes agree on it when they next write into the log.

    A GPU is taken if there is one. Several processes, on as many GPUs or on a CPU, are started by
    `torchrun --no-python --nproc-per-node 2 profusion train ...`, or by `accelerate launch --no_python --multi_gpu
    --num_processes 2 profusion train ...`, which starts several on a CPU too (`accelerate launch --cpu` starts one and
    leaves the others to mpirun). Each takes `batch_size` pictures at a time, so that two processes learn as one does
    with twice the batch size: the same pictures, of a folder or a stream, noise and timesteps in every step.

    What `accelerate launch`, its config file or the environment say of mixed precision, accumulated gradients and the
    CPU holds where the settings say nothing.

    Args:
        config: All settings.

    Returns:
        The folder of the trained PromptNet.

    Raises:
        ImportError: The package of a tracker isn't installed.
        ValueError: Data, models, the repository to publish or the checkpoint to resume from don't fit the settings;
            what a launcher says contradicts them or can't be done, or it has started fewer processes than asked for;
            another process is training into `output`.
        FileExistsError: `output` holds a run and `resume` is False.
        OSError: Something could not be written; the sentence says where it is kept.
        FloatingPointError: A loss or a weight is not finite; the sentence names the step.

    Example:
        >>> from profusion_pipeline import TrainingConfig
        >>> config = TrainingConfig(model="base", data="portraits", output="runs/first", prompt="a portrait of S*")
        >>> train_promptnet(config)  # doctest: +SKIP
    """
    config = _as_launched(config)
    output, trackers = Path(config.output), chosen_trackers(config.report_to)
    check_folder(output, "`output`")
    photos = [load_reference_image(file, name="validation_images") for file in config.validation_images]
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes on a CPU would not know of each other
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,  # the learning rate is a function of the step alone
        project_dir=output,
    )
    if not accelerator.is_main_process:
        return _train(config, accelerator, photos, trackers)
    if config.push_to_hub:
        _make_repository(config.hub_model_id)
    output.mkdir(parents=True, exist_ok=True)
    sentence = f"`output` must not be in use: another process is training into {shown_path(output)} at this moment."
    with only_process(output, "train", sentence):
        return _train(config, accelerator, photos, trackers)


@torch.inference_mode(False)  # the caller's, such as a server's handler: nothing learns there
@torch.enable_grad()
def _train(
    config: TrainingConfig, accelerator: Accelerator, photos: Sequence[Image.Image], trackers: Sequence[str]
) -> Path:
    """What [`train_promptnet`] does once no other run can disturb it."""
    output = Path(config.output)
    checkpoints, promptnet_folder = output / "checkpoints", output / "promptnet"
    if not config.resume and (promptnet_folder.exists() or list_checkpoints(checkpoints)):
        raise FileExistsError(
            f"`output` {shown_path(config.output)} holds a run already: resume=True goes on with it, or "
            "name another folder."
        )

    # 1. Models, data, and the newest checkpoint
    run = TrainingRun(config, accelerator)
    whole = list_checkpoints(checkpoints)
    untold_losses = run.load_checkpoint(whole[-1]) if whole else []
    start_trackers(accelerator, trackers, output=output, step=run.step, settings=dataclasses.asdict(run.config))
    log = TrainingLog(
        output / "log.jsonl" if accelerator.is_main_process else None,
        first_step=run.step,
        losses=untold_losses,
        average=lambda losses: accelerator.reduce(losses, reduction="mean"),
    )
    bar = tqdm(desc="training", total=config.max_steps, initial=run.step, disable=not accelerator.is_main_process)

    # 2. Steps
    with bar, StopSignal() as stop:
        for record in train_steps(run):
            log.note(record.loss, record.learning_rate)
            bar.update()
            stopping = _agree_to_stop(stop, run)
            is_last = stopping or run.step == config.max_steps
            if is_last or run.step % config.log_every == 0:
                line = log.write(samples_per_step=run.samples_per_step)
                accelerator.log(line, step=run.step)
                bar.set_postfix(loss=f"{line['loss']:.4f}", images_per_second=line["images_per_second"])
            with log.time_out():
                if config.checkpoint_every and (is_last or run.step % config.checkpoint_every == 0):
                    losses = log.check()
                    _saved(run, lambda folder, losses=losses: run.save_checkpoint(folder / "checkpoints", losses))
                if config.validation_every and run.step % config.validation_every == 0 and not stopping:
                    _show_validation(run, photos, output / "validation")
            if stopping:
                break

    # 3. The trained PromptNet
    _saved(run, lambda folder: run.save_promptnet(folder / "promptnet"))
    if config.push_to_hub and accelerator.is_main_process:
        _publish(config, promptnet_folder)
    accelerator.end_training()
    return promptnet_folder


def _as_launched(config: TrainingConfig) -> TrainingConfig:
    """With what a launcher says where the settings say nothing."""
    check_launcher("profusion train", several_processes=True, accumulation=True, precision=True)
    return dataclasses.replace(
        config,
        mixed_precision=launched_precision(config.mixed_precision, "no"),
        gradient_accumulation_steps=launched_accumulation(config.gradient_accumulation_steps),
    )


def _saved(run: TrainingRun, write: Callable[[Path], object]) -> None:
    """Into the run's output, or kept elsewhere; of several processes, which act together, only the first try counts."""
    output = Path(run.config.output)
    if run.accelerator.num_processes > 1:
        write(output)
    else:
        write_or_keep(write, output)


def _make_repository(repo_id: str) -> None:
    """Before the training, so that it isn't lost on a mistyped name or a token that may not write."""
    if get_token() is None:
        raise ValueError("`push_to_hub` needs a token of the Hub: `hf auth login`, or HF_TOKEN in the environment.")
    try:
        create_repo(repo_id, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`hub_model_id` must name a repository that can be made or written, {quote(repo_id)} is not "
            f"one: {brief(error)}."
        ) from error


def _publish(config: TrainingConfig, promptnet: Path) -> None:
    # The base is loaded once more: the run's own copy may be in half precision.
    components = load_training_components(config)
    pipe = assemble_pipeline(components, PromptNet.from_pretrained(promptnet), placeholder=config.placeholder)
    source = pipeline_source(config.model)
    base = None if Path(source).exists() else source  # folders of this machine are nobody's business
    pipe.push_to_hub(config.hub_model_id, commit_message=f"PromptNet after {config.max_steps} steps", base_model=base)


def _agree_to_stop(stop: StopSignal, run: TrainingRun) -> bool:
    """Whether any process was asked to stop; several talk about it only when they log."""
    if run.accelerator.num_processes > 1 and run.step % run.config.log_every == 0:
        asked = torch.tensor(float(stop.received or 0), device=run.accelerator.device)
        stop.received = int(run.accelerator.gather(asked).max()) or None
    elif run.accelerator.num_processes > 1:
        return False
    return stop.received is not None


def _show_validation(run: TrainingRun, photos: Sequence[Image.Image], folder: Path) -> None:
    """Write the grid as a PNG, and show it in the trackers."""
    if not run.accelerator.is_main_process:
        return
    with run.averaged_promptnet() as promptnet, run.accelerator.autocast():
        grid = draw_validation_grid(run.components, promptnet, photos, run.config, resolution=run.resolution)
    folder.mkdir(exist_ok=True)
    write_pictures([grid], [folder / f"step-{run.step:08d}.png"])
    for tracker in run.accelerator.trackers:
        report_picture(tracker, "validation", grid, run.step)
