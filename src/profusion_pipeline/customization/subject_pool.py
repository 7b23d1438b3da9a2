"""A photo -> a pool of augmented pictures of its subject, as PromptNet and UNet read them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..method.encoding import vision_states
from ..method.faces import AUTO, check_detector, cut_square, find_square
from ..method.framing import vae_pixels, vision_pixels
from ..method.mask_picture import load_mask
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.quoting import entry
from ..method.reference_images import Reference, load_reference_image
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


def read_photo(photo: Photo, name: str = "photo") -> Image.Image:
    """The photo to customise to.

    Args:
        photo: What the pipeline takes as `image`.
        name: What errors call it.

    Returns:
        RGB.

    Raises:
        TypeError: It is none of these.
        ValueError: It can't be read, or is smaller than 16 pixels.

    Example:
        >>> read_photo(Image.new("L", (64, 80))).mode
        'RGB'
    """
    picture = load_reference_image(photo, name)
    if min(picture.size) < SMALLEST_SIDE:
        raise ValueError(
            f"`{name}` must be at least {SMALLEST_SIDE} pixels on each side, got {picture.width} x {picture.height}."
        )
    return picture


def read_mask(mask: Photo, size: tuple[int, int], name: str = "mask") -> Image.Image:
    """The mask of the photo's subject.

    How masks of all kinds are read says [`load_mask`].

    Args:
        mask: What the pipeline takes as `image`, with light on the subject; or an array or tensor [1, H, W] or
            [H, W, 1].
        size: Width and height of the photo.
        name: What errors call it.

    Returns:
        Grey.

    Raises:
        TypeError: It is none of these.
        ValueError: It can't be read, has another size, or is dark or transparent everywhere.

    Example:
        >>> read_mask(Image.new("L", (64, 80), 255), (64, 80)).mode
        'L'
    """
    picture = load_mask(mask, name)
    if picture.size != size:
        raise ValueError(
            f"`{name}` must have the photo's size, {size[0]} x {size[1]}, got {picture.width} x {picture.height}."
        )
    if picture.getextrema()[1] < 128:
        raise ValueError(
            f"`{name}` must be light where the subject is, got one that is dark everywhere, counting what is "
            "transparent."
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
    given = _as_list(photo)
    photos = [read_photo(one, entry("photo", i, len(given))) for i, one in enumerate(given)]
    if not photos:
        raise ValueError("`photo` must be a photo or a list of them, got an empty list.")
    masks = [None] * len(photos) if mask is None else _as_list(mask)
    if len(masks) != len(photos):
        raise ValueError(f"`mask` must be one for each of {len(photos)} photos, got {len(masks)}.")
    return photos, [
        None if one is None else read_mask(one, photo.size, entry("mask", i, len(photos)))
        for i, (one, photo) in enumerate(zip(masks, photos, strict=True))
    ]


def cut_to_faces(
    photos: Sequence[Image.Image],
    masks: Sequence[Image.Image | None],
    warn: Callable[[str], None] | None = None,
    detector: str = AUTO,
) -> tuple[list[Image.Image], list[Image.Image | None]]:
    """Photos as the square around each one's face, and their masks with them.

    Args:
        photos: RGB.
        masks: The grey mask of each, or None.
        warn: As of [`crop_face`].
        detector: As of [`crop_face`].

    Returns:
        Both; of a photo without a face, as they were.

    Raises:
        ImportError: As of [`crop_face`].
        ValueError: `detector` is no file of YuNet, or a mask is dark everywhere in the square.

    Example:
        >>> photos, masks = cut_to_faces([Image.new("RGB", (64, 80))], [None], warn=lambda text: None)
        >>> photos[0].size, masks
        ((64, 80), [None])
    """
    check_detector(detector)
    squares = [find_square(photo, warn, detector) for photo in photos]

    def cut(pictures: Sequence[Image.Image | None]) -> list[Image.Image | None]:
        return [
            one if one is None or square is None else cut_square(one, square)
            for one, square in zip(pictures, squares, strict=True)
        ]

    masks = cut(masks)
    if any(mask is not None and mask.getextrema()[1] == 0 for mask in masks):
        raise ValueError("`mask` must be light on the subject, it is dark all over the square around the face.")
    return cut(photos), masks


def _as_list(photo: Photo | Sequence[Photo]) -> list[Photo]:
    return list(photo) if isinstance(photo, list | tuple) else [photo]


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
        encoded.append((*pipe._posterior(pixels), vision_states(pipe.image_encoder, views, device)))
    pipe.maybe_free_model_hooks()
    return EncodedPool(*map(torch.cat, zip(*encoded, strict=True)))


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    array = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1)  # [C, H, W]


def _to_image(picture: torch.Tensor) -> Image.Image:
    array = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)  # [H, W, 3]
    return Image.fromarray(array.numpy())
