"""What a call is given, with one entry for each prompt, and the size of its pictures; checked before any model runs."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from . import checks, framing, learnt_subject, quoting, tensor_checks

MAX_PIXELS = 4096 * 4096  # of a picture to be made; more is a slip of the keys


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
        raise TypeError(f"`prompt` must be a text or a list of texts, got {quoting.quote(prompt)}.")
    if not prompts:
        raise ValueError("`prompt` must have at least one text, got an empty list.")
    for text in prompts:
        checks.check_characters("prompt", text)
    return prompts


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
            raise TypeError(f"`{name}` must be a text or a list of texts, got {quoting.quote(texts)}.")
        checks.check_characters(name, text)
        if without is not None:
            checks.check_without(name, [text], without)
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
        ValueError: Both are None, a noun is empty, or a list has another length.

    Example:
        >>> list_class_prompts(["S* on the beach"], "S*", "person", None)
        ['person on the beach']
    """
    if class_prompt is not None:
        return list_texts("class_prompt", class_prompt, len(prompts), without=placeholder)
    if class_noun is None:
        raise ValueError(
            "`class_noun` or `class_prompt` must say the prompt without S*, because `class_guidance_scale` isn't 0 "
            "or `fusion_text` is 'mixed', got None for both."
        )
    nouns = list_texts("class_noun", class_noun, len(prompts), without=placeholder)
    if blank := [noun for noun in nouns if not noun.strip()]:
        raise ValueError(f"`class_noun` must say what the subject is, such as 'person', got {quoting.quote(blank[0])}.")
    return [prompt.replace(placeholder, noun) for prompt, noun in zip(prompts, nouns, strict=True)]


def class_nouns(subjects: Sequence[Any], class_noun: Any) -> Any:
    """The class noun of each prompt: a learnt subject brings its own.

    Args:
        subjects: Of each prompt; or nothing.
        class_noun: As of the call.

    Returns:
        `class_noun` where no subject is learnt, else a list.

    Example:
        >>> class_nouns([learnt_subject.LearntSubject("sks dog", class_noun="dog")], "person")
        ['dog']
    """
    if not any(map(learnt_subject.is_learnt, subjects)):
        return class_noun
    given = list_per_prompt("class_noun", class_noun, len(subjects))
    return [
        one.class_noun if learnt_subject.is_learnt(one) else noun for one, noun in zip(subjects, given, strict=True)
    ]


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


def list_subjects(subject: Any, num_prompts: int, promptnet: Any) -> list:
    """The subject of each prompt, encoded or learnt.

    Args:
        subject: A SubjectEmbedding or LearntSubject for all prompts, or a list with one for each.
        num_prompts: How many there must be.
        promptnet: That will read them, or None.

    Returns:
        `num_prompts` subjects.

    Raises:
        TypeError: It is something else.
        ValueError: The list has another length, a subject was encoded for another PromptNet, or there is none.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> len(list_subjects(pipe.encode_subject(demo_portraits()[0]), 3, pipe.promptnet))
        3
    """
    subjects = list_per_prompt("subject", subject, num_prompts)
    for number, one in enumerate(subjects):
        name = f"subject[{number}]" if isinstance(subject, list) else "subject"
        if learnt_subject.is_learnt(one):
            continue
        if not all(hasattr(one, part) for part in ("latents", "image_states", "weights")):
            raise TypeError(f"`{name}` must be a SubjectEmbedding or a LearntSubject, got {type(one).__name__}.")
        check_promptnet(promptnet)
        widths = (one.latents.shape[1], one.image_states.shape[2])
        wanted = (promptnet.config["in_channels"], promptnet.config["image_embed_dim"])
        if widths != wanted:
            raise ValueError(
                f"`{name}` must have {wanted[0]} latent channels and vision states {wanted[1]} wide, which this "
                f"PromptNet reads, got {widths[0]} and {widths[1]}: it was encoded by another pipeline."
            )
        for part in ("latents", "image_states"):
            tensor_checks.check_finite(f"{name}.{part}", getattr(one, part))
    return subjects


