"""Encoders: tiny CLIPs and ViTs of transformers' own, preprocessing against transformers' processors."""

import hashlib
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTModel,
)

from profusion_pipeline.demo import FOLDER, demo_portraits, load_demo_pipeline
from profusion_pipeline.evaluation import encoders
from profusion_pipeline.evaluation.encoders import ENCODERS, dino, load_encoder, to_pixels, transformers_clip
from tiny import make_tokenizer

PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    for seed, size in enumerate([(40, 30), (17, 61), (16, 16), (8, 9)])
]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("clip"), make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_pixels_are_those_of_transformers():
    """Resized by Pillow there too, where there is no torchvision; rounding of sides aside."""
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, resample=3)
    expected = processor(PICTURES, return_tensors="pt").pixel_values
    found = to_pixels(PICTURES, 16)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.02  # a step of 8 bits is 0.015


def test_a_longer_side_is_cropped_to_the_centre():
    thirds = Image.new("RGB", (48, 16), "red")
    thirds.paste("white", (16, 0, 32, 16))
    assert (to_pixels([thirds], 16, mean=(0, 0, 0), std=(1, 1, 1))[..., 2:-2] == 1).all()


def test_clip_is_the_model_of_transformers(clip_folder):
    encoder = transformers_clip(clip_folder)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), make_tokenizer()
    texts = ["a man on the beach", "style", "a dog in a red hat"]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, pixel_values=to_pixels(PICTURES, 16))
    for found, expected in (
        (encoder.images(PICTURES), output.image_embeds),
        (encoder.texts(texts), output.text_embeds),
    ):
        assert found.dtype == np.float64
        torch.testing.assert_close(normalize(torch.from_numpy(found)).float(), expected, atol=1e-5, rtol=1e-4)


def test_batches_do_not_matter(clip_folder, monkeypatch):
    encoder = transformers_clip(clip_folder)
    whole = encoder.images(PICTURES)
    monkeypatch.setattr(encoders, "BATCH", 3)
    np.testing.assert_allclose(encoder.images(PICTURES), whole, atol=1e-5)


def test_dino_is_the_class_token(tmp_path):
    config = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=4
    )
    torch.manual_seed(0)
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    pixels = to_pixels(PICTURES, 28, resize=32, mean=encoders.IMAGENET_MEAN, std=encoders.IMAGENET_STD)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 0]
    encoder = dino(tmp_path)
    np.testing.assert_allclose(encoder.images(PICTURES), expected.numpy(), atol=1e-5)
    assert encoder.texts is None


def test_the_nine_clips_of_the_paper_have_names():
    clips = [name for name in ENCODERS if name.startswith("clip-")]
    assert sorted(clips) == sorted(
        f"clip-{name}" for name in "vit-b-32 vit-b-16 vit-l-14 vit-l-14-336 rn101 rn50 rn50x4 rn50x16 rn50x64".split()
    )


def test_an_unknown_encoder():
    with pytest.raises(ValueError, match="There is no encoder 'clip'; there are clip-vit-b-32, "):
        load_encoder("clip")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("clip-rn50", "open_clip", "open_clip_torch"), ("sface", "cv2", "opencv-python-headless")],
)
def test_a_missing_package_is_named(name, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImportError, match=f"needs {module}, which is not installed: `pip install {package}`"):
        load_encoder(name)


def test_open_clip_where_it_is_installed():
    library = pytest.importorskip("open_clip", reason="open_clip is an extra, and needs torchvision")
    assert {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"} <= set(library.list_models())


def test_another_file_than_the_name_stands_for(tmp_path, monkeypatch):
    file = tmp_path / "face.onnx"
    file.write_bytes(b"something else")
    monkeypatch.setattr(encoders, "hf_hub_download", lambda repo, name: str(file))
    with pytest.raises(
        ValueError, match=f"must have the SHA-256 0ba9fbfa.*, got {hashlib.sha256(b'something else').hexdigest()}"
    ):
        encoders._verified(*encoders.SFACE)


def test_the_demo_has_a_clip_that_needs_no_hub(monkeypatch):
    """It tells people apart and knows the demo's words; against the towers as transformers runs them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clip = load_encoder("demo-clip")
    photos = demo_portraits()
    pipe = load_demo_pipeline()
    projection = load_file(FOLDER / "clip_projections.safetensors")["visual_projection"].float()
    with torch.no_grad():
        pixels = pipe.feature_extractor(photos, return_tensors="pt").pixel_values
        expected = pipe.image_encoder(pixels).pooler_output @ projection.T
    np.testing.assert_allclose(clip.images(photos), expected.numpy(), rtol=1e-3, atol=1e-4)
    hat, beard = ("a portrait of a person with a hat", "a portrait of a person with a beard")
    features = clip.texts([hat, beard, hat])
    assert features.shape == (3, 128)
    assert np.allclose(features[0], features[2]) and not np.allclose(features[0], features[1])


def test_without_the_hub_the_error_names_what_works(monkeypatch, tmp_path):
    for name in ("clip-vit-b-32", "dino-vits16"):
        monkeypatch.setitem(ENCODERS, name, partial(ENCODERS[name].func, tmp_path / "nowhere"))
        with pytest.raises(OSError, match=f"The weights of the encoder '{name}' must be .* 'demo-clip', for the demo"):
            load_encoder(name)
