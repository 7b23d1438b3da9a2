"""The pipeline around a PromptNet that is learning, and what it makes of a few photos and prompts, as one grid."""

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from diffusers.utils import make_image_grid
from PIL import Image, ImageOps

from ..method.modeling_promptnet import PromptNet
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.pipeline_profusion_xl import ProFusionXLPipeline
from .components import TrainingComponents
from .config import TrainingConfig


def assemble_pipeline(components: TrainingComponents, promptnet: PromptNet, *, placeholder: str) -> ProFusionPipeline:
    """Put the models of a training together.

    Args:
        components: The base pipeline's.
        promptnet: Of any state of the training.
        placeholder: How prompts write the pseudo word.

    Returns:
        The pipeline, with DDIM on the base's noise schedule; of Stable Diffusion XL where the base is that.

    Example:
        >>> pipe = assemble_pipeline(components, promptnet, placeholder="S*")  # doctest: +SKIP
    """
    is_xl = components.text_encoder_2 is not None
    second = dict(text_encoder_2=components.text_encoder_2, tokenizer_2=components.tokenizer_2) if is_xl else {}
    return (ProFusionXLPipeline if is_xl else ProFusionPipeline)(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=DDIMScheduler.from_config(components.noise_schedule.config),  # any fit one: the fewest choices
        promptnet=promptnet,
        image_encoder=components.image_encoder,
        feature_extractor=components.feature_extractor,
        placeholder=placeholder,
        **second,
    )


def draw_validation_grid(
    components: TrainingComponents,
    promptnet: PromptNet,
    photos: Sequence[Image.Image],
    config: TrainingConfig,
    *,
    resolution: int,
) -> Image.Image:
    """One row per photo: the photo, then a picture for each prompt, all from the same initial noise.

    Args:
        components: The frozen models.
        promptnet: With the weights to look at.
        photos: Reference photos.
        config: `validation_prompts`, `validation_class_noun`, `validation_inference_steps`, `placeholder` and `seed`.
        resolution: Side of the pictures.

    Returns:
        The grid.

    Example:
        >>> grid = draw_validation_grid(  # doctest: +SKIP
        ...     components, promptnet, photos, config, resolution=64)
    """
    pipe = assemble_pipeline(components, promptnet, placeholder=config.placeholder)
    pipe.set_progress_bar_config(desc="validation pictures", leave=False)
    home = components.vae.device, components.image_encoder.device
    pipe.to(components.unet.device)
    tiles = []
    for photo in photos:
        tiles.append(ImageOps.fit(photo, (resolution, resolution), Image.Resampling.LANCZOS))
        tiles += pipe(
            prompt=list(config.validation_prompts),
            image=[photo] * len(config.validation_prompts),
            class_noun=config.validation_class_noun,
            height=resolution,
            width=resolution,
            num_inference_steps=config.validation_inference_steps,
            generator=[torch.Generator().manual_seed(config.seed) for _ in config.validation_prompts],
        ).images
    components.vae.to(home[0])
    components.image_encoder.to(home[1])
    return make_image_grid(tiles, rows=len(photos), cols=1 + len(config.validation_prompts))
