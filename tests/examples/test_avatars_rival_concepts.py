"""A rival's concept as our subject: where only its prediction counts, the pictures are those of its own pipeline."""

import numpy as np
import pytest
from rival_concepts import RivalConcept

from profusion_pipeline import demo_portraits, load_demo_pipeline
from profusion_pipeline.evaluation.run import picture_generator
from profusion_pipeline.evaluation.systems.system import Sampling

PROMPTS = ["a portrait of S*", "a portrait of S*, wearing glasses"]


@pytest.fixture(scope="module")
def pipe():
    pipe = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("DreamBooth LoRA", "DreamBooth")]


@pytest.mark.parametrize("rival", ["Textual Inversion", *SLOW])
def test_with_nothing_but_its_own_prediction_they_are_its_own_pictures(rival, pipe, tmp_path):
    file = tmp_path / "concepts" / "one.safetensors"
    concept = RivalConcept(pipe, rival, demo_portraits()[0], file, steps=2)
    again = RivalConcept(pipe, rival, demo_portraits()[0], file, steps=2)  # reads the file
    sampling = Sampling(num_inference_steps=2, scheduler="DDIM")
    generators = lambda: [picture_generator("one", prompt, 0) for prompt in PROMPTS]  # noqa: E731
    own = again.by_its_own_guidance(PROMPTS, generators(), 1.0, sampling)
    pipe.scheduler = sampling.make_scheduler(pipe.scheduler)
    call = dict(guidance_scale=1.0, class_guidance_scale=0.0, num_fusion_steps=0, num_inference_steps=2)
    ours = concept.as_subject(PROMPTS, generators(), **call)
    plain = concept.as_subject(PROMPTS, generators(), **call | {"class_guidance_scale": 1.0, "guidance_scale": 0.0})
    own, ours, plain = (np.stack([np.asarray(image, dtype=int) for image in images]) for images in (own, ours, plain))
    assert abs(own - ours).max() <= 2  # one step of 8 bits, and the rest of a half-precision adapter
    assert abs(own - plain).max() > 10
