"""A subject that others have taught a model: words that stand for it, and where they were learnt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers.utils import logging
from torch import nn
from transformers import CLIPTokenizer

from . import checks, quoting, reference_images, subject_prompt

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class LearntSubject:
    """Words in place of S*: of textual inversion, or rare ones that a model was fine-tuned on. `subject` of a call.

    The words stand in the prompt wherever ε_{S*,C} is computed; for ε_C the class noun stands there, for ε_∅ nothing.

    Args:
        words: What the prompt says in place of S*, such as "<cat-toy>" or "sks dog".
        class_noun: What the subject is, such as "toy" or "dog": the words without what was learnt.
        adapter: The LoRA that was learnt with them, by the name that `load_lora_weights` gave it, or a list of several.
            It computes nothing but ε_{S*,C} of this subject, and the text encoder's part nothing but these words.
        scale: The adapter's weight, on top of `set_adapters`; a list gives each of several its own. 0 is the base,
            less than 0 leads away.
        unet: In place of adapters a whole UNet that was fine-tuned with the words, as DreamBooth does it. It computes
            ε_{S*,C} in a call of its own, beside the base's, and lies in memory beside it.
        ip_adapter_image: A picture for the IP-Adapter that `load_ip_adapter` has loaded, which ε_{S*,C} reads beside
            the words, and nothing else does. Of several IP-Adapters a list with an entry for each, which may be a list.
        ip_adapter_image_embeds: In its place what `prepare_ip_adapter_image_embeds` of diffusers makes, a tensor for
            each IP-Adapter. [1, n, F], or [2, n, F] with that of the null prompt first

    Raises:
        TypeError: A text is none, a scale no number, or an IP-Adapter's picture none.
        ValueError: A text is empty, a scale isn't finite, scales and adapters differ in number, arguments exclude each
            other, or a picture can't be read.

    Example:
        >>> LearntSubject("sks dog", class_noun="dog", adapter="dog", scale=0.8).adapters
        (('dog', 0.8),)
    """

    words: str
    class_noun: str
    adapter: str | Sequence[str] | None = None
    scale: float | Sequence[float] = 1.0
    unet: nn.Module | None = field(default=None, repr=False)
    ip_adapter_image: Any = field(default=None, repr=False, compare=False)
    ip_adapter_image_embeds: Sequence[torch.Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def adapters(self) -> tuple[tuple[str, float], ...]:
        """Each adapter and its weight."""
        names = () if self.adapter is None else (self.adapter,) if isinstance(self.adapter, str) else self.adapter
        scales = self.scale if isinstance(self.scale, list | tuple) else [self.scale] * len(names)
        return tuple(zip(names, scales, strict=True))

    @property
    def ip_adapter_given(self) -> dict[str, list]:
        """What there is for IP-Adapters, by its argument's name: an entry for each of them."""
        if self.ip_adapter_image_embeds is not None:
            return {"ip_adapter_image_embeds": list(self.ip_adapter_image_embeds)}
        return {} if self.ip_adapter_image is None else {"ip_adapter_image": self.ip_adapter_image}

    def weighted_adapters(self, active: Sequence[str], lora_scale: float) -> list[tuple[str, float]]:
        """Each adapter and its weight in a model, in a call that weighs LoRAs.

        Args:
            active: Adapters of the model that diffusers weighs itself.
            lora_scale: `cross_attention_kwargs["scale"]` of the call.

        Returns:
            Those whose weight isn't 0.

        Example:
            >>> LearntSubject("sks dog", class_noun="dog", adapter=["dog", "ink"]).weighted_adapters(["dog"], 0.5)
            [('dog', 1.0), ('ink', 0.5)]
        """
        weighted = [(name, scale * (1.0 if name in active else lora_scale)) for name, scale in self.adapters]
        return [pair for pair in weighted if pair[1] != 0]

    def __post_init__(self):
        self._check_adapters()
        self._check_image_prompt()
        for name in ("words", "class_noun"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"`{name}` of a LearntSubject must be a text, got {quoting.quote(text)}.")
            checks.check_characters(name, text)
            if not text.strip():
                raise ValueError(f"`{name}` of a LearntSubject must have at least one sign, got {quoting.quote(text)}.")

    def _check_image_prompt(self) -> None:
        pictures, embeds = self.ip_adapter_image, self.ip_adapter_image_embeds
        of_learnt = "of a LearntSubject exclude each other, got both"
        if pictures is not None and embeds is not None:
            raise ValueError(f"`ip_adapter_image` and `ip_adapter_image_embeds` {of_learnt}.")
        if self.unet is not None and (pictures is not None or embeds is not None):
            raise ValueError(f"`unet` and a picture for an IP-Adapter {of_learnt}.")
        if pictures is not None:  # read once: it may be an open file
            each = pictures if isinstance(pictures, list) else [pictures]
            read = [reference_images.load_reference_images(one, name="ip_adapter_image") for one in each]
            object.__setattr__(self, "ip_adapter_image", read)
        if embeds is not None and not (
            isinstance(embeds, list | tuple) and embeds and all(isinstance(one, torch.Tensor) for one in embeds)
        ):
            raise TypeError(
                "`ip_adapter_image_embeds` of a LearntSubject must be a list of tensors, one for each IP-Adapter, got "
                f"{quoting.quote(embeds)}."
            )

    def _check_adapters(self) -> None:
        given = self.adapter if isinstance(self.adapter, list | tuple) else [self.adapter]
        if self.adapter is not None and not (given and all(isinstance(one, str) and one for one in given)):
            raise TypeError(
                f"`adapter` of a LearntSubject must be a name or a list of names, got {quoting.quote(self.adapter)}."
            )
        if self.adapter is not None and self.unet is not None:
            raise ValueError("`adapter` and `unet` of a LearntSubject exclude each other, got both.")
        scales = self.scale if isinstance(self.scale, list | tuple) else [self.scale]
        for scale in scales:
            checks.check_scale("scale", scale, signed=True)
        if isinstance(self.scale, list | tuple) and len(scales) != len(given):
            raise ValueError(
                f"`scale` of a LearntSubject must have an entry for each of {len(given)} adapters, got {len(scales)}."
            )


