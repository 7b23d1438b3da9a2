import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler

from calls import build, count_work, latents_of, picture, seeded

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")]


def test_fusion_in_a_part_of_the_steps(pipe):
    settings = dict(image=picture(), num_inference_steps=4, generator=seeded(0))
    counts, half_way = count_work(pipe), []

    def keep(pipe, index, timestep, tensors):
        half_way.append(tensors["latents"])
        return tensors

    latents_of(pipe, **settings, callback_on_step_end=keep)
    counts.update(unet_rows=0)
    found = latents_of(pipe, **settings | dict(generator=seeded(0)), fusion_end=0.5)
    assert counts["unet_rows"] == 4 * 3 + 2 * 2
    rest = latents_of(pipe, **settings, latents=half_way[1], strength=0.5, num_fusion_steps=0)
    assert torch.equal(found, rest)
    counts.update(unet_rows=0)
    latents_of(pipe, **settings, fusion_start=0.5, fusion_end=0.75, num_fusion_steps=2)
    assert counts["unet_rows"] == 4 * 3 + 1 * 4


def test_largest_eta_is_allowed(pipe):
    with pytest.raises(ValueError, match="at most") as raised:
        latents_of(pipe, image=picture(), fusion_eta=3.0)
    largest = float(str(raised.value).split("at most ")[1].split()[0])
    assert torch.isfinite(latents_of(pipe, image=picture(), fusion_eta=largest - 1e-4)).all()
    with pytest.raises(ValueError, match="at most"):
        latents_of(pipe, image=picture(), fusion_eta=largest + 1e-3)


def test_unfit_scheduler_is_named_before_any_work():
    pipe = build(scheduler=FlowMatchEulerDiscreteScheduler())
    counts = count_work(pipe)
    for m in (0, 1):
        with pytest.raises(ValueError, match="got FlowMatchEulerDiscreteScheduler, which has no `scale_model_input`"):
            latents_of(pipe, image=picture(), num_fusion_steps=m)
    pipe.scheduler = ScoreSdeVeScheduler()
    with pytest.raises(ValueError, match="got ScoreSdeVeScheduler, which has no `step`"):
        latents_of(pipe, image=picture(), num_fusion_steps=0)
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="EDMEulerScheduler can't carry the fusion stage: .* or `num_fusion_steps=0`"):
        latents_of(pipe, image=picture())
    assert not any(counts.values())
    assert torch.isfinite(latents_of(pipe, image=picture(), num_fusion_steps=0)).all()
