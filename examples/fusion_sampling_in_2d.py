"""Why Fusion Sampling helps, where everything is known: "pictures" of two numbers, mixtures of Gaussians, exact scores.

S* is one arc of the plane, the text C another; the truth, S* and C at once, is where they cross. While mixing, a prompt
with both weighs S* and C as γ : 1 - γ. Every sampler may evaluate the same number of scores ("rows").
"""

import math

import torch
from diffusers import DDIMScheduler
from matplotlib import pyplot

from profusion_pipeline.method.fusion_sampling import fusion_step, guide, noise_share, renew_noise
from profusion_pipeline.method.noise_levels import fusion_levels

SPREAD = 0.12  # of each Gaussian
CENTERS = torch.cartesian_prod(torch.linspace(-2, 2, 29), torch.linspace(-2, 2, 29))  # [K, 2]


def arc(center: tuple[float, float], begin: float, end: float) -> torch.Tensor:
    """Log weights of the Gaussians along an arc of radius 1 between two angles, in turns. [K]"""
    turn = torch.linspace(2 * math.pi * begin, 2 * math.pi * end, 200)
    points = torch.tensor(center) + torch.stack([turn.cos(), turn.sin()], dim=1)  # [200, 2]
    return -(torch.cdist(CENTERS, points).amin(dim=1) ** 2) / (2 * SPREAD**2)


NULL, SUBJECT, TEXT = torch.zeros(len(CENTERS)), arc((-0.4, 0.0), -0.12, 0.47), arc((0.3, 0.5), 0.38, 0.97)
TRUTH = SUBJECT + TEXT
SAMPLERS = {
    "Guidance on S* alone": {"class_weight": 0.0},
    "Mixed (m = 0)": {},
    "Fusion Sampling, m = 1": {"num_fusion_steps": 1},
    "Fusion Sampling, m = 2": {"num_fusion_steps": 2},
    "m = 1, but γ = 1: no text while mixing": {"num_fusion_steps": 1, "gamma": 1.0},
}


def log_density(points: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
    """Of the mixture, up to a constant. [B]"""
    return (log_weights - torch.cdist(points, CENTERS) ** 2 / (2 * SPREAD**2)).logsumexp(dim=1)


def exact_noise(latents: torch.Tensor, alpha_bar: float, log_weights: torch.Tensor) -> torch.Tensor:
    """ε = -sqrt(1-ᾱ) ∇ log p_t(x_t) of the mixture. [B, 2, 1, 1]"""
    centers, variance = alpha_bar**0.5 * CENTERS, alpha_bar * SPREAD**2 + 1 - alpha_bar
    likely = (log_weights - torch.cdist(latents.flatten(1), centers) ** 2 / (2 * variance)).softmax(dim=1)  # [B, K]
    return (1 - alpha_bar) ** 0.5 / variance * (latents - (likely @ centers).view_as(latents))


def sample(count: int, rows: int, *, class_weight: float = 1.0, num_fusion_steps: int = 0, gamma: float = 0.5):
    """The pipeline's loop; every weight that is not given is 1. [count, 2]"""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(rows // (2 + (class_weight > 0) + 2 * num_fusion_steps))
    generator, owner = torch.Generator().manual_seed(0), torch.arange(count)
    weights = torch.tensor([1.0, class_weight]).repeat_interleave(count)
    latents = torch.randn(count, 2, 1, 1, generator=generator)
    for t, level in zip(scheduler.timesteps, fusion_levels(scheduler), strict=True):
        for _ in range(num_fusion_steps):  # ω_f = 1, so ε_∅ drops out; its row is counted all the same
            noise = exact_noise(latents, level.alpha_bar, gamma * SUBJECT + (1 - gamma) * TEXT)
            fresh = torch.randn(latents.shape, generator=generator)
            renewed = renew_noise(noise, fresh, noise_share(level.alpha_bar, level.next_alpha_bar, eta=1.0))
            latents = fusion_step(latents, noise, renewed, level.alpha_bar)
        null, subject, text = (exact_noise(latents, level.alpha_bar, condition) for condition in (NULL, SUBJECT, TEXT))
        latents = scheduler.step(guide(null, torch.cat([subject, text]), weights, owner.repeat(2)), t, latents)[0]
    return latents.flatten(1)


def main(count: int = 500, rows: int = 250, file: str = "fusion_in_2d.png") -> dict[str, tuple[float, float]]:
    """Draws the figure; of each sampler, the share of points where 95 % of the truth is, and its distance to it."""
    generator = torch.Generator().manual_seed(1)
    chosen = CENTERS[TRUTH.softmax(dim=0).multinomial(2 * count, replacement=True, generator=generator)]
    truth = chosen + SPREAD * torch.randn(chosen.shape, generator=generator)
    least = log_density(truth, TRUTH).quantile(0.05)
    x, y = torch.meshgrid(torch.linspace(-1.8, 1.7, 140), torch.linspace(-0.95, 1.45, 96), indexing="xy")
    grid = torch.stack([x.flatten(), y.flatten()], dim=1)
    subject, text, both = (log_density(grid, condition).view_as(y) for condition in (SUBJECT, TEXT, TRUTH))
    figure, panels = pyplot.subplots(2, 3, figsize=(10, 5.4), layout="constrained")
    for axes in panels.flat:
        for density, colours in ((subject.exp(), "Blues"), (text.exp(), "Oranges")):
            axes.contourf(x, y, density, density.max() * torch.linspace(0.05, 1.2, 10), cmap=colours, alpha=0.6)
        axes.contour(x, y, both, levels=[least], colors="black", linewidths=1, linestyles="solid")
        axes.set(xticks=[], yticks=[], aspect="equal", autoscale_on=False)
    panels[0, 0].set_title("S* (blue), the text (orange)\nand the truth: both (outlined)", fontsize=10)
    results = {}
    for axes, (name, settings) in zip(panels.flat[1:], SAMPLERS.items(), strict=True):
        points = sample(count, rows, **settings)
        inside = float((log_density(points, TRUTH) > least).float().mean())
        among, across, inner = (torch.cdist(*two).mean() for two in ((points, points), (points, truth), (truth, truth)))
        results[name] = inside, float(2 * across - among - inner)  # the energy distance
        axes.scatter(*points.T, s=5, color="black", alpha=0.55, linewidths=0)
        axes.set_title(f"{name}\n{inside:.0%} inside, distance {results[name][1]:.3f}", fontsize=10)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return results


if __name__ == "__main__":
    for sampler, (share, distance) in main().items():
        print(f"{sampler:40} {share:6.1%} inside, energy distance {distance:.3f}")
