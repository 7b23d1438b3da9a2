"""One text encoder or two side by side: token ids -> what the UNet reads of texts, with or without S* in them.

Stable Diffusion 1.x and 2.x have one, whose last hidden state the UNet reads. Stable Diffusion XL has two, each with a
tokenizer of its own: their last but one hidden states stand side by side along D, and the second's pooled text goes
beside the time. S* is as wide as both together, and each encoder gets its part.

Letters in shapes: P texts, E text encoders (left out where there is one), T tokens, L pseudo words, D width of all text
encoders together.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import nn
from transformers import CLIPTokenizer

from . import prompt_pieces, subject_prompt


class TextOutput(NamedTuple):
    """What the UNet reads of texts.

    Args:
        states: Text states. [P, T, D]
        pooled: Of Stable Diffusion XL's second text encoder; else None. [P, F]
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None


def text_width(text_encoders: Sequence[nn.Module]) -> int:
    """D, the width of all text encoders together.

    Args:
        text_encoders: One or two.

    Returns:
        Also the width of S*.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> text_width([load_demo_pipeline().text_encoder])
        192
    """
    return sum(encoder.config.hidden_size for encoder in text_encoders)


def encode_ids(
    text_encoders: Sequence[nn.Module],
    input_ids: torch.Tensor,
    *,
    lora_scale: float = 1.0,
    positions: torch.Tensor | None = None,
    subject_embeds: torch.Tensor | None = None,
) -> TextOutput:
    """c = text(prefix, S*, suffix), or c = text(C) without S*.

    Args:
        text_encoders: One or two.
        input_ids: Tokens. [P, T] for one encoder, [P, E, T] for two
        lora_scale: Of the text encoders' LoRA, on top of `set_adapters`.
        positions: The place of S*, if there is one. [P]
        subject_embeds: S*. [P, L, D]

    Returns:
        States, and pooled text.

    Raises:
        ValueError: S* isn't as wide as the text encoders.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> ids = subject_prompt.tokenize_texts(pipe.tokenizer, ["a portrait"])
        >>> encode_ids([pipe.text_encoder], ids).states.shape
        torch.Size([1, 64, 192])
    """
    widths = [encoder.config.hidden_size for encoder in text_encoders]
    if subject_embeds is not None and subject_embeds.shape[-1] != sum(widths):
        raise ValueError(
            f"S* must be as wide as the text encoders together, {sum(widths)}, got {subject_embeds.shape[-1]}."
        )
    ids = [input_ids] if len(text_encoders) == 1 else input_ids.unbind(-2)  # each [P, T]
    # Each [P, L, width]
    parts = [None] * len(widths) if subject_embeds is None else subject_embeds.split(widths, dim=-1)
    outputs = []
    for encoder, own_ids, own_embeds in zip(text_encoders, ids, parts, strict=True):
        with ExitStack() as stack:
            stack.enter_context(subject_prompt.scaled_lora(encoder, lora_scale))
            if own_embeds is not None:
                stack.enter_context(subject_prompt.subject_in_place(encoder, positions, own_embeds))
            outputs.append(encoder(own_ids, **{"output_hidden_states": True} if len(widths) > 1 else {}))
    if len(outputs) == 1:
        return TextOutput(outputs[0].last_hidden_state)
    return TextOutput(torch.cat([one.hidden_states[-2] for one in outputs], dim=-1), outputs[-1].text_embeds)


def zero_text(text_encoders: Sequence[nn.Module], num_texts: int, length: int) -> TextOutput:
    """What Stable Diffusion XL reads in place of an empty text.

    Args:
        text_encoders: Two.
        num_texts: P.
        length: T.

    Returns:
        Zeros.

    Example:
        >>> zero_text([pipe.text_encoder, pipe.text_encoder_2], 1, 77).pooled.shape  # doctest: +SKIP
        torch.Size([1, 1280])
    """
    dtype, width = next(text_encoders[-1].parameters()).dtype, text_encoders[-1].config.projection_dim
    # On the CPU: off-loaded weights may be on no device at all.
    states = torch.zeros(num_texts, length, text_width(text_encoders), dtype=dtype)
    return TextOutput(states, torch.zeros(num_texts, width, dtype=dtype))


def stack_ids(per_encoder: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tokens of the same texts by the tokenizer of each text encoder, as [`encode_ids`] reads them.

    Args:
        per_encoder: One or two tensors. [..., T] each

    Returns:
        The only one, or both. [..., T] or [..., E, T]

    Example:
        >>> stack_ids([torch.zeros(3, 77)] * 2).shape
        torch.Size([3, 2, 77])
    """
    return per_encoder[0] if len(per_encoder) == 1 else torch.stack(tuple(per_encoder), dim=-2)


def tokenize_prompts(
    tokenizers: Sequence[CLIPTokenizer],
    prompts: Sequence[str],
    *,
    placeholder: str,
    num_subject_tokens: int,
    pad: bool = True,
    name_what_is_cut: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with S* for one text encoder or two, as `subject_prompt.tokenize_subject_prompts` makes them for one.

    Args:
        tokenizers: One or two.
        prompts: With the placeholder.
        placeholder: What stands for S*.
        num_subject_tokens: L.
        pad: Whether to the tokenizer's whole length.
        name_what_is_cut: Whether words beyond that length are warned of.

    Returns:
        Ids [P, T], or [P, 2, T] for two, and the first place of S* [P].

    Raises:
        ValueError: A prompt has no place for S*, or the tokenizers put it at different places.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> tokenizer = load_demo_pipeline().tokenizer
        >>> tokenize_prompts([tokenizer] * 2, ["a S*"], placeholder="S*", num_subject_tokens=1)[0].shape
        torch.Size([1, 2, 64])
    """
    shared = dict(placeholder=placeholder, num_subject_tokens=num_subject_tokens, pad=pad)
    per_encoder = [
        subject_prompt.tokenize_subject_prompts(
            tokenizer, prompts, **shared, name_what_is_cut=name_what_is_cut and number == 0
        )
        for number, tokenizer in enumerate(tokenizers)
    ]
    tokens = stack_tokens([prompt_pieces.SubjectTokens(*one) for one in per_encoder])
    return tokens.input_ids, tokens.positions


def stack_tokens(per_encoder: Sequence[prompt_pieces.SubjectTokens]) -> prompt_pieces.SubjectTokens:
    """Tokens of the same prompts with S* by the tokenizer of each text encoder.

    Args:
        per_encoder: One or two.

    Returns:
        The only one, or both with their ids side by side.

    Raises:
        ValueError: The tokenizers put S* at different places.

    Example:
        >>> tokens = prompt_pieces.SubjectTokens(torch.zeros(1, 77), torch.tensor([4]))
        >>> stack_tokens([tokens, tokens]).input_ids.shape
        torch.Size([1, 2, 77])
    """
    first, *others = per_encoder
    for other in others:
        for name in ("positions", "piece"):
            ours, theirs = (
                one if one is None else one.tolist() for one in (getattr(first, name), getattr(other, name))
            )
            if ours != theirs:
                raise ValueError(
                    f"The tokenizers must read as many tokens before S*, got {ours} and {theirs}: load learnt words "
                    "into both text encoders."
                )
    pieces = None if first.pieces is None else stack_ids([one.pieces for one in per_encoder])
    return first._replace(input_ids=stack_ids([one.input_ids for one in per_encoder]), pieces=pieces)
