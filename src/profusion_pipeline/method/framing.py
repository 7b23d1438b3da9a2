"""Pictures as the VAE and the vision tower read them: scaled until they cover a rectangle, and cropped to its middle.

Both scale first and crop then. Of a strip of 1 x 10000 pixels that makes 512 x 5120000, of which 512 x 512 are kept: so
from extreme strips what would be cut off anyway is cut off before.
"""

import math

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from transformers import CLIPImageProcessor

SCALED_PIXELS = 2**25  # 33 million, 96 MB: the largest picture that is made only to be cropped
SUPPORT = 4  # pixels that a filter reads around a place, and a little more


def vae_scale_factor(vae: AutoencoderKL) -> int:
    """Pixels along one side of a cell of the latents.

    Args:
        vae: The autoencoder, which halves the sides after each of its blocks but the last.

    Returns:
        8 for Stable Diffusion's.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> vae_scale_factor(load_demo_pipeline().vae)
        8
    """
    return 2 ** (len(vae.config.block_out_channels) - 1)


def crop_strip(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Cut the ends off a picture that is so thin that it can't be scaled to cover height x width.

    Args:
        picture: Of any mode.
        height: What is to be covered.
        width: Likewise.

    Returns:
        The picture itself, unless its smallest scaling that covers the rectangle has more than 33 million pixels (at
        512 x 512, from sides of 1 to 128 on). Then its middle, in the rectangle's proportions and a few pixels longer.

    Example:
        >>> crop_strip(Image.new("L", (1, 10000)), 512, 512).size, crop_strip(Image.new("L", (10, 1000)), 512, 512).size
        ((1, 10), (10, 1000))
    """
    scale = max(width / picture.width, height / picture.height)
    if picture.width * scale * picture.height * scale <= SCALED_PIXELS:
        return picture
    margin = SUPPORT * max(1, 1 / scale)
    cuts = [
        max(0, math.floor((have - need / scale) / 2 - margin))  # as much from both ends: the middle stays where it was
        for have, need in zip(picture.size, (width, height), strict=True)
    ]
    return picture.crop((cuts[0], cuts[1], picture.width - cuts[0], picture.height - cuts[1]))


def vae_pixels(processor: VaeImageProcessor, pictures: list[Image.Image], height: int, width: int) -> torch.Tensor:
    """Pictures as the VAE reads them.

    Args:
        processor: The pipeline's `image_processor`.
        pictures: RGB.
        height: To which they are scaled and cropped.
        width: Likewise.

    Returns:
        Pixels in -1..1. [R, 3, height, width]

    Example:
        >>> vae_pixels(VaeImageProcessor(), [Image.new("RGB", (100, 80))], 64, 64).shape
        torch.Size([1, 3, 64, 64])
    """
    return processor.preprocess(
        [crop_strip(picture, height, width) for picture in pictures], height, width, resize_mode="crop"
    )  # [R, 3, H, W]


def vision_pixels(extractor: CLIPImageProcessor, pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures as the vision tower reads them.

    Args:
        extractor: The pipeline's `feature_extractor`, which says how large.
        pictures: RGB.

    Returns:
        Normalised pixels. [R, 3, h, w]

    Example:
        >>> vision_pixels(CLIPImageProcessor(), [Image.new("RGB", (100, 80))]).shape
        torch.Size([1, 3, 224, 224])
    """
    if extractor.do_center_crop and "shortest_edge" in extractor.size:
        side = extractor.size["shortest_edge"]
        pictures = [crop_strip(picture, side, side) for picture in pictures]
    return extractor(pictures, return_tensors="pt").pixel_values  # [R, 3, h, w]
