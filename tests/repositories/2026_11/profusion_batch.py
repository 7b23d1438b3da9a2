"""What a call gives each prompt of a batch: one value for all prompts, or a list with one entry for each."""

from numbers import Real
from typing import Any


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
        raise TypeError(f"`prompt` must be a text or a list of texts, not {prompt!r}.")
    if not prompts:
        raise ValueError("`prompt` is an empty list: give at least one text.")
    return prompts


def list_texts(name: str, texts: Any, num_prompts: int) -> list[str]:
    """A text for each prompt.

    Args:
        name: Of the setting.
        texts: One text for all prompts, or a list with one for each.
        num_prompts: How many there must be.

    Returns:
        `num_prompts` texts.

    Raises:
        TypeError: It is neither.
        ValueError: The list has another length.

    Example:
        >>> list_texts("negative_prompt", "blurry", 2)
        ['blurry', 'blurry']
    """
    if isinstance(texts, str):
        return [texts] * num_prompts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"`{name}` must be a text or a list of texts, not {texts!r}.")
    return list_per_prompt(name, texts, num_prompts)


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
        raise ValueError(f"`{name}` has {len(values)} entries, but there are {num_prompts} prompts.")
    return values


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
        return list_texts("class_prompt", class_prompt, len(prompts))
    if class_noun is None:
        raise ValueError(
            "`class_noun` and `class_prompt` are both None, but `class_guidance_scale` needs the prompt without S*: "
            "give one of them, or `class_guidance_scale=0`."
        )
    nouns = list_texts("class_noun", class_noun, len(prompts))
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
    for one in subjects:
        if not all(hasattr(one, name) for name in ("latents", "image_states", "weights")):
            raise TypeError(f"`subject` must be a SubjectEmbedding or a list of them, not {type(one).__name__}.")
        widths = (one.latents.shape[1], one.image_states.shape[2])
        wanted = (promptnet_config["in_channels"], promptnet_config["image_embed_dim"])
        if widths != wanted:
            raise ValueError(
                f"`subject` has {widths[0]} latent channels and vision states {widths[1]} wide, but PromptNet reads "
                f"{wanted[0]} and {wanted[1]}: it was encoded by another pipeline."
            )
    return subjects
