"""Ways to customise and to guide that were tried and are no part of the package: `trial` of a variant of `frontier.py`.

Each changes one function of the library while it draws or learns. What came of them stands in docs/study.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from PIL import Image
from torch import nn

from profusion_pipeline import Concept, CustomizeConfig, ProFusionPipeline
from profusion_pipeline.customization.customize import Customization, customizing
from profusion_pipeline.method import fusion_sampling, prediction
from profusion_pipeline.training import losses

LOWER = 0.6  # of all timesteps: customising learns at those below
LATE = 0.7  # of all timesteps: above, what comes late is not there yet
FACE = (0.8, 1.0)  # width and height of the ellipse that counts as the subject, as shares of the picture's side


# ---------------------------------------------------------------------------------------------------------- customising


class LowerTimesteps(Customization):
    """t is uniform below a share of all timesteps: the details are learnt there, the layout above."""

    def draw_pairs(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        pairs = super().draw_pairs(*args, **kwargs)
        return pairs | {"timesteps": (LOWER * pairs["timesteps"]).long()}


class MaskedLoss(Customization):
    """Only the loss within an ellipse around the face counts."""

    def objective(self, **pairs: torch.Tensor) -> torch.Tensor:
        models = (self.pipe.unet, self.pipe.text_encoder, self.pipe.promptnet)
        found = losses.promptnet_loss(*models, **pairs, **self.constants)
        alpha_bar = self.noise_schedule["alphas_cumprod"][pairs["timesteps"]]
        kind = self.noise_schedule["prediction_type"]
        target = losses.prediction_target(pairs["latents"], pairs["noise"], alpha_bar, kind)
        mask = ellipse(*target.shape[-2:]).to(target)  # [h, w]
        return ((found.prediction.float() - target.float()).square() * mask).mean() / mask.mean()


class WeakAtHighNoise(Customization):
    """The UNet's adapter counts 1 - t / T, as in T-LoRA (arXiv 2507.05964); drawn alike, see [`drawing`]."""

    def objective(self, **pairs: torch.Tensor) -> torch.Tensor:
        with adapter_strength(self.pipe.unet, falling):
            return super().objective(**pairs)


def ellipse(height: int, width: int, finer: int = 8) -> torch.Tensor:
    """Share of each cell that lies within the ellipse `[height, width]`."""
    rows, columns = (torch.linspace(-1, 1, 2 * finer * n + 1)[1::2] for n in (height, width))
    inside = (rows[:, None] / FACE[1]) ** 2 + (columns / FACE[0]) ** 2 <= 1
    return inside.float().view(height, finer, width, finer).mean(dim=(1, 3))


def falling(t: torch.Tensor) -> torch.Tensor:
    """1 at no noise, 0 at all of it."""
    return 1 - t / 1000


def late(t: torch.Tensor) -> torch.Tensor:
    """0 in the steps of much noise, 1 after them."""
    return (t < LATE * 1000).float()


@contextmanager
def adapter_strength(unet: nn.Module, strength: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """What LoRA adapters add to a UNet's layers is multiplied by a function of the timestep of each row."""
    now = {}

    def remember(_, args: tuple, kwargs: dict) -> None:
        now["strength"] = strength(torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).flatten().float())

    def weaken(_, args: tuple, output: torch.Tensor) -> torch.Tensor:
        each = now["strength"].to(output)
        each = each if len(each) == len(output) else each[:1]  # drawing, all rows are at one timestep
        return output * each.view(-1, *[1] * (output.ndim - 1))

    with ExitStack() as undo:
        undo.callback(unet.register_forward_pre_hook(remember, with_kwargs=True).remove)
        for name, layer in unet.named_modules():
            if ".lora_B." in name:
                undo.callback(layer.register_forward_hook(weaken).remove)
        yield


CUSTOMISING = {"lower timesteps": LowerTimesteps, "masked loss": MaskedLoss, "weak at high noise": WeakAtHighNoise}


def customize(pipe: ProFusionPipeline, trial: str, photos: Sequence[Image.Image], **settings: object) -> Concept:
    """As the library's, in the way of a trial; one that changes nothing here is the library's own."""
    with (
        patch("profusion_pipeline.customization.customize.Customization", CUSTOMISING.get(trial, Customization)),
        customizing(pipe, list(photos), CustomizeConfig(**settings)) as run,
    ):
        for _ in run.learn():
            pass
        return run.concept()