def check_somebody(images: Sequence, subjects: Sequence, *, needed: bool, pictured: bool) -> None:
    """There must be somebody for S* to stand for, and a picture of them where the call starts from one."""
    if not images and not subjects and (needed or pictured):
        raise ValueError("`image` or `subject` must be given, for S* to stand for somebody, got None for both.")
    if pictured and any(map(learnt_subject.is_learnt, subjects)):
        raise ValueError(
            "`strength` below 1 starts from a picture of the subject, and a LearntSubject has none: give `init_image` "
            "or `latents`."
        )


def check_components_fit(components: dict[str, Any]) -> None:
    """PromptNet, if there is one, must be as wide as what it reads and what reads it."""
    if components["promptnet"] is None:
        return
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
        parts = [components[component], components.get(f"{component}_2")]  # Stable Diffusion XL has two text encoders
        width = sum(getattr(part.config, theirs) for part in parts if part is not None)
        if promptnet[ours] != width:
            raise ValueError(
                f"`promptnet` must fit `{component}`, whose `{theirs}` is {width}, got one with `{ours}` "
                f"{promptnet[ours]}."
            )


def check_promptnet(promptnet: Any) -> None:
    """Of a picture, encoded or not, only PromptNet makes S*."""
    if promptnet is None:
        raise ValueError(
            "This pipeline has no `promptnet`, which makes S* of a picture: load one that has, or give it another kind "
            "of `subject`."
        )


def check_image_encoder(components: dict[str, Any]) -> None:
    """A picture can only be encoded by a pipeline that has what it takes."""
    check_promptnet(components["promptnet"])
    for name in ("image_encoder", "feature_extractor"):
        if components[name] is None:
            raise ValueError(f"This pipeline has no `{name}`: give `subject`, encoded by a pipeline that has one.")


def choose_size(height: Any, width: Any, subjects: Sequence, components: dict[str, Any]) -> tuple[int, int]:
    """The size of the pictures in pixels.

    Args:
        height: What was given, or None.
        width: What was given, or None.
        subjects: Of the prompts, if any; the size of those that are encoded is the default, and learnt ones fit any.
        components: Of the pipeline, by name; the UNet's trained size is the default without subjects.

    Returns:
        Height and width.

    Raises:
        TypeError: They aren't whole numbers.
        ValueError: PromptNet or the VAE can't read pictures of that size, a subject was encoded for another, or there
            would be more than 4096 x 4096 pixels.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> choose_size(None, None, [], load_demo_pipeline().components)
        (64, 64)
    """
    encoded = [subject for subject in subjects if not learnt_subject.is_learnt(subject)]
    promptnet = components["promptnet"] if encoded or not subjects else None
    subjects, trained = encoded, components["unet"].config.sample_size
    scale = framing.vae_scale_factor(components["vae"])
    sides = subjects[0].latents.shape[-2:] if subjects else [trained] * 2 if isinstance(trained, int) else trained
    height = checks.check_count("height", scale * sides[0] if height is None else height, at_least=1)
    width = checks.check_count("width", scale * sides[1] if width is None else width, at_least=1)
    # A compiled model has no truth value, so None is asked for by name.
    unit = scale * (1 if promptnet is None else promptnet.grid_stride)
    smallest = unit * (1 if promptnet is None else promptnet.config.region_kernel_size)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"`height` x `width` must be at most {MAX_PIXELS} pixels (4096 x 4096), got {quoting.quote(height)} x "
            f"{quoting.quote(width)}."
        )
    if height % unit or width % unit or min(height, width) < smallest:
        own = subjects and (height, width) == tuple(scale * side for side in sides)
        what = "The size of `subject`" if own else "`height` and `width`"
        raise ValueError(f"{what} must be multiples of {unit} and at least {smallest}, got {height} and {width}.")
    num_subject_tokens = 1 if promptnet is None else promptnet.num_subject_tokens(height // scale, width // scale)
    room = components["tokenizer"].model_max_length
    if num_subject_tokens > room - 2:  # begin and end have a place each
        raise ValueError(
            f"`height` and `width` must be smaller, because S* has a word for each region of the picture and the text "
            f"encoder reads {room} tokens, got {height} and {width} with {num_subject_tokens} words."
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
