"""What a diffusers scheduler says about ᾱ: at which loop indices a fusion stage may stand, and between which levels.

A fusion stage changes the state in place, so it may only stand where the scheduler starts a step from the state that
it is given. Schedulers that take several model outputs for one step (Heun, KDPM2, single-step DPM++, the first
steps of PNDM) go back to a state that they have kept; there a change would be lost, or would not fit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import (
    DPMSolverSinglestepScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

FUSION = ("carry the fusion stage", "`num_fusion_steps=0`")  # what a scheduler may not be fit for, and a way without


@dataclass(frozen=True)
class NoiseLevel:
    """The levels between which a step of the scheduler goes.

    Args:
        alpha_bar: ᾱ_t, where the step starts.
        next_alpha_bar: ᾱ_s, where it ends: where the scheduler's next step starts.
        state_scale: The scheduler's state divided by sqrt(ᾱ_t) x_0 + sqrt(1-ᾱ_t) ε: 1, or sqrt(1 + σ²) in sigma space.

    Example:
        >>> NoiseLevel(alpha_bar=0.25, next_alpha_bar=0.5, state_scale=2.0).alpha_bar
        0.25
    """

    alpha_bar: float
    next_alpha_bar: float
    state_scale: float


class StateLevel(NamedTuple):
    """How much noise is in a scheduler's state.

    Args:
        alpha_bar: ᾱ_t.
        state_scale: As of `NoiseLevel`.

    Example:
        >>> StateLevel(alpha_bar=0.25, state_scale=2.0).alpha_bar
        0.25
    """

    alpha_bar: float
    state_scale: float


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """A scheduler with the interface of Stable Diffusion's, with or without a fusion stage."""
    for name in ("set_timesteps", "scale_model_input", "init_noise_sigma", "step"):
        if not hasattr(scheduler, name):
            raise ValueError(
                f"`scheduler` must be one that Stable Diffusion takes, such as DDIMScheduler, got "
                f"{type(scheduler).__name__}, which has no `{name}`."
            )


def check_keeps(scheduler: SchedulerMixin) -> None:
    """A scheduler with an ᾱ, whose state parts of a picture can be put in at any level."""
    _refuse_without_alpha_bar(scheduler, "keep a part of a picture", "no `mask_image`")


