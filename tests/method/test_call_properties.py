"""Whatever a call is given, it draws finite pictures, the same again, or says before any work what is wrong."""

import functools
import math

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from calls import PROMPT, build, count_work, latents_of, picture, seeded
from profusion_pipeline.method.learnt_subject import LearntSubject
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from profusion_pipeline.method.subject_embedding import SubjectEmbedding
from tiny_xl import make_xl_components

SCALES = (
    "guidance_scale",
    "class_guidance_scale",
    "fusion_guidance_scale",
    "fusion_subject_scale",
    "fusion_eta",
    "fusion_start",
    "fusion_end",
    "guidance_start",
    "guidance_end",
    "guidance_rescale",
    "eta",
    "strength",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
)
COUNTS = ("num_fusion_steps", "subject_every", "num_images_per_prompt", "num_inference_steps")
ODD = st.sampled_from([None, True, "7", [], [3.0], {}, 1j, math.nan, math.inf, -1.0, 1e38, 10**400, b"1", object()])
NUMBERS = st.one_of(
    st.sampled_from([0, 0.0, 1, 1.0, 0.5, 7.5, 1e-12]),
    st.floats(0, 20),
    st.floats(0, 20).map(np.float64),
    st.floats(0, 20, width=32).map(np.float32),
)
WHOLE = st.one_of(st.integers(0, 2), st.integers(1, 2).map(np.int64), st.just(2.0))
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(max_size=10).map(lambda text: f"S* {text}"),
    st.lists(st.sampled_from([PROMPT, "S*", "a dog", 3]), max_size=2),
)
TENSORS = st.sampled_from(
    [torch.zeros(2, 4, 8, 8), [0], *(torch.full((1, 4, 8, 8), number) for number in (0.0, math.nan, 1e30))]
)
SUBJECTS = st.sampled_from(
    [
        SubjectEmbedding(torch.ones(1, 4, 8, 8), torch.ones(1, 5, 24), torch.ones(1)),
        SubjectEmbedding(torch.ones(1, 4, 8, 8), torch.ones(1, 5, 16), torch.ones(1)),
        LearntSubject("a red dog", class_noun="dog"),
        LearntSubject("dog", class_noun="dog", adapter="nowhere"),
        "ada",
        3,
    ]
)
PICTURES = st.sampled_from([None, picture(), np.ones((20, 30)), [picture()] * 2, "nowhere.png", 3, []])
ARGUMENTS = {
    **{name: NUMBERS | ODD for name in SCALES},
    **{name: WHOLE | ODD for name in COUNTS},
    "prompt": TEXTS,
    "class_noun": TEXTS,
    "class_prompt": TEXTS,
    "negative_prompt": TEXTS,
    "image": st.sampled_from([None, picture(), [picture(), picture(1)], "nowhere.png", 3, []]),
    "init_image": PICTURES,
    "mask_image": PICTURES,
    "control_image": PICTURES,
    "image_weights": st.sampled_from([None, [1.0], [0.0], [1.0, np.float64(2)], "a", [math.nan]]),
    "height": st.sampled_from([None, 16, np.int64(32), 20, 10**6, -16, 16.0]),
    "latents": TENSORS,
    "generator": st.sampled_from([None, [], [1], "0"]),
    "subject": SUBJECTS | st.lists(SUBJECTS, max_size=2),
    "recipe": st.sampled_from([None, "paper", "fast", "best", "slow", 3]),
    "long_prompts": st.sampled_from([True, False, np.True_, 1, "yes"]),
    "crop_face": st.sampled_from([None, "auto", "always", 3]),
    "fusion_text": st.sampled_from(["scaled", "mixed", "loud", None, 3]),
    "output_type": st.sampled_from(["pt", "latent", "jpg", None]),
    "concept": st.sampled_from(["ada", ["ada", "bob"], 3]),
    "base_guidance": st.booleans(),
    "cross_attention_kwargs": st.sampled_from([{}, {"scale": 0.5}, {"scale": "1"}, {"scale": math.nan}, 3]),
    "callback_on_step_end_tensor_inputs": st.sampled_from([["latents"], ["noise"], "latents", 3]),
}


def every_call(**limits):
    """Up to four arguments of a call at once."""
    checks = [HealthCheck.too_slow]
    few = settings(deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=checks, **limits)
    names = st.dictionaries(st.sampled_from(sorted(ARGUMENTS)), st.none(), max_size=4)
    drawn = names.flatmap(lambda names: st.fixed_dictionaries({name: ARGUMENTS[name] for name in names}))
    return lambda test: few(given(drawn)(test))


def check(pipe, counts, arguments):
    counts.update(dict.fromkeys(counts, 0))
    who = {} if "subject" in arguments else dict(image=picture())
    given_arguments = dict(prompt=PROMPT, num_inference_steps=2) | who | arguments

    def draw():
        return latents_of(pipe, **dict(generator=seeded()) | given_arguments)

    try:
        found = draw()
    except (ValueError, TypeError) as error:
        assert not any(counts.values())
        assert any(f"`{name}" in str(error) for name in (*ARGUMENTS, "adapter")) and len(str(error)) < 500
    else:
        assert torch.isfinite(found).all()
        if "generator" not in arguments:
            assert torch.equal(found, draw())


@functools.cache
def prepared(build):
    pipe = build()
    return pipe, count_work(pipe)


def build_xl():
    pipe = ProFusionXLPipeline(**make_xl_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@every_call(max_examples=120)
def test_it_draws_or_names_the_argument_before_any_work(arguments):
    check(*prepared(build), arguments)


@every_call(max_examples=40)
def test_so_it_does_with_stable_diffusion_xl(arguments):
    check(*prepared(build_xl), arguments)