# -------------------------------------------------------------------------------------------------------------- guiding


class Guiding(ABC):
    """Stands in for `guide` while pictures are drawn, and knows t. Rows: C of all pictures, then S* of all."""

    def __init__(self, pipe: ProFusionPipeline):
        self.pipe, self.t, self.guide, self.predict = pipe, 0.0, fusion_sampling.guide, prediction.predict

    def predicting(self, state, rows, latents, t, *others) -> torch.Tensor:
        self.t = float(t)
        return self.predict(state, rows, latents, t, *others)

    def __call__(self, null, conditional, weights, owner) -> torch.Tensor:
        conditional, weights = self.changed(null, conditional, weights.clone(), len(null))
        return self.guide(null, conditional, weights, owner)

    @abstractmethod
    def changed(self, null, conditional, weights, count) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and their weights, of `count` pictures."""


class SubjectInPart(Guiding):
    """In the other part of the steps all of the guidance is towards C."""

    @abstractmethod
    def has_subject(self) -> bool:
        """Whether S* counts at t."""

    def changed(self, null, conditional, weights, count):
        if not self.has_subject():
            weights[:count] += weights[count:]
            weights[count:] = 0
        return conditional, weights


class SubjectLate(SubjectInPart):
    """S* counts after the steps of much noise."""

    def has_subject(self) -> bool:
        return self.t < LATE * 1000


class SubjectEarly(SubjectInPart):
    """S* counts in the steps of much noise."""

    def has_subject(self) -> bool:
        return self.t >= (1 - LATE) * 1000


class Gate(Guiding):
    """Where S* and C pull a place of the latents in opposite directions, only C pulls."""

    def changed(self, null, conditional, weights, count):
        of_class, of_subject = conditional[:count] - null, conditional[count:] - null
        agree = (of_class * of_subject).sum(dim=1, keepdim=True) > 0  # [B, 1, h, w]
        return torch.cat([conditional[:count], torch.where(agree, conditional[count:], null)]), weights


class LikeCFGPP(Guiding):
    """CFG++ (arXiv 2406.08070) renews the noise by ε_∅. With DDIM that is guidance that grows as the noise falls.

    ω_t = ω r / (r - σ_s) / its mean over the steps, with r = sqrt(ᾱ_s / ᾱ_t) σ_t, so that equal ω mean equal guidance.
    """

    def changed(self, null, conditional, weights, count):
        scheduler = self.pipe.scheduler
        steps = [int(t) for t in scheduler.timesteps]
        return conditional, weights * self.factors(scheduler.alphas_cumprod, steps)[steps.index(int(self.t))]

    @staticmethod
    def factors(alphas_cumprod: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
        now, after = alphas_cumprod[list(steps)], torch.cat([alphas_cumprod[list(steps[1:])], torch.ones(1)])
        r, sigma_after = (after / now).sqrt() * (1 - now).sqrt(), (1 - after).sqrt()
        factors = r / (r - sigma_after)
        return factors / factors.mean()


GUIDING = {"S* late": SubjectLate, "S* early": SubjectEarly, "gate": Gate, "like CFG++": LikeCFGPP}
ADAPTER = {"weak at high noise": falling, "concept late": late}
SEVERAL, THRESHOLDING, ANCESTRAL = "three photos", "thresholding", "DDIM, eta 1"
TRIALS = tuple(dict.fromkeys(["", *CUSTOMISING, *GUIDING, *ADAPTER, SEVERAL, THRESHOLDING, ANCESTRAL]))


@contextmanager
def drawing(pipe: ProFusionPipeline, trial: str) -> Iterator[dict[str, float]]:
    """The pipeline, with its concept loaded, draws in the way of a trial; yields what its call takes besides."""
    with ExitStack() as undo:
        if trial in GUIDING:
            guiding = GUIDING[trial](pipe)
            undo.enter_context(patch.object(fusion_sampling, "guide", guiding))
            undo.enter_context(patch.object(prediction, "predict", guiding.predicting))
        if trial in ADAPTER:
            undo.enter_context(adapter_strength(pipe.unet, ADAPTER[trial]))
        if trial == THRESHOLDING:
            limits = dict(thresholding=True, sample_max_value=3.0)
            pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, **limits)
        if trial == ANCESTRAL:
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        yield {"eta": 1.0} if trial == ANCESTRAL else {}
