import inspect
import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from calls import rounding
from profusion_pipeline.method.subject_prompt import tokenize_subject_prompts
from profusion_pipeline.training.losses import add_noise, min_snr_weights, prediction_target, promptnet_loss
from tiny import make_components

pytestmark = pytest.mark.numeric

SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TIMESTEPS = torch.tensor([0, 137, 500, 999])


@pytest.fixture
def scheduler():
    return DDPMScheduler(**SCHEDULE)


def make_inputs(components, batch=4, pad=True, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    latents = draw(batch, 4, 8, 8)
    ids, positions = tokenize_subject_prompts(
        components["tokenizer"], ["a photo of S*"], placeholder="S*", num_subject_tokens=1, pad=pad
    )
    return dict(
        latents=latents,
        reference_latents=draw(batch, 4, 8, 8),
        image_states=draw(batch, 5, 24),
        noise=draw(batch, 4, 8, 8),
        timesteps=TIMESTEPS[:batch],
        alphas_cumprod=DDPMScheduler(**SCHEDULE).alphas_cumprod,
        input_ids=ids,
        positions=positions,
    )


def models(components):
    return components["unet"], components["text_encoder"], components["promptnet"]


def test_add_noise_is_the_schedulers(scheduler):
    clean, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    ours = add_noise(clean, noise, scheduler.alphas_cumprod[TIMESTEPS])
    torch.testing.assert_close(ours, scheduler.add_noise(clean, noise, TIMESTEPS), rtol=0, atol=1e-6)


def test_prediction_target_of_each_type(scheduler):
    clean, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    alpha_bar = scheduler.alphas_cumprod[TIMESTEPS]
    assert prediction_target(clean, noise, alpha_bar, "epsilon") is noise
    assert prediction_target(clean, noise, alpha_bar, "sample") is clean
    velocity = prediction_target(clean, noise, alpha_bar, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(clean, noise, TIMESTEPS), rtol=0, atol=1e-6)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="`prediction_type` must be epsilon, v_prediction or sample, got 'flow'"):
        prediction_target(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0.5]), "flow")


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_are_those_of_diffusers_training_scripts(scheduler, prediction_type, gamma):
    timesteps = torch.arange(1000)
    snr = compute_snr(scheduler, timesteps)
    capped = torch.minimum(snr, torch.full_like(snr, gamma))
    expected = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[prediction_type]
    weights = min_snr_weights(scheduler.alphas_cumprod[timesteps], gamma, prediction_type)
    torch.testing.assert_close(weights, expected, rtol=2e-5, atol=0)
    assert weights.unique().numel() > 100  # both branches of the minimum are met


def test_min_snr_weights_stay_finite_at_zero_terminal_snr():
    for prediction_type, expected in (("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)):
        assert min_snr_weights(torch.tensor([0.0]), 5.0, prediction_type).item() == expected


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_loss_is_what_the_models_give_sample_by_sample(components, scheduler, prediction_type, snr_gamma):
    unet, text_encoder, promptnet = models(components)
    inputs = make_inputs(components)
    result = promptnet_loss(
        unet, text_encoder, promptnet, **inputs, prediction_type=prediction_type, snr_gamma=snr_gamma
    )

    losses = []
    for i, t in enumerate(TIMESTEPS):
        a = scheduler.alphas_cumprod[t].item()
        x_0, noise = inputs["latents"][i : i + 1], inputs["noise"][i : i + 1]
        x_t = math.sqrt(a) * x_0 + math.sqrt(1 - a) * noise
        reference, states = inputs["reference_latents"][i : i + 1], inputs["image_states"][i : i + 1]
        word = promptnet(sample=reference, timestep=t, encoder_hidden_states=states, promptnet_cond=x_t)[0]
        # The text path by hand: embeddings with the row of S* exchanged, then the encoder's own layers, causally.
        text_model = getattr(text_encoder, "text_model", text_encoder)
        rows = text_model.embeddings(inputs["input_ids"])
        rows[:, 4] = word[:, 0]
        mask = torch.full((77, 77), -torch.inf).triu(1)[None, None]
        hidden = rows
        for layer in text_model.encoder.layers:
            two = "causal_attention_mask" in inspect.signature(layer.forward).parameters  # transformers 4
            masks = dict(attention_mask=None, causal_attention_mask=mask) if two else dict(attention_mask=mask)
            hidden = layer(hidden, **masks)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        text = text_model.final_layer_norm(hidden)
        said = unet(x_t, t, text).sample
        target = {"epsilon": noise, "sample": x_0, "v_prediction": math.sqrt(a) * noise - math.sqrt(1 - a) * x_0}
        error = torch.mean((said - target[prediction_type]) ** 2).item()
        snr = a / (1 - a)
        weight = {"epsilon": min(snr, 5) / snr, "sample": min(snr, 5), "v_prediction": min(snr, 5) / (snr + 1)}
        losses.append(error * (weight[prediction_type] if snr_gamma else 1.0))
    assert result.loss.item() == pytest.approx(sum(losses) / 4, rel=1e-4)
    assert result.subject_embeds.shape == (4, 1, 32)
    assert result.encoder_hidden_states.shape == (4, 77, 32)


def test_the_squared_norm_of_the_subject_can_be_added(components):
    plain, regularised = (
        promptnet_loss(*models(components), **make_inputs(components), prediction_type="epsilon", subject_l2=weight)
        for weight in (0.0, 0.3)
    )
    penalty = torch.linalg.vector_norm(plain.subject_embeds, dim=-1).square().mean()
    torch.testing.assert_close(regularised.loss, plain.loss + 0.3 * penalty)
    for result in (plain, regularised):
        result.subject_embeds.retain_grad()
        result.loss.backward()
    torch.testing.assert_close(  # of w |s|^2, averaged over four samples
        regularised.subject_embeds.grad - plain.subject_embeds.grad, 2 * 0.3 / 4 * plain.subject_embeds.detach()
    )


def test_gradients_reach_promptnet_through_the_frozen_models_and_nothing_else(components):
    unet, text_encoder, promptnet = models(components)
    unet.requires_grad_(False)
    text_encoder.requires_grad_(False)
    promptnet_loss(unet, text_encoder, promptnet, **make_inputs(components), prediction_type="epsilon").loss.backward()
    assert all(parameter.grad is None for model in (unet, text_encoder) for parameter in model.parameters())
    without = [name for name, p in promptnet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_unpadded_prompt_gives_the_unet_only_the_prompts_own_rows(components):
    inputs = make_inputs(components, pad=False)
    result = promptnet_loss(*models(components), **inputs, prediction_type="epsilon")
    assert result.encoder_hidden_states.shape == (4, 6, 32)  # bos a photo of S* eos
    padded = promptnet_loss(*models(components), **make_inputs(components), prediction_type="epsilon")
    torch.testing.assert_close(  # causal: what follows changes nothing before it
        padded.encoder_hidden_states[:, :6], result.encoder_hidden_states, rtol=0, atol=1e-5
    )
    assert (padded.prediction - result.prediction).abs().max() > 1e-4


def test_loss_is_float32_whatever_the_models_are():
    components = make_components()
    inputs = make_inputs(components)
    exact = promptnet_loss(*models(components), **inputs, prediction_type="epsilon").loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = promptnet_loss(*models(components), **inputs, prediction_type="epsilon").loss
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=rounding(torch.bfloat16))
