"""Masks in all the forms that programs write them in."""

import numpy as np
import pytest
import torch
from PIL import Image

from calls import picture
from profusion_pipeline.method.mask_picture import load_mask


def disc() -> np.ndarray:
    """A mask, 255 on a disc, of a photo that is 20 wide and 30 high."""
    y, x = np.mgrid[:30, :20]
    return (((y - 15) ** 2 + (x - 10) ** 2 < 49) * 255).astype(np.uint8)


def grey(values) -> Image.Image:
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def palette_with_transparency() -> Image.Image:
    picture = grey(disc()).convert("P")
    picture.info["transparency"] = 0
    return picture


def label_in_a_palette() -> Image.Image:
    """As segmentation data sets have it: number 1 of the palette is dark red."""
    picture = Image.frombytes("P", (20, 30), (disc() > 0).astype(np.uint8).tobytes())
    picture.putpalette([0, 0, 0, 128, 0, 0])
    return picture


def deep_with_transparency() -> Image.Image:
    picture = Image.fromarray(disc().astype(np.uint16) * 257)
    picture.info["transparency"] = 0
    return picture


def cut_out(mode: str = "RGBA") -> Image.Image:
    cut = picture(size=(30, 20))
    cut.putalpha(grey(disc()))
    return cut.convert(mode)


def half_erased() -> Image.Image:
    """White disc on black, its lower half and the black there erased."""
    mask = grey(disc()).convert("LA")
    mask.putalpha(grey(np.repeat(np.arange(30) < 15, 20).reshape(30, 20) * 255))
    return mask


FULL = grey(np.full((30, 20), 255))
WHITE = grey(disc())


@pytest.mark.parametrize(
    "mask, expected",
    {
        "grey": (WHITE, disc()),
        "1": (WHITE.convert("1"), disc()),
        "palette": (WHITE.convert("P"), disc()),
        "16 bit": (Image.fromarray(disc().astype(np.uint16) * 257), disc()),
        "mode I": (WHITE.convert("I"), disc()),
        "RGBA, opaque": (WHITE.convert("RGBA"), disc()),
        "LA, opaque": (WHITE.convert("LA"), disc()),
        "cut-out": (cut_out(), disc()),
        "cut-out, premultiplied": (cut_out("RGBa"), disc()),
        "grey cut-out": (cut_out("LA"), disc()),
        "white brush": (Image.merge("RGBA", [WHITE] * 4), disc()),
        "white brush on transparent white": (Image.merge("LA", [FULL, WHITE]), disc()),
        "black brush": (Image.merge("LA", [grey(0 * disc()), WHITE]), disc()),
        "red brush": (Image.merge("RGBA", [FULL, grey(0 * disc()), grey(0 * disc()), WHITE]), disc()),
        "brush, premultiplied": (Image.merge("LA", [FULL, WHITE]).convert("La"), disc()),
        "half-transparent brush": (Image.merge("LA", [FULL, grey(disc() * 0.8)]), disc() * 0.8),
        "palette with transparency": (palette_with_transparency(), disc()),
        "16 bit with transparency": (deep_with_transparency(), disc()),
        "black and white, half erased": (half_erased(), disc() * (np.arange(30) < 15)[:, None]),
        "uint8 [H, W]": (disc(), disc()),
        "uint8 [H, W, 1]": (disc()[..., None], disc()),
        "uint8 [1, H, W]": (disc()[None], disc()),
        "bool [H, W]": (disc() > 0, disc()),
        "float [1, H, W]": (disc()[None] / 255, disc()),
        "tensor [1, H, W]": (torch.from_numpy(disc() / 255)[None], disc()),
        "tensor [H, W, 1]": (torch.from_numpy(disc())[..., None], disc()),
        "tensor [H, W] of bool": (torch.from_numpy(disc() > 0), disc()),
        "array with alpha": (np.asarray(cut_out()), disc()),
        "0 and 1, mode L": (grey(disc() > 0), disc()),
        "0 and 1, mode I": (Image.fromarray((disc() > 0).astype(np.int32)), disc()),
        "0 and 1, 16 bit": (Image.fromarray((disc() > 0).astype(np.uint16)), disc()),
        "0 and 1, int64": ((disc() > 0).astype(np.int64), disc()),
        "0 and 1, tensor of int64": (torch.from_numpy((disc() > 0).astype(np.int64))[None], disc()),
        "0 and 7": (grey((disc() > 0) * 7), disc()),
        "0 and 255 as floats": (disc().astype(np.float32), disc()),
        "0 and 255 as uint16": (disc().astype(np.uint16), disc()),
        "black and dark red": (Image.merge("RGB", [grey(disc() // 2), grey(0 * disc()), grey(0 * disc())]), disc()),
        "label in a palette": (label_in_a_palette(), disc()),
        "label with grey and alpha": (Image.fromarray((disc() > 0).astype(np.uint8)).convert("LA"), disc()),
        "label with colours and alpha": (Image.fromarray((disc() > 0).astype(np.uint8)).convert("RGBA"), disc()),
    }.values(),
)
def test_what_is_transparent_is_never_pointed_at(mask, expected):
    assert np.abs(np.asarray(load_mask(mask)).astype(float) - expected).max() <= 1


def test_labels_in_a_file(tmp_path):
    Image.fromarray((disc() > 0).astype(np.uint16)).save(tmp_path / "labels.png")
    assert (np.asarray(load_mask(tmp_path / "labels.png")) == disc()).all()


def test_numbers_that_are_none():
    with pytest.raises(ValueError, match="`mask_image` must have values in 0..1"):
        load_mask(np.full((30, 20), np.nan), "mask_image")
