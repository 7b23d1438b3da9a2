"""What a captioning model says of a photo, without what it says of the person."""

import pytest
import torch
from PIL import Image
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from profusion_pipeline import load_demo_pipeline
from profusion_pipeline.customization import captioning
from profusion_pipeline.customization.captioning import describe_photo, without_person


@pytest.mark.parametrize(
    "caption, left",
    [
        ("a woman with long brown hair wearing a green hoodie at the beach", "wearing a green hoodie at the beach"),
        ("a man in a suit and tie standing in front of a wall", "in a suit and tie standing in front of a wall"),
        ("Smiling, with blue eyes, in a red hat", "Smiling, in a red hat"),
        ("there is a young boy that is holding a kite.", "holding a kite"),
        ("a close up of a person with a beard", ""),
        ("a dog in the snow", "a dog in the snow"),
    ],
)
def test_phrases_about_the_person_go(caption, left):
    assert without_person(caption) == left


def test_of_something_else_other_words_go():
    assert without_person("a small dog in the snow", ("dog",)) == "in the snow"


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """BLIP with random weights and the demo model's words."""
    tokenizer = load_demo_pipeline().tokenizer
    torch.manual_seed(0)
    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ids = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, sep_token_id=tokenizer.eos_token_id
    )
    text = BlipTextConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **small, **ids)
    config = BlipConfig(
        text_config=text.to_dict(), vision_config=BlipVisionConfig(image_size=16, patch_size=8, **small).to_dict()
    )
    folder = tmp_path_factory.mktemp("captioner")
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return str(folder)


def test_a_model_of_transformers_is_asked(captioner):
    said = describe_photo(Image.new("RGB", (40, 30)), captioner, leave_out=())
    assert said and said == describe_photo(Image.new("RGB", (40, 30)), captioner, leave_out=())


def test_a_model_that_says_only_who_it_is(captioner, monkeypatch):
    monkeypatch.setattr(captioning, "without_person", lambda caption, leave_out: "")
    with pytest.raises(ValueError, match="says nothing but who it is"):
        describe_photo(Image.new("RGB", (40, 30)), captioner)


def test_something_that_is_no_captioner(tmp_path):
    with pytest.raises(ValueError, match="`captioner` must name an image-to-text model, got '.*nothing'"):
        describe_photo(Image.new("RGB", (40, 30)), str(tmp_path / "nothing"))
