"""The models of a training: the base pipeline's parts, and a PromptNet found there or begun from the UNet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import file_exists
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
)

from ..common.open_pipeline import pipeline_source
from ..method.checks import check_place
from ..method.framing import vae_scale_factor
from ..method.modeling_promptnet import PromptNet
from ..method.quoting import brief
from ..method.text_encoders import text_width
from ..method.whole_files import shown_path
from ..method.xl_conditions import check_unet
from .config import TrainingConfig


@dataclass(frozen=True)
class TrainingComponents:
    """The models of a training, in float32, all frozen but PromptNet.

    Args:
        vae: The autoencoder.
        text_encoder: Its last hidden state is what the UNet reads.
        tokenizer: The text encoder's.
        unet: The UNet.
        noise_schedule: Tells ᾱ, number of timesteps and prediction type.
        image_encoder: The CLIP vision tower.
        feature_extractor: The vision tower's preprocessing.
        promptnet: What learns.
        text_encoder_2: The second of Stable Diffusion XL; else None.
        tokenizer_2: Its tokenizer; else None.

    Example:
        >>> components = load_training_components(config)  # doctest: +SKIP
        >>> sum(p.numel() for p in components.promptnet.parameters())  # doctest: +SKIP
    """

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    noise_schedule: DDPMScheduler
    image_encoder: CLIPVisionModel
    feature_extractor: CLIPImageProcessor
    promptnet: PromptNet
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None

    @property
    def text_encoders(self) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
        """One, or both of Stable Diffusion XL."""
        return [self.text_encoder] if self.text_encoder_2 is None else [self.text_encoder, self.text_encoder_2]

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        """Of the text encoders."""
        return [self.tokenizer] if self.tokenizer_2 is None else [self.tokenizer, self.tokenizer_2]

    def latent_side(self, resolution: int | None) -> int:
        """Cells along one side of the latents of square pictures.

        Args:
            resolution: Side of the pictures in pixels; None takes the UNet's own size.

        Returns:
            The side of the latents.

        Raises:
            ValueError: `resolution` is not a multiple of the VAE's factor, or not given and unknown to the UNet.
        """
        if resolution is not None:
            if resolution % self.pixels_per_latent:
                raise ValueError(f"`resolution` must be a multiple of {self.pixels_per_latent}, got {resolution}.")
            return resolution // self.pixels_per_latent
        if not isinstance(self.unet.config.sample_size, int):
            raise ValueError(f"`resolution` must be given, the UNet's sample_size is {self.unet.config.sample_size!r}.")
        return self.unet.config.sample_size

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along one side of a latent cell."""
        return vae_scale_factor(self.vae)


def load_training_components(config: TrainingConfig) -> TrainingComponents:
    """Load the base pipeline's components and its PromptNet, or start a new PromptNet from its UNet.

    Args:
        config: `model`, `image_encoder`, `seed` and the region settings are read.

    Returns:
        The components, on the CPU.

    Raises:
        FileNotFoundError: There is nothing at `model` or `image_encoder`, and they can be no Hub id.
        ValueError: A component is missing or can't be read, the scheduler has no betas, or PromptNet doesn't fit.

    Example:
        >>> components = load_training_components(config)  # doctest: +SKIP
    """
    config = replace(config, model=pipeline_source(config.model))
    check_place("model", config.model)
    if config.image_encoder:
        check_place("image_encoder", config.image_encoder)
    vision = dict(repository=config.image_encoder) if config.image_encoder else {}
    with torch.random.fork_rng(devices=[]):  # some versions of the libraries draw first weights before they load others
        unet = _load(config, UNet2DConditionModel, "unet")
        text_encoder, second = _load(config, CLIPTextModel, "text_encoder"), {}
        if unet.config.addition_embed_type == "text_time":  # Stable Diffusion XL
            second = dict(
                text_encoder_2=_load(config, CLIPTextModelWithProjection, "text_encoder_2"),
                tokenizer_2=_load(config, CLIPTokenizer, "tokenizer_2"),
            )
            check_unet(unet, second["text_encoder_2"].config.projection_dim)
        readers = [text_encoder, *filter(None, [second.get("text_encoder_2")])]
        image_encoder = _load(config, CLIPVisionModel, "image_encoder", **vision)
        components = TrainingComponents(
            vae=_load(config, AutoencoderKL, "vae"),
            text_encoder=text_encoder,
            tokenizer=_load(config, CLIPTokenizer, "tokenizer"),
            unet=unet,
            noise_schedule=_load_noise_schedule(config),
            image_encoder=image_encoder,
            feature_extractor=_load(config, CLIPImageProcessor, "feature_extractor", **vision),
            promptnet=_load_or_start_promptnet(config, unet, readers, image_encoder),
            **second,
        )
    for model in (components.vae, *components.text_encoders, unet, image_encoder):
        model.float().eval().requires_grad_(False)
    components.promptnet.float().train()
    return components


def _load(config: TrainingConfig, cls: type, name: str, repository: str | None = None) -> Any:
    inside = dict(subfolder=name) if repository is None else {}
    repository = repository or config.model
    if os.path.isdir(repository) and not Path(repository, *inside.values()).is_dir():
        # Asked here, because transformers makes an empty tokenizer of a folder that isn't there.
        raise ValueError(f"`model` must come with a {name}, {shown_path(repository)} has no such folder.")
    try:
        return cls.from_pretrained(repository, **inside)
    except OSError as error:
        raise ValueError(
            f"`model` must come with a {name}, can't load it from {shown_path(repository)}: {brief(error)}."
        ) from error


def _load_noise_schedule(config: TrainingConfig) -> DDPMScheduler:
    schedule = _load(config, DDPMScheduler, "scheduler")
    settings = DDPMScheduler.load_config(config.model, subfolder="scheduler")
    if "beta_start" not in settings:  # DDPM would take its own betas in silence
        raise ValueError(
            f"`model` {shown_path(config.model)} must have a scheduler with betas, {settings['_class_name']} has none."
        )
    return schedule


def _load_or_start_promptnet(
    config: TrainingConfig, unet: UNet2DConditionModel, readers: Sequence[nn.Module], image_encoder: CLIPVisionModel
) -> PromptNet:
    widths = dict(
        image_embed_dim=image_encoder.config.hidden_size,
        text_embed_dim=text_width(readers),
    )
    if not _has_promptnet(config.model):
        torch.manual_seed(config.seed)
        return PromptNet.from_unet(
            unet,
            **widths,
            region_kernel_size=config.region_kernel_size,
            region_proj_channel=config.region_proj_channel,
        )
    promptnet = _load(config, PromptNet, "promptnet")
    for name, width in {**widths, "in_channels": unet.config.in_channels}.items():
        if promptnet.config[name] != width:
            raise ValueError(
                f"`model` {shown_path(config.model)} has a promptnet with {name}={promptnet.config[name]}, "
                f"its other components need {width}."
            )
    return promptnet


def _has_promptnet(model: str) -> bool:
    if os.path.isdir(model):
        return Path(model, "promptnet").is_dir()
    return file_exists(model, "promptnet/config.json")
