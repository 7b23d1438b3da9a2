import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline.notebook.sweeps import blend, compare, sweep

ADA, BOB = (Image.new("RGB", (16, 16), colour) for colour in ("orange", "navy"))
QUICK = dict(image=ADA, num_inference_steps=2)


def close(picture: Image.Image, other: Image.Image) -> bool:
    """A batch may round otherwise."""
    return np.abs(np.asarray(picture, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def alone(pipe, prompt, seed=0, **call):
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **call).images[0]


@pytest.mark.numeric
def test_cells_are_what_a_call_alone_gives(pipe):
    grid = sweep(pipe, "a photo of S*", guidance_scale=[3, 5.5], num_fusion_steps=[0, 1], **QUICK)
    assert (grid.rows, grid.columns) == (
        ["guidance_scale 3", "guidance_scale 5.5"],
        ["num_fusion_steps 0", "num_fusion_steps 1"],
    )
    for row, scale in zip(grid.pictures, [3, 5.5], strict=True):
        for picture, steps in zip(row, [0, 1], strict=True):
            assert close(picture, alone(pipe, "a photo of S*", guidance_scale=scale, num_fusion_steps=steps, **QUICK))


def test_numbers_in_a_row_are_an_axis(pipe):
    grid = sweep(pipe, "a photo of S*", guidance_scale=np.linspace(1, 3, 2), seed=range(2), **QUICK)
    assert grid.rows == ["guidance_scale 1", "guidance_scale 3"] and len(grid.columns) == 2


@pytest.mark.numeric
def test_what_may_differ_within_a_call_is_drawn_together(pipe):
    prompts, calls = ["a photo of S*", "S* on a beach"], []

    def watch(pipe, index, timestep, tensors):
        calls.append(len(tensors["latents"]))

    settings = dict(num_inference_steps=1, callback_on_step_end=watch)
    grid = sweep(pipe, prompts, seed=[3, 4, 5], at_once=4, image=[ADA, BOB], **settings)
    assert calls == [4, 4, 4]
    assert grid.rows == [f"{prompt}\nimage {number}" for prompt in prompts for number in (1, 2)]
    assert grid.columns == ["seed 3", "seed 4", "seed 5"]
    assert close(grid.pictures[3][1], alone(pipe, prompts[1], 4, image=BOB, num_inference_steps=1))


def test_one_person_from_two_sides(pipe):
    both = sweep(pipe, "a photo of S*", image=[[ADA, BOB]], num_inference_steps=1)
    assert both.columns == ["image 1"]
    assert close(both.pictures[0][0], alone(pipe, "a photo of S*", image=[ADA, BOB], num_inference_steps=1))


def test_without_an_axis_there_is_one_picture(pipe):
    grid = sweep(pipe, "a photo of S*", negative_prompt="blue", **QUICK)
    assert (grid.rows, grid.columns) == ([""], [""])


def test_progress_and_the_bars_of_before(pipe):
    before, told = dict(pipe._progress_bar_config), []
    sweep(pipe, "a photo of S*", guidance_scale=[3, 5], progress=lambda *done: told.append(done), **QUICK)
    assert told == [(0.5, 2), (1.0, 2), (1.5, 2), (2.0, 2)]
    assert pipe._progress_bar_config == before


def test_one_bar(pipe, capsys):
    pipe.set_progress_bar_config()
    sweep(pipe, "a photo of S*", guidance_scale=[3, 5], **QUICK)
    assert "2.0/2 pictures" in capsys.readouterr().err
    assert pipe._progress_bar_config == {}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (dict(generator=None), TypeError, "`generator` can't be given to a sweep"),
        (dict(guidance=[1]), TypeError, "has no argument 'guidance'"),
        (dict(guidance_scale=[]), ValueError, "`guidance_scale` must hold at least one value, got an empty list"),
        (dict(guidance_scale=[3, -1]), ValueError, "`guidance_scale` must be a finite number of at least 0, got -1"),
        (dict(seed=[0, -1]), ValueError, "`seed` must be at least 0, got -1"),
        (dict(num_inference_steps=[2, 0]), ValueError, "`num_inference_steps` must be at least 1, got 0"),
        (dict(seed=2**64), ValueError, "`seed` must be at most 18446744073709551615, got 18446744073709551616"),
        (dict(num_inference_steps=10**9), ValueError, "`num_inference_steps` must be at most 10000, got 1000000000"),
        (dict(guidance_scale=np.linspace(3, -1, 2)), ValueError, "`guidance_scale` must be a finite number .* got -1"),
        (dict(at_once=0), ValueError, "`at_once` must be at least 1"),
    ],
)
def test_what_is_refused_before_anything_is_drawn(pipe, call, error, match):
    drawn = []
    with pytest.raises(error, match=match):
        sweep(pipe, "a photo of S*", **QUICK | {"callback_on_step_end": drawn.append} | call)
    assert not drawn


@pytest.mark.parametrize(
    ("prompt", "error", "match"),
    [
        (["S*", "nobody"], ValueError, "must hold the placeholder"),
        ([7], TypeError, "`prompt` must be a text or a list"),
    ],
)
def test_prompts_that_are_refused(pipe, prompt, error, match):
    with pytest.raises(error, match=match):
        sweep(pipe, prompt, **QUICK)


def test_a_blend_begins_and_ends_with_one_of_the_two(pipe):
    ada, bob = pipe.encode_subject(ADA), pipe.encode_subject(BOB)
    between = [blend(ada, bob, share) for share in (0.0, 0.4, 1.0)]
    first, middle, last = sweep(pipe, "a photo of S*", subject=between, num_inference_steps=2).pictures[0]
    assert close(first, alone(pipe, "a photo of S*", subject=ada, num_inference_steps=2))
    assert close(last, alone(pipe, "a photo of S*", subject=bob, num_inference_steps=2))
    assert not close(middle, first) and not close(middle, last)


def test_compare(pipe):
    settings = dict(class_noun="woman", steps=1, pool_size=1, num_inference_steps=2)
    grid = compare(pipe, ADA, ["a photo of S*", "S* on a beach"], ["Stable Diffusion", "ProFusion"], **settings)
    assert (grid.rows, grid.columns) == (["Stable Diffusion", "ProFusion"], ["a photo of S*", "S* on a beach"])
    assert len({picture.tobytes() for row in grid.pictures for picture in row}) == 4
    assert not pipe.concepts


def test_compare_with_a_system_that_there_is_not(pipe):
    with pytest.raises(ValueError, match="`name` of a system must be one of"):
        compare(pipe, ADA, "a photo of S*", ["ProFission"])
    with pytest.raises(ValueError, match="must hold the placeholder"):
        compare(pipe, ADA, "a photo", ["PromptNet"])
