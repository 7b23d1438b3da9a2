import dataclasses
import subprocess
import sys

import pytest
from diffusers.optimization import SchedulerType

from profusion_pipeline.training.config import TrainingConfig

FIELDS = dataclasses.fields(TrainingConfig)


def make(**settings) -> TrainingConfig:
    return TrainingConfig(**dict(model="base", data="portraits", output="run") | settings)


def test_only_what_must_be_said_has_no_default():
    assert [f.name for f in FIELDS if f.default is dataclasses.MISSING] == ["model", "data", "output"]


def test_the_defaults_are_the_authors_recipe():
    config = make()
    assert (config.learning_rate, config.batch_size, config.max_steps) == (2e-5, 8, 80_000)
    assert (config.adam_beta1, config.adam_beta2, config.weight_decay, config.adam_epsilon) == (0.9, 0.999, 1e-2, 1e-8)
    assert (config.max_grad_norm, config.ema_decay, config.snr_gamma) == (1.0, 0.9999, None)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().seed = 1


def test_learning_rate_schedules_are_those_of_diffusers_that_need_no_more_settings():
    (choices,) = (field.metadata["choices"] for field in FIELDS if field.name == "lr_scheduler")
    assert set(choices) == {kind.value for kind in SchedulerType} - {"piecewise_constant"}


def test_reading_the_settings_needs_no_torch():
    code = "import sys, profusion_pipeline.training.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeError, match=r"`max_steps` must be int, got 100000.0 \(float\)"):
        make(max_steps=1e5)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
        ({"ema_decay": 1.0}, "`ema_decay` must be a finite number of 0 to 0.999999, got 1.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number of at least 0, got nan"),
        ({"snr_gamma": float("inf")}, "`snr_gamma` must be a finite number, got inf"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, fp16, bf16, got 'fp8'"),
        ({"reference": "any"}, "`reference` must be one of same, other, got 'any'"),
        ({"output": " "}, "`output` must not be empty, got ' '"),
        ({"prompt": "a photo"}, r"`prompt` must hold the placeholder 'S\*' exactly once, got 'a photo'"),
        ({"prompt": "S* S*"}, r"`prompt` must hold the placeholder 'S\*' exactly once, got 'S\* S\*'"),
        ({"validation_prompts": ("a dog",)}, r"`validation_prompts` must hold the placeholder 'S\*' exactly once"),
        ({"learning_rate": 0}, "`learning_rate` must be greater than 0, got 0"),
        ({"snr_gamma": 0.0}, "`snr_gamma` must be greater than 0, or None for no weighting, got 0.0"),
        ({"warmup_steps": 5}, "`warmup_steps` must be 0 with lr_scheduler='constant', got 5"),
        (
            {"warmup_steps": 5, "max_steps": 5, "lr_scheduler": "cosine"},
            "`warmup_steps` must be less than max_steps=5, got 5",
        ),
        ({"horizontal_flip": True}, "`horizontal_flip` must be False with cache_latents=True"),
        (
            {"streaming": True},
            "`cache_latents` must be False with streaming=True, which reads each picture as it comes",
        ),
        (
            {"streaming": True, "cache_latents": False, "reference": "other"},
            "`reference` must be 'same' with streaming=True, whose samples are single pictures, got 'other'",
        ),
        ({"validation_every": 10}, "`validation_every` is 10, so `validation_images` and `validation_prompts` must"),
        ({"validation_every": 10, "validation_prompts": ("S*",)}, "must name at least one photo and one prompt"),
    ],
)
def test_a_wrong_value_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**settings)


def test_a_long_prompt_is_not_repeated_at_length():
    with pytest.raises(ValueError, match="`prompt` must hold the placeholder") as refused:
        make(prompt="a photo " * 1000)
    assert len(str(refused.value)) < 250


def test_contradictions_can_be_resolved():
    make(horizontal_flip=True, cache_latents=False)
    make(streaming=True, cache_latents=False)
    make(push_to_hub=True, hub_model_id="me/mine")
    make(warmup_steps=5, lr_scheduler="constant_with_warmup")
    make(prompt="a photo of holder", placeholder="holder")
    make(learning_rate=1, validation_every=1, validation_prompts=("S*",), validation_images=("a.png",))
