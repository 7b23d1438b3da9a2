"""The state of a training: what a step changes and a checkpoint holds."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from ..common.files import whole_folder
from ..method.quoting import quote
from ..method.whole_files import shown_path
from ..method.xl_conditions import whole_picture
from .batches import CachedPictures, Encoders, Preprocessing, UncachedPictures, folder_samples
from .captions import SamplePrompts
from .checkpoints import checkpoint_path, delete_all_but_newest
from .components import load_training_components
from .config import TrainingConfig
from .data import read_picture_folder
from .stream import PictureStream, open_picture_stream

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

CAST_FROZEN = {"no": nn.Module.float, "fp16": nn.Module.half, "bf16": nn.Module.bfloat16}
EMA_FILE, STREAM_FILE, STATE_FILE = "ema.safetensors", "stream.json", "state.json"


class TrainingRun:
    """A training under way: models on their device, optimiser, moving average, and how many steps are done.

    Args:
        config: All settings.
        accelerator: Made for the same precision and accumulation, as [`train_promptnet`] does; settings that are not
            given are the accelerator's.

    Raises:
        ValueError: The data, the models or the accelerator don't fit the settings.

    Example:
        >>> run = TrainingRun(config, Accelerator())  # doctest: +SKIP
        >>> losses = [record.loss.item() for record in train_steps(run)]  # doctest: +SKIP
    """

    def __init__(self, config: TrainingConfig, accelerator: "Accelerator"):
        self.config = config = _agreeing(config, accelerator)
        self.accelerator, self.step = accelerator, 0
        self.pictures = self.stream = None
        placeholder = config.placeholder if config.captions else None
        if config.streaming:
            self.stream = PictureStream(
                open_picture_stream(config.data, captions=config.captions),
                seed=config.seed,
                shuffle_buffer=config.shuffle_buffer,
                horizontal_flip=config.horizontal_flip,
                placeholder=placeholder,
                folder=None if config.allow_outside_files else config.data,
            )
        else:
            self.pictures = read_picture_folder(
                config.data,
                reference=config.reference,
                placeholder=placeholder,
                allow_outside_files=config.allow_outside_files,
            )
            captions = self.pictures.captions
            logger.info("%d of %d pictures have a caption", sum(map(bool, captions)), len(self.pictures.targets))
        self.components = components = load_training_components(config)
        side = components.latent_side(config.resolution)
        self.latent_shape = (components.unet.config.in_channels, side, side)
        self.resolution = side * components.pixels_per_latent
        self.prompts = SamplePrompts(
            components.tokenizers,
            config.prompt,
            config.placeholder,
            components.promptnet.num_subject_tokens(side, side),
            pad=config.pad_prompt,
            dropout=config.caption_dropout,
            seed=config.seed,
        )
        self._check_captions()
        self._prompt_alone = tuple(part.to(accelerator.device) for part in self.prompts.tokens([0], [""]))
        self.constants = dict(
            alphas_cumprod=components.noise_schedule.alphas_cumprod.to(accelerator.device),
            prediction_type=components.noise_schedule.config.prediction_type,
            snr_gamma=config.snr_gamma,
            subject_l2=config.subject_l2,
        )
        if components.text_encoder_2 is not None:
            self.constants["sizes"] = whole_picture(self.resolution, self.resolution).to(accelerator.device)
        self.source = self._open_pictures()

        for model in (components.unet, *components.text_encoders):
            CAST_FROZEN[config.mixed_precision](model.to(accelerator.device))
        if config.gradient_checkpointing:
            components.unet.enable_gradient_checkpointing()
            components.promptnet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(
            components.promptnet.to(accelerator.device).parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.max_steps,
        )
        self.promptnet, self.optimizer, self.lr_scheduler = accelerator.prepare(
            components.promptnet, optimizer, lr_scheduler
        )
        self.ema = None
        if config.ema_decay:
            self.ema = EMAModel(self.promptnet.parameters(), decay=config.ema_decay, foreach=True)

    def prompt_tokens(self, numbers: Sequence[int], captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of a batch's texts, on the run's device.

        Args:
            numbers: Sample numbers.
            captions: Of the samples, empty where there is none.

        Returns:
            Ids and the first position of S*, [B, T] and [B]; `[1, T]` and `[1]` if no sample has a caption.
        """
        if not any(captions):
            return self._prompt_alone
        return tuple(part.to(self.accelerator.device) for part in self.prompts.tokens(numbers, captions))

    def _check_captions(self) -> None:
        captions = self.stream.caption_columns if self.stream else tuple(filter(None, self.pictures.captions))
        if captions and not self.config.pad_prompt:
            raise ValueError(
                "`pad_prompt` must be True where pictures have captions, whose lengths differ; captions=False leaves "
                "captions out, got False."
            )
        if self.pictures and captions:  # S* within the text encoder's length: asked before anything is encoded
            placeholder = self.config.placeholder
            beginnings = {caption.partition(placeholder)[0] + placeholder for caption in captions}
            self.prompts.tokens(range(len(beginnings)), sorted(beginnings))

    def _open_pictures(self) -> CachedPictures | UncachedPictures:
        config, components, device = self.config, self.components, self.accelerator.device
        preprocessing = Preprocessing(self.resolution, components.feature_extractor)
        encoders = Encoders(components.vae.to(device), components.image_encoder.to(device))
        if not config.cache_latents:
            samples = (
                self.stream.samples
                if self.stream
                else partial(
                    folder_samples, pictures=self.pictures, seed=config.seed, horizontal_flip=config.horizontal_flip
                )
            )
            return UncachedPictures(samples, preprocessing, encoders, num_workers=config.num_workers)
        hidden = not self.accelerator.is_local_main_process
        source = CachedPictures(
            self.pictures,
            preprocessing,
            encoders,
            seed=config.seed,
            batch_size=max(16, config.batch_size),
            num_workers=config.num_workers,
            progress=lambda loader: tqdm(loader, desc="encoding pictures", disable=hidden),
        )
        logger.info("%d pictures encoded, %.2f GB in memory", len(self.pictures.files), source.num_bytes / 1e9)
        components.vae.to("cpu")
        components.image_encoder.to("cpu")
        return source

    @property
    def samples_per_step(self) -> int:
        """Pictures that one optimiser step learns from, over all processes."""
        return self.config.batch_size * self.config.gradient_accumulation_steps * self.accelerator.num_processes

    @contextlib.contextmanager
    def averaged_promptnet(self) -> Iterator[nn.Module]:
        """PromptNet with its averaged weights (the last ones if `ema_decay` is 0), for the length of the block.

        Yields:
            The PromptNet, in eval mode.
        """
        promptnet = self.accelerator.unwrap_model(self.promptnet, keep_fp32_wrapper=False).eval()
        if self.ema:
            self.ema.store(promptnet.parameters())
            self.ema.copy_to(promptnet.parameters())
        try:
            yield promptnet
        finally:
            if self.ema:
                self.ema.restore(promptnet.parameters())
            promptnet.train()

    def save_promptnet(self, path: Path) -> None:
        """Write the averaged PromptNet, whole or not at all.

        Args:
            path: Its folder; an older one there is replaced.

        Raises:
            FloatingPointError: A weight is not finite; nothing is written.
        """
        self._refuse_broken_weights()
        if self.accelerator.is_main_process:
            with self.averaged_promptnet() as promptnet, whole_folder(path) as folder:
                promptnet.save_pretrained(folder)

    def save_checkpoint(self, folder: Path, losses: Sequence[float] = ()) -> Path:
        """Write all that [`load_checkpoint`] needs to go on exactly, whole or not at all, and delete old ones.

        Args:
            folder: The run's checkpoints; the newest `keep_checkpoints` stay.
            losses: Of the last steps, those that the log has no line about yet.

        Returns:
            The checkpoint's folder.

        Raises:
            FloatingPointError: A weight is not finite; nothing is written.
        """
        from accelerate.utils import broadcast_object_list

        self._refuse_broken_weights()
        path, accelerator = checkpoint_path(folder, self.step), self.accelerator
        accelerator.wait_for_everyone()
        with whole_folder(path) if accelerator.is_main_process else contextlib.nullcontext() as part:
            (part,) = broadcast_object_list([part])  # all processes write into the folder of the main one
            accelerator.save_state(str(part))
            if accelerator.is_main_process:
                if self.stream:
                    bookmark = self.stream.bookmark(self.step * self.samples_per_step)
                    (part / STREAM_FILE).write_text(json.dumps(bookmark))
                if self.ema:
                    save_file(dict(zip(self._names(), self.ema.shadow_params, strict=True)), part / EMA_FILE)
                state = dict(step=self.step, losses=list(losses), **self._fixed())
                (part / STATE_FILE).write_text(json.dumps(state, indent=2))
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            delete_all_but_newest(folder, self.config.keep_checkpoints)
        return path

    def load_checkpoint(self, path: Path) -> list[float]:
        """Go on from a checkpoint: weights, moving average, optimiser and step are those of the run that wrote it.

        Args:
            path: The checkpoint's folder.

        Returns:
            The losses that it was saved with.

        Raises:
            ValueError: The run that wrote it had other settings or data, so that going on would be another training.
        """
        state = json.loads((path / STATE_FILE).read_text())
        # What a setting does by default is what was done before there was the setting.
        state = {field.name: field.default for field in dataclasses.fields(self.config)} | {"losses": []} | state
        for name, value in self._fixed().items():
            if state[name] != value:
                raise ValueError(
                    f"`resume` needs the settings of {shown_path(path)}: {name} was {quote(state[name])} "
                    f"and is {quote(value)} now."
                )
        self.accelerator.load_state(str(path))
        self.step = state["step"]
        if self.stream:
            self.stream.go_to(json.loads((path / STREAM_FILE).read_text()))
        if self.ema:
            shadow = load_file(path / EMA_FILE)
            shadow = [shadow[name].to(self.accelerator.device) for name in self._names()]
            self.ema.load_state_dict({"shadow_params": shadow, "optimization_step": self.step})
        return state["losses"]

    def _refuse_broken_weights(self) -> None:
        # A loss tells of the weights before its step: what the last gradient did to them shows only here.
        if not torch.stack([parameter.isfinite().all() for parameter in self.promptnet.parameters()]).all():
            raise FloatingPointError(
                f"The weights after step {self.step} must be finite, some are not; they were not saved. A lower "
                "learning_rate usually helps."
            )

    def _names(self) -> list[str]:
        return [name for name, _ in self.accelerator.unwrap_model(self.promptnet).named_parameters()]

    def _fixed(self) -> dict[str, bool | int | float | str | None]:
        """What must be equal when a run goes on: the settings that decide its weights, and the size of the data."""
        fields = [field.name for field in dataclasses.fields(self.config) if not field.metadata["resumable"]]
        return dict(
            **{name: getattr(self.config, name) for name in fields},
            samples_per_step=self.samples_per_step,
            **self._fixed_of_data(),
        )

    def _fixed_of_data(self) -> dict[str, int]:
        if self.stream:
            return dict(num_shards=self.stream.dataset.num_shards)
        return dict(num_targets=len(self.pictures.targets))


def _agreeing(config: TrainingConfig, accelerator: "Accelerator") -> TrainingConfig:
    settings = {name: getattr(accelerator, name) for name in ("mixed_precision", "gradient_accumulation_steps")}
    for name, value in settings.items():
        given = getattr(config, name)
        if given not in (None, value):
            raise ValueError(f"`{name}` must be that of the accelerator, {quote(value)}, got {quote(given)}.")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("`mixed_precision` must be 'no' or 'bf16' on a CPU, got 'fp16'.")
    return dataclasses.replace(config, **settings)
