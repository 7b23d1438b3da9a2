import subprocess
import sys

import pytest

from profusion_pipeline.customization.config import CustomizeConfig


def test_everything_has_a_default():
    assert CustomizeConfig().steps == 100


def test_each_photo_may_have_its_caption():
    config = CustomizeConfig(prompt="a portrait of S*", caption=("in a hat", "smiling"))
    assert config.learning_prompts == ["a portrait of S*, in a hat", "a portrait of S*, smiling"]
    assert config.learning_prompt == config.learning_prompts[0]


def test_a_caption_is_added_to_the_prompt():
    assert CustomizeConfig().learning_prompt == "a photo of S*"
    told = CustomizeConfig(prompt="a portrait of S*", caption=" in a hat, smiling ")
    assert told.learning_prompt == "a portrait of S*, in a hat, smiling"


def test_reading_the_settings_needs_no_torch():
    code = "import sys, profusion_pipeline.customization.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeError, match="`flip` must be bool, got 1"):
        CustomizeConfig(flip=1)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"class_noun": " "}, "`class_noun` must not be empty, got ' '"),
        ({"prompt": ""}, "`prompt` must not be empty, got ''"),
        ({"caption": " "}, "`caption` must not be empty, got ' '"),
        ({"caption": ("smiling", "")}, "`caption` must not be empty, got ''"),
        ({"caption": ("smiling", "auto")}, "`caption` must be 'auto' alone, for all photos, or texts, got "),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"rank": 0}, "`rank` must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be greater than 0, got 0.0"),
        ({"learning_rate": -1e-4}, "`learning_rate` must be greater than 0, got -0.0001"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number, got nan"),
        ({"mode": "lokr"}, "`mode` must be one of lora, full, got 'lokr'"),
        ({"background": "beach"}, "`background` must be one of keep, noise, blur, colour, mixed, got 'beach'"),
        ({"rotation": 200.0}, "`rotation` must be a finite number of 0 to 180, got 200.0"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of fp16, bf16, got 'fp8'"),
    ],
)
def test_a_wrong_value_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        CustomizeConfig(**settings)


def test_the_authors_learning_rate_is_full_modes_only():
    assert CustomizeConfig(mode="full").rate == 2e-5
    assert CustomizeConfig().rate > 2e-5
    assert CustomizeConfig(mode="full", learning_rate=1e-4).rate == 1e-4
