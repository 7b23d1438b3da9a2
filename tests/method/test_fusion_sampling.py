import math

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from profusion_pipeline.method.fusion_sampling import (
    fusion_step,
    guide,
    noise_share,
    predict_noise,
    renew_noise,
    rescale,
)

pytestmark = pytest.mark.numeric

LEVELS = [(0.0365, 0.1598), (0.4229, 0.7521), (0.7521, 0.9983), (0.9983, 0.99915)]


def draw(count, *shape):
    return torch.randn(count, *(shape or (2, 4, 8, 8)), dtype=torch.float64)


@pytest.mark.parametrize(("a", "s"), LEVELS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_equals_the_authors_expression(a, s, eta):
    """x - σ² sqrt(1-ᾱ_t)/(1-ᾱ_s) ε + σ sqrt((1-ᾱ_t)(2-2ᾱ_s-σ²))/(1-ᾱ_s) z, σ² = η² (1-ᾱ_s)/(1-ᾱ_t) (1-ᾱ_t/ᾱ_s)"""
    x, predicted, noise = draw(3)
    sigma2 = eta**2 * (1 - s) / (1 - a) * (1 - a / s)
    expected = (
        x
        - sigma2 * math.sqrt(1 - a) / (1 - s) * predicted
        + math.sqrt(sigma2) * math.sqrt((1 - a) * (2 - 2 * s - sigma2)) / (1 - s) * noise
    )
    renewed = renew_noise(predicted, noise, noise_share(a, s, eta))
    torch.testing.assert_close(fusion_step(x, predicted, renewed, a), expected, rtol=1e-10, atol=1e-10)


def test_is_a_ddim_step_down_and_a_draw_back_up():
    """In law: η = 1, one deterministic part and one normal part of the same size as DDIM down, diffusion up."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    t, previous = scheduler.timesteps[3], scheduler.timesteps[4]
    a, s = (scheduler.alphas_cumprod[step].double().item() for step in (t, previous))
    x, predicted = draw(2)
    # DDIM with η' = 1 leaves the share sqrt(1-s-σ²) of the predicted noise and adds σ of fresh noise.
    down = scheduler.step(predicted, t, x, eta=1.0, variance_noise=torch.zeros_like(x)).prev_sample
    sigma2 = (1 - s) / (1 - a) * (1 - a / s)
    up = math.sqrt(a / s)  # back up to t: x_t = sqrt(ᾱ_t/ᾱ_s) x_s + sqrt(1 - ᾱ_t/ᾱ_s) z
    mean, variance = up * down, up**2 * sigma2 + 1 - a / s
    share = noise_share(a, s, 1.0)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(
        fusion_step(x, predicted, renew_noise(predicted, zero, share), a), mean, rtol=1e-6, atol=1e-6
    )
    assert (1 - a) * (1 - share**2) == pytest.approx(variance, rel=1e-6)


def test_eta_zero_is_the_identity_to_the_bit():
    x, predicted, noise = draw(3)
    share = noise_share(0.3, 0.5, 0.0)
    assert share == 1.0
    assert torch.equal(fusion_step(x, predicted, renew_noise(predicted, noise, share), 0.3), x)


def test_keeps_picture_and_power():
    """With x_0 and unit noise known, the noise stays unit and x_0 stays what it was."""
    x_0, noise, fresh = draw(3, 1, 4, 128, 128)
    a = 0.4
    x = a**0.5 * x_0 + (1 - a) ** 0.5 * noise
    fused = fusion_step(x, noise, renew_noise(noise, fresh, noise_share(a, 0.6, 1.0)), a)
    residual = (fused - a**0.5 * x_0) / (1 - a) ** 0.5
    assert residual.std() == pytest.approx(1, abs=0.01)
    assert (residual * noise).mean() == pytest.approx(noise_share(a, 0.6, 1.0), abs=0.01)


def test_is_finite_at_the_last_step_and_at_pure_noise():
    assert noise_share(0.999, 1.0, 1.0) == pytest.approx(0.0)
    assert noise_share(0.0, 0.01, 1.0) == 0.0
    x, v, noise = draw(3)
    predicted = predict_noise(v, x, 0.0, "v_prediction")
    assert torch.equal(predicted, x)
    assert torch.isfinite(fusion_step(x, predicted, renew_noise(predicted, noise, 0.0), 0.0)).all()


@pytest.mark.parametrize("a", [0.01, 0.5, 0.99])
def test_every_prediction_type_gives_the_same_noise(a):
    x_0, noise = draw(2)
    x = a**0.5 * x_0 + (1 - a) ** 0.5 * noise
    v = a**0.5 * noise - (1 - a) ** 0.5 * x_0
    for output, prediction_type in ((noise, "epsilon"), (v, "v_prediction"), (x_0, "sample")):
        torch.testing.assert_close(predict_noise(output, x, a, prediction_type), noise)


def test_unknown_prediction_type():
    with pytest.raises(KeyError, match="flow"):
        predict_noise(torch.zeros(1), torch.zeros(1), 0.5, "flow")


def test_guidance_is_the_sum_of_the_pulls():
    null, text, subject_1, subject_2 = draw(4, 1, 4, 8, 8)
    rows, weights = torch.cat([text, subject_1, subject_2]), torch.tensor([5.0, 4.0, 3.0])
    guided = guide(null, rows, weights, torch.tensor([0, 0, 0]))
    expected = null + 5 * (text - null) + 4 * (subject_1 - null) + 3 * (subject_2 - null)
    torch.testing.assert_close(guided, expected)


def test_guidance_keeps_pictures_apart():
    null, rows = torch.randn(2, 4, 8, 8), torch.randn(3, 4, 8, 8)
    guided = guide(null, rows, torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(guided[0], null[0] + 3 * (rows[1] - null[0]))
    torch.testing.assert_close(guided[1], null[1] + 2 * (rows[0] - null[1]) + 4 * (rows[2] - null[1]))


def test_null_drops_out_where_weights_sum_to_one():
    rows, owner, weights = torch.randn(2, 4, 8, 8), torch.tensor([0, 0]), torch.tensor([0.25, 0.75])
    for null in (torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8)):
        torch.testing.assert_close(guide(null, rows, weights, owner), (0.25 * rows[:1] + 0.75 * rows[1:]))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_guidance_commutes_with_the_change_to_noise(prediction_type):
    x, null, text = draw(3, 1, 4, 8, 8)
    weights, owner = torch.tensor([7.0]), torch.tensor([0])
    guided_first = predict_noise(guide(null, text, weights, owner), x, 0.3, prediction_type)
    both = [predict_noise(output, x, 0.3, prediction_type) for output in (null, text)]
    torch.testing.assert_close(guided_first, guide(*both, weights, owner))


def test_guidance_in_half_precision_rounds_once():
    null, text = torch.randn(2, 1, 4, 8, 8).bfloat16()
    guided = guide(null, text, torch.tensor([6.9]), torch.tensor([0]))
    assert guided.dtype == torch.bfloat16
    assert torch.equal(guided, null + 6.9 * (text - null))


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_rescaling_is_that_of_diffusers(amount):
    guided, target = 5 * torch.randn(3, 4, 8, 8) + 1, torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(rescale(guided, target, amount), rescale_noise_cfg(guided, target, amount))


def test_rescaled_predictions_have_the_deviation_between_both():
    guided, target = 5 * torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8) + 7
    own, wanted = (tensor.std(dim=(1, 2, 3)) for tensor in (guided, target))
    torch.testing.assert_close(rescale(guided, target, 0.4).std(dim=(1, 2, 3)), 0.4 * wanted + 0.6 * own)
    assert torch.equal(rescale(target, target, 0.4), target)
