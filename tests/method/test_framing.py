import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from transformers import CLIPImageProcessor

from profusion_pipeline.method import framing
from profusion_pipeline.method.framing import crop_strip, vae_pixels, vision_pixels


def waves(width: int, height: int) -> Image.Image:
    """Smooth, so that a shift by a pixel shows little and by many a lot."""
    y, x = np.mgrid[:height, :width]
    red, green = np.sin(x / width * 40) * 127 + 128, np.sin(y / height * 40) * 127 + 128
    return Image.fromarray(np.stack([red, green, (red + green) / 2], axis=2).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (100, 80), (640, 48), (30, 300), (1, 60), (4000, 3000)])
def test_ordinary_pictures_are_left_alone(size):
    picture = Image.new("RGB", size)
    assert crop_strip(picture, 64, 64) is picture
    assert crop_strip(picture, 96, 32) is picture


@pytest.mark.parametrize("size", [(7, 400), (400, 7), (8, 401), (900, 50), (50, 901)])
@pytest.mark.parametrize("target", [(32, 32), (48, 32), (24, 64)])
def test_a_strip_cut_before_is_nearly_what_it_is_cut_after(size, target, monkeypatch):
    picture, processor, extractor = (
        waves(*size),
        VaeImageProcessor(),
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    whole = vae_pixels(processor, [picture], *target)
    seen = vision_pixels(extractor, [picture])
    monkeypatch.setattr(framing, "SCALED_PIXELS", 2 * target[0] * target[1])
    cut = crop_strip(picture, *target)
    assert max(cut.size) < max(size)
    assert (vae_pixels(processor, [picture], *target) - whole).abs().mean() < 0.03
    monkeypatch.setattr(framing, "SCALED_PIXELS", 2 * 32 * 32)
    assert (vision_pixels(extractor, [picture]) - seen).abs().mean() < 0.05


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (2, 2_000_000)])
def test_strips_take_little_memory(size):
    picture = Image.new("RGB", size, (200, 100, 50))
    cut = crop_strip(picture, 512, 512)
    assert max(cut.size) <= 20 and min(cut.size) == min(size)
    pixels = vae_pixels(VaeImageProcessor(), [picture], 512, 512)
    assert pixels.shape == (1, 3, 512, 512)
    expected = torch.tensor([200, 100, 50]) / 127.5 - 1
    torch.testing.assert_close(pixels.mean(dim=(0, 2, 3)), expected, rtol=0, atol=0.01)
    assert vision_pixels(CLIPImageProcessor(), [picture]).shape == (1, 3, 224, 224)


def test_an_extractor_that_crops_nothing_sees_all(monkeypatch):
    monkeypatch.setattr(framing, "SCALED_PIXELS", 1)
    squash = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    picture = waves(10, 400)
    assert torch.equal(vision_pixels(squash, [picture]), squash([picture], return_tensors="pt").pixel_values)
