"""x_t of a call: the timesteps that it runs through, what it begins with, and whether it stays finite."""

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from . import noise_levels


def set_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int, strength: float, device: torch.device | str
) -> tuple[torch.Tensor, int]:
    """Prepare a scheduler for a call.

    Args:
        scheduler: Any that Stable Diffusion takes.
        num_inference_steps: Of the whole schedule.
        strength: The share of it that the call runs, in (0, 1].
        device: Where the call computes.

    Returns:
        The timesteps of the call, and which of the scheduler's is the first of them.

    Raises:
        ValueError: It is no such scheduler.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> set_timesteps(DDIMScheduler(), 4, 0.5, "cpu")
        (tensor([250,   0]), 2)
    """
    noise_levels.check_scheduler(scheduler)
    scheduler.set_timesteps(num_inference_steps, device=device)
    begin = (num_inference_steps - int(num_inference_steps * strength)) * scheduler.order
    if begin > 0 and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:], begin


def noise(
    given: torch.Tensor | None,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    *,
    like: torch.Tensor,
) -> torch.Tensor:
    """What a call draws its first latents from: given latents, or z.

    Args:
        given: Latents in place of the noise, or None. [B, C, h, w]
        shape: B, C, h and w.
        generator: Of the noise.
        like: A tensor of the device and the dtype that the call computes in.

    Returns:
        N(0, I), or what is given. [B, C, h, w]

    Example:
        >>> noise(None, (1, 4, 8, 8), torch.Generator().manual_seed(0), like=torch.zeros(1)).shape
        torch.Size([1, 4, 8, 8])
    """
    if given is not None:
        return given.to(like.device)
    return randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)


def first(scheduler: SchedulerMixin, begin: int, drawn: torch.Tensor, clean: torch.Tensor | None) -> torch.Tensor:
    """What a call begins with: noise; or, where it runs a part of the schedule, a picture at that noise level.

    Args:
        scheduler: After `set_timesteps`.
        begin: Which of its timesteps is the call's first.
        drawn: Of `noise`. [B, C, h, w]
        clean: x_0 of each picture, not read at the schedule's beginning; without one `drawn` is the state that the
            call goes on from. [B, C, h, w]

    Returns:
        The scheduler's state. [B, C, h, w]

    Example:
        >>> from diffusers import DDIMScheduler
        >>> first(DDIMScheduler(), 0, torch.ones(1, 4, 8, 8), None).mean()
        tensor(1.)
    """
    if begin == 0:
        return drawn * scheduler.init_noise_sigma
    if clean is None:
        return drawn
    return scheduler.add_noise(clean.to(drawn), drawn, scheduler.timesteps[begin].repeat(len(clean)))


class FiniteSteps:
    """Watches the latents of a call; on a CPU it looks at once, elsewhere at the end, because a look waits for it.

    Args:
        timesteps: Of the call.

    Example:
        >>> watched = FiniteSteps(torch.tensor([999, 499]))
        >>> watched.add(torch.zeros(1, 4, 8, 8))
        >>> watched.check()
    """

    def __init__(self, timesteps: torch.Tensor):
        self._timesteps, self._dtype = timesteps, torch.float32
        self.finite: list[torch.Tensor] = []  # whether those after each step were, on the device

    def add(self, latents: torch.Tensor) -> None:
        """Those after a step.

        Args:
            latents: The scheduler's state. [B, C, h, w]

        Raises:
            RuntimeError: On a CPU, if they are not finite.
        """
        self.finite.append(torch.isfinite(latents).all())
        self._dtype = latents.dtype
        if latents.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Names the first step whose latents were not finite.

        Raises:
            RuntimeError: There is one.
        """
        good = torch.stack(self.finite) if self.finite else torch.ones(1)
        if not good.all():  # waits for the device, once
            i = good.tolist().index(False)
            what = f"the latents after step {i + 1} of {len(self._timesteps)} (timestep {float(self._timesteps[i]):g})"
            raise _not_finite(self._dtype, what)


def check_finite(tensor: torch.Tensor, what: str) -> None:
    """What a call computes must be finite, or the range of its dtype was too small."""
    if not torch.isfinite(tensor).all():  # waits for the device
        raise _not_finite(tensor.dtype, what)


def _not_finite(dtype: torch.dtype, what: str) -> RuntimeError:
    narrow = torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max
    advice = (
        "Its range may be too small: `pipe.to(torch.bfloat16)` has the range of float32."
        if narrow
        else "The call was given finite numbers: look at its scales, the models' weights, the scheduler, and what "
        "a callback returns."
    )
    return RuntimeError(f"Not all of {what} are finite numbers in {dtype}. {advice}")
