"""A photo -> a pool of augmented pictures of its subject, as PromptNet and UNet read them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..method.encoding import posterior, vision_states
from ..method.framing import vae_pixels, vision_pixels
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.reference_images import Reference, load_picture, load_reference_image, open_image
from .augmentation import PAINTERS, Painter, augment, ellipse_mask, paint_mixed
from .config import CustomizeConfig

Photo = Reference

SMALLEST_SIDE = 16  # pixels
LONGEST_STRIP = 8  # times its width: painting a background takes memory by the square of the longer side
ENCODED_AT_ONCE = 8


class EncodedPool(NamedTuple):
    """Pictures of one subject as PromptNet and UNet read them.

    Args:
        mean: Of the latents' posterior, scaled. [N, C, h, w]
        std: Likewise. [N, C, h, w]
        image_states: Vision states. [N, T, V]
    """

    mean: torch.Tensor
    std: torch.Tensor
    image_states: torch.Tensor


def read_photo(photo: Photo) -> Image.Image:
    """The photo to customise to.

    Args:
        photo: What the pipeline takes as `image`.

    Returns:
        RGB.

    Raises:
        TypeError: It is none of these.
        ValueError: It can't be read, or is smaller than 16 pixels.

    Example:
        >>> read_photo(Image.new("L", (64, 80))).mode
        'RGB'
    """
    picture = load_reference_image(photo, name="photo")
    if min(picture.size) < SMALLEST_SIDE:
        raise ValueError(
            f"`photo` must be at least {SMALLEST_SIDE} pixels on each side, got {picture.width} x {picture.height}."
        )
    return picture


def read_mask(mask: Photo, size: tuple[int, int]) -> Image.Image:
    """The mask of the photo's subject.

    What is transparent is never the subject. Of a mask with transparency, what is opaque is: a photo cut out by a
    background remover, strokes of a brush on an empty layer. If what is opaque is itself black and white, the subject
    is where it is white. A mask of black and one other colour, however dark, or of 0 and one other number, of any
    dtype, has the subject where the other is: programs that segment pictures write 0 and 1.

    Args:
        mask: What the pipeline takes as `image`, with light on the subject; or an array or tensor [1, H, W] or
            [H, W, 1].
        size: Width and height of the photo.

    Returns:
        Grey.

    Raises:
        TypeError: It is none of these.
        ValueError: It can't be read, has another size, or is dark or transparent everywhere.

    Example:
        >>> read_mask(Image.new("L", (64, 80), 255), (64, 80)).mode
        'L'
    """
    if isinstance(mask, np.ndarray | torch.Tensor) and mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):
        mask = mask[0] if mask.shape[0] == 1 else mask[:, :, 0]  # [H, W]
    with open_image(mask, name="mask") as opened:
        picture = load_picture(_lit(opened), name="mask")
    picture = _opaque_part(picture) if picture.mode == "RGBA" else _lightness(picture)
    if picture.size != size:
        raise ValueError(
            f"`mask` must have the photo's size, {size[0]} x {size[1]}, got {picture.width} x {picture.height}."
        )
    if picture.getextrema()[1] < 128:
        raise ValueError(
            "`mask` must be light where the subject is, got one that is dark everywhere, counting what is transparent."
        )
    return picture


def read_photos(
    photo: Photo | Sequence[Photo], mask: Photo | Sequence[Photo] | None
) -> tuple[list[Image.Image], list[Image.Image | None]]:
    """The photos to customise to, and the mask of each.

    Args:
        photo: One, or a list.
        mask: One, or a list with one for each photo; None for no mask.

    Returns:
        RGB pictures, and as many grey ones or None.

    Raises:
        TypeError: As of [`read_photo`] and [`read_mask`].
        ValueError: As of these, or there is no photo, or another number of masks.

    Example:
        >>> photos, masks = read_photos([Image.new("RGB", (64, 80))] * 2, None)
        >>> len(photos), masks
        (2, [None, None])
    """
    photos = [read_photo(one) for one in _as_list(photo)]
    if not photos:
        raise ValueError("`photo` must be a photo or a list of them, got an empty list.")
    masks = [None] * len(photos) if mask is None else _as_list(mask)
    if len(masks) != len(photos):
        raise ValueError(f"`mask` must be one for each of {len(photos)} photos, got {len(masks)}.")
    return photos, [
        None if one is None else read_mask(one, photo.size) for one, photo in zip(masks, photos, strict=True)
    ]


def _as_list(photo: Photo | Sequence[Photo]) -> list[Photo]:
    return list(photo) if isinstance(photo, list | tuple) else [photo]


def _lit(opened: Image.Image | np.ndarray | torch.Tensor) -> Image.Image | np.ndarray | torch.Tensor:
    """Grey numbers, where they are 0 and one other: whether they are the other. Anything else as it is."""
    if isinstance(opened, Image.Image):
        deep = opened.mode.startswith(("I", "F")) and "transparency" not in opened.info
        numbers = np.asarray(opened) if deep else None
    else:
        numbers = opened
    if numbers is None or numbers.ndim != 2 or numbers.dtype in (bool, torch.bool):
        return opened
    if isinstance(numbers, torch.Tensor):
        numbers = (
            numbers.detach().cpu().float().numpy() if numbers.layout == torch.strided and not numbers.is_meta else None
        )
    if numbers is None or numbers.dtype.kind not in "iuf":
        return opened
    kinds = np.unique(numbers)
    return numbers > 0 if len(kinds) == 2 and kinds[0] == 0 and np.isfinite(kinds[1]) else opened


def _lightness(picture: Image.Image) -> Image.Image:
    colours = {colour for _, colour in picture.getcolors(2) or ()}
    if len(colours) == 2 and (0, 0, 0) in colours:
        return Image.fromarray((np.asarray(picture).any(axis=2) * 255).astype(np.uint8))
    return picture.convert("L")


def _opaque_part(picture: Image.Image) -> Image.Image:
    """Alpha of a picture with transparency, times its lightness where that tells subject and background apart."""
    alpha = np.asarray(picture.getchannel("A"), dtype=np.float32) / 255  # [H, W]
    colours = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255  # [H, W, 3]
    visible = max(alpha.sum(), 1.0)
    black = (alpha * (colours.max(axis=2) < 0.25)).sum() / visible
    white = (alpha * (colours.min(axis=2) > 0.75)).sum() / visible
    # A photo is hardly ever black and white; a mask is, but for soft edges.
    is_mask = alpha.min() == 1 or (black + white > 0.8 and min(black, white) > 0.005)
    lightness = np.asarray(picture.convert("RGB").convert("L"), dtype=np.float32) if is_mask else 255
    return Image.fromarray((alpha * lightness).round().astype(np.uint8))


def augmented_pictures(
    photo: Image.Image, config: CustomizeConfig, *, side: int, mask: Image.Image | None, paint: Painter | None
) -> list[Image.Image]:
    """The photo and `config.pool_size - 1` augmentations of it.

    Of a photo more than 8 times as long as it is wide only the middle is taken, up to that length.

    Args:
        photo: RGB.
        config: The augmentation settings are read.
        side: To which the shorter side of the photo is scaled.
        mask: Grey, of the photo's size; a centred ellipse if None.
        paint: In place of `config.background`.

    Returns:
        RGB pictures, the photo first.

    Example:
        >>> photo = Image.new("RGB", (64, 80))
        >>> [picture.size for picture in augmented_pictures(
        ...     photo, CustomizeConfig(pool_size=2), side=32, mask=None, paint=None)]
        [(32, 40), (32, 40)]
    """
    longest = LONGEST_STRIP * min(photo.size)
    cuts = [max(0, length - longest) // 2 for length in photo.size]  # pixels at either end
    box = (*cuts, photo.width - cuts[0], photo.height - cuts[1])
    photo, mask = photo.crop(box), mask and mask.crop(box)
    scale = side / min(photo.size)
    size = tuple(round(length * scale) for length in photo.size)
    picture = _to_tensor(photo.resize(size, Image.Resampling.LANCZOS))  # [3, H, W]
    if mask is None:
        area = ellipse_mask(*picture.shape[1:], config.ellipse)  # [1, H, W]
    else:
        area = _to_tensor(mask.resize(size, Image.Resampling.BILINEAR))  # [1, H, W]
    if paint is None and config.background != "keep":
        paint = paint_mixed if config.background == "mixed" else PAINTERS[config.background]
    generator = torch.Generator().manual_seed(config.seed)
    ranges = {name: getattr(config, name) for name in ("rotation", "translation", "zoom", "flip")}
    pictures = [augment(picture, area, generator, paint=paint, **ranges) for _ in range(config.pool_size - 1)]
    return [_to_image(one) for one in (picture, *pictures)]


def encode_pictures(pipe: ProFusionPipeline, pictures: list[Image.Image], height: int, width: int) -> EncodedPool:
    """What VAE and vision tower say of pictures, as the pipeline prepares its references.

    Args:
        pipe: Whose models they are.
        pictures: RGB.
        height: To which they are scaled and cropped for the VAE.
        width: Likewise.

    Returns:
        The pool, on the pipeline's device, in float32 unless the pipeline isn't.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> encode_pictures(load_demo_pipeline(), demo_portraits(), 64, 64).mean.shape
        torch.Size([4, 32, 8, 8])
    """
    device, encoded = pipe._execution_device, []
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        some = pictures[start : start + ENCODED_AT_ONCE]
        pixels = vae_pixels(pipe.image_processor, some, height, width)  # [b, 3, H, W]
        views = vision_pixels(pipe.feature_extractor, some)  # [b, 3, h, w]
        encoded.append((*posterior(pipe.vae, pixels, device), vision_states(pipe.image_encoder, views, device)))
    pipe.maybe_free_model_hooks()
    return EncodedPool(*map(torch.cat, zip(*encoded, strict=True)))


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    array = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1)  # [C, H, W]


def _to_image(picture: torch.Tensor) -> Image.Image:
    array = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)  # [H, W, 3]
    return Image.fromarray(array.numpy())
