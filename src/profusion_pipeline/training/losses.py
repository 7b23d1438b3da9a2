"""The PromptNet objective: S* must let the frozen UNet predict the noise of a picture of its subject.

    code name            paper    what
    latents              x_0      clean latents of the picture to learn            [B, C, h, w]
    reference_latents    z        clean latents of the reference picture           [B, C, h, w]
    image_states         V        vision states of the reference picture           [B, N, V]
    noisy_latents        x_t      sqrt(ᾱ_t) x_0 + sqrt(1-ᾱ_t) ε                    [B, C, h, w]
    subject_embeds       S*       PromptNet(z, t, V, x_t)                          [B, L, D]

No regulariser by default: what keeps S* from overfitting the picture is decided when sampling (Fusion Sampling), not
here. The squared norm of S* can be added, to compare with.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..method import fusion_sampling
from ..method.text_encoders import encode_ids


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(ᾱ_t) x_0 + sqrt(1-ᾱ_t) ε.

    Args:
        clean: x_0. [B, ...]
        noise: Standard normal, shaped like `clean`.
        alpha_bar: One level per sample [B], in 0..1.

    Returns:
        x_t, shaped like `clean`.

    Example:
        >>> add_noise(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([0.25]))
        tensor([[0.5000]])
    """
    return fusion_sampling.add_noise(clean, noise, _beside(alpha_bar, clean))


