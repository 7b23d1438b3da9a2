"""The picture whose structure a call takes over: it begins there, and keeps what a mask doesn't show.

    code name      paper    what
    clean          x_0      latents of `init_image`                                  [B, C, h, w]
    noise          ε        that the call begins with, the same at every step        [B, C, h, w]
    drawn          -        where the picture is drawn anew                          [B, 1, h, w]

Source: latent blending as of diffusers' `StableDiffusionInpaintPipeline` with a UNet of four channels; Avrahami et al.
2022, "Blended Latent Diffusion" (arXiv 2206.02779).
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from PIL import Image

from . import call_inputs, framing, fusion_sampling, mask_picture, noise_levels, quoting, reference_images

logger = logging.get_logger(__name__)

MASKS = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)


@dataclass(frozen=True)
class Structure:
    """Pictures that a call begins with, read and checked.

    Args:
        pictures: RGB, one for each prompt, the same object where prompts share it; none where none is looked at.
        masks: Grey, of the pictures' sizes, light where they are drawn anew; none where all of them is.

    Example:
        >>> Structure().pictures
        ()
    """

    pictures: tuple[Image.Image, ...] = ()
    masks: tuple[Image.Image, ...] = ()


def read(
    init_image: reference_images.Reference | list | None,
    mask_image: reference_images.Reference | list | None,
    num_prompts: int,
    strength: float,
    latents: torch.Tensor | None,
    scheduler: SchedulerMixin,
) -> Structure:
    """Read what a call is given to begin with.

    Args:
        init_image: A picture for all prompts, a list with one for each, or None.
        mask_image: Likewise, light where its picture is drawn anew.
        num_prompts: P.
        strength: Of the call. At 1 it begins with noise, and without a mask the picture isn't looked at.
        latents: Of the call: its initial noise; below a strength of 1 they would be a second beginning.
        scheduler: Of the call. It must have an ᾱ, for a mask.

    Returns:
        The pictures and masks, or nothing.

    Raises:
        TypeError: They are nothing that makes a picture.
        ValueError: One can't be read, a mask has another size, there is a mask alone, there are two beginnings, or
            the scheduler has no ᾱ.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> photo, mask = Image.new("RGB", (64, 64)), Image.new("L", (64, 64))
        >>> len(read(photo, mask, 2, 1.0, None, DDIMScheduler()).masks)
        2
    """
    if init_image is None:
        if mask_image is not None:
            raise ValueError("`init_image` must be given beside `mask_image`, which says what of it is drawn anew.")
        return Structure()
    if strength < 1 and latents is not None:
        raise ValueError(
            "`init_image` and `latents` must not both be given where `strength` is below 1: the call begins with one."
        )
    load = reference_images.load_reference_image
    pictures = _read_each("init_image", init_image, num_prompts, load)
    if mask_image is None:
        if strength == 1:
            logger.warning("`init_image` isn't looked at where `strength` is 1 and there is no `mask_image`.")
        return Structure(pictures if strength < 1 else ())
    noise_levels.check_keeps(scheduler)
    masks = _read_each("mask_image", mask_image, num_prompts, mask_picture.load_mask)
    for picture, mask in zip(pictures, masks, strict=True):
        if picture.size != mask.size:
            raise ValueError(
                f"`mask_image` must have the size of `init_image`, {picture.width} x {picture.height}, got "
                f"{mask.width} x {mask.height}."
            )
    return Structure(pictures, masks)


def _read_each(name: str, images: Any, num_prompts: int, load: Any) -> tuple[Image.Image, ...]:
    """A picture for each prompt."""
    each, read = call_inputs.list_per_prompt(name, images, num_prompts), reference_images.reading_once(load, name)
    for one in each:
        if isinstance(one, list):
            raise TypeError(f"`{name}` must be one picture for each prompt, got {quoting.quote(one)} for one.")
    return tuple(read(one) for one in each)


def mask_cells(masks: tuple[Image.Image, ...], height: int, width: int, grid: tuple[int, int]) -> torch.Tensor:
    """Masks as cells of the latents: those that are light on half of their pixels or more.

    Args:
        masks: Grey, of P pictures.
        height: To which they are scaled and cropped, as their pictures are.
        width: Likewise.
        grid: Height and width of the latents.

    Returns:
        Where a picture is drawn anew. [P, 1, h, w], bool

    Example:
        >>> mask = Image.new("L", (64, 64))
        >>> mask.paste(255, (0, 0, 32, 64))
        >>> mask_cells((mask,), 64, 64, (2, 2))[0, 0].tolist()
        [[True, False], [True, False]]
    """
    pixels = torch.cat([framing.vae_pixels(MASKS, [mask], height, width) for mask in masks])  # [P, 1, H, W]
    return torch.nn.functional.interpolate(pixels, size=grid, mode="area") >= 0.5  # [P, 1, h, w]


def keep(
    masks: tuple[Image.Image, ...],
    size: tuple[int, int],
    clean: torch.Tensor | None,
    noise: torch.Tensor,
    scheduler: SchedulerMixin,
    begin: int,
) -> "KeptParts":
    """What masks keep in a call.

    Args:
        masks: Of P prompts, or none.
        size: Height and width of the pictures.
        clean: x_0 of each picture; not read without masks. [B, C, h, w]
        noise: ε that the call begins with. [B, C, h, w]
        scheduler: With its timesteps set.
        begin: Which of them is the call's first.

    Returns:
        What is put back after every step.

    Example:
        >>> latents = torch.zeros(1, 4, 8, 8)
        >>> keep((), (64, 64), None, latents, None, 0).put_back(latents, 0) is latents
        True
    """
    if not masks:
        return KeptParts()
    drawn = mask_cells(masks, *size, noise.shape[-2:])  # [P, 1, h, w]
    drawn = drawn.to(clean.device).repeat_interleave(len(noise) // len(drawn), dim=0)  # [B, 1, h, w]
    return KeptParts(clean, noise.to(clean), drawn, noise_levels.state_levels(scheduler, begin))


class KeptParts:
    """What of a picture stays as it is: put back after every step, at the noise level that the step has reached.

    Args:
        clean: x_0 of each picture; None, as all others, where nothing is kept. [B, C, h, w]
        noise: ε that the call begins with. [B, C, h, w]
        drawn: Where it is drawn anew. [B, 1, h, w]
        levels: At every loop index and after the last one, of `noise_levels.state_levels`.

    Example:
        >>> clean, noise = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
        >>> drawn = torch.tensor([[[[True, False]]]])
        >>> kept = KeptParts(clean, noise, drawn, [noise_levels.StateLevel(0.75, 1.0)])
        >>> kept.put_back(torch.full((1, 1, 1, 2), 9.0), 0)
        tensor([[[[9.0000, 0.5000]]]])
    """

    def __init__(
        self,
        clean: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        drawn: torch.Tensor | None = None,
        levels: list[noise_levels.StateLevel | None] | None = None,
    ):
        self._clean, self._noise, self._drawn, self._levels = clean, noise, drawn, levels
        self._noised: tuple[int, torch.Tensor] | None = None  # of the level asked for last: fusion steps stay at one

    def put_back(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """x_t where the picture is drawn anew, elsewhere sqrt(ᾱ_t) x_0 + sqrt(1-ᾱ_t) ε.

        Args:
            latents: The scheduler's state. [B, C, h, w]
            index: Which step the state is given to; the number of steps after the last one.

        Returns:
            The state with the picture in it. [B, C, h, w]
        """
        level = self._levels[index] if self._levels else None
        if level is None:
            return latents
        if self._noised is None or self._noised[0] != index:
            noised = fusion_sampling.add_noise(self._clean, self._noise, level.alpha_bar) * level.state_scale
            self._noised = (index, noised)
        return torch.where(self._drawn, latents, self._noised[1].to(latents.dtype))  # [B, C, h, w]
