"""Anything a user calls an image -> a plain RGB picture, or one sentence that says what is wrong with it.

Reference photos come from phones, scanners and web pages: turned by EXIF, with alpha, in CMYK, 16 bits deep. PromptNet
and the CLIP tower see 8-bit RGB, so everything is brought to that once, here, before any model runs.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from . import picture_file, quoting

Reference = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike | bytes | BinaryIO

KEPT_PIXELS = 89_478_485  # beyond, a picture is read at half its size; as many as Pillow takes without warning
ROUNDING = 1e-3  # how far floats may leave 0..1: a resized or half-precision white is a little more than 1


def load_reference_image(image: Reference, name: str = "image") -> Image.Image:
    """Bring one picture to 8-bit RGB.

    A file is read whole and upright (its EXIF orientation applied), the first frame if it is animated. Alpha is laid
    over white, 16-bit grey is scaled (not clipped) to 8 bits, CMYK, palette and grey become RGB. Of mode I, which says
    nothing of its depth, values of at most 255 count as 8-bit. Pictures of more than 89 million pixels, as the largest
    phones make them, are scaled to half their width and height.

    Args:
        image: A PIL image of any mode (of an animation: its current frame); a path (`~` is the home folder) or
            `file://` URL of a file that Pillow reads, HEIC too where pillow-heif is installed; the bytes of such a
            file, or the file, opened in binary mode; an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of
            uint8, uint16, bool or of floats in 0..1; or a tensor [H, W] or [1 | 3 | 4, H, W] of these.
        name: What error messages call this picture.

    Returns:
        A new image of mode "RGB"; `image` itself is not changed.

    Raises:
        TypeError: `image` is none of these types, or an array or tensor of another dtype.
        ValueError: The file is missing, not an image or truncated; there are more than 300 million pixels, or none; the
            text is a URL or a picture in base64; an array has another shape or range.

    Example:
        >>> import numpy as np
        >>> load_reference_image(np.zeros((4, 6, 3), dtype=np.uint8)).size
        (6, 4)
    """
    picture = load_picture(image, name)
    if picture.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture


def load_reference_images(images: Reference | list[Reference], name: str = "image") -> list[Image.Image]:
    """Bring all reference pictures of one subject to 8-bit RGB.

    Args:
        images: One picture, or a list of them, each as [`load_reference_image`] takes it.
        name: What error messages call them.

    Returns:
        At least one new image of mode "RGB".

    Raises:
        TypeError: As of [`load_reference_image`].
        ValueError: As of [`load_reference_image`], or the list is empty.

    Example:
        >>> import numpy as np
        >>> [picture.size for picture in load_reference_images([np.zeros((4, 6, 3), dtype=np.uint8)] * 2)]
        [(6, 4), (6, 4)]
    """
    references = images if isinstance(images, list) else [images]
    if not references:
        raise ValueError(f"`{name}` is an empty list: give at least one reference of each subject.")
    count = len(references)
    return [load_reference_image(one, quoting.entry(name, i, count)) for i, one in enumerate(references)]


def reading_once(load: Callable[[Any, str], Image.Image], name: str) -> Callable[[Any], Image.Image]:
    """A reader of pictures that several prompts may share: each object is read once, as an open file can be.

    Args:
        load: What reads one, such as [`load_reference_image`].
        name: What errors call it.

    Returns:
        Picture -> what was read of it.

    Example:
        >>> read, photo = reading_once(load_reference_image, "image"), Image.new("RGB", (8, 8))
        >>> read(photo) is read(photo)
        True
    """
    known: dict[int, tuple[Image.Image, Any]] = {}

    def read(one: Any) -> Image.Image:
        if id(one) not in known:
            known[id(one)] = (load(one, name), one)  # held, so that no other object gets its id
        return known[id(one)][0]

    return read


def load_picture(image: Reference, name: str = "image") -> Image.Image:
    """Bring one picture to 8-bit RGB, or to RGBA if it says what is transparent.

    Args:
        image: As [`load_reference_image`] takes it.
        name: What error messages call it.

    Returns:
        A new image of mode "RGB" or "RGBA".

    Raises:
        TypeError: As of [`load_reference_image`].
        ValueError: As of [`load_reference_image`].

    Example:
        >>> load_picture(Image.new("LA", (6, 4))).mode
        'RGBA'
    """
    with open_image(image, name) as opened:
        picture = _decode(opened, name) if isinstance(opened, Image.Image) else _from_numbers(opened, name)
    if 0 in picture.size:
        raise ValueError(f"`{name}` must have pixels, got a picture of {picture.width} x {picture.height}.")
    return picture


@contextmanager
def open_image(image: Reference, name: str = "image") -> Iterator[Image.Image | np.ndarray | torch.Tensor]:
    """A picture as it was given, or as it lies in its file: of any mode or dtype, not looked at yet.

    Args:
        image: As [`load_reference_image`] takes it.
        name: What error messages call it.

    Yields:
        The PIL image, array or tensor.

    Raises:
        TypeError: It is nothing that makes a picture.
        ValueError: Its file is missing, can't be read, or is no picture.

    Example:
        >>> with open_image(Image.new("I;16", (6, 4))) as opened:
        ...     opened.mode
        'I;16'
    """
    try:
        if isinstance(image, np.ndarray | torch.Tensor | Image.Image):
            yield image
        elif isinstance(image, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(image, "read"):
            with picture_file.open_picture(image, name) as opened:
                yield opened
        else:
            raise TypeError(
                f"`{name}` must be a PIL image, a numpy array, a torch tensor or a path, bytes or an open file of a "
                f"picture, got {type(image).__name__}."
            )
    except OSError as error:  # of opening and reading a file; what decoding says is told by `_decode`
        what = quoting.quote(image) if isinstance(image, str | os.PathLike) else f"a {type(image).__name__}"
        raise ValueError(
            f"`{name}` must be a file that can be read, {what} is not one: {quoting.brief(error)}."
        ) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    picture_file.check_pixels(image.size, name)
    try:
        image.load()
    except Exception as error:  # Pillow's readers of formats raise whatever their arithmetic runs into
        # Each version of Pillow has its own way to say it; 10.1 only has no file any more.
        closed = isinstance(error, AssertionError) or "closed" in str(error) or getattr(image, "fp", image) is None
        advice = "; call its `load()` before its file is closed" if closed else ""
        raise ValueError(
            f"`{name}` must be a whole image, cannot read it to its end: {quoting.brief(error)}{advice}."
        ) from error
    return _halved(_to_8_bit(_upright(image), name))


def _upright(image: Image.Image) -> Image.Image:
    """Always a copy."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that nobody can read says nothing of a turn
        return image.copy()


