"""Checks of one value each, before any model runs: an error says name, expectation and what was given.

A check of a number gives it back as one of Python, so that numpy's are taken. Only the standard library is imported
here: commands check their settings before torch is.
"""

import math
import operator
import os
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from . import quoting

MOST = 10_000  # steps or pictures of a call; more is a slip of the keys that would never end
LARGEST = 10_000  # scale or weight; more leaves the numbers that half precision has
HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")

# Arguments of other pipelines, and what has their place here.
ELSEWHERE = {
    "ip_adapter_image": "`image` is the photo that PromptNet reads, a `LearntSubject` has that of a loaded IP-Adapter",
    "ip_adapter_image_embeds": "`subject` takes what `encode_subject` made of a photo, or a `LearntSubject` with these",
    "input_id_images": "`image` is the photo of the subject",
    "id_embeds": "`subject` takes what `encode_subject` made of a photo",
    "prompt_2": "every text encoder reads `prompt`",
    "negative_prompt_2": "every text encoder reads `negative_prompt`",
    "padding_mask_crop": "cut the picture and its mask before the call",
    "guess_mode": "every row of a prediction goes through the ControlNet with its own text",
    "clip_skip": "PromptNet learnt its words for one layer of the text encoder",
    "timesteps": "the scheduler's own settings hold",
    "sigmas": "the scheduler's own settings hold",
    "callback": "`callback_on_step_end` has its place",
    "callback_steps": "`callback_on_step_end` is called after each step",
    "max_embeddings_multiples": "`long_prompts=True` reads texts of any length",
}


def check_names(names: Sequence[str]) -> None:
    """Arguments that a call doesn't have, where another pipeline's has them."""
    for name in names:
        if name in ELSEWHERE:
            raise TypeError(f"`{name}` is no argument of this pipeline: {ELSEWHERE[name]}.")


def check_number(name: str, value: Any, *, at_least: float = 0, at_most: float = math.inf) -> float:
    """A setting that must be a finite number, the same for all pictures of a call."""
    if isinstance(value, list | tuple):
        raise TypeError(f"`{name}` must be one number for the whole call, got {quoting.quote(value)}.")
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number, got {quoting.quote(value)}.")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or not at_least <= number <= at_most:
        raise ValueError(f"`{name}` must be a finite number{_range(at_least, at_most)}, got {quoting.quote(value)}.")
    return number


def check_scale(name: str, value: Any, *, signed: bool = False) -> float:
    """A number that what models make is multiplied by: more than `LARGEST` is finite, and its pictures are not."""
    number = check_number(name, value, at_least=-math.inf if signed else 0)
    if abs(number) > LARGEST:
        raise ValueError(f"`{name}` must be at most {LARGEST}, whatever its sign, got {quoting.quote(value)}.")
    return number


def check_count(name: str, value: Any, *, at_least: float, at_most: float = math.inf) -> int:
    """A setting that must be a whole number."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a whole number, got {quoting.quote(value)}.")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, got {quoting.quote(value)}.")
    if value > at_most:
        raise ValueError(f"`{name}` must be at most {at_most}, got {quoting.quote(value)}.")
    return operator.index(value)


def check_counts(**counts: Any) -> list[int]:
    """Settings that must be whole numbers, of 1 to `MOST`, by their names; in their order."""
    return [check_count(name, value, at_least=1, at_most=MOST) for name, value in counts.items()]


def _range(at_least: float, at_most: float) -> str:
    """A range, as an error says it after the word "number"."""
    if at_most == math.inf:
        return "" if at_least == -math.inf else f" of at least {at_least:g}"
    return f" of at most {at_most:g}" if at_least == -math.inf else f" of {at_least:g} to {at_most:g}"


def check_flag(name: str, value: Any) -> bool:
    """A setting that must be yes or no; `"no"` would count as yes."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):  # numpy's, of 1 and of 2
        raise TypeError(f"`{name}` must be True or False, got {quoting.quote(value)}.")
    return bool(value)


def check_strength(strength: Any, num_inference_steps: int) -> float:
    """How much of the schedule a call runs: a share that leaves a step."""
    strength = check_number("strength", strength)
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], got {strength}.")
    if int(num_inference_steps * strength) == 0:
        raise ValueError(f"`strength` must leave at least one of {num_inference_steps} steps, got {strength}.")
    return strength


