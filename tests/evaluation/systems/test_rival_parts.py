import pytest
import torch
from torch import nn
from torch.nn import functional as F

from concepts import photo
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.evaluation.systems import rival_parts as parts
from profusion_pipeline.method.subject_prompt import encode_texts
from rivals import QUICK, listening_pipeline

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def pipe():
    return listening_pipeline()


@pytest.mark.parametrize("class_noun", ["man", "a man"])
@torch.no_grad()
def test_the_noun_s_vector_gives_the_noun_s_states(pipe, class_noun):
    """What tokenizer and text encoder make of the class prompt by themselves."""
    prompts = ["a photo of S*", "S* on the beach"]
    places = parts.word_prompts(pipe, prompts, class_noun)
    states = parts.encode_word(pipe.text_encoder, places, parts.noun_vector(pipe, class_noun)[None, None])
    texts = [prompt.replace("S*", class_noun) for prompt in prompts]
    assert torch.allclose(states, encode_texts(pipe.text_encoder, pipe.tokenizer, texts, device="cpu"), atol=1e-5)


@torch.no_grad()
def test_words_of_several_vectors_have_places_one_after_another(pipe):
    red, man = (parts.noun_vector(pipe, word) for word in ("red", "man"))
    places = parts.word_prompts(pipe, ["a photo of S*"], "a man", num_words=2)
    states = parts.encode_word(pipe.text_encoder, places, torch.stack([red, man])[None])
    expected = encode_texts(pipe.text_encoder, pipe.tokenizer, ["a photo of a red man"], device="cpu")
    assert torch.allclose(states, expected, atol=1e-5)


def test_unpadded_prompts_end_with_their_text(pipe):
    places = parts.word_prompts(pipe, ["a photo of S*"], "a man", pad=False)
    assert places.input_ids.shape[1] == len("<start> a photo of a S* <end>".split())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_losses_of_each_sample(pipe, prediction_type):
    """Against diffusers' own noising."""
    scheduler = pipe.scheduler
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    timesteps, states = torch.tensor([0, 500, 999]), torch.randn(3, 77, 32)
    sample = dict(latents=latents, noise=noise, timesteps=timesteps, prediction_type=prediction_type)
    found = parts.denoising_losses(pipe.unet, states, **sample, alphas_cumprod=scheduler.alphas_cumprod)
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    predicted = pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, states).sample
    expected = [F.mse_loss(one, other) for one, other in zip(predicted, target, strict=True)]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-4)


def test_pictures_of_the_photo_are_those_of_customising(pipe):
    from profusion_pipeline.customization.customize import customizing

    config = CustomizeConfig(**QUICK)
    pool = parts.encode_photo(pipe, photo(), config)
    with customizing(pipe, photo(), config) as run:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pool, run.pool, strict=True))


def test_changed_weights_come_back_after_an_error():
    layer = nn.Linear(2, 2)
    weight, values = layer.weight.data_ptr(), layer.weight.clone()
    with pytest.raises(RuntimeError), parts.changed_weights(layer, {"weight": torch.ones(2, 2)}, 2.0):
        torch.testing.assert_close(layer.weight, values + 2)
        raise RuntimeError
    assert layer.weight.data_ptr() == weight and torch.equal(layer.weight, values)
