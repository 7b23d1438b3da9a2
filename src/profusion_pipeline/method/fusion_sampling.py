"""Fusion Sampling: the mathematics of one denoising step, on tensors, numbers and noise alone.

    code name         paper    what
    latents           x_t      variance-preserving: sqrt(ᾱ) x_0 + sqrt(1-ᾱ) ε      [B, C, h, w]
    alpha_bar         ᾱ_t      of the current timestep, in [0, 1)
    next_alpha_bar    ᾱ_s      of the next one, s < t
    share             k        how much of the predicted noise stays
    eta               η        `fusion_eta`
    predicted_noise   ε̃        of the model, guided
    noise             z        fresh, N(0, I)
    weights           ω        ω_1 (S* with C), ω_2 (C), ω_f (S* with C, fusion stage)

Source: Zhou et al. 2023, "Enhancing Detail Preservation for Customized Text-to-Image Generation: A
Regularization-Free Approach" (arXiv 2305.13579), section 3.2.
"""

import torch


def guide(
    unconditional: torch.Tensor, conditional: torch.Tensor, weights: torch.Tensor, owner: torch.Tensor
) -> torch.Tensor:
    """ε = ε_∅ + Σ_i ω_i (ε_i - ε_∅)

    The weights of ε_∅ and of all ε_i sum to one. So this holds for any model output that is affine in ε at a given
    x_t (epsilon, v or sample), and where Σ_i ω_i = 1, ε_∅ drops out and any tensor may stand in its place.

    Args:
        unconditional: ε_∅ of each of B pictures. [B, C, h, w]
        conditional: ε_i, K predictions under some condition, any number of them for each picture. [K, C, h, w]
        weights: ω_i. [K]
        owner: The picture that prediction i belongs to, in 0..B-1. [K]

    Returns:
        ε of each picture, in the dtype of `unconditional`. [B, C, h, w]

    Example:
        >>> null, text = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
        >>> guide(null, text, torch.tensor([7.0]), torch.tensor([0])).unique()
        tensor([7.])
    """
    # Weights are float32 whatever the dtype of the predictions: 6.9 is no number of bfloat16.
    pull = weights[:, None, None, None] * (conditional - unconditional[owner])  # [K, C, h, w]
    return unconditional.index_add(0, owner, pull.to(unconditional.dtype))


