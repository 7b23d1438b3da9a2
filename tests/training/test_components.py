import json
import shutil

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from profusion_pipeline.method.modeling_promptnet import PromptNet
from profusion_pipeline.training.components import load_training_components
from profusion_pipeline.training.config import TrainingConfig
from tiny import TEXT_WIDTH, make_components
from tiny_xl import SECOND_WIDTH, make_xl_components


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline's folder with all components."""
    folder = tmp_path_factory.mktemp("whole")
    for name, component in make_components().items():
        if component is not None:
            component.save_pretrained(folder / name)
    return folder


@pytest.fixture
def base(whole, tmp_path):
    """A copy without PromptNet, to be broken."""
    return shutil.copytree(whole, tmp_path / "base", ignore=lambda _, names: {"promptnet"} & set(names))


def config(model, **settings) -> TrainingConfig:
    return TrainingConfig(**dict(model=str(model), data="portraits", output="run") | settings)


def same_weights(ours, theirs) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_promptnet_of_the_pipeline_is_trained_on(whole):
    components = load_training_components(config(whole))
    original = make_components()
    for name in ("vae", "text_encoder", "unet", "image_encoder", "promptnet"):
        assert same_weights(getattr(components, name), original[name])
    for name in ("vae", "text_encoder", "unet", "image_encoder"):
        assert not any(parameter.requires_grad for parameter in getattr(components, name).parameters())
    assert all(parameter.requires_grad for parameter in components.promptnet.parameters())
    assert torch.equal(components.noise_schedule.alphas_cumprod, original["scheduler"].alphas_cumprod)


def test_a_new_promptnet_starts_from_the_unet_and_the_seed(base):
    state = torch.random.get_rng_state()
    first, again, other = (
        load_training_components(config(base, seed=seed, region_proj_channel=16)).promptnet for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same_weights(first, again)
    assert not same_weights(first, other)
    unet = make_components()["unet"]
    assert same_weights(first.down_blocks, unet.down_blocks)
    assert first.config.region_proj_channel == 16
    assert (first.config.image_embed_dim, first.config.text_embed_dim) == (24, 32)
    assert first.num_subject_tokens(8, 8) == 1


def test_half_precision_files_are_trained_in_float32(base):
    for name in ("vae", "unet", "text_encoder", "image_encoder"):
        model = make_components()[name].half()
        model.save_pretrained(base / name)
    components = load_training_components(config(base))
    for name in ("vae", "unet", "text_encoder", "image_encoder", "promptnet"):
        assert {parameter.dtype for parameter in getattr(components, name).parameters()} == {torch.float32}


def test_the_image_encoder_may_come_from_elsewhere(base, tmp_path):
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
    )
    vision.save_pretrained(tmp_path / "vision")
    make_components()["feature_extractor"].save_pretrained(tmp_path / "vision")
    for name in ("image_encoder", "feature_extractor"):
        shutil.rmtree(base / name)
    components = load_training_components(config(base, image_encoder=str(tmp_path / "vision")))
    assert same_weights(components.image_encoder, vision)
    assert components.promptnet.config.image_embed_dim == 16


@pytest.mark.parametrize(
    "name", ["vae", "unet", "text_encoder", "tokenizer", "scheduler", "image_encoder", "feature_extractor"]
)
def test_a_missing_component_is_named(base, name):
    shutil.rmtree(base / name)
    with pytest.raises(ValueError, match=f"`model` must come with a {name}, '.*base' has no such folder"):
        load_training_components(config(base))


def test_a_component_that_cannot_be_read_is_named(base):
    (base / "unet" / "config.json").unlink()
    with pytest.raises(ValueError, match="`model` must come with a unet, can't load it from '.*base': .*config.json"):
        load_training_components(config(base))


def test_a_promptnet_that_does_not_fit_is_refused(base):
    other = PromptNet.from_unet(make_components()["unet"], image_embed_dim=20, region_proj_channel=8)
    other.save_pretrained(base / "promptnet")
    with pytest.raises(ValueError, match="has a promptnet with image_embed_dim=20, its other components need 24"):
        load_training_components(config(base))


def test_a_scheduler_without_betas_is_refused(base):
    (base / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    )
    with pytest.raises(ValueError, match="must have a scheduler with betas, FlowMatchEulerDiscreteScheduler has none"):
        load_training_components(config(base))


def test_the_size_of_the_latents(base):
    components = load_training_components(config(base))
    assert components.latent_side(None) == 8
    assert components.latent_side(32) == 16
    with pytest.raises(ValueError, match="`resolution` must be a multiple of 2, got 33"):
        components.latent_side(33)
    components.unet.register_to_config(sample_size=(8, 16))
    with pytest.raises(ValueError, match=r"`resolution` must be given, the UNet's sample_size is \(8, 16\)"):
        components.latent_side(None)


def test_the_bundled_model_by_its_word():
    from profusion_pipeline import load_demo_pipeline

    components, pipe = load_training_components(config("demo")), load_demo_pipeline()
    for name in ("vae", "text_encoder", "unet", "image_encoder", "promptnet"):
        assert same_weights(getattr(components, name), getattr(pipe, name))


def test_of_stable_diffusion_xl_both_text_encoders_are_loaded(tmp_path):
    parts = make_xl_components(with_promptnet=False)
    for name, component in parts.items():
        if component is not None:
            component.save_pretrained(tmp_path / name)
    components = load_training_components(config(tmp_path, region_proj_channel=8))
    assert same_weights(components.text_encoder_2, parts["text_encoder_2"])
    assert not any(parameter.requires_grad for parameter in components.text_encoder_2.parameters())
    assert components.promptnet.config.text_embed_dim == TEXT_WIDTH + SECOND_WIDTH
    shutil.rmtree(tmp_path / "text_encoder_2")
    with pytest.raises(ValueError, match="`model` must come with a text_encoder_2, .* has no such folder"):
        load_training_components(config(tmp_path))
