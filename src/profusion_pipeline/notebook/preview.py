"""What a picture will look like, while it is drawn: a linear map from latents to colours, fitted in a moment."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from diffusers import ModelMixin
from PIL import Image, ImageOps

from ..method.checks import check_count
from ..method.framing import vae_pixels
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.reference_images import Reference, load_reference_images


@dataclass(frozen=True, eq=False)
class LatentColours:
    """colour = weight · latent + bias, for each cell of the latent grid.

    Args:
        weight: [3, C]
        bias: [3]

    Example:
        >>> LatentColours(torch.eye(3), torch.zeros(3)).pictures(torch.zeros(1, 3, 8, 8))
        [<PIL.Image.Image image mode=RGB size=8x8...>]
    """

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, pipe: ProFusionPipeline, photo: Reference | list[Reference]) -> "LatentColours":
        """The map that is best, in squares, for some photos and for the same with their colours exchanged.

        Args:
            pipe: Whose VAE makes the latents.
            photo: One picture or several, of anything.

        Returns:
            The map, on the CPU.

        Raises:
            ValueError: A picture can't be read.

        Example:
            >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
            >>> LatentColours.fit(load_demo_pipeline(), demo_portraits()[0]).weight.shape
            torch.Size([3, 32])
        """
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        pictures = []
        for one in load_reference_images(photo):
            bands = ImageOps.fit(one, (side, side)).split()
            pictures += [Image.merge("RGB", order) for order in permutations(bands)]
        pixels = vae_pixels(pipe.image_processor, pictures, side, side)  # [n, 3, H, W]
        latents = [pipe._posterior(one[None])[0] for one in pixels]
        pipe.maybe_free_model_hooks()
        latents = torch.cat(latents).float().cpu()  # [n, C, h, w]
        colours = torch.nn.functional.avg_pool2d(pixels.float(), pipe.vae_scale_factor)  # [n, 3, h, w]
        inputs = latents.movedim(1, -1).flatten(0, 2)  # [n h w, C]
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
        solved = torch.linalg.lstsq(inputs, colours.movedim(1, -1).flatten(0, 2)).solution  # [C + 1, 3]
        return cls(solved[:-1].T.contiguous(), solved[-1])

    def pictures(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents as small pictures, a pixel for each cell.

        Args:
            latents: Clean, or noisy: then noise is seen. [B, C, h, w]

        Returns:
            B pictures.
        """
        colours = torch.einsum("oc,bchw->bhwo", self.weight, latents.detach().float().cpu()) + self.bias
        return [Image.fromarray(one.numpy()) for one in ((colours + 1) * 127.5).round().clamp(0, 255).byte()]


def live_preview(
    pipe: ProFusionPipeline,
    photo: Reference | list[Reference] | LatentColours | None = None,
    *,
    decoder: ModelMixin | None = None,
    every: int = 1,
    side: int = 128,
    show: Callable[[Image.Image], Any] | None = None,
) -> Callable:
    """A callback that shows pictures while they are drawn: `callback_on_step_end=live_preview(pipe, photo)`.

    Args:
        pipe: That will draw.
        photo: A linear map from latents to colours is fitted to it; the reference photo does. Coarse, and free.
            Or the map itself, fitted before.
        decoder: In place of `photo`, what decodes latents: an `AutoencoderTiny`, or `pipe.vae`, which is as fine and as
            slow as the picture itself.
        every: Shown are the pictures after each so many steps, and the last ones.
        side: Of each picture, in pixels.
        show: Called with the pictures in a row; None shows them in the notebook's cell, one in place of the other.

    Returns:
        For the pipeline's call.

    Raises:
        TypeError: `every` or `side` isn't a whole number.
        ValueError: One of them is less than 1, the photo can't be read, or not one of photo and decoder is given.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe, photo, seen = load_demo_pipeline(), demo_portraits()[0], []
        >>> watch = live_preview(pipe, photo, show=seen.append)
        >>> images = pipe("a portrait of S*", image=photo, num_inference_steps=2, callback_on_step_end=watch).images
        >>> [picture.size for picture in seen]
        [(128, 128), (128, 128)]
    """
    every, side = check_count("every", every, at_least=1), check_count("side", side, at_least=1)
    if (photo is None) == (decoder is None):
        raise ValueError("One of `photo` and `decoder` must say how latents are shown.")
    if decoder is not None:
        pictures_of = _decoding(pipe, decoder)
    else:
        pictures_of = (photo if isinstance(photo, LatentColours) else LatentColours.fit(pipe, photo)).pictures
    show = show or _in_the_cell()

    def watch(pipe: ProFusionPipeline, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        if (index + 1) % every == 0 or index + 1 == pipe.num_timesteps:
            pictures = pictures_of(likely_latents(pipe, index, tensors["latents"]))
            row = Image.new("RGB", (side * len(pictures), side))
            for number, picture in enumerate(pictures):
                row.paste(ImageOps.contain(picture, (side, side)), (number * side, 0))
            show(row)
        return tensors

    return watch


def likely_latents(pipe: ProFusionPipeline, index: int, latents: torch.Tensor) -> torch.Tensor:
    """x̂_0 = sqrt(ᾱ_s) x_s: what is likely of the clean latents, if they are of unit variance and nothing else is known.

    Args:
        pipe: In a call.
        index: Of the step that was just made.
        latents: The scheduler's state after it. [B, C, h, w]

    Returns:
        Fading in from grey as the noise goes. [B, C, h, w]

    Example:
        >>> likely_latents(pipe, 0, latents)  # doctest: +SKIP
    """
    scheduler = pipe.scheduler
    after = len(scheduler.timesteps) - pipe.num_timesteps + index + 1
    if after == len(scheduler.timesteps) or not hasattr(scheduler, "alphas_cumprod"):
        return latents
    alpha_bar = float(scheduler.alphas_cumprod[scheduler.timesteps[after].long().cpu()])
    in_sigma_space = scheduler.init_noise_sigma != 1
    return latents * (alpha_bar if in_sigma_space else alpha_bar**0.5)


def _decoding(pipe: ProFusionPipeline, decoder: ModelMixin) -> Callable[[torch.Tensor], list[Image.Image]]:
    @torch.no_grad()
    def pictures(latents: torch.Tensor) -> list[Image.Image]:
        decoded = decoder.decode(latents / decoder.config.scaling_factor, return_dict=False)[0]
        return pipe.image_processor.postprocess(decoded, output_type="pil")

    return pictures


def _in_the_cell() -> Callable[[Image.Image], None]:
    from IPython.display import display

    shown = []

    def show(picture: Image.Image) -> None:
        if shown:
            shown[0].update(picture)
        else:
            shown.append(display(picture, display_id=True))

    return show
