from threading import Event

import pytest
import torch
from PIL import Image

from concepts import assert_same, everything, learn, photo, tiny_pipeline
from profusion_pipeline.app.studio import Customised, Drawn, Settings, Step, Stopped, Studio, Who
from profusion_pipeline.app.uploads import Limits

QUICK = Settings(num_inference_steps=2, seed=3)
ME = Who(photos=[photo()], class_noun="man")
LEARN = dict(steps=2, batch_size=1)


@pytest.fixture
def studio(pipe):
    return Studio(pipe, limits=Limits(prompts=2, cells=4, learning_steps=10, side=64))


def alone(pipe, prompt, seed, **call):
    return pipe(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **call).images[0]


@pytest.mark.numeric
def test_what_is_drawn_is_what_the_call_gives(studio):
    *steps, drawn = studio.draw(ME, "a photo of S*\n\n S* on the beach ", QUICK, Event())
    assert [(step.done, step.total, step.text) for step in steps] == [(1, 2, "step 1 of 2"), (2, 2, "step 2 of 2")]
    assert steps[0].preview.size == (256, 128)
    assert isinstance(drawn, Drawn) and drawn.prompts == ["a photo of S*", "S* on the beach"] and not drawn.stopped
    call = dict(image=photo(), class_noun="man", guidance_scale=5.0, class_guidance_scale=3.75, num_fusion_steps=0)
    both = studio.pipe(
        drawn.prompts,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        **call,
    ).images
    assert [one.tobytes() for one in drawn.pictures] == [one.tobytes() for one in both]
    assert drawn.settings[1].startswith("seed 4, guidance_scale 5, class_guidance_scale 3.75,")
    record = drawn.records[1]
    assert (record["seed"], record["prompt"], record["batch"]["number"]) == (4, "S* on the beach", 1)
    assert record["settings"]["class_noun"] == "man" and record["references"][0]["source"] == "local"


def test_without_a_seed_one_is_drawn_and_said(studio):
    seeds = set()
    for _ in range(2):
        *_, drawn = studio.draw(ME, "S*", Settings(num_inference_steps=1), Event())
        seeds.add(drawn.settings[0])
    assert len(seeds) == 2


def test_two_photos_are_one_person(studio):
    both = Who(photos=[photo(), photo(24)], class_noun="man")
    *_, drawn = studio.draw(both, "S*", Settings(num_inference_steps=2, seed=0), Event())
    call = dict(guidance_scale=5.0, class_guidance_scale=3.75, num_fusion_steps=0, class_noun="man")
    assert drawn.pictures[0].tobytes() == alone(studio.pipe, "S*", 0, image=[photo(), photo(24)], **call).tobytes()


def test_scales_by_hand_go_before_the_slider(studio):
    settings = Settings(num_inference_steps=1, scales={"guidance_scale": 1.5}, position=1.0, side=32)
    *_, drawn = studio.draw(ME, "S*", settings, Event())
    assert "guidance_scale 1.5, class_guidance_scale 2.5" in drawn.settings[0]
    assert drawn.pictures[0].size == (32, 32)


def test_stopping_shows_what_there_is(studio):
    stop = Event()
    said = studio.draw(ME, "S*", Settings(num_inference_steps=50, seed=0), stop)
    next(said)
    stop.set()
    *steps, drawn = said
    assert drawn.stopped and len(steps) < 45


@pytest.mark.numeric
def test_customising_learns_and_leaves_the_pipeline_as_it_was(studio):
    before = everything(studio.pipe)
    *steps, done = studio.customise(ME, "a photo of S*", QUICK, Event(), caption="smiling", **LEARN)
    assert isinstance(done, Customised) and done.concept.steps == 2 and len(done.losses) == 2
    assert done.concept.settings["caption"] == "smiling" and done.concept.thumbnail is None
    assert [step.text for step in steps if step.losses] == ["learning: step 1 of 2", "learning: step 2 of 2"]
    assert done.grid.rows == ["before", "after"]
    assert_same(before, everything(studio.pipe))
    *_, drawn = studio.draw(Who(concept=done.concept), "a photo of S*", QUICK, Event())
    assert drawn.pictures[0].tobytes() == done.grid.pictures[1][0].tobytes()
    assert not studio.pipe.concepts


def test_customising_that_is_stopped_keeps_what_was_learnt(studio):
    stop = Event()
    for one in studio.customise(ME, "S*", QUICK, stop, **LEARN | {"steps": 10}):
        if isinstance(one, Step) and one.losses:
            stop.set()
    assert 1 <= one.concept.steps < 10


def test_customising_that_is_stopped_before_it_began(studio):
    stop = Event()
    with pytest.raises(Stopped, match="before anything was learnt"):
        for _ in studio.customise(ME, "S*", QUICK, stop, **LEARN):
            stop.set()


def test_compare(studio):
    axes = {"guidance_scale": [2.0, 4.0], "num_fusion_steps": [0, 1]}
    *steps, grid = studio.compare(ME, "S*\nnot read S*", QUICK, axes, Event())
    assert grid.rows == ["guidance_scale 2", "guidance_scale 4"]
    assert steps[-1].text == "picture 4 of 4" and steps[-1].done == pytest.approx(4)
    concept = Who(concept=learn()["ada"])
    *_, grid = Studio(tiny_pipeline()).compare(concept, "S*", QUICK, {"num_fusion_steps": [0]}, Event())
    assert grid.columns == ["num_fusion_steps 0"]


def test_a_comparison_that_is_stopped(studio):
    stop = Event()
    with pytest.raises(Stopped, match="before the grid was whole"):
        for _ in studio.compare(ME, "S*", QUICK, {"guidance_scale": [1.0, 2.0]}, stop):
            stop.set()


def test_what_is_refused_before_any_work(studio):
    def refused(match, who=ME, text="S*", settings=QUICK, make=studio.draw, error=ValueError, **more):
        with pytest.raises(error, match=match):
            next(make(who, text, settings, stop=Event(), **more))

    refused("There must be 1 to 2 prompts, one a line, got 0", text=" \n")
    refused("There must be 1 to 2 prompts, one a line, got 3", text="S*\nS*\nS*")
    refused("must hold the placeholder", text="a photo")
    refused("`num_inference_steps` may be at most 100 here, got 101", settings=Settings(num_inference_steps=101))
    refused("`num_fusion_steps` may be at most 4 here, got 5", settings=Settings(num_fusion_steps=5))
    refused("`side` may be at most 64 here, got 128", settings=Settings(side=128))
    refused("`guidance_scale` must be a finite number", settings=Settings(scales={"guidance_scale": -1.0}))
    refused("`seed` must be at least 0", settings=Settings(seed=-1))
    refused("Customising needs a photo", who=Who(concept=learn()["ada"]), make=studio.customise)
    refused("There may be at most 10 steps, got 11", make=studio.customise, steps=11)
    refused("`steps` must be at least 1", make=studio.customise, steps=0)
    refused("at most 4 pictures in a grid, got 5", make=studio.compare, axes={"guidance_scale": [1.0] * 5})


def test_a_concept_for_another_model_is_refused_and_nothing_stays(studio):
    other = learn()["ada"].__class__(**vars(learn()["ada"]) | {"base_hash": "cd" * 32})
    with pytest.raises(ValueError, match="it fits its own base only"):
        list(studio.draw(Who(concept=other), "S*", QUICK, Event()))
    assert not studio.pipe.concepts
    assert studio.portraits and isinstance(studio.portraits[0], Image.Image)
