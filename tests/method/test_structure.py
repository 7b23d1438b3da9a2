"""Beginning with another picture, and keeping parts of it."""

import numpy as np
import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image

import schedulers
from calls import CLOSE, build, count_work, latents_of, picture, relative, seeded
from profusion_pipeline.method import noise_levels, structure
from profusion_pipeline.method.learnt_subject import LearntSubject
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from tiny import PICTURE_SIDE
from tiny_xl import make_xl_components

# diffusers' schedulers hand tensors to numpy, which torch with numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def half(size=(30, 20), value=255):
    """A mask, light on its left half."""
    mask = Image.new("L", size)
    mask.paste(value, (0, 0, size[0] // 2, size[1]))
    return mask


def read(init_image=None, mask_image=None, num_prompts=1, strength=0.5, latents=None):
    return structure.read(init_image, mask_image, num_prompts, strength, latents, schedulers.make("ddim"))


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


# ---------------------------------------------------------------------------------------- whole calls


def inpainting(pipe, kind, **settings):
    """What a pipeline of diffusers draws of the same models."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: pipe.components[name] for name in names}
    base = kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    base.set_progress_bar_config(disable=True)
    shared = dict(num_inference_steps=6, guidance_scale=5.0, output_type="latent", generator=seeded())
    return base("a photo of person", **shared | settings).images


WITHOUT_SUBJECT = dict(guidance_scale=0.0, num_fusion_steps=0, class_guidance_scale=5.0, num_inference_steps=6)
SQUARE = picture(3, (PICTURE_SIDE, PICTURE_SIDE))  # of the size drawn: diffusers stretches where we crop
LEFT = half(SQUARE.size)


@pytest.mark.numeric
@pytest.mark.parametrize("variant", ["ddim", "euler", "dpm++", "unipc", "heun", "lcm"])
def test_without_s_it_begins_as_diffusers_does(variant):
    pipe = build(scheduler=schedulers.make(variant, steps_offset=1))  # as diffusers insists
    clean = pipe._picture_latents(SQUARE, *SQUARE.size)  # else diffusers would draw one from the VAE's distribution
    expected = inpainting(pipe, StableDiffusionImg2ImgPipeline, image=clean, strength=0.5)
    ours = latents_of(pipe, "a photo of S*", init_image=SQUARE, strength=0.5, **WITHOUT_SUBJECT)
    assert relative(ours, expected) < CLOSE


@pytest.mark.numeric
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("variant", ["ddim", "pndm", "euler", "dpm++", "deis", "unipc"])
def test_without_s_it_keeps_what_diffusers_keeps(variant, strength):
    """Beside a mask diffusers has no latents for the picture, so the VAE's distribution gets a single point."""
    pipe = build(scheduler=schedulers.make(variant, steps_offset=1))
    with torch.no_grad():
        pipe.vae.quant_conv.weight[4:] = 0
        pipe.vae.quant_conv.bias[4:] = -60.0
    expected = inpainting(
        pipe,
        StableDiffusionInpaintPipeline,
        image=SQUARE,
        mask_image=LEFT,
        strength=strength,
        height=PICTURE_SIDE,
        width=PICTURE_SIDE,
    )
    generator = seeded()
    torch.randn(1, 4, 8, 8, generator=generator)  # that draws from the distribution
    settings = dict(init_image=SQUARE, mask_image=LEFT, strength=strength, generator=generator)
    ours = latents_of(pipe, "a photo of S*", **settings, **WITHOUT_SUBJECT)
    assert relative(ours, expected) < 10 * CLOSE


@pytest.mark.parametrize("variant", schedulers.VARIANTS)
def test_white_is_drawn_and_black_is_kept_with_every_scheduler(variant):
    """Three pictures in one batch: what is all white is that of the same batch without masks, to the bit."""
    pipe = build(scheduler=schedulers.make(variant))
    fuses = not variant.startswith(("pndm", "lms"))  # which can't begin a fusion stage half way
    shared = dict(subject=pipe.encode_subject(picture()), init_image=SQUARE, strength=0.5, num_inference_steps=4)
    shared |= dict(prompt=["S*"] * 3, num_fusion_steps=int(fuses))
    masks = [Image.new("L", SQUARE.size, 255), Image.new("L", SQUARE.size), LEFT]
    found, plain = latents_of(pipe, mask_image=masks, **shared), latents_of(pipe, **shared)
    clean = pipe._picture_latents(SQUARE, *SQUARE.size)
    assert torch.equal(found[0], plain[0]) and torch.equal(found[1:2], clean)
    assert torch.equal(found[2:, ..., 4:], clean[..., 4:]) and relative(found[2:, ..., :4], clean[..., :4]) > 0.01


def test_at_strength_1_it_is_the_call_without_to_the_bit():
    pipe = build()
    expected = latents_of(pipe, image=picture())
    counts = []
    pipe.vae.encoder.register_forward_pre_hook(lambda *args: counts.append(1))
    assert torch.equal(latents_of(pipe, image=picture(), init_image=SQUARE, strength=1.0), expected)
    assert len(counts) == 1  # the reference alone
    white = Image.new("L", SQUARE.size, 255)
    assert torch.equal(latents_of(pipe, image=picture(), init_image=SQUARE, mask_image=white), expected)


def test_it_begins_with_the_picture_and_not_with_the_reference():
    """What S* is and what the picture is laid out as are two things; words that were learnt have no picture."""
    pipe = build()
    settings = dict(strength=0.5, num_inference_steps=4)
    other = latents_of(pipe, image=picture(), **settings)
    own = latents_of(pipe, image=picture(), init_image=picture(), **settings)
    assert torch.equal(own, other)
    assert relative(latents_of(pipe, image=picture(), init_image=SQUARE, **settings), own) > 0.01
    learnt = LearntSubject("red hat", class_noun="hat")
    assert torch.isfinite(latents_of(pipe, subject=learnt, init_image=SQUARE, **settings)).all()
    expected = latents_of(pipe, init_image=SQUARE, guidance_scale=0.0, num_fusion_steps=0, **settings)
    assert torch.isfinite(expected).all()  # nobody is given, and nobody is needed


@pytest.mark.numeric
def test_a_batch_is_its_pictures_one_by_one():
    pipe = build()
    prompts, references = ["S* on the beach", "a photo of S*"], [picture(), [picture(1), picture(2)]]
    pictures, masks = [SQUARE, picture(9, SQUARE.size)], [LEFT, half(SQUARE.size).transpose(Image.Transpose.ROTATE_90)]
    shared = dict(strength=0.75, num_inference_steps=4)
    together = latents_of(
        pipe,
        prompts,
        image=references,
        init_image=pictures,
        mask_image=masks,
        num_images_per_prompt=2,
        generator=[seeded(i) for i in range(4)],
        **shared,
    )
    for i in range(4):
        own = dict(image=references[i // 2], init_image=pictures[i // 2], mask_image=masks[i // 2])
        alone = latents_of(pipe, prompts[i // 2], generator=seeded(i), **own, **shared)
        assert relative(together[i : i + 1], alone) < 10 * CLOSE, i


def test_a_mask_keeps_beside_given_noise_and_in_the_fusion_stage():
    """The kept part has the level that each prediction reads, m of them at one timestep, and one noise throughout."""
    pipe, states = build(), []
    clean = pipe._picture_latents(SQUARE, *SQUARE.size).detach()
    pipe.unet.register_forward_pre_hook(lambda module, args: states.append((args[0][:1], int(args[1]))))
    noise = torch.randn(1, 4, 8, 8, generator=seeded(4))
    shared = dict(image=picture(), init_image=SQUARE, mask_image=LEFT, num_fusion_steps=2)
    found = latents_of(pipe, latents=noise, generator=seeded(5), **shared)
    assert len(states) == 3 * 3
    for number, (state, t) in enumerate(states):
        a = pipe.scheduler.alphas_cumprod[t].item()
        expected = a**0.5 * clean + (1 - a) ** 0.5 * noise
        if number:  # the very first prediction reads noise alone, as in diffusers
            assert torch.allclose(state[..., 4:], expected[..., 4:], atol=1e-5)
    assert torch.equal(found[..., 4:], clean[..., 4:])


def test_pictures_that_prompts_share_are_encoded_once():
    pipe, counts = build(), []
    pipe.vae.encoder.register_forward_pre_hook(lambda *args: counts.append(1))
    prompts = ["a photo of S*"] * 3
    latents_of(pipe, prompts, subject=pipe.encode_subject(picture()), init_image=SQUARE, mask_image=LEFT)
    assert len(counts) == 2


@pytest.mark.parametrize("settings, kind, message", REFUSED[:1] + REFUSED[2:])
def test_a_call_says_so_before_any_work(settings, kind, message):
    pipe = build()
    counts = count_work(pipe)
    with pytest.raises(kind, match=message):
        latents_of(pipe, image=picture(), **settings)
    with pytest.raises(ValueError, match="`init_image` and `latents` must not both be given"):
        latents_of(pipe, image=picture(), init_image=SQUARE, strength=0.5, latents=torch.zeros(1, 4, 8, 8))
    assert not any(counts.values())


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_a_call_names_a_scheduler_without_levels(scheduler):
    pipe = build(scheduler=scheduler)
    counts = count_work(pipe)
    with pytest.raises(ValueError, match="can't keep a part of a picture: it has no `alphas_cumprod`.*`mask_image`"):
        latents_of(pipe, image=picture(), init_image=SQUARE, mask_image=LEFT, num_fusion_steps=0)
    assert not any(counts.values())


@pytest.mark.numeric
def test_of_xl_it_is_the_same():
    pipe = ProFusionXLPipeline(**make_xl_components(), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    shared = dict(image=picture(), init_image=SQUARE, num_inference_steps=4, strength=0.5)
    clean = pipe._picture_latents(SQUARE, *SQUARE.size).detach()
    assert torch.equal(latents_of(pipe, mask_image=Image.new("L", SQUARE.size), **shared), clean)
    white = Image.new("L", SQUARE.size, 255)
    assert torch.equal(latents_of(pipe, mask_image=white, **shared), latents_of(pipe, **shared))
    found = latents_of(pipe, mask_image=LEFT, **shared)
    assert torch.equal(found[..., 4:], clean[..., 4:]) and relative(found, clean) > 0.01
