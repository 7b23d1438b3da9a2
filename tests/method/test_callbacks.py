"""A callback changes the scales of a running call; what it does shows in the rows that are computed."""

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback, SDXLCFGCutoffCallback

from calls import PROMPT, count_work, latents_of, picture, seeded

pytestmark = pytest.mark.numeric


def test_scales_and_steps_are_those_of_the_call(pipe):
    latents_of(pipe, image=picture(), num_inference_steps=5, strength=0.6, guidance_scale=3.0, class_guidance_scale=2.0)
    assert (pipe.guidance_scale, pipe.class_guidance_scale, pipe.fusion_guidance_scale) == (3.0, 2.0, 7.0)
    assert pipe.num_timesteps == 3 and pipe.interrupt is False


def rows_at_each_step(pipe, change, **settings):
    counts, seen = count_work(pipe), [0]

    def callback(pipe, i, t, tensors):
        seen.append(counts["unet_rows"])
        change(pipe, i)
        return tensors

    latents = latents_of(pipe, image=picture(), callback_on_step_end=callback, **settings)
    return [after - before for before, after in zip(seen[:-1], seen[1:], strict=True)], latents


def test_rows_come_and_go_with_the_scales(pipe):
    """Guidance in an interval: S* in the second step, the text in the third."""

    def change(pipe, i):
        pipe._guidance_scale = [7.0, 0.0, 0.0][i]
        pipe._class_guidance_scale = [0.0, 5.0, 0.0][i]

    rows, _ = rows_at_each_step(pipe, change, guidance_scale=0.0, class_guidance_scale=0.0, num_fusion_steps=0)
    assert rows == [1, 2, 2]


def test_a_changed_scale_is_that_scale(pipe):
    """Two steps with one scale and a third with another are the call with the third begun from their latents."""

    def change(pipe, i):
        pipe._guidance_scale, pipe._class_guidance_scale, pipe._fusion_guidance_scale = 2.0, 3.0, 4.0

    calm = dict(guidance_scale=2.0, class_guidance_scale=3.0, fusion_guidance_scale=4.0)
    assert torch.equal(rows_at_each_step(pipe, change, **calm)[1], latents_of(pipe, image=picture(), **calm))
    half_way = {}

    def keep_the_second(pipe, i, t, tensors):
        half_way[i] = tensors["latents"]
        return tensors

    latents_of(pipe, image=picture(), callback_on_step_end=keep_the_second, num_fusion_steps=0)
    rest = latents_of(pipe, image=picture(), latents=half_way[1], strength=1 / 3, num_fusion_steps=0, **calm)

    def from_the_third(pipe, i):
        if i == 1:
            change(pipe, i)

    changed = rows_at_each_step(pipe, from_the_third, num_fusion_steps=0)[1]
    assert torch.equal(changed, rest)


def test_a_callback_changes_the_text(pipe):
    """Prompts by turns: the class prompt and the negative prompt of another text from the first step on."""
    dog, blue = pipe.encode_prompt("a dog", "blue")
    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def swap(pipe, i, t, tensors):
        assert list(tensors) == names and tensors["prompt_embeds"].shape == dog.shape
        return dict(prompt_embeds=dog, negative_prompt_embeds=blue)

    settings = dict(image=picture(), num_inference_steps=3, num_fusion_steps=0)
    swapped = latents_of(pipe, callback_on_step_end=swap, callback_on_step_end_tensor_inputs=names, **settings)
    first = {}

    def keep_the_first(pipe, i, t, tensors):
        first.setdefault("latents", tensors["latents"])
        return tensors

    latents_of(pipe, callback_on_step_end=keep_the_first, **settings)
    rest = latents_of(
        pipe, latents=first["latents"], strength=0.7, class_prompt="a dog", negative_prompt="blue", **settings
    )
    assert torch.equal(swapped, rest)


def test_scales_change_while_s_is_shared_and_guidance_has_an_end(pipe):
    """ω_1 comes at the second step of four: S* is made then, kept until the fourth, alone in the last two."""
    made = []
    pipe.promptnet.register_forward_pre_hook(lambda module, args: made.append(int(args[1])))

    def change(pipe, i):
        pipe._guidance_scale, pipe._guidance_rescale = 3.0, 0.5

    settings = dict(guidance_scale=0.0, num_fusion_steps=0, num_inference_steps=4, subject_every=3, guidance_end=0.5)
    rows, _ = rows_at_each_step(pipe, change, **settings)
    assert rows == [2, 3, 1, 1] and pipe.guidance_rescale == 0.5
    assert made == [pipe.scheduler.timesteps[i] for i in (1, 3)]


def test_interrupt_leaves_the_rest_undone(pipe):
    def stop(pipe, i, t, tensors):
        pipe._interrupt = True
        return tensors

    counts = count_work(pipe)
    pipe(PROMPT, image=picture(), num_inference_steps=5, generator=seeded(), callback_on_step_end=stop)
    assert counts["unet_calls"] == 2


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: MultiPipelineCallbacks([one])], ids=["one", "several"])
def test_callback_objects_of_diffusers_are_taken(pipe, wrap):
    """They say themselves which tensors they want; `SDCFGCutoffCallback` switches `guidance_scale` off."""
    counts, seen = count_work(pipe), []
    callback = wrap(SDCFGCutoffCallback(cutoff_step_index=0, cutoff_step_ratio=None))
    pipe.promptnet.register_forward_pre_hook(lambda *_: seen.append(counts["unet_calls"]))
    latents = latents_of(pipe, image=picture(), num_fusion_steps=0, callback_on_step_end=callback)
    assert seen == [0] and torch.isfinite(latents).all()  # S* is asked for at the first step only


def test_a_callback_that_returns_nothing_changes_nothing(pipe):
    steps = []
    watched = latents_of(pipe, image=picture(), callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i))
    assert steps == [0, 1, 2] and torch.equal(watched, latents_of(pipe, image=picture()))


def test_tensors_of_another_shape_are_refused(pipe):
    def cut(pipe, i, t, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]}

    settings = dict(image=picture(), num_images_per_prompt=2, callback_on_step_end=cut)
    message = r"`prompt_embeds` from `callback_on_step_end` must have the shape \(2, 77, 32\), got \(1, 77, 32\)"
    with pytest.raises(ValueError, match=message):
        latents_of(pipe, **settings, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_tensors_that_there_are_not_are_named(pipe):
    with pytest.raises(ValueError, match="`callback_on_step_end_tensor_inputs` must be .*, got 'add_text_embeds'"):
        latents_of(pipe, image=picture(), callback_on_step_end=SDXLCFGCutoffCallback(cutoff_step_ratio=0.5))
