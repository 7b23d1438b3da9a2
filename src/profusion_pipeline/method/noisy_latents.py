"""x_t of a call: the timesteps that it runs through, what it begins with, and whether it stays finite."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from . import noise_levels, subject_embedding


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


def first(
    scheduler: SchedulerMixin,
    begin: int,
    given: torch.Tensor | None,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    subjects: Sequence[subject_embedding.SubjectEmbedding],
    *,
    like: torch.Tensor,
) -> torch.Tensor:
    """What a call begins with: given latents, or noise, or the subjects' first references at that noise level.

    Args:
        scheduler: After `set_timesteps`.
        begin: Which of its timesteps is the call's first.
        given: Latents in place of the noise, or None. [B, C, h, w]
        shape: B, C, h and w.
        generator: Of the noise.
        subjects: Of P prompts, where the call starts from their pictures; else none.
        like: A tensor of the device and the dtype that the call computes in.

    Returns:
        The scheduler's state. [B, C, h, w]

    Example:
        >>> from diffusers import DDIMScheduler
        >>> first(DDIMScheduler(), 0, torch.ones(1, 4, 8, 8), (1, 4, 8, 8), None, [], like=torch.zeros(1)).mean()
        tensor(1.)
    """
    if given is not None:
        return given.to(like.device) * (scheduler.init_noise_sigma if begin == 0 else 1)
    noise = randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)
    if not subjects:
        return noise * scheduler.init_noise_sigma
    origins = torch.cat([subject.latents[:1] for subject in subjects]).to(noise)  # [P, C, h, w]
    origins = origins.repeat_interleave(len(noise) // len(origins), dim=0)  # [B, C, h, w]
    return scheduler.add_noise(origins, noise, scheduler.timesteps[begin].repeat(len(origins)))


def check_finite(tensor: torch.Tensor, what: str) -> None:
    """What a call computes must be finite, or the range of its dtype was too small."""
    if not torch.isfinite(tensor).all():  # waits for the device
        raise _not_finite(tensor.dtype, what)


def check_steps(finite: list[torch.Tensor], timesteps: torch.Tensor, dtype: torch.dtype) -> None:
    """Names the first step whose latents were not finite."""
    good = torch.stack(finite) if finite else torch.ones(1)
    if not good.all():  # waits for the device, once
        i = good.tolist().index(False)
        what = f"the latents after step {i + 1} of {len(timesteps)} (timestep {float(timesteps[i]):g})"
        raise _not_finite(dtype, what)


def _not_finite(dtype: torch.dtype, what: str) -> RuntimeError:
    narrow = torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max
    advice = (
        "Its range may be too small: `pipe.to(torch.bfloat16)` has the range of float32."
        if narrow
        else "The call was given finite numbers: look at its scales, the models' weights, the scheduler, and what "
        "a callback returns."
    )
    return RuntimeError(f"Not all of {what} are finite numbers in {dtype}. {advice}")