def fusion_levels(scheduler: SchedulerMixin, begin: int = 0) -> list[NoiseLevel | None]:
    """The noise level at every loop index of a scheduler whose timesteps are set.

    Args:
        scheduler: Any scheduler with an ᾱ, after `set_timesteps`. It isn't changed.
        begin: The index in `scheduler.timesteps` at which the loop begins, not 0 where `strength` < 1.

    Returns:
        For each of `scheduler.timesteps[begin:]` its level, or None where no fusion stage may stand.

    Raises:
        ValueError: The scheduler can't carry the fusion stage; it is named.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(2)
        >>> [round(level.alpha_bar, 3) for level in fusion_levels(scheduler)]
        [0.078, 1.0]
    """
    _refuse_unfit(scheduler, begin)
    count = len(scheduler.timesteps)
    starts = [index for index in range(begin, count) if _starts_a_step(scheduler, index, begin)]
    alpha_bars = [_alpha_bar(scheduler, index) for index in starts]
    if hasattr(scheduler, "sigmas"):
        alpha_bars.append(_alpha_bar(scheduler, -1))
    else:
        alpha_bars.append(float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
    if any(now > then for now, then in zip(alpha_bars[:-1], alpha_bars[1:], strict=True)):
        _refuse(scheduler, "it goes from less noise to more")
    levels = {
        index: NoiseLevel(now, then, state_scale=_state_scale(scheduler, now))
        for index, now, then in zip(starts, alpha_bars[:-1], alpha_bars[1:], strict=True)
    }
    return [levels.get(index) for index in range(begin, count)]


def state_levels(scheduler: SchedulerMixin, begin: int = 0) -> list[StateLevel | None]:
    """The noise level of the state at every loop index, and after the last one, where there is no noise.

    Args:
        scheduler: Any scheduler with an ᾱ, after `set_timesteps`. It isn't changed.
        begin: As of `fusion_levels`.

    Returns:
        An entry for each of `scheduler.timesteps[begin:]` and one more. None between both halves of a step of KDPM2,
        which takes the state there from the one before.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(2)
        >>> [round(level.alpha_bar, 3) for level in state_levels(scheduler)]
        [0.078, 1.0, 1.0]
    """
    levels: list[StateLevel | None] = []
    for index in range(begin, len(scheduler.timesteps)):
        between = hasattr(scheduler, "sigmas_interpol") and not _starts_a_step(scheduler, index, begin)
        alpha_bar = _alpha_bar(scheduler, index)
        levels.append(None if between else StateLevel(alpha_bar, _state_scale(scheduler, alpha_bar)))
    return [*levels, StateLevel(1.0, 1.0)]


def follow_fusion(scheduler: SchedulerMixin, noise_change: torch.Tensor) -> None:
    """Bring what the scheduler remembers of earlier steps in line with a fusion step: ε_i ← ε_i + (ε' - ε̃).

    The fusion step changes the noise in the state by ε' - ε̃ and leaves the picture in it. Solvers that remember
    predicted *pictures* (DPM++, UniPC) have nothing to follow; solvers that remember predicted *noise* (PNDM, LMS,
    DEIS) would go on with noise that is no longer there, and end in a picture full of it. So what they remember
    changes as the noise in the state did.

    UniPC and SA-Solver also begin a step by computing the state that they are given anew from the one before
    ("corrector"), which would undo the fusion step. Without the one before they take the state as it is.

    Args:
        scheduler: Any scheduler, after a fusion step and before its `step`.
        noise_change: ε' - ε̃. [B, C, h, w]

    Example:
        >>> from diffusers import LMSDiscreteScheduler
        >>> scheduler = LMSDiscreteScheduler()
        >>> scheduler.derivatives = [torch.zeros(1), torch.ones(1)]
        >>> follow_fusion(scheduler, torch.ones(1))
        >>> scheduler.derivatives
        [tensor([1.]), tensor([2.])]
    """
    if isinstance(scheduler, PNDMScheduler):  # remembers raw outputs; v = sqrt(ᾱ_i) ε - ... of the level it stems from
        starts = [index for index in range(scheduler.counter) if _starts_a_step(scheduler, index, 0)]
        timesteps = scheduler.timesteps[starts[len(starts) - len(scheduler.ets) :]]
        signals = scheduler.alphas_cumprod[timesteps.cpu()].sqrt().tolist()
        if scheduler.config.prediction_type == "epsilon":
            signals = [1.0] * len(signals)
        scheduler.ets = [output + signal * noise_change for output, signal in zip(scheduler.ets, signals, strict=True)]
    elif isinstance(scheduler, LMSDiscreteScheduler):
        scheduler.derivatives = [derivative + noise_change for derivative in scheduler.derivatives]
    elif _remembers_noise(scheduler):
        outputs = scheduler.model_outputs
        scheduler.model_outputs = [None if output is None else output + noise_change for output in outputs]
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None


def _remembers_noise(scheduler: SchedulerMixin) -> bool:
    if isinstance(scheduler, UniPCMultistepScheduler):
        return not scheduler.predict_x0
    return scheduler.config.get("algorithm_type") in ("deis", "dpmsolver", "sde-dpmsolver", "noise_prediction")


def _alpha_bar(scheduler: SchedulerMixin, index: int) -> float:
    if hasattr(scheduler, "sigmas"):  # sigma² = (1-ᾱ)/ᾱ, whether or not the state is in sigma space
        return 1 / (1 + float(scheduler.sigmas[index]) ** 2)
    return float(scheduler.alphas_cumprod[scheduler.timesteps[index].long().cpu()])


def _state_scale(scheduler: SchedulerMixin, alpha_bar: float) -> float:
    in_sigma_space = scheduler.init_noise_sigma != 1
    return alpha_bar**-0.5 if in_sigma_space else 1.0


def _starts_a_step(scheduler: SchedulerMixin, index: int, begin: int) -> bool:
    if isinstance(scheduler, PNDMScheduler):
        num_runge_kutta = len(scheduler.prk_timesteps)  # four stages each; without them, PLMS repeats its first step
        return index % 4 == 0 if index < num_runge_kutta else num_runge_kutta > 0 or index != 1
    if isinstance(scheduler, DPMSolverSinglestepScheduler):
        return scheduler.order_list[index] == 1 or index == begin  # begun inside a step, it starts one of order 1
    return index % scheduler.order == 0


def _refuse_unfit(scheduler: SchedulerMixin, begin: int) -> None:
    _refuse_without_alpha_bar(scheduler, *FUSION)
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        _refuse(scheduler, f"its `prediction_type` is {prediction_type!r}, not epsilon, v_prediction or sample")
    if isinstance(scheduler, PNDMScheduler) and begin > 0:
        _refuse(scheduler, "with `strength` < 1 its timesteps and its state are one level apart")
    if isinstance(scheduler, LMSDiscreteScheduler) and begin > 0:
        _refuse(scheduler, "with `strength` < 1 its first steps count on steps before them")


def _refuse_without_alpha_bar(scheduler: SchedulerMixin, task: str, instead: str) -> None:
    if not hasattr(scheduler, "alphas_cumprod"):
        _refuse(scheduler, "it has no `alphas_cumprod`", task, instead)
    if scheduler.config.get("use_flow_sigmas"):
        _refuse(scheduler, "its `use_flow_sigmas` makes it a flow, not a diffusion", task, instead)


def _refuse(scheduler: SchedulerMixin, reason: str, task: str = FUSION[0], instead: str = FUSION[1]) -> None:
    raise ValueError(
        f"{type(scheduler).__name__} can't {task}: {reason}. Take another scheduler, such as DDIMScheduler, or "
        f"{instead}."
    )
