import math

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image, ImageFilter

from profusion_pipeline.customization.augmentation import (
    affine_matrix,
    augment,
    blur,
    ellipse_mask,
    inpainter,
    paint_blur,
    paint_colour,
    paint_mixed,
    paint_noise,
    warp,
)
from tiny import make_components

STILL = dict(rotation=0.0, translation=0.0, zoom=0.0, flip=False, paint=None)


def ramp(height: int, width: int) -> torch.Tensor:
    """Three channels: x, y and their product, all in 0..1."""
    x, y = torch.linspace(0, 1, width)[None, :], torch.linspace(0, 1, height)[:, None]
    return torch.stack([x.expand(height, width), y.expand(height, width), x * y])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_turning_by_right_angles_is_what_pillow_does(angle):
    picture = torch.rand(1, 9, 9, generator=seeded())
    ours = warp(picture, affine_matrix(angle=angle, shift=(0, 0), scale=1, flip=False), outside="zeros")
    theirs = np.asarray(Image.fromarray(picture[0].numpy()).rotate(angle))
    np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-5)


def test_a_turn_does_not_shear_a_wide_picture():
    """A disc stays a disc: as many cells in a row through its centre as in a column."""
    height, width = 41, 81
    y, x = torch.meshgrid(torch.arange(height) - 20.0, torch.arange(width) - 40.0, indexing="ij")
    disc = (x.square() + y.square() < 15**2).float()[None]
    turned = warp(
        disc, affine_matrix(angle=33, shift=(0, 0), scale=1, flip=False, aspect=width / height), outside="zeros"
    )
    assert turned[0, 20].sum().item() == pytest.approx(disc[0, 20].sum().item(), abs=1)
    assert turned[0, :, 40].sum().item() == pytest.approx(disc[0, :, 40].sum().item(), abs=1)


def test_shift_scale_and_flip():
    picture = ramp(8, 8)
    moved = warp(picture, affine_matrix(angle=0, shift=(0.25, -0.125), scale=1, flip=False), outside="zeros")
    torch.testing.assert_close(moved[:, :7, 2:], picture[:, 1:, :6])
    mirrored = warp(picture, affine_matrix(angle=0, shift=(0, 0), scale=1, flip=True), outside="zeros")
    torch.testing.assert_close(mirrored, picture.flip(2))
    larger = warp(picture, affine_matrix(angle=0, shift=(0, 0), scale=2, flip=False), outside="zeros")
    slope = larger[0, 4, 4] - larger[0, 4, 3]
    assert slope.item() == pytest.approx(1 / 7 / 2)  # half as steep


def test_flip_comes_before_the_shift():
    picture = ramp(8, 8)
    both = warp(picture, affine_matrix(angle=0, shift=(0.25, 0), scale=1, flip=True), outside="zeros")
    torch.testing.assert_close(both[:, :, 2:], picture.flip(2)[:, :, :6])


def test_the_ellipse_is_a_quarter_higher_than_wide():
    mask = ellipse_mask(200, 100, 0.8)[0]
    assert mask[100].sum() == pytest.approx(80, abs=1)
    assert mask[:, 50].sum() == pytest.approx(100, abs=1)
    assert mask.mean().item() == pytest.approx(math.pi * 40 * 50 / (200 * 100), rel=0.02)


def test_blur_agrees_with_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    picture = torch.rand(3, 24, 30, generator=seeded())
    theirs = ndimage.gaussian_filter(picture.numpy(), (0, 1.5, 1.5), mode="mirror", radius=(0, 5, 5))
    np.testing.assert_allclose(blur(picture, 1.5).numpy(), theirs, atol=1e-5)


def test_nothing_to_do_gives_the_picture_back():
    picture = ramp(8, 12)
    torch.testing.assert_close(augment(picture, None, seeded(), **STILL), picture)


