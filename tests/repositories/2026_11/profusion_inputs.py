"""What a call of the pipeline may be given, checked before any model runs: name, value and expectation."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch


def check_number(name: str, value: Any, *, at_least: float = 0) -> None:
    """A setting that must be a finite number.

    Args:
        name: Of the setting.
        value: What was given.
        at_least: The smallest number allowed.

    Raises:
        TypeError: It isn't a number.
        ValueError: It isn't finite, or too small.

    Example:
        >>> check_number("guidance_scale", 7.0)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number, not {value!r}.")
    if not math.isfinite(value) or value < at_least:
        raise ValueError(f"`{name}` must be a finite number of at least {at_least}, not {value!r}.")


def check_window(start_name: str, start: Any, end_name: str, end: Any) -> None:
    """Two shares that must be the bounds of a part.

    Args:
        start_name: Of the first setting.
        start: What was given for it.
        end_name: Of the second setting.
        end: What was given for it.

    Raises:
        TypeError: One isn't a number.
        ValueError: One is outside 0 to 1, or the part is empty.

    Example:
        >>> check_window("fusion_start", 0.0, "fusion_end", 0.5)
    """
    check_number(start_name, start)
    check_number(end_name, end)
    if not start < end <= 1:
        raise ValueError(
            f"`{start_name}` must be less than `{end_name}`, and that at most 1, not {start!r} and {end!r}."
        )


def check_count(name: str, value: Any, *, at_least: int) -> None:
    """A setting that must be a whole number.

    Args:
        name: Of the setting.
        value: What was given.
        at_least: The smallest number allowed.

    Raises:
        TypeError: It isn't a whole number.
        ValueError: It is too small.

    Example:
        >>> check_count("num_inference_steps", 50, at_least=1)
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a whole number, not {value!r}.")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, not {value}.")


def check_weights(weights: Any, num_references: int) -> list[float]:
    """The weight of each reference of a subject.

    Args:
        weights: One number for each reference, or None, which makes them equal with a sum of 1.
        num_references: How many references there are.

    Returns:
        `num_references` numbers.

    Raises:
        TypeError: It isn't a sequence of numbers.
        ValueError: There are more or fewer, one is negative or not finite, or all are 0.

    Example:
        >>> check_weights(None, 2)
        [0.5, 0.5]
    """
    if weights is None:
        return [1 / num_references] * num_references
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"`image_weights` must have a number for each reference, not {weights!r}.")
    if len(weights) != num_references:
        raise ValueError(f"`image_weights` has {len(weights)} entries, but there are {num_references} references.")
    for weight in weights:
        check_number("image_weights", weight)
    if not any(weights):
        raise ValueError(f"`image_weights` are all 0: {weights!r}. At least one reference must count.")
    return list(weights)


def check_tensor(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A tensor given in place of what the pipeline would make itself.

    Args:
        name: Of the setting.
        tensor: What was given.
        shape: What it must have.
        dtype: What it must have.

    Raises:
        TypeError: It isn't a tensor, or of another dtype.
        ValueError: It has another shape.

    Example:
        >>> check_tensor("latents", torch.zeros(1, 4, 8, 8), (1, 4, 8, 8), torch.float32)
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor, not {type(tensor).__name__}.")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"`{name}` must have the shape {shape}, not {tuple(tensor.shape)}.")
    if tensor.dtype != dtype:
        raise TypeError(f"`{name}` must be of the pipeline's dtype {dtype}, not {tensor.dtype}.")


def check_generator(generator: Any, num_pictures: int) -> None:
    """Where random numbers come from.

    Args:
        generator: A `torch.Generator`, a list with one for each picture, or None.
        num_pictures: How many pictures the call makes.

    Raises:
        TypeError: It is none of these.
        ValueError: The list has another length.

    Example:
        >>> check_generator([torch.Generator()] * 2, 2)
    """
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, not {generator!r}.")
    if isinstance(generator, list) and len(generator) != num_pictures:
        raise ValueError(f"`generator` has {len(generator)} entries, but the call makes {num_pictures} pictures.")


def check_not_both(name: str, value: Any, other_name: str, other_value: Any) -> None:
    """Two settings that say the same thing.

    Args:
        name: Of one.
        value: Of one.
        other_name: Of the other.
        other_value: Of the other.

    Raises:
        ValueError: Neither is None.

    Example:
        >>> check_not_both("image", None, "subject", 1)
    """
    if value is not None and other_value is not None:
        raise ValueError(f"`{name}` and `{other_name}` are both given: give one of them.")


def check_without(name: str, texts: Sequence[str], placeholder: str) -> None:
    """Texts that must not hold the placeholder.

    Args:
        name: Of the setting.
        texts: What was given.
        placeholder: What stands for the subject in other texts.

    Raises:
        ValueError: One of them holds it.

    Example:
        >>> check_without("prompt", ["a person on the beach"], "S*")
    """
    for text in texts:
        if placeholder in text:
            raise ValueError(f"`{name}` must not hold the placeholder {placeholder!r} here, but {text!r} does.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """A setting that must be one of a few words.

    Args:
        name: Of the setting.
        value: What was given.
        choices: The words.

    Raises:
        ValueError: It is another.

    Example:
        >>> check_choice("output_type", "pil", ("pil", "np"))
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be {' or '.join(map(repr, choices))}, not {value!r}.")