def rescale(guided: torch.Tensor, target: torch.Tensor, amount: float) -> torch.Tensor:
    """ε ← (φ std(ε_{S*,C}) / std(ε) + 1 - φ) ε

    Guidance makes predictions larger than any the model has learnt; this pulls their deviation back. As diffusers'
    `guidance_rescale`.

    Args:
        guided: ε, the model output after guidance. [B, C, h, w]
        target: What has the deviation that ε should have, ε_{S*,C}. [B, C, h, w]
        amount: φ, in [0, 1]. At 1 ε gets the target's deviation, at 0 it keeps its own.

    Returns:
        ε of each picture, in its dtype. [B, C, h, w]

    Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), 3.4.

    Example:
        >>> guided, target = torch.tensor([[-4.0, 4.0], [-1.0, 1.0]]).view(2, 1, 2, 1, 1)
        >>> rescale(guided, target, 0.5).flatten()
        tensor([-2.5000,  2.5000])
    """
    own, wanted = (tensor.float().std(dim=(1, 2, 3), keepdim=True) for tensor in (guided, target))  # [B, 1, 1, 1]
    return guided * (amount * wanted / own + (1 - amount)).to(guided.dtype)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_bar: float | torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(ᾱ_t) x_0 + sqrt(1-ᾱ_t) ε

    Args:
        clean: x_0. [B, C, h, w]
        noise: ε. [B, C, h, w]
        alpha_bar: ᾱ_t; at 1 it is x_0 itself. A tensor has one for each picture. [B, 1, 1, 1]

    Returns:
        x_t. [B, C, h, w]

    Example:
        >>> add_noise(torch.tensor([1.0]), torch.tensor([-1.0]), 0.64)
        tensor([0.2000])
    """
    return alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise


def predict_noise(
    model_output: torch.Tensor, latents: torch.Tensor, alpha_bar: float, prediction_type: str
) -> torch.Tensor:
    """ε̃ = ε, sqrt(ᾱ_t) v + sqrt(1-ᾱ_t) x_t, or (x_t - sqrt(ᾱ_t) x̂_0) / sqrt(1-ᾱ_t)

    Args:
        model_output: What the UNet gave, guided. [B, C, h, w]
        latents: x_t. [B, C, h, w]
        alpha_bar: ᾱ_t.
        prediction_type: What `model_output` is: "epsilon", "v_prediction" or "sample".

    Returns:
        The noise in x_t according to the model. [B, C, h, w]

    Raises:
        KeyError: `prediction_type` is none of these.

    Example:
        >>> x_0, noise = torch.randn(2, 1, 4, 8, 8)
        >>> latents = 0.8 * x_0 + 0.6 * noise
        >>> torch.allclose(predict_noise(x_0, latents, 0.64, "sample"), noise, atol=1e-5)
        True
    """
    signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return {
        "epsilon": lambda: model_output,
        "v_prediction": lambda: signal * model_output + sigma * latents,
        "sample": lambda: (latents - signal * model_output) / sigma,
    }[prediction_type]()


def noise_share(alpha_bar: float, next_alpha_bar: float, eta: float) -> float:
    """k = 1 - η² (1 - ᾱ_t/ᾱ_s) / (1 - ᾱ_t)

    Args:
        alpha_bar: ᾱ_t.
        next_alpha_bar: ᾱ_s, at least ᾱ_t.
        eta: η. 0 keeps all of the predicted noise; at 1, k is what a DDIM step down to s with η = 0 and a draw back
            up to t keep.

    Returns:
        k, at most 1. Below -1 there is no fusion step: η is too large.

    Example:
        >>> noise_share(0.5, 1.0, 1.0), noise_share(0.5, 0.8, 0.0)
        (0.0, 1.0)
    """
    return 1 - eta**2 * (1 - alpha_bar / next_alpha_bar) / (1 - alpha_bar)


def renew_noise(predicted_noise: torch.Tensor, noise: torch.Tensor, share: float) -> torch.Tensor:
    """ε' = k ε̃ + sqrt(1-k²) z

    Args:
        predicted_noise: ε̃, of [`predict_noise`]. [B, C, h, w]
        noise: z. [B, C, h, w]
        share: k, of [`noise_share`], in [-1, 1].

    Returns:
        Noise of the same power, of which a share k is the old. [B, C, h, w]

    Example:
        >>> predicted, fresh = torch.randn(2, 1, 4, 8, 8)
        >>> torch.equal(renew_noise(predicted, fresh, share=1.0), predicted)
        True
    """
    return share * predicted_noise + (1 - share**2) ** 0.5 * noise


def fusion_step(
    latents: torch.Tensor, predicted_noise: torch.Tensor, renewed_noise: torch.Tensor, alpha_bar: float
) -> torch.Tensor:
    """x_t ← sqrt(ᾱ_t) x̂_0 + sqrt(1-ᾱ_t) ε'

    Keep the predicted picture, keep a share of the predicted noise, replace the rest by fresh noise of equal power.
    With sqrt(ᾱ_t) x̂_0 = x_t - sqrt(1-ᾱ_t) ε̃ put in, nothing is divided by ᾱ_t and ε' = ε̃ is the identity to the bit.

    Args:
        latents: x_t. [B, C, h, w]
        predicted_noise: ε̃, of [`predict_noise`]. [B, C, h, w]
        renewed_noise: ε', of [`renew_noise`]. [B, C, h, w]
        alpha_bar: ᾱ_t.

    Returns:
        x_t with other noise, at the noise level it had. [B, C, h, w]

    Example:
        >>> latents, predicted = torch.randn(2, 1, 4, 8, 8)
        >>> torch.equal(fusion_step(latents, predicted, predicted, alpha_bar=0.3), latents)
        True
    """
    return latents + (1 - alpha_bar) ** 0.5 * (renewed_noise - predicted_noise)
