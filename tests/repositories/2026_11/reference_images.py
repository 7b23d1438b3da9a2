"""Anything a user calls an image -> a plain RGB picture, or one sentence that says what is wrong with it.

Reference photos come from phones, scanners and web pages: turned by EXIF, with alpha, in CMYK, 16 bits deep. PromptNet
and the CLIP tower see 8-bit RGB, so everything is brought to that once, here, before any model runs.
"""

import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

Reference = Image.Image | np.ndarray | torch.Tensor | str | Path


def load_reference_image(
    image: Image.Image | np.ndarray | torch.Tensor | str | Path, name: str = "image"
) -> Image.Image:
    """Bring one picture to 8-bit RGB.

    A file is read whole and upright (its EXIF orientation applied), the first frame if it is animated. Alpha is laid
    over white, 16-bit grey is scaled (not clipped) to 8 bits, CMYK, palette and grey become RGB.

    Args:
        image: A PIL image of any mode (of an animation: its current frame), a path to a file that Pillow reads, an
            array `[H, W, 3]` of uint8 or of floats in 0..1, or a tensor `[3, H, W]` of floats in 0..1.
        name: What error messages call this picture.

    Returns:
        A new image of mode "RGB"; `image` itself is not changed.

    Raises:
        TypeError: `image` is none of these types, or an array or tensor of another dtype.
        ValueError: The file is missing, not an image, truncated or larger than Pillow's decompression-bomb limit
            (`PIL.Image.MAX_IMAGE_PIXELS`); the string is a URL; there are no pixels; an array has another shape or
            range.

    Example:
        >>> import numpy as np
        >>> load_reference_image(np.zeros((4, 6, 3), dtype=np.uint8)).size
        (6, 4)
    """
    try:
        if isinstance(image, Image.Image):
            rgb = _decode(image, name)
        elif isinstance(image, str | Path):
            rgb = _read_file(image, name)
        elif isinstance(image, np.ndarray):
            rgb = _from_array(image, name)
        elif isinstance(image, torch.Tensor):
            rgb = _from_tensor(image, name)
        else:
            raise TypeError(
                f"`{name}` must be a PIL image, a numpy array, a torch tensor or a path, got {type(image).__name__}."
            )
    except (OSError, SyntaxError, EOFError) as error:  # the ways in which Pillow says truncated or corrupt
        raise ValueError(f"`{name}` must be a whole image, cannot read {image} to its end: {error}") from error
    if 0 in rgb.size:
        raise ValueError(f"`{name}` must have pixels, got a picture of {rgb.width} x {rgb.height}.")
    return rgb


def load_reference_images(
    images: Image.Image | np.ndarray | torch.Tensor | str | Path | list, name: str = "image"
) -> list[Image.Image]:
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
    return [load_reference_image(reference, name) for reference in references]


def _read_file(path: str | Path, name: str) -> Image.Image:
    if re.match(r"\w[\w+.-]*://|data:", str(path)):
        raise ValueError(
            f"`{name}` must be a file on this machine, got the URL {str(path)[:80]!r}: download it first, "
            "for example with `diffusers.utils.load_image`."
        )
    if not Path(path).is_file():
        raise ValueError(f"`{name}` must be a file that exists, got {str(path)[:200]!r}.")
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its limit; both are far beyond any photo.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                return _decode(opened, name)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"`{name}` must have at most {Image.MAX_IMAGE_PIXELS} pixels (PIL.Image.MAX_IMAGE_PIXELS, a guard against "
            f"decompression bombs), got {str(path)!r}: {error}"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"`{name}` must be an image file that Pillow can read, {str(path)!r} is not one.") from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    upright = ImageOps.exif_transpose(image)  # reads all pixels; always a copy
    if upright.mode == "F":
        return _grey_from_unit_range(np.asarray(upright), name)
    if upright.mode.startswith("I"):  # I, I;16, I;16B, ...: 16-bit scans, which convert("RGB") would clip at 255
        return _grey_from_unit_range(np.asarray(upright) / 65535, name)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return upright.convert("RGB")


def _grey_from_unit_range(grey: np.ndarray, name: str) -> Image.Image:
    _check_unit_range(grey, name)
    return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")  # [H, W]


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"`{name}` as an array must have the shape [H, W, 3], got {list(array.shape)}.")
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"`{name}` as an array must be of uint8 or of floats in 0..1, got {array.dtype}.")
    _check_unit_range(array, name)
    return Image.fromarray((array * 255).round().astype(np.uint8))


def _from_tensor(tensor: torch.Tensor, name: str) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"`{name}` as a tensor must have the shape [3, H, W], got {list(tensor.shape)}.")
    if not tensor.is_floating_point():
        raise TypeError(f"`{name}` as a tensor must hold floats in 0..1, got {tensor.dtype}.")
    return _from_array(tensor.detach().float().cpu().permute(1, 2, 0).numpy(), name)  # [H, W, 3]


def _check_unit_range(values: np.ndarray, name: str) -> None:
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # written so that NaN is refused too
        raise ValueError(
            f"`{name}` must have values in 0..1 (a 16-bit image: 0..65535, counted here as 0..1), "
            f"got {values.min():.4g} to {values.max():.4g}."
        )
