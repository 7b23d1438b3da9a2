"""Beginning with another picture, and keeping parts of it."""

import numpy as np
import pytest
import torch
from PIL import Image

import schedulers
from calls import picture
from profusion_pipeline.method import noise_levels, structure


def half(size=(30, 20), value=255):
    """A mask, light on its left half."""
    mask = Image.new("L", size)
    mask.paste(value, (0, 0, size[0] // 2, size[1]))
    return mask


def read(init_image=None, mask_image=None, num_prompts=1, strength=0.5, latents=None):
    return structure.read(init_image, mask_image, num_prompts, strength=strength, latents=latents)


def test_what_prompts_share_is_read_once(tmp_path):
    picture().save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        found = read(file, half(), num_prompts=3)
    assert len({*map(id, found.pictures)}) == len({*map(id, found.masks)}) == 1 and len(found.masks) == 3
    found = read([picture(), str(tmp_path / "a.png")], [half(), np.ones((20, 30))], num_prompts=2)
    assert found.pictures[0].tobytes() == found.pictures[1].tobytes() and found.masks[1].getextrema() == (255, 255)


REFUSED = [
    (dict(mask_image=half()), ValueError, "`init_image` must be given beside `mask_image`"),
    (dict(init_image=picture(), latents=1), ValueError, "`init_image` and `latents` must not both be given where"),
    (dict(init_image=3), TypeError, "`init_image` must be a PIL image"),
    (dict(init_image=[]), ValueError, "`init_image` must have an entry for each of 1 prompts, got 0"),
    (dict(init_image=[[picture()]]), TypeError, "`init_image` must be one picture for each prompt, got "),
    (dict(init_image=picture(), mask_image="nowhere.png"), ValueError, "`mask_image` must be a file that exists"),
    (
        dict(init_image=picture(), mask_image=half((20, 30))),
        ValueError,
        "`mask_image` must have the size of `init_image`, 30 x 20, got 20 x 30",
    ),
]


@pytest.mark.parametrize("settings, kind, message", REFUSED)
def test_what_can_not_be_begun_with(settings, kind, message):
    with pytest.raises(kind, match=message):
        read(**settings)


def test_a_picture_that_is_not_looked_at_is_named(caplog):
    structure.logger.addHandler(caplog.handler)
    read(picture(), strength=1.0, latents=1)
    structure.logger.removeHandler(caplog.handler)
    assert "`init_image` isn't looked at where `strength` is 1" in caplog.text


def test_a_mask_is_cropped_as_its_picture_is():
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 24, 32))  # a quarter of the middle square, which begins at 16
    cells = structure.mask_cells((mask, half((32, 32))), 32, 32, (8, 8))
    assert cells.shape == (2, 1, 8, 8) and cells.dtype == torch.bool
    assert cells[0, 0].float().mean(0).tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert cells[1, 0].float().mean(0).tolist() == [1] * 4 + [0] * 4


def test_the_picture_is_put_back_at_the_level_of_the_state():
    clean, noise, latents = torch.randn(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor([[True, False], [False, True]]).expand(2, 1, 2, 2)
    levels = [noise_levels.StateLevel(0.36, 2.0), None, noise_levels.StateLevel(1.0, 1.0)]
    kept = structure.KeptParts(clean, noise, drawn, levels)
    expected = torch.where(drawn, latents, 2 * (0.6 * clean + 0.8 * noise))
    assert torch.allclose(kept.put_back(latents, 0), expected)
    assert kept.put_back(latents, 1) is latents
    assert torch.equal(kept.put_back(latents, 2), torch.where(drawn, latents, clean))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize("variant", schedulers.VARIANTS)
def test_levels_are_those_of_a_known_picture_on_its_way(variant):
    """A model that knows picture and noise leads every scheduler along sqrt(ᾱ) x_0 + sqrt(1-ᾱ) ε."""
    scheduler = schedulers.make(variant)
    scheduler.set_timesteps(6)
    levels = noise_levels.state_levels(scheduler)
    assert len(levels) == len(scheduler.timesteps) + 1 and levels[-1] == (1.0, 1.0)
    draws_noise = variant in ("ddpm", "lcm", "tcd", "euler-a", "kdpm2-a", "dpm++-sde", "sa-solver")
    clean, noise = torch.randn(2, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = (0 * clean + noise) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        level = levels[i]
        if level is not None:
            state = (level.alpha_bar**0.5 * clean + (1 - level.alpha_bar) ** 0.5 * noise) * level.state_scale
        scheduler.scale_model_input(state, t)  # which Euler and LMS insist on
        state = scheduler.step(noise, t, state).prev_sample
        following = levels[i + 1]
        if draws_noise or following is None or level is None or i + 1 == len(scheduler.timesteps):
            continue
        expected = (following.alpha_bar**0.5 * clean + (1 - following.alpha_bar) ** 0.5 * noise) * following.state_scale
        assert (state - expected).abs().max() < 5e-3 * expected.abs().max(), (i, following)


def test_schedulers_without_levels_are_named():
    from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    for scheduler in (EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler()):
        scheduler.set_timesteps(3)
        with pytest.raises(ValueError, match="keep a part of a picture: it has no `alphas_cumprod`.*`mask_image`"):
            noise_levels.state_levels(scheduler)
