"""Checks of tensors and generators that a call is given, before any model runs."""

from typing import Any

import torch

from . import checks, quoting

LARGEST = 1_000_000  # of what models read; more is finite, and what they make of it is not
FLOATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def check_tensor(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A tensor given in place of what the pipeline would make itself, or None."""
    if tensor is None:
        return
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}.")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"`{name}` must have the shape {shape}, got {tuple(tensor.shape)}.")
    if tensor.dtype != dtype:
        raise TypeError(f"`{name}` must be of the pipeline's dtype {dtype}, got {tensor.dtype}.")
    check_finite(name, tensor)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Numbers that a call computes with."""
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "the device meta" if tensor.is_meta else f"the layout {tensor.layout}"
        raise ValueError(f"`{name}` must be a dense tensor that holds its numbers, got one of {kind}.")
    numbers = tensor.float()  # 8-bit floats don't know themselves whether they are finite
    bad = ~torch.isfinite(numbers)
    if bad.any():
        raise ValueError(f"`{name}` must hold finite numbers, got {int(bad.sum())} that aren't.")
    if numbers.numel() and (largest := numbers.abs().max().item()) > LARGEST:
        raise ValueError(f"`{name}` must hold numbers of at most {LARGEST}, got one of {largest:.3g}.")


def check_floats(name: str, tensor: Any, shape: str) -> None:
    """A tensor of finite floats with a letter of `shape`, such as "R C h w", for each of its dimensions."""
    check_float_tensor(name, tensor)
    letters = shape.split()
    if tensor.ndim != len(letters) or not tensor.numel():
        wanted = f"[{', '.join(letters)}]"
        raise ValueError(f"`{name}` must have the shape {wanted}, none of them 0, got {list(tensor.shape)}.")


def check_float_tensor(name: str, tensor: Any) -> None:
    """A tensor of finite floats, of 16, 32 or 64 bits or of the two kinds of 8 bits that models are stored in."""
    dtype = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
    if dtype not in FLOATS:
        raise TypeError(f"`{name}` must be a tensor of floats, got {dtype}.")
    check_finite(name, tensor)


def check_subject(latents: Any, image_states: Any, weights: Any) -> None:
    """The three tensors of one subject: latents [R, C, h, w], vision states [R, N, V] and weights [R]."""
    check_floats("latents", latents, "R C h w")
    check_floats("image_states", image_states, "R N V")
    check_floats("weights", weights, "R")
    if not len(latents) == len(image_states) == len(weights):
        raise ValueError(
            "`latents`, `image_states` and `weights` must be of the same R references, got "
            f"{len(latents)}, {len(image_states)} and {len(weights)}."
        )
    if min(weights.tolist()) < 0 or not any(weights.tolist()):
        raise ValueError(f"`weights` must be 0 or more, and not all 0, got {quoting.quote(weights.tolist())}.")
    for weight in weights.tolist():
        checks.check_scale("weights", weight)


def check_generator(generator: Any, num_pictures: int) -> None:
    """Where random numbers come from: a generator, a list with one for each picture, or None."""
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {quoting.quote(generator)}.")
    if isinstance(generator, list) and len(generator) != num_pictures:
        raise ValueError(f"`generator` must have an entry for each of {num_pictures} pictures, got {len(generator)}.")