def check_fusion_eta(eta: float, shares: Sequence[float]) -> None:
    """The share k = 1 - η² (...) of noise that fusion steps keep must be in [-1, 1]."""
    if shares and min(shares) < -1:
        largest = eta * (2 / (1 - min(shares))) ** 0.5
        raise ValueError(f"`fusion_eta` must be at most {largest:.4f} with this schedule, got {eta}.")


def check_lora_scale(cross_attention_kwargs: Any) -> float:
    """How much LoRA layers count in a call, on top of `set_adapters`: "scale" of a dictionary, 1 without it."""
    if cross_attention_kwargs is None:
        return 1.0
    if not isinstance(cross_attention_kwargs, dict):
        raise TypeError(f"`cross_attention_kwargs` must be a dictionary, got {quoting.quote(cross_attention_kwargs)}.")
    for name in cross_attention_kwargs:
        if not isinstance(name, str):
            raise TypeError(f"`cross_attention_kwargs` must have names for keys, got {quoting.quote(name)}.")
    scale = cross_attention_kwargs.get("scale", 1.0)
    return check_scale('cross_attention_kwargs["scale"]', scale, signed=True)


def check_weights(weights: Any, num_references: int, name: str = "image_weights") -> list[float]:
    """The weight of each reference of a subject; equal with a sum of 1 if None."""
    if weights is None:
        return [1 / num_references] * num_references
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"`{name}` must have a number for each reference, got {quoting.quote(weights)}.")
    if len(weights) != num_references:
        raise ValueError(f"`{name}` must have an entry for each of {num_references} references, got {len(weights)}.")
    weights = [check_scale(name, weight) for weight in weights]
    if not any(weights):
        raise ValueError(f"`{name}` must not all be 0, got {quoting.quote(weights)}.")
    return weights


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """A setting that must be one of a few names."""
    if value not in choices:
        raise ValueError(f"`{name}` must be {' or '.join(map(repr, choices))}, got {quoting.quote(value)}.")


def check_choices(name: str, values: Any, choices: Sequence[str]) -> None:
    """A setting that is a list of a few names."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"`{name}` must be a list of names, got {quoting.quote(values)}.")
    for value in values:
        check_choice(name, value, choices)


def check_place(name: str, place: Any) -> str:
    """Where something is read from: what is there on this machine, or what can be a repository of the Hub."""
    if not isinstance(place, str | os.PathLike):
        raise TypeError(f"`{name}` must be a folder or a Hub id, got {quoting.quote(place)}.")
    text = os.fspath(place)
    # `os.path` says no of names that no file can have, where `Path` has an error of its own.
    if not os.path.exists(text) and not HUB_ID.fullmatch(text):
        raise FileNotFoundError(
            f"`{name}` must be a folder or file that exists, or the Hub id of a repository, got {quoting.quote(text)}."
        )
    return text


def check_files(variant: Any, max_shard_size: Any) -> None:
    """A word for the names of weight files and their largest size: found out beforehand, not while they are written."""
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]{1,40}", variant)):
        raise ValueError(f"`variant` must be a word for names of files, such as fp16, got {quoting.quote(variant)}.")
    is_text = isinstance(max_shard_size, str) and re.fullmatch(r"[1-9]\d{0,8}[KMGT]B", max_shard_size)
    is_count = isinstance(max_shard_size, int) and not isinstance(max_shard_size, bool) and max_shard_size > 0
    if max_shard_size is not None and not is_text and not is_count:
        raise ValueError(
            f"`max_shard_size` must be a number of bytes, or a text such as 5GB, got {quoting.quote(max_shard_size)}."
        )


def check_callback(callback: Any) -> None:
    """What is called after each step, or None."""
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback_on_step_end` must be callable, got {quoting.quote(callback)}.")


def check_not_both(name: str, value: Any, other_name: str, other_value: Any) -> None:
    """Two settings that say the same thing."""
    if value is not None and other_value is not None:
        raise ValueError(f"`{name}` and `{other_name}` must not both be given.")


def check_without(name: str, texts: Sequence[str], placeholder: str) -> None:
    """Texts that must not hold the placeholder."""
    for text in texts:
        if placeholder in text:
            raise ValueError(f"`{name}` must not hold the placeholder {placeholder!r}, got {quoting.quote(text)}.")


def check_characters(name: str, text: str) -> None:
    """A text that a tokenizer can read: no half of a pair of UTF-16, as badly decoded text has."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"`{name}` must be a text without lone surrogates, got {ascii(text[:60])}.")
