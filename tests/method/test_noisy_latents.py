import numpy as np
import pytest
import torch

import schedulers
from calls import build, latents_of, picture, relative, seeded
from profusion_pipeline.method import noisy_latents
from tiny import LATENT_SIDE, make_scheduler

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")]


def test_latents_are_scaled_as_the_scheduler_has_it():
    pipe = build(scheduler=schedulers.make("euler"))
    noise = torch.randn(1, 4, LATENT_SIDE, LATENT_SIDE, generator=seeded(3))
    assert torch.equal(
        latents_of(pipe, image=picture(), latents=noise, num_fusion_steps=0),
        latents_of(pipe, image=picture(), generator=seeded(3), num_fusion_steps=0),
    )


@pytest.mark.parametrize("variant", ["ddim-sd", "euler", "dpm++", "heun"])
def test_strength_starts_from_the_noised_reference(variant):
    pipe = build(scheduler=schedulers.make(variant))
    timesteps, states = [], []

    def record(module, args):
        states.append(args[0])
        timesteps.append(float(args[1]))

    pipe.unet.register_forward_pre_hook(record)
    settings = dict(num_inference_steps=10, strength=0.4, num_fusion_steps=0, guidance_scale=0.0)
    latents_of(pipe, image=picture(), generator=seeded(3), **settings)
    pipe.scheduler.set_timesteps(10)
    assert timesteps == pipe.scheduler.timesteps[6 * pipe.scheduler.order :].tolist()
    noise = torch.randn(1, 4, LATENT_SIDE, LATENT_SIDE, generator=seeded(3))
    a = schedulers_alpha_bar(timesteps[0])
    expected = a**0.5 * pipe.encode_subject(picture()).latents + (1 - a) ** 0.5 * noise
    assert relative(states[0][:1], expected) < 1e-3
    given = torch.randn(1, 4, LATENT_SIDE, LATENT_SIDE)
    states.clear()
    latents_of(pipe, latents=given, **settings)
    a = a if pipe.scheduler.init_noise_sigma != 1 else 1
    assert relative(states[0][:1], given * a**0.5) < 1e-3


def schedulers_alpha_bar(t):
    sigmas = ((1 - make_scheduler().alphas_cumprod) / make_scheduler().alphas_cumprod).sqrt()
    return 1 / (1 + float(np.interp(t, np.arange(1000), sigmas.numpy())) ** 2)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, "pipe.to\\(torch.bfloat16\\)"),
        (torch.float32, "look at its scales, the models' weights, the scheduler, and what a callback"),
    ],
)
def test_not_finite_latents_name_the_step(pipe, dtype, advice):
    def spoil(pipe, i, t, tensors):
        return {"latents": torch.full_like(tensors["latents"], float("nan")) if i == 1 else tensors["latents"]}

    with pytest.raises(RuntimeError, match=rf"after step 3 of 4 \(timestep 251\) .* in {dtype}\. .*{advice}"):
        latents_of(pipe.to(dtype), image=picture(), num_inference_steps=4, callback_on_step_end=spoil)


def test_steps_are_asked_once_where_asking_waits_for_the_device(pipe, monkeypatch):
    """On a GPU the loop keeps an answer for each step and asks for all of them after the last."""
    asked, check = [], noisy_latents.FiniteSteps.check
    counted = lambda steps: (asked.append(len(steps.finite)), check(steps))  # noqa: E731
    monkeypatch.setattr(noisy_latents.FiniteSteps, "check", counted)
    latents_of(pipe, image=picture(), num_inference_steps=3)
    assert asked == [1, 2, 3, 3]  # a CPU does not wait: a call that fails ends at once
    steps = noisy_latents.FiniteSteps(torch.tensor([9, 5, 1]))
    steps.finite += [torch.tensor(True), torch.tensor(False), torch.tensor(False)]
    with pytest.raises(RuntimeError, match=r"after step 2 of 3 \(timestep 5\) are"):
        check(steps)