def all_adapters(subjects: Sequence[Any]) -> tuple[str, ...]:
    """The adapters of some subjects, each once.

    Args:
        subjects: Learnt ones, or None.

    Returns:
        Their names.

    Example:
        >>> all_adapters([LearntSubject("sks dog", class_noun="dog", adapter="dog"), None])
        ('dog',)
    """
    return tuple(dict.fromkeys(name for one in subjects if one is not None for name, _ in one.adapters))


class LearntPrompt(NamedTuple):
    """A prompt of a call with learnt words in place of S*.

    Args:
        number: Of the prompt in the call.
        text: The prompt with the words in it.
        tokens: Which of the text's tokens are the words', counted without the begin token.
        subject: Whose words they are.
    """

    number: int
    text: str
    tokens: range
    subject: LearntSubject


def is_learnt(subject: Any) -> bool:
    """Whether a subject of a call is words.

    Args:
        subject: Of any kind, and of any version of this code.

    Returns:
        True for a [`LearntSubject`].

    Example:
        >>> is_learnt(LearntSubject("sks dog", class_noun="dog"))
        True
    """
    return type(subject).__name__ == "LearntSubject"


def loaded_words(tokenizer: CLIPTokenizer) -> list[str]:
    """The words that textual inversion has added to a tokenizer.

    Args:
        tokenizer: The text encoder's.

    Returns:
        Such as "<cat-toy>", and "<cat-toy>_1" for the second of several vectors.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> loaded_words(load_demo_pipeline().tokenizer)
        []
    """
    return sorted(set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens))


def name_missing_words(words: str, loaded: Sequence[str]) -> None:
    """Warn of words in angle brackets that the tokenizer would take apart: those that nobody has loaded.

    Args:
        words: Of a subject.
        loaded: By textual inversion.

    Example:
        >>> name_missing_words("<cat-toy>", ["<cat-toy>"])
    """
    missing = [word for word in re.findall(r"<[^<>\s]+>", words) if word not in loaded]
    if missing:
        logger.warning(
            "%s has no embedding of its own, so the tokenizer takes it apart: `pipe.load_textual_inversion` loads one. "
            "Loaded: %s.",
            quoting.quote(missing[0]),
            quoting.brief(", ".join(map(repr, loaded)) or "none"),
        )


def without_learnt(prompts: Sequence[str], subjects: Sequence[Any], placeholder: str) -> list[str]:
    """Prompts of a call for those subjects that PromptNet makes S* of; in place of the others' the placeholder alone.

    Args:
        prompts: With the placeholder.
        subjects: Of each prompt; or nothing.
        placeholder: What stands for the subject.

    Returns:
        As many prompts.

    Example:
        >>> without_learnt(["a S*", "S* on the moon"], [LearntSubject("sks dog", class_noun="dog"), None], "S*")
        ['S*', 'S* on the moon']
    """
    if not subjects:
        return list(prompts)
    return [placeholder if is_learnt(one) else prompt for prompt, one in zip(prompts, subjects, strict=True)]


def tokens_of_words(tokenizer: CLIPTokenizer, prefix: str, text: str, suffix: str) -> range:
    """Where the tokens between two parts of a text are.

    Args:
        tokenizer: The text encoder's.
        prefix: The beginning of the text.
        text: All of it; words may grow together with what is beside them, as in "sks dogs".
        suffix: The end of the text.

    Returns:
        Places among the text's tokens, without the begin token.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> tokens_of_words(load_demo_pipeline().tokenizer, "a ", "a red hat in space", " in space")
        range(1, 3)
    """
    before, tokens, after = (subject_prompt.token_ids(tokenizer, part) for part in (prefix, text, suffix))
    start = _num_equal(before, tokens)
    return range(start, len(tokens) - _num_equal(after[::-1], tokens[start:][::-1]))


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
