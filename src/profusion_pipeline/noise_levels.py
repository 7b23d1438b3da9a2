"""What a diffusers scheduler says about ᾱ: at which loop indices a fusion stage may stand, and between which levels.

A fusion stage changes the state in place, so it may only stand where the scheduler starts a step from the state that
it is given. Schedulers that take several model outputs for one step (Heun, KDPM2, single-step DPM++, the first
steps of PNDM) go back to a state that they have kept; there a change would be lost, or would not fit.
"""

from dataclasses import dataclass

from diffusers import DPMSolverSinglestepScheduler, PNDMScheduler, SchedulerMixin


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
    if hasattr(scheduler, "sigmas"):  # sigma² = (1-ᾱ)/ᾱ, whether or not the state is in sigma space
        alpha_bars = [1 / (1 + float(scheduler.sigmas[index]) ** 2) for index in [*starts, -1]]
    else:
        last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        alpha_bars = [float(scheduler.alphas_cumprod[scheduler.timesteps[index].long().cpu()]) for index in starts]
        alpha_bars.append(last)
    if any(now > then for now, then in zip(alpha_bars[:-1], alpha_bars[1:], strict=True)):
        _refuse(scheduler, "it goes from less noise to more")
    in_sigma_space = scheduler.init_noise_sigma != 1
    levels = {
        index: NoiseLevel(now, then, state_scale=now**-0.5 if in_sigma_space else 1.0)
        for index, now, then in zip(starts, alpha_bars[:-1], alpha_bars[1:], strict=True)
    }
    return [levels.get(index) for index in range(begin, count)]


def forget_last_state(scheduler: SchedulerMixin) -> None:
    """Make the scheduler's next step start from the state that it is given.

    UniPC and SA-Solver begin a step by computing its state anew from the one before ("corrector"), which would undo a
    fusion stage. Without the one before they take the state as it is; their predictor keeps its history.

    Args:
        scheduler: Any scheduler, after a fusion stage and before its `step`.

    Example:
        >>> from diffusers import UniPCMultistepScheduler
        >>> scheduler = UniPCMultistepScheduler()
        >>> forget_last_state(scheduler)
        >>> scheduler.last_sample is None
        True
    """
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None


def _starts_a_step(scheduler: SchedulerMixin, index: int, begin: int) -> bool:
    if isinstance(scheduler, PNDMScheduler):
        num_runge_kutta = len(scheduler.prk_timesteps)  # four stages each; without them, PLMS repeats its first step
        return index % 4 == 0 if index < num_runge_kutta else num_runge_kutta > 0 or index != 1
    if isinstance(scheduler, DPMSolverSinglestepScheduler):
        return scheduler.order_list[index] == 1 or index == begin  # begun inside a step, it starts one of order 1
    return index % scheduler.order == 0


def _refuse_unfit(scheduler: SchedulerMixin, begin: int) -> None:
    if not hasattr(scheduler, "alphas_cumprod"):
        _refuse(scheduler, "it has no `alphas_cumprod`")
    if scheduler.config.get("use_flow_sigmas"):
        _refuse(scheduler, "its `use_flow_sigmas` makes it a flow, not a diffusion")
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        _refuse(scheduler, f"its `prediction_type` is {prediction_type!r}, not epsilon, v_prediction or sample")
    if isinstance(scheduler, PNDMScheduler) and begin > 0:
        _refuse(scheduler, "with `strength` < 1 its timesteps and its state are one level apart")


def _refuse(scheduler: SchedulerMixin, reason: str) -> None:
    raise ValueError(
        f"{type(scheduler).__name__} can't carry the fusion stage: {reason}. Take another scheduler, such as "
        "DDIMScheduler, or `num_fusion_steps=0`."
    )