def _to_8_bit(upright: Image.Image, name: str) -> Image.Image:
    if upright.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(upright), 1, name)).convert("RGB")
    if upright.mode.startswith("I"):  # I, I;16, I;16B, ...: 16-bit scans, which convert("RGB") would clip at 255
        deep = np.asarray(upright)  # [H, W]
        greatest = 255 if upright.mode == "I" and deep.size and deep.max() <= 255 else 65535
        grey = Image.fromarray(_to_bytes(deep, greatest, name)).convert("RGB")
        if "transparency" in upright.info:
            grey.putalpha(Image.fromarray((deep != upright.info["transparency"]).astype(np.uint8) * 255))
        return grey
    if upright.has_transparency_data:
        return upright.convert("LA" if upright.mode == "La" else "RGBA").convert("RGBA")
    return upright.convert("RGB")


def _halved(picture: Image.Image) -> Image.Image:
    return picture.reduce(2) if math.prod(picture.size) > KEPT_PIXELS else picture


def _from_numbers(numbers: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    shape = list(numbers.shape)
    if isinstance(numbers, torch.Tensor):
        kind, shapes = "a tensor", "[H, W] or [1 | 3 | 4, H, W]"
        if numbers.is_meta or numbers.layout != torch.strided:
            raise ValueError(f"`{name}` as a tensor must be dense and hold its numbers, got one that doesn't.")
        numbers = numbers.detach().cpu()
        numbers = (numbers.float() if numbers.is_floating_point() else numbers).numpy()
        numbers = np.moveaxis(numbers, 0, 2) if numbers.ndim == 3 else numbers  # [H, W, C]
    else:
        kind, shapes = "an array", "[H, W] or [H, W, 1 | 3 | 4]"
    if not (numbers.ndim == 2 or numbers.ndim == 3 and numbers.shape[2] in (1, 3, 4)):
        raise ValueError(f"`{name}` as {kind} must have the shape {shapes}, got {shape}.")
    height, width = numbers.shape[:2]
    picture_file.check_pixels((width, height), name)
    if numbers.dtype == np.uint16:
        numbers = _to_bytes(numbers, 65535, name)
    elif np.issubdtype(numbers.dtype, np.floating):
        numbers = _to_bytes(numbers, 1, name)
    elif numbers.dtype == bool:
        numbers = numbers.astype(np.uint8) * 255
    elif numbers.dtype != np.uint8:
        raise TypeError(f"`{name}` as {kind} must be of uint8, uint16, bool or of floats in 0..1, got {numbers.dtype}.")
    if numbers.size == 0:  # which Pillow doesn't take
        return Image.new("RGB", (width, height))
    picture = Image.fromarray(np.ascontiguousarray(numbers[..., 0] if numbers.shape[2:] == (1,) else numbers))
    return _halved(picture if picture.mode == "RGBA" else picture.convert("RGB"))


def _to_bytes(values: np.ndarray, greatest: int, name: str) -> np.ndarray:
    """Numbers in 0..greatest as uint8, some rows at a time: as floats the largest scans would fill the memory."""
    # Written so that NaN is refused too.
    if values.size and not (values.min() >= -ROUNDING * greatest and values.max() <= (1 + ROUNDING) * greatest):
        raise ValueError(
            f"`{name}` must have values in 0..1 (a 16-bit image: 0..65535, counted here as 0..1), "
            f"got {values.min() / greatest:.6g} to {values.max() / greatest:.6g}."
        )
    dtype = np.result_type(values.dtype, np.float32) if values.dtype.kind == "f" else np.float32
    out = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):
        rows = values[start : start + 256].astype(dtype) / greatest
        out[start : start + 256] = (rows.clip(0, 1) * 255).round()
    return out
