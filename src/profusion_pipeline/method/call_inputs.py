"""What a call is given, checked before any model runs, as plain numbers and with one entry for each prompt.

A check gives back what it has checked, a number of numpy as one of Python; an error says name, expectation and value.
"""

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

from . import framing


def shown(value: Any) -> str:
    """A value as an error shows it: its `repr`, cut where it is long.

    Args:
        value: Anything.

    Returns:
        At most 100 characters.

    Example:
        >>> shown("S* " * 1000)
        "'S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* S* ..."
    """
    text = type(value).__name__ if isinstance(value, torch.Tensor) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# Arguments of other pipelines, and what has their place here.
ELSEWHERE = {
    "ip_adapter_image": "`image` is the photo of the subject, which PromptNet reads in place of an IP-Adapter",
    "ip_adapter_image_embeds": "`subject` takes what `encode_subject` made of a photo",
    "input_id_images": "`image` is the photo of the subject",
    "id_embeds": "`subject` takes what `encode_subject` made of a photo",
    "prompt_2": "there is one text encoder",
    "guidance_rescale": "it isn't part of the method",
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


# --- Numbers --------------------------------------------------------------------------------------------------------


def check_number(name: str, value: Any, *, at_least: float = 0, at_most: float = math.inf) -> float:
    """A setting that must be a finite number, the same for all pictures of a call."""
    if isinstance(value, list | tuple):
        raise TypeError(f"`{name}` must be one number for the whole call, got {shown(value)}.")
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number, got {shown(value)}.")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or not at_least <= number <= at_most:
        limits = f"at least {at_least:g}" if at_most == math.inf else f"{at_least:g} to {at_most:g}"
        raise ValueError(f"`{name}` must be a finite number of {limits}, got {shown(value)}.")
    return number


def check_count(name: str, value: Any, *, at_least: int) -> int:
    """A setting that must be a whole number."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a whole number, got {shown(value)}.")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, got {shown(value)}.")
    return operator.index(value)


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
        raise TypeError(f"`cross_attention_kwargs` must be a dictionary, got {shown(cross_attention_kwargs)}.")
    scale = cross_attention_kwargs.get("scale", 1.0)
    return check_number('cross_attention_kwargs["scale"]', scale, at_least=-math.inf)


def check_weights(weights: Any, num_references: int) -> list[float]:
    """The weight of each reference of a subject; equal with a sum of 1 if None."""
    if weights is None:
        return [1 / num_references] * num_references
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"`image_weights` must have a number for each reference, got {shown(weights)}.")
    if len(weights) != num_references:
        raise ValueError(
            f"`image_weights` must have an entry for each of {num_references} references, got {len(weights)}."
        )
    weights = [check_number("image_weights", weight) for weight in weights]
    if not any(weights):
        raise ValueError(f"`image_weights` must not all be 0, got {shown(weights)}.")
    return weights


# --- Things of other kinds ------------------------------------------------------------------------------------------


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """A setting that must be one of a few words."""
    if value not in choices:
        raise ValueError(f"`{name}` must be {' or '.join(map(repr, choices))}, got {shown(value)}.")


def check_choices(name: str, values: Any, choices: Sequence[str]) -> None:
    """A setting that is a list of a few words."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"`{name}` must be a list of words, got {shown(values)}.")
    for value in values:
        check_choice(name, value, choices)


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
    bad = ~torch.isfinite(tensor.float())  # which 8-bit floats don't know themselves
    if bad.any():
        raise ValueError(f"`{name}` must hold finite numbers, got {int(bad.sum())} that aren't.")


def check_floats(name: str, tensor: Any, shape: str) -> None:
    """A tensor of finite floats with a letter of `shape`, such as "R C h w", for each of its dimensions."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"`{name}` must be a tensor of floats, got {kind}.")
    letters = shape.split()
    if tensor.ndim != len(letters) or not tensor.numel():
        wanted = f"[{', '.join(letters)}]"
        raise ValueError(f"`{name}` must have the shape {wanted}, none of them 0, got {list(tensor.shape)}.")
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
        raise ValueError(f"`weights` must be 0 or more, and not all 0, got {shown(weights.tolist())}.")


def check_callback(callback: Any) -> None:
    """What is called after each step, or None."""
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback_on_step_end` must be callable, got {shown(callback)}.")


def check_generator(generator: Any, num_pictures: int) -> None:
    """Where random numbers come from: a generator, a list with one for each picture, or None."""
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {shown(generator)}.")
    if isinstance(generator, list) and len(generator) != num_pictures:
        raise ValueError(f"`generator` must have an entry for each of {num_pictures} pictures, got {len(generator)}.")


def check_not_both(name: str, value: Any, other_name: str, other_value: Any) -> None:
    """Two settings that say the same thing."""
    if value is not None and other_value is not None:
        raise ValueError(f"`{name}` and `{other_name}` must not both be given.")


def check_without(name: str, texts: Sequence[str], placeholder: str) -> None:
    """Texts that must not hold the placeholder."""
    for text in texts:
        if placeholder in text:
            raise ValueError(f"`{name}` must not hold the placeholder {placeholder!r}, got {shown(text)}.")


# --- One value for all prompts, or one for each ---------------------------------------------------------------------


def list_prompts(prompt: Any) -> list[str]:
    """The prompts of a call as a list.

    Args:
        prompt: One text or a list of texts.

    Returns:
        At least one text.

    Raises:
        TypeError: It is neither.
        ValueError: The list is empty.

    Example:
        >>> list_prompts("S* on the beach")
        ['S* on the beach']
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise TypeError(f"`prompt` must be a text or a list of texts, got {shown(prompt)}.")
    if not prompts:
        raise ValueError("`prompt` must have at least one text, got an empty list.")
    for text in prompts:
        check_characters("prompt", text)
    return prompts


def check_characters(name: str, text: str) -> None:
    """A text that a tokenizer can read: no half of a pair of UTF-16, as badly decoded text has."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"`{name}` must be a text without lone surrogates, got {ascii(text)[:100]}.")


def list_per_prompt(name: str, values: Any, num_prompts: int) -> list:
    """Something for each prompt: the same for all, or the entries of a list.

    Args:
        name: Of the setting.
        values: One value that isn't a list, or a list with one entry for each prompt.
        num_prompts: How many there must be.

    Returns:
        `num_prompts` values.

    Raises:
        ValueError: The list has another length.

    Example:
        >>> list_per_prompt("image", "ada.png", 2)
        ['ada.png', 'ada.png']
    """
    if not isinstance(values, list):
        return [values] * num_prompts
    if len(values) != num_prompts:
        raise ValueError(f"`{name}` must have an entry for each of {num_prompts} prompts, got {len(values)}.")
    return values


def list_texts(name: str, texts: Any, num_prompts: int, *, without: str | None = None) -> list[str]:
    """A text for each prompt.

    Args:
        name: Of the setting.
        texts: One text for all prompts, or a list with one for each.
        num_prompts: How many there must be.
        without: What they must not hold, the placeholder.

    Returns:
        `num_prompts` texts.

    Raises:
        TypeError: It is neither.
        ValueError: The list has another length, or a text holds what it must not.

    Example:
        >>> list_texts("negative_prompt", "blurry", 2)
        ['blurry', 'blurry']
    """
    for text in texts if isinstance(texts, list) else [texts]:
        if not isinstance(text, str):
            raise TypeError(f"`{name}` must be a text or a list of texts, got {shown(texts)}.")
        check_characters(name, text)
        if without is not None:
            check_without(name, [text], without)
    return list_per_prompt(name, texts, num_prompts)


def list_class_prompts(prompts: list[str], placeholder: str, class_noun: Any, class_prompt: Any) -> list[str]:
    """The class prompt of each prompt: given whole, or the prompt with a noun in place of S*.

    Args:
        prompts: With the placeholder.
        placeholder: What stands for the subject.
        class_noun: One noun for all prompts, a list with one for each, or None.
        class_prompt: One text for all prompts, a list with one for each, or None. It goes before `class_noun`.

    Returns:
        A text for each prompt.

    Raises:
        TypeError: They are of another type.
        ValueError: Both are None, or a list has another length.

    Example:
        >>> list_class_prompts(["S* on the beach"], "S*", "person", None)
        ['person on the beach']
    """
    if class_prompt is not None:
        return list_texts("class_prompt", class_prompt, len(prompts), without=placeholder)
    if class_noun is None:
        raise ValueError(
            "`class_noun` or `class_prompt` must say the prompt without S*, because `class_guidance_scale` isn't 0, "
            "got None for both."
        )
    nouns = list_texts("class_noun", class_noun, len(prompts), without=placeholder)
    return [prompt.replace(placeholder, noun) for prompt, noun in zip(prompts, nouns, strict=True)]


def list_weights(image_weights: Any, num_images: int) -> list:
    """The weights of each subject's references.

    Args:
        image_weights: None, a list of numbers for every subject, or a list with such a list (or None) for each.
        num_images: How many subjects there are.

    Returns:
        `num_images` lists of numbers or None.

    Raises:
        ValueError: The list of lists has another length.

    Example:
        >>> list_weights([0.7, 0.3], 2)
        [[0.7, 0.3], [0.7, 0.3]]
    """
    if isinstance(image_weights, list) and not any(isinstance(entry, Real) for entry in image_weights):
        return list_per_prompt("image_weights", image_weights, num_images)
    return [image_weights] * num_images


def list_subjects(subject: Any, num_prompts: int, promptnet_config: dict[str, Any]) -> list:
    """The encoded subject of each prompt.

    Args:
        subject: A SubjectEmbedding for all prompts, or a list with one for each.
        num_prompts: How many there must be.
        promptnet_config: Of the PromptNet that will read them.

    Returns:
        `num_prompts` subjects.

    Raises:
        TypeError: It is something else.
        ValueError: The list has another length, or a subject was encoded for another PromptNet.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> len(list_subjects(pipe.encode_subject(demo_portraits()[0]), 3, pipe.promptnet.config))
        3
    """
    subjects = list_per_prompt("subject", subject, num_prompts)
    for number, one in enumerate(subjects):
        name = f"subject[{number}]" if isinstance(subject, list) else "subject"
        if not all(hasattr(one, part) for part in ("latents", "image_states", "weights")):
            raise TypeError(f"`{name}` must be a SubjectEmbedding, got {type(one).__name__}.")
        widths = (one.latents.shape[1], one.image_states.shape[2])
        wanted = (promptnet_config["in_channels"], promptnet_config["image_embed_dim"])
        if widths != wanted:
            raise ValueError(
                f"`{name}` must have {wanted[0]} latent channels and vision states {wanted[1]} wide, which this "
                f"PromptNet reads, got {widths[0]} and {widths[1]}: it was encoded by another pipeline."
            )
        for part in ("latents", "image_states"):
            check_finite(f"{name}.{part}", getattr(one, part))
    return subjects


# --- Components and sizes -------------------------------------------------------------------------------------------


def check_components_fit(components: dict[str, Any]) -> None:
    """PromptNet must be as wide as what it reads and what reads it."""
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
                f"`promptnet` must fit `{component}`, whose `{theirs}` is {width}, got one with `{ours}` "
                f"{promptnet[ours]}."
            )


def check_image_encoder(components: dict[str, Any]) -> None:
    """A picture can only be encoded by a pipeline that has what it takes."""
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
    scale = framing.vae_scale_factor(components["vae"])
    sides = subjects[0].latents.shape[-2:] if subjects else [trained] * 2 if isinstance(trained, int) else trained
    height = check_count("height", scale * sides[0] if height is None else height, at_least=1)
    width = check_count("width", scale * sides[1] if width is None else width, at_least=1)
    unit = scale * promptnet.grid_stride
    smallest = unit * promptnet.config.region_kernel_size
    if height % unit or width % unit or min(height, width) < smallest:
        raise ValueError(
            f"`height` and `width` must be multiples of {unit} and at least {smallest}, got {height} and {width}."
        )
    words = promptnet.num_subject_tokens(height // scale, width // scale)
    room = components["tokenizer"].model_max_length
    if words > room - 2:  # begin and end have a place each
        raise ValueError(
            f"`height` and `width` must be smaller, because S* has a word for each region of the picture and the text "
            f"encoder reads {room} tokens, got {height} and {width} with {words} words."
        )
    for number, subject in enumerate(subjects):
        encoded_height, encoded_width = (scale * side for side in subject.latents.shape[-2:])
        if (encoded_height, encoded_width) != (height, width):
            name = f"subject[{number}]" if len(subjects) > 1 else "subject"
            raise ValueError(
                f"`{name}` must be encoded for pictures of {height} x {width}, got one for {encoded_height} x "
                f"{encoded_width}."
            )
    return height, width
