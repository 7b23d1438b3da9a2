"""The fusion stage of a call, on the state of a diffusers scheduler: at which steps it stands, and one step of it.

`fusion_sampling.py` is the mathematics, `noise_levels.py` what a scheduler says about ᾱ.
"""

import torch
from diffusers import SchedulerMixin

from . import checks, fusion_sampling, guidance_scales, noise_levels


def plan(
    scheduler: SchedulerMixin, guidance: guidance_scales.Guidance, begin: int
) -> list[tuple[noise_levels.NoiseLevel, float] | None]:
    """At which steps of a call the fusion stage stands.

    Args:
        scheduler: With its timesteps set.
        guidance: Says m, η, and the share of the steps that has a fusion stage.
        begin: Which of the scheduler's timesteps is the call's first.

    Returns:
        For each step with a fusion stage its noise level and k, the share of the noise that stays; else None.

    Raises:
        ValueError: The scheduler can't carry the fusion stage, or η is too large for its schedule.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from profusion_pipeline import ProFusionPipeline
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(4)
        >>> guidance = guidance_scales.Guidance.from_call(ProFusionPipeline.__call__, fusion_end=0.5)
        >>> [stage is not None for stage in plan(scheduler, guidance, begin=0)]
        [True, True, False, False]
    """
    fused = guidance.fused_steps(len(scheduler.timesteps) - begin)
    if not any(fused):
        return [None] * len(fused)
    stages = []
    for level, inside in zip(noise_levels.fusion_levels(scheduler, begin), fused, strict=True):
        if level is None or not inside:
            stages.append(None)
        else:
            share = fusion_sampling.noise_share(level.alpha_bar, level.next_alpha_bar, guidance.fusion_eta)
            stages.append((level, share))
    checks.check_fusion_eta(guidance.fusion_eta, [share for _, share in filter(None, stages)])
    return stages


def renew(
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    model_output: torch.Tensor,
    noise: torch.Tensor,
    level: noise_levels.NoiseLevel,
    share: float,
) -> torch.Tensor:
    """x_t ← sqrt(ᾱ_t) x̂_0 + sqrt(1-ᾱ_t) (k ε̃ + sqrt(1-k²) z), whatever space the scheduler's state is in.

    Args:
        scheduler: What it remembers of earlier steps follows.
        latents: Its state. [B, C, h, w]
        model_output: What the UNet gave, guided. [B, C, h, w]
        noise: z. [B, C, h, w]
        level: Of the timestep.
        share: k.

    Returns:
        The scheduler's state, at the noise level it had. [B, C, h, w]

    Example:
        >>> from diffusers import DDIMScheduler
        >>> level, (latents, output, noise) = noise_levels.NoiseLevel(0.3, 0.5, 1.0), torch.randn(3, 1, 4, 8, 8)
        >>> torch.equal(renew(DDIMScheduler(), latents, output, noise, level, share=1.0), latents)
        True
    """
    latents = latents / level.state_scale  # [B, C, h, w], variance-preserving
    prediction_type = scheduler.config.prediction_type
    predicted = fusion_sampling.predict_noise(model_output, latents, level.alpha_bar, prediction_type)
    renewed = fusion_sampling.renew_noise(predicted, noise, share)
    noise_levels.follow_fusion(scheduler, renewed - predicted)
    return fusion_sampling.fusion_step(latents, predicted, renewed, level.alpha_bar) * level.state_scale