def test_augmentations_depend_on_the_generator_alone():
    picture, mask = ramp(16, 16), ellipse_mask(16, 16, 0.8)
    settings = dict(rotation=10, translation=0.1, zoom=0.2, flip=False, paint=paint_mixed)
    first, again, other = (augment(picture, mask, seeded(seed), **settings) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_stay_in_their_ranges():
    """A picture of x alone: its slope says by how much it was enlarged, its middle where it went."""
    picture = ramp(33, 33)
    generator, scales, middles = seeded(), [], []
    for _ in range(200):
        moved = augment(picture, None, generator, **STILL | dict(zoom=0.25, translation=0.1))
        slope = (moved[0, 16, 17] - moved[0, 16, 15]) / 2
        scales.append(1 / 32 / slope.item())
        middles.append(moved[0, 16, 16].item())
    assert 1 / 1.25 - 1e-3 < min(scales) < 0.83 and 1.2 < max(scales) < 1.25 + 1e-3
    assert np.median(scales) == pytest.approx(1, abs=0.05)  # log-uniform: as often smaller as larger
    assert min(middles) > 0.5 - 0.1 * 33 / 32 * 1.25 - 1e-3 and max(middles) < 0.5 + 0.1 * 33 / 32 * 1.25 + 1e-3


@pytest.mark.parametrize("flip, found", [(False, {False}), (True, {False, True})])
def test_flips_are_drawn_only_if_asked_for(flip, found):
    picture, generator = ramp(8, 8), seeded()
    pictures = [augment(picture, None, generator, **STILL | dict(flip=flip)) for _ in range(20)]
    assert {torch.allclose(one, picture.flip(2)) for one in pictures} == found


@pytest.mark.parametrize("paint", [paint_noise, paint_blur, paint_colour, paint_mixed])
def test_only_the_background_is_painted(paint):
    picture, mask = torch.rand(3, 64, 64, generator=seeded()), ellipse_mask(64, 64, 0.7)
    painted = augment(picture, mask, seeded(), **STILL | dict(paint=paint))
    assert painted.shape == picture.shape and 0 <= painted.min() and painted.max() <= 1
    torch.testing.assert_close(painted[:, 24:40, 24:40], picture[:, 24:40, 24:40], atol=1e-3, rtol=0)
    assert (painted - picture).abs()[:, :4, :4].mean() > 0.05


def test_the_mask_moves_with_the_picture():
    """White subject on black, painted grey: wherever the subject goes, none of it is painted."""
    mask = ellipse_mask(64, 64, 0.5)
    grey = dict(paint=lambda picture, mask, generator: torch.full_like(picture, 0.5))
    moved = augment(mask.expand(3, 64, 64), mask, seeded(3), **STILL | dict(translation=0.3, rotation=90) | grey)
    assert moved.max() > 0.99
    assert (moved < 0.45).float().mean() < 0.1  # black of the old background in the soft edge only


def test_painters_are_independent_of_the_picture_but_for_blur():
    one, other, mask = torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.ones(1, 32, 32)
    for paint in (paint_noise, paint_colour):
        assert torch.equal(paint(one, mask, seeded()), paint(other, mask, seeded()))
    assert not torch.equal(paint_blur(one, mask, seeded()), paint_blur(other, mask, seeded()))


def test_blurred_background_is_less_sharp():
    picture = torch.rand(3, 64, 64, generator=seeded())
    soft = paint_blur(picture, torch.ones(1, 64, 64), seeded())
    assert soft.diff().abs().mean() < 0.5 * picture.diff().abs().mean()
    reference = Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(4)
    )
    assert reference.size == (64, 64)


def test_any_inpainting_pipeline_can_paint():
    parts = {
        name: part
        for name, part in make_components().items()
        if name not in ("promptnet", "image_encoder", "controlnet")
    }
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    paint = inpainter(pipeline, ["a beach", "a forest"], num_inference_steps=2, height=16, width=16)
    picture, mask = ramp(16, 16), ellipse_mask(16, 16, 0.5)
    first, again = (augment(picture, mask, seeded(), **STILL | dict(paint=paint)) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first[:, 8, 8], picture[:, 8, 8], atol=0.05, rtol=0)
    assert (first - picture).abs()[:, 0, 0].max() > 0.02
