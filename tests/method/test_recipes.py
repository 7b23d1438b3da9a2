"""Recipes: what they set, that what is given goes before it, and what they cost."""

import inspect

import pytest
import torch

from calls import PROMPT, count_work, latents_of, picture, seeded
from profusion_pipeline.method.guidance_scales import Guidance
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.method.recipes import RECIPES, with_recipe

DEFAULTS = {name: one.default for name, one in inspect.signature(ProFusionPipeline.__call__).parameters.items()}


def guidance_and_steps(recipe):
    settings = DEFAULTS | RECIPES[recipe]
    names = Guidance.__dataclass_fields__
    return Guidance(**{name: settings[name] for name in names}), settings["num_inference_steps"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_its_settings(pipe, recipe):
    settings = dict(image=picture(), class_noun="dog", output_type="latent")
    named = pipe(PROMPT, generator=seeded(), recipe=recipe, **settings | dict(num_inference_steps=2)).images
    spelled = pipe(PROMPT, generator=seeded(), **RECIPES[recipe] | settings | dict(num_inference_steps=2)).images
    assert torch.equal(named, spelled)
    assert RECIPES[recipe].keys() < DEFAULTS.keys()


def test_what_is_given_goes_before_the_recipe(pipe):
    counts = count_work(pipe)
    pipe(PROMPT, image=picture(), recipe="fast", num_inference_steps=3, num_fusion_steps=1, output_type="latent")
    assert counts["unet_rows"] == 3 * 5 and counts["promptnet_calls"] == 1


def test_without_a_recipe_it_is_the_paper(pipe):
    assert torch.equal(latents_of(pipe, image=picture(), recipe="paper"), latents_of(pipe, image=picture()))
    assert with_recipe({"recipe": None, "eta": 1.0}) == {"eta": 1.0}


def test_what_recipes_cost(pipe):
    """The paper's 250 rows and 100 calls of PromptNet; the fast one has at most an eighth and a twentieth of them."""
    (paper, paper_steps), (fast, steps) = guidance_and_steps("paper"), guidance_and_steps("fast")
    assert (paper.unet_rows(paper_steps), paper.promptnet_calls(paper_steps)) == (250, 100)
    assert paper.text_sequences(paper_steps) == 102
    counts = count_work(pipe)
    pipe(PROMPT, image=picture(), recipe="fast", output_type="latent")
    assert counts["unet_rows"] == fast.unet_rows(steps) <= 250 / 8
    assert counts["promptnet_calls"] == fast.promptnet_calls(steps) <= 100 / 20
    assert counts["text_sequences"] == fast.text_sequences(steps)


@pytest.mark.parametrize("recipe", ["quick", 3, ["fast"]])
def test_another_recipe(pipe, recipe):
    counts = count_work(pipe)
    with pytest.raises(ValueError, match="`recipe` must be 'paper' or 'fast' or 'best', got"):
        latents_of(pipe, image=picture(), recipe=recipe)
    assert not any(counts.values())