def check_strength(strength: Any, num_inference_steps: int) -> None:
    """How much of the schedule a call runs.

    Args:
        strength: What was given.
        num_inference_steps: Of the whole schedule.

    Raises:
        TypeError: It isn't a number.
        ValueError: It is outside (0, 1], or leaves no step.

    Example:
        >>> check_strength(0.5, 50)
    """
    check_number("strength", strength)
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], not {strength}.")
    if int(num_inference_steps * strength) == 0:
        raise ValueError(f"`strength` {strength} leaves none of {num_inference_steps} steps to do.")


def read_lora_scale(cross_attention_kwargs: Any) -> float:
    """How much LoRA layers count in a call, on top of what `set_adapters` has said.

    Args:
        cross_attention_kwargs: What was given: a dictionary, in which "scale" is this number, or None.

    Returns:
        The number, 1 if none is given.

    Raises:
        TypeError: It isn't a dictionary, or the scale isn't a number.
        ValueError: The scale is negative or not finite.

    Example:
        >>> read_lora_scale({"scale": 0.5}), read_lora_scale(None)
        (0.5, 1.0)
    """
    if cross_attention_kwargs is None:
        return 1.0
    if not isinstance(cross_attention_kwargs, dict):
        raise TypeError(f"`cross_attention_kwargs` must be a dictionary, not {cross_attention_kwargs!r}.")
    scale = cross_attention_kwargs.get("scale", 1.0)
    check_number("scale", scale)
    return scale


def check_fusion_eta(eta: float, shares: Sequence[float]) -> None:
    """The share k of noise that fusion steps keep must be in [-1, 1].

    Args:
        eta: `fusion_eta`.
        shares: k = 1 - η² (...) at every timestep with a fusion stage.

    Raises:
        ValueError: One is below -1.

    Example:
        >>> check_fusion_eta(1.0, [0.2, 0.9])
    """
    if shares and min(shares) < -1:
        largest = eta * (2 / (1 - min(shares))) ** 0.5
        raise ValueError(f"`fusion_eta` must be at most {largest:.4f} with this schedule, not {eta}.")


def check_components_fit(components: dict[str, Any]) -> None:
    """PromptNet must be as wide as what it reads and what reads it.

    Args:
        components: Of the pipeline, by name.

    Raises:
        ValueError: A width differs.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> check_components_fit(load_demo_pipeline().components)
    """
    promptnet = components["promptnet"].config
    widths = [
        ("text_embed_dim", "text_encoder", "hidden_size"),
        ("in_channels", "unet", "in_channels"),
        ("in_channels", "vae", "latent_channels"),
        ("image_embed_dim", "image_encoder", "hidden_size"),
    ]
    for ours, component, theirs in widths:
        if components[component] is None:  # the image encoder may be missing
            continue
        width = getattr(components[component].config, theirs)
        if promptnet[ours] != width:
            raise ValueError(
                f"`promptnet` doesn't fit `{component}`: its `{ours}` is {promptnet[ours]}, but `{theirs}` there is "
                f"{width}."
            )


def check_image_encoder(components: dict[str, Any]) -> None:
    """A picture can only be encoded by a pipeline that has what it takes.

    Args:
        components: Of the pipeline, by name.

    Raises:
        ValueError: The image encoder or its feature extractor is missing.

    Example:
        >>> check_image_encoder({"image_encoder": 1, "feature_extractor": 1})
    """
    for name in ("image_encoder", "feature_extractor"):
        if components[name] is None:
            raise ValueError(f"This pipeline has no `{name}`: give `subject`, encoded by a pipeline that has one.")


def choose_size(height: Any, width: Any, subjects: Sequence, components: dict[str, Any]) -> tuple[int, int]:
    """The size of the pictures in pixels.

    Args:
        height: What was given, or None.
        width: What was given, or None.
        subjects: Encoded subjects, if any; their size is the default.
        components: Of the pipeline, by name; the UNet's trained size is the default without subjects.

    Returns:
        Height and width.

    Raises:
        TypeError: They aren't whole numbers.
        ValueError: PromptNet can't read latents of that size, or a subject was encoded for another.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> choose_size(None, None, [], load_demo_pipeline().components)
        (64, 64)
    """
    promptnet, trained = components["promptnet"], components["unet"].config.sample_size
    scale = 2 ** (len(components["vae"].config.block_out_channels) - 1)
    sides = subjects[0].latents.shape[-2:] if subjects else [trained] * 2 if isinstance(trained, int) else trained
    height = scale * sides[0] if height is None else height
    width = scale * sides[1] if width is None else width
    check_count("height", height, at_least=1)
    check_count("width", width, at_least=1)
    unit = scale * promptnet.grid_stride
    smallest = unit * promptnet.config.region_kernel_size
    if height % unit or width % unit or min(height, width) < smallest:
        raise ValueError(
            f"`height` and `width` must be multiples of {unit} and at least {smallest}, not {height} and {width}."
        )
    for subject in subjects:
        encoded_height, encoded_width = (scale * side for side in subject.latents.shape[-2:])
        if (encoded_height, encoded_width) != (height, width):
            raise ValueError(
                f"`subject` was encoded for pictures of {encoded_height} x {encoded_width}, not {height} x {width}."
            )
    return height, width
