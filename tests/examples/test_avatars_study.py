"""The study on avatars: its prompts, its scores, and that its document has a place for every question."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from score import control_prompts
from study import DEFAULTS, DOCUMENT, QUICK, Avatars, mini_clip, study_prompts
from world import CONTROL_VALUES, Portrait, Renderer

from profusion_pipeline import load_demo_pipeline
from profusion_pipeline.evaluation.config import EvaluationConfig
from profusion_pipeline.evaluation.subjects import Picture


def test_ten_prompts_of_which_eight_are_those_of_the_scores():
    for seed in range(50):
        prompts = study_prompts(random.Random(seed))
        assert prompts[:8] == control_prompts(random.Random(seed))
        assert len({text for text, _ in prompts}) == 10
        for text, asked in prompts[8:]:
            assert text.count("S*") == 1 and len(asked) >= 2 and asked.keys() <= CONTROL_VALUES.keys()
            for value in asked.values():
                assert value.replace("tongue out", "sticking tongue out") in text


@pytest.fixture(scope="module")
def avatars():
    return Avatars(4)


def test_people_are_held_out_and_their_own(avatars):
    assert len({subject.digest() for subject in avatars.subjects}) == 4
    assert all(portrait.identity.split == "test" for portrait, _ in avatars.truth.values())


def test_what_was_asked_scores_and_what_was_not_does_not(avatars):
    """True renders of person and prompt, and the portraits alone."""
    render, right, wrong = Renderer(), [], []
    for subject in avatars.subjects:
        portrait, prompts = avatars.truth[subject.name]
        for prompt, asked in prompts.items():
            control = type(portrait.control)(**vars(portrait.control) | asked)
            image = Image.fromarray(render(Portrait(portrait.identity, control)))
            right.append(Picture(image, subject, prompt, 0))
            wrong.append(Picture(subject.photos[0], subject, prompt, 0))
    scores, others = avatars(right), avatars(wrong)
    assert scores.keys() == set(avatars.columns)
    assert np.nanmean(scores["reader identity"]) > 0.95 and np.nanmean(scores["reader prompt"]) > 0.95
    assert np.nanmean(others["reader identity"]) > 0.95 and np.nanmean(others["reader prompt"]) < 0.3
    strangers = [Picture(one.image, avatars.subjects[0], avatars.subjects[0].prompts[0], 0) for one in wrong[10:]]
    assert np.nanmean(avatars(strangers)["reader identity"]) < 0.6


def test_the_demo_models_own_clip(avatars):
    measure = mini_clip(load_demo_pipeline(dtype=torch.float32), "a person")
    subject = avatars.subjects[0]
    scores = measure(
        [Picture(subject.photos[0], subject, prompt, seed) for prompt in subject.prompts for seed in (0, 1)]
    )
    assert scores["mini-CLIP image"] == pytest.approx(np.ones(20), abs=1e-5)
    assert scores["mini-CLIP diversity"] == pytest.approx(np.zeros(20), abs=1e-5)
    assert len(set(scores["mini-CLIP prompt"])) == 10


def test_the_settings_are_ones_that_evaluate_takes():
    assert EvaluationConfig(**DEFAULTS).unet_rows > EvaluationConfig(**DEFAULTS | QUICK).unet_rows


def test_the_document_has_a_place_for_every_question():
    text = DOCUMENT.read_text(encoding="utf-8")
    for question in range(1, 7):
        assert text.count(f"<!-- question {question} -->") == text.count(f"<!-- /question {question} -->") == 1
