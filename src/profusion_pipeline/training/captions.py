"""What a sample's text is: the picture's caption with parts left out at random, or the run's prompt.

A caption says what is in a picture and is not the person, so that S* need not carry it: "a photo of S*, wearing a green
hoodie, at the beach, smiling".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CLIPTokenizer

from ..method.text_encoders import tokenize_prompts
from .data import CAPTION


def drop_parts(caption: str, placeholder: str, dropout: float, generator: np.random.Generator) -> str:
    """Leave out comma-separated parts of a caption, each by chance; the one with the placeholder stays.

    Args:
        caption: Holds the placeholder once.
        placeholder: What stands for the person.
        dropout: Probability with which a part is left out, in 0..1.
        generator: Decides; one number is drawn for each part.

    Returns:
        The parts that are left, in their order.

    Example:
        >>> drop_parts("a photo of S*, smiling", "S*", 1.0, np.random.default_rng(0))
        'a photo of S*'
    """
    parts = caption.split(",")
    draws = generator.random(len(parts))
    kept = [part for part, draw in zip(parts, draws, strict=True) if placeholder in part or draw >= dropout]
    return ",".join(kept).strip()


@dataclass(frozen=True)
class SamplePrompts:
    """The tokens of samples' texts.

    Args:
        tokenizers: Of the one text encoder, or of both.
        prompt: The text of samples without a caption.
        placeholder: What stands for the person in prompt and captions.
        num_subject_tokens: Places to reserve for S*.
        pad: Whether to pad to the tokenizer's length.
        dropout: Probability with which a part of a caption is left out.
        seed: Of the run.

    Example:
        >>> prompts = SamplePrompts([pipe.tokenizer], "a photo of S*", "S*", 1)  # doctest: +SKIP
        >>> ids, positions = prompts.tokens([0, 1], ["a photo of S*, smiling", ""])  # doctest: +SKIP
    """

    tokenizers: Sequence[CLIPTokenizer]
    prompt: str
    placeholder: str
    num_subject_tokens: int
    pad: bool = True
    dropout: float = 0.0
    seed: int = 0

    def text(self, number: int, caption: str) -> str:
        """What S* of a sample must complete: a pure function of the seed, the number and the caption.

        Args:
            number: Sample number.
            caption: As in the data; empty if there is none.

        Returns:
            A text with the placeholder in it.
        """
        if not caption:
            return self.prompt
        if not self.dropout:
            return caption
        return drop_parts(caption, self.placeholder, self.dropout, np.random.default_rng((self.seed, CAPTION, number)))

    def tokens(self, numbers: Sequence[int], captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of a batch.

        Args:
            numbers: Sample numbers.
            captions: One for each; empty where there is none.

        Returns:
            Ids [B, T], or [B, 2, T] for two tokenizers, and the first position of S* [B]; of one text if no sample
            has a caption.

        Raises:
            ValueError: S* stands beyond the last position that the text encoder reads.
        """
        texts = [self.text(*pair) for pair in zip(numbers, captions, strict=True)] if any(captions) else [self.prompt]
        return tokenize_prompts(
            self.tokenizers,
            texts,
            placeholder=self.placeholder,
            num_subject_tokens=self.num_subject_tokens,
            pad=self.pad,
            name_what_is_cut=False,  # at every step anew
        )