def prediction_target(
    clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """What the UNet should say of x_t: noise, v = sqrt(ᾱ_t) ε - sqrt(1-ᾱ_t) x_0, or x_0.

    Args:
        clean: x_0. [B, ...]
        noise: Standard normal, shaped like `clean`.
        alpha_bar: One level per sample [B], in 0..1.
        prediction_type: "epsilon", "v_prediction" or "sample", as in the scheduler's config.

    Returns:
        The target, shaped like `clean`.

    Raises:
        ValueError: `prediction_type` is none of the three.

    Example:
        >>> prediction_target(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([0.75]), "v_prediction")
        tensor([[-0.5000]])
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    if prediction_type == "v_prediction":
        alpha_bar = _beside(alpha_bar, clean)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
    raise ValueError(f"`prediction_type` must be epsilon, v_prediction or sample, got {prediction_type!r}.")


def min_snr_weights(alpha_bar: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """min(SNR, gamma) as a weight on the error in x_0, divided by what turns that error into the predicted one's.

    SNR = ᾱ / (1 - ᾱ); an error in x_0 counts SNR times as much in epsilon, SNR + 1 times in v. Written
    without dividing by SNR, so that it holds at ᾱ = 0 too.

    Args:
        alpha_bar: One level per sample [B], in 0..1 without 1.
        gamma: Greatest weight of the error in x_0; 5 is usual.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Returns:
        Weights. [B]

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv 2303.09556).

    Example:
        >>> min_snr_weights(torch.tensor([0.5, 0.9]), 3.0, "sample")
        tensor([1., 3.])
    """
    snr = alpha_bar / (1 - alpha_bar)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    weights = snr.clamp(max=gamma)
    return weights / (snr + 1) if prediction_type == "v_prediction" else weights


class PromptNetLoss(NamedTuple):
    """What [`promptnet_loss`] computed on its way.

    Args:
        loss: The objective. []
        subject_embeds: S*. [B, L, D]
        noisy_latents: x_t. [B, C, h, w]
        encoder_hidden_states: The prompt with S* in it, as the UNet read it. [B, T, D]
        prediction: What the UNet said. [B, C, h, w]
    """

    loss: torch.Tensor
    subject_embeds: torch.Tensor
    noisy_latents: torch.Tensor
    encoder_hidden_states: torch.Tensor
    prediction: torch.Tensor


def promptnet_loss(
    unet: nn.Module,
    text_encoder: nn.Module | Sequence[nn.Module],
    promptnet: nn.Module,
    *,
    latents: torch.Tensor,
    reference_latents: torch.Tensor,
    image_states: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    prediction_type: str,
    sizes: torch.Tensor | None = None,
    snr_gamma: float | None = None,
    subject_l2: float = 0.0,
) -> PromptNetLoss:
    """loss = mean_B w_t mean ||UNet(x_t, t, text("a photo of S*")) - target||^2 with S* = PromptNet(z, t, V, x_t).

    With `subject_l2`, subject_l2 * mean_BL ||S*||^2 is added: the regulariser that the method does without.

    Gradients flow through UNet and text encoder into S*; which parameters learn is the caller's choice.

    Args:
        unet: `UNet2DConditionModel`.
        text_encoder: `CLIPTextModel` whose last hidden state the UNet reads; of Stable Diffusion XL both.
        promptnet: `PromptNet`.
        latents: x_0 [B, C, h, w], scaled by the VAE's scaling factor.
        reference_latents: z [B, C, h, w], scaled alike: the same pictures, or others of the same subjects.
        image_states: Last hidden states of the vision tower for the references. [B, N, V]
        noise: Standard normal. [B, C, h, w]
        timesteps: t [B], int64.
        alphas_cumprod: ᾱ of every timestep [T], as a scheduler keeps it.
        input_ids: The prompt with room for S* [B, T] or [1, T] (one for all), from `tokenize_subject_prompts`;
            [B, 2, T] or [1, 2, T] for two text encoders. Padded, as in sampling, or not, as the authors trained.
        positions: First position of S*. [B] or [1]
        prediction_type: What the UNet predicts: "epsilon", "v_prediction" or "sample".
        sizes: What Stable Diffusion XL's UNet reads of the pictures' sizes, from `xl_conditions.whole_picture`; else
            None. [6]
        snr_gamma: Gamma of the min-SNR weights; None weighs all timesteps alike.
        subject_l2: Weight of the squared norm of S*, from 0: the larger, the shorter S*.

    Returns:
        The loss, in float32, and what it was computed from.

    Raises:
        ValueError: `prediction_type` is none of the three; S* is not as wide as the text encoder.

    Source: Zhou et al. 2023 (arXiv 2305.13579), section 3.1.

    Example:
        Everything but the models is a tensor, see `trainer.py` for where they come from:

        >>> from profusion_pipeline import load_demo_pipeline
        >>> from profusion_pipeline.method.subject_prompt import tokenize_subject_prompts
        >>> pipe = load_demo_pipeline()  # doctest: +SKIP
        >>> ids, positions = tokenize_subject_prompts(  # doctest: +SKIP
        ...     pipe.tokenizer, ["a portrait of S*"], placeholder="S*", num_subject_tokens=1)
        >>> loss = promptnet_loss(pipe.unet, pipe.text_encoder, pipe.promptnet, latents=z, reference_latents=z,
        ...     image_states=states, noise=torch.randn_like(z), timesteps=torch.tensor([500]),
        ...     alphas_cumprod=pipe.scheduler.alphas_cumprod, input_ids=ids, positions=positions,
        ...     prediction_type="v_prediction").loss  # doctest: +SKIP
    """
    batch = len(latents)
    alpha_bar = alphas_cumprod[timesteps]  # [B]
    target = prediction_target(latents, noise, alpha_bar, prediction_type)  # [B, C, h, w]
    noisy_latents = add_noise(latents, noise, alpha_bar)  # [B, C, h, w]

    subject_embeds = promptnet(reference_latents, timesteps, image_states, noisy_latents).prompt_embeds  # [B, L, D]
    encoder_hidden_states, pooled = encode_ids(
        [text_encoder] if isinstance(text_encoder, nn.Module) else text_encoder,
        input_ids.expand(batch, *input_ids.shape[1:]),
        positions=positions.expand(batch),
        subject_embeds=subject_embeds,
    )  # [B, T, D], and [B, F] of Stable Diffusion XL
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes.expand(batch, -1)}
    prediction = unet(noisy_latents, timesteps, encoder_hidden_states, added_cond_kwargs=added).sample  # [B, C, h, w]

    loss = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)  # [B]
    if snr_gamma is not None:
        loss = min_snr_weights(alpha_bar, snr_gamma, prediction_type) * loss
    loss = loss.mean()  # []
    if subject_l2:
        loss = loss + subject_l2 * subject_embeds.float().square().sum(dim=-1).mean()
    return PromptNetLoss(loss, subject_embeds, noisy_latents, encoder_hidden_states, prediction)


def _beside(values: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (samples.ndim - 1))  # [B] -> [B, 1, ...]
