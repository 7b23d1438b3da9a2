"""Masks as people's programs make them: black and white, strokes on an empty layer, cut-out photos, labels 0 and 1."""

import numpy as np
import torch
from PIL import Image

from . import reference_images


def load_mask(mask: reference_images.Reference, name: str = "mask") -> Image.Image:
    """Bring one mask to 8-bit grey, light where it points at something.

    What is transparent is never pointed at. Of a mask with transparency, what is opaque is: a photo cut out by a
    background remover, strokes of a brush on an empty layer. If what is opaque is itself black and white, the mask
    points at the white. A mask of black and one other colour, however dark, or of 0 and one other number, of any
    dtype, points at the other: programs that segment pictures write 0 and 1.

    Args:
        mask: As [`load_picture`] takes it; or an array or tensor [1, H, W] or [H, W, 1].
        name: What error messages call it.

    Returns:
        Grey.

    Raises:
        TypeError: It is none of these.
        ValueError: It can't be read.

    Example:
        >>> load_mask(np.array([[0, 1], [0, 0]])).getextrema()
        (0, 255)
    """
    if isinstance(mask, np.ndarray | torch.Tensor) and mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):
        mask = mask[0] if mask.shape[0] == 1 else mask[:, :, 0]  # [H, W]
    with reference_images.open_image(mask, name=name) as opened:
        picture = reference_images.load_picture(_lit(opened), name=name)
    return _opaque_part(picture) if picture.mode == "RGBA" else _lightness(picture)


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
    if is_mask:
        colours[alpha == 0] = 0  # whatever colour a program left there
        lightness = np.asarray(_lightness(Image.fromarray((colours * 255).round().astype(np.uint8))), dtype=np.float32)
    else:
        lightness = 255
    return Image.fromarray((alpha * lightness).round().astype(np.uint8))
