"""The prompt with S* in it: from a string with a placeholder to text states that hold the pseudo word(s).

code name         paper    what
placeholder       -        the text that stands for the subject in a prompt, "S*"
subject_embeds    S*       pseudo words [B, L, D], as PromptNet gives them
positions         -        the position of the first pseudo word in the token sequence
scale             γ        `fusion_subject_scale`
"""

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from diffusers.utils import logging, scale_lora_layers, unscale_lora_layers
from transformers import CLIPTextModel, CLIPTokenizer

from . import quoting

logger = logging.get_logger(__name__)

# Of the forward that this thread runs: the positions of S* [B] and the pseudo words [B, L, D].
_SUBJECT: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("S* of a forward", default=None)
_TOKENIZING = threading.Lock()
STAND_INS = (
    "s*",
    "s *",
    "sks",
    "<s>",
    "<*>",
    "[v]",
    "<new1>",
    "<concept>",
    "{}",
)  # of other methods, where S* is meant


def find_placeholder(prompt: str, placeholder: str) -> tuple[str, str]:
    """prompt = prefix + placeholder + suffix: the text before and after the one placeholder.

    Args:
        prompt: The prompt.
        placeholder: What stands for the subject, such as `"S*"`. Case counts.

    Returns:
        Prefix and suffix.

    Raises:
        ValueError: If the placeholder isn't in the prompt, or more than once.

    Example:
        >>> from profusion_pipeline.method.subject_prompt import find_placeholder
        >>> prefix, suffix = find_placeholder("a photo of S* on the moon", "S*")  # "a photo of ", " on the moon"
    """
    pieces = prompt.split(placeholder)
    if len(pieces) != 2:
        plain = (
            unicodedata.normalize("NFKC", prompt).replace("\u2217", "*").lower()
        )  # other stars, letters of full width
        meant = [word for word in STAND_INS if len(pieces) == 1 and word in plain]
        hint = f" (write {placeholder!r} in place of {quoting.quote(meant[0])})" if meant else ""
        raise ValueError(
            f"`prompt` must hold the placeholder {placeholder!r} exactly once{hint}, got it {len(pieces) - 1} times in "
            f"{quoting.quote(prompt)}."
        )
    if pieces[0].endswith("<") and pieces[1].startswith(">"):
        raise ValueError(f"`prompt` must hold the placeholder as {placeholder!r}, got '<{placeholder}>'.")
    return pieces[0], pieces[1]


def tokenize_subject_prompts(
    tokenizer: CLIPTokenizer,
    prompts: list[str],
    *,
    placeholder: str,
    num_subject_tokens: int,
    max_length: int | None = None,
    pad: bool = True,
    name_what_is_cut: bool = True,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """ids = [bos, prefix, L reserved positions, suffix, eos, padding]: tokens around the positions of S*.

    Every token keeps its position in this sequence. A suffix beyond `max_length` is cut.

    Args:
        tokenizer: The text encoder's tokenizer.
        prompts: P prompts with one placeholder each.
        placeholder: What stands for the subject.
        num_subject_tokens: L, the number of positions to reserve.
        max_length: T, the longest sequence; the tokenizer's `model_max_length` if not given.
        pad: Whether to pad to `max_length`. Without padding (as in training, where the
            sequence is "a photo of S*" and nothing after it) all prompts must have the same number of tokens.
        name_what_is_cut: Whether a warning names the words that don't fit.

    Returns:
        Ids [P, T] (the reserved positions hold the bos token, which
        nothing reads) and the position of the first reserved one. [P]

    Raises:
        ValueError: If a prompt doesn't hold exactly one placeholder, if it stands beyond the last position, or if
            lengths differ without padding.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> from profusion_pipeline.method.subject_prompt import tokenize_subject_prompts
        >>> tokenizer = load_demo_pipeline().tokenizer
        >>> ids, positions = tokenize_subject_prompts(
        ...     tokenizer, ["a portrait of S*"], placeholder="S*", num_subject_tokens=1
        ... )
    """
    max_length = tokenizer.model_max_length if max_length is None else max_length
    rows, positions = [], []
    for prompt in prompts:
        prefix, suffix = find_placeholder(prompt, placeholder)
        before = [tokenizer.bos_token_id, *token_ids(tokenizer, prefix)]
        after = token_ids(tokenizer, suffix)
        room = max_length - len(before) - num_subject_tokens - 1  # positions left for the suffix; one is eos's
        if room < 0:
            raise ValueError(
                f"`prompt` must hold the placeholder {placeholder!r} nearer to its beginning: the text encoder reads "
                f"{max_length} tokens, got it at token {len(before)} with {num_subject_tokens} positions in "
                f"{quoting.quote(prompt)}."
            )
        if name_what_is_cut:
            _name_cut(tokenizer, after[room:], max_length)
        row = before + [tokenizer.bos_token_id] * num_subject_tokens + after[:room] + [tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (max_length - len(row)) if pad else row)
        positions.append(len(before))
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"Prompts of {[len(row) for row in rows]} tokens can't make one tensor without padding.")
    return torch.tensor(rows), torch.tensor(positions)  # [P, T], [P]


def _subject_index(positions: torch.Tensor, subject_shape: tuple[int, int, int]) -> torch.Tensor:
    batch, num_tokens, width = subject_shape
    rows = positions[:, None] + torch.arange(num_tokens, device=positions.device)  # [B, L]
    return rows[:, :, None].expand(batch, num_tokens, width)  # [B, L, D]


def encode_subject_prompts(
    text_encoder: CLIPTextModel, input_ids: torch.Tensor, positions: torch.Tensor, subject_embeds: torch.Tensor
) -> torch.Tensor:
    """c = text(prefix, S*, suffix): the text encoder's last hidden state with S* put into its embedding sequence.

    S* replaces token *and* position embedding; attention is causal and nothing is masked. Gradients flow into
    `subject_embeds`. The rows are put in by a hook on the embeddings, so the text encoder runs its own whole forward:
    this holds for every layout of transformers' CLIP and keeps off-loading and adapters alive. Threads may share it.

    Args:
        text_encoder: The UNet's text encoder.
        input_ids: As from [`tokenize_subject_prompts`]. [B, T]
        positions: As from [`tokenize_subject_prompts`]. [B]
        subject_embeds: The pseudo words. [B, L, D]

    Returns:
        The text states. [B, T, D]

    Raises:
        ValueError: If the pseudo words aren't as wide as the text encoder.

    Example:
        >>> import torch
        >>> from profusion_pipeline import load_demo_pipeline
        >>> from profusion_pipeline.method.subject_prompt import encode_subject_prompts, tokenize_subject_prompts
        >>> pipe = load_demo_pipeline()
        >>> ids, positions = tokenize_subject_prompts(
        ...     pipe.tokenizer, ["a portrait of S*"], placeholder="S*", num_subject_tokens=1
        ... )
        >>> subject_embeds = torch.randn(1, 1, pipe.text_encoder.config.hidden_size)
        >>> states = encode_subject_prompts(pipe.text_encoder, ids, positions, subject_embeds)
    """
    with subject_in_place(text_encoder, positions, subject_embeds):
        return text_encoder(input_ids).last_hidden_state  # [B, T, D]


@contextmanager
def subject_in_place(
    text_encoder: CLIPTextModel, positions: torch.Tensor, subject_embeds: torch.Tensor
) -> Iterator[None]:
    """In the block, this thread's forwards of a text encoder have S* in their embedding sequence.

    Args:
        text_encoder: The UNet's, or one of them.
        positions: As of [`encode_subject_prompts`]. [B]
        subject_embeds: As of [`encode_subject_prompts`]. [B, L, D]

    Raises:
        ValueError: If the pseudo words aren't as wide as the text encoder.

    Example:
        >>> with subject_in_place(pipe.text_encoder, positions, subject_embeds):  # doctest: +SKIP
        ...     states = pipe.text_encoder(input_ids).last_hidden_state
    """
    if subject_embeds.shape[-1] != text_encoder.config.hidden_size:
        raise ValueError(
            f"`subject_embeds` are {subject_embeds.shape[-1]} wide, but the text encoder has a width of "
            f"{text_encoder.config.hidden_size}."
        )
    text_model = getattr(text_encoder, "text_model", text_encoder)  # transformers 4 nests what 5 doesn't
    if _put_subject_in not in text_model.embeddings._forward_hooks.values():
        text_model.embeddings.register_forward_hook(_put_subject_in)
    before = _SUBJECT.set((positions, subject_embeds))
    try:
        yield
    finally:
        _SUBJECT.reset(before)


def _put_subject_in(module, args, embeddings: torch.Tensor) -> torch.Tensor:  # [B, T, D]
    """The hook stays on the model, which others may share; it changes the forward of a thread that has a subject."""
    if _SUBJECT.get() is None:
        return embeddings
    positions, subject_embeds = _SUBJECT.get()
    index = _subject_index(positions.to(embeddings.device), subject_embeds.shape)
    return embeddings.scatter(1, index, subject_embeds.to(embeddings))


def _name_cut(tokenizer: CLIPTokenizer, ids: list[int], max_length: int) -> None:
    if ids:
        logger.warning(
            "These words were left out of a prompt, because the text encoder reads %d tokens: %s",
            max_length,
            quoting.quote(tokenizer.decode(ids)),
        )


def token_ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Tokens of a text, without begin, end, padding and truncation.

    A tokenizer keeps the last two as its state, where another thread would find them.

    Args:
        tokenizer: The text encoder's.
        text: Of any length.

    Returns:
        Ids.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> len(token_ids(load_demo_pipeline().tokenizer, "hat hat"))
        2
    """
    with _TOKENIZING:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def encode_texts(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str], *, device: torch.device | str
) -> torch.Tensor:
    """c = text(C): the text encoder's last hidden state of texts without S*.

    One batch in the order given, a text that comes twice encoded twice, as `StableDiffusionPipeline` does it: bits are
    the same on every processor only where shapes are.

    Args:
        text_encoder: The UNet's text encoder.
        tokenizer: Its tokenizer. What is longer than its `model_max_length` T is cut.
        texts: P texts.
        device: Where the text encoder runs, which need not be where its parameters are.

    Returns:
        The text states. [P, T, D]

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> from profusion_pipeline.method.subject_prompt import encode_texts
        >>> pipe = load_demo_pipeline()
        >>> states = encode_texts(pipe.text_encoder, pipe.tokenizer, ["a portrait of a person", ""], device="cpu")
    """
    return text_encoder(tokenize_texts(tokenizer, texts).to(device)).last_hidden_state  # [P, T, D]


def tokenize_texts(tokenizer: CLIPTokenizer, texts: list[str], *, name_what_is_cut: bool = True) -> torch.Tensor:
    """ids = [bos, text, eos, padding]: tokens of texts without S*; what doesn't fit is cut, and named.

    Args:
        tokenizer: The text encoder's.
        texts: P texts.
        name_what_is_cut: Whether a warning names the words that don't fit.

    Returns:
        Ids. [P, T]

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> tokenize_texts(load_demo_pipeline().tokenizer, ["a portrait", ""]).shape
        torch.Size([2, 64])
    """
    length = tokenizer.model_max_length
    rows = [token_ids(tokenizer, text) for text in texts]
    for row in rows if name_what_is_cut else ():
        _name_cut(tokenizer, row[length - 2 :], length)
    rows = [[tokenizer.bos_token_id, *row[: length - 2], tokenizer.eos_token_id] for row in rows]
    return torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])


@contextmanager
def scaled_lora(text_encoder: CLIPTextModel, scale: float) -> Iterator[None]:
    """While it lasts, the text encoder's LoRA layers have `scale` times their weight.

    Args:
        text_encoder: The text encoder, with or without LoRA.
        scale: On top of the weights that `set_adapters` gave. 1 does nothing; anything else needs PEFT.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> from profusion_pipeline.method.subject_prompt import encode_texts, scaled_lora
        >>> pipe = load_demo_pipeline()
        >>> with scaled_lora(pipe.text_encoder, 1.0):
        ...     states = encode_texts(pipe.text_encoder, pipe.tokenizer, ["a portrait"], device="cpu")
        ...
    """
    if scale == 1:
        yield
        return
    scale_lora_layers(text_encoder, scale)
    try:
        yield
    finally:
        unscale_lora_layers(text_encoder, scale)


def scale_subject_rows(
    hidden_states: torch.Tensor, positions: torch.Tensor, num_subject_tokens: int, scale: float
) -> torch.Tensor:
    """c[S*] ← γ c[S*]: the text states with the rows of S* multiplied by `scale`.

    Args:
        hidden_states: As from [`encode_subject_prompts`]. [B, T, D]
        positions: The position of the first row of S*. [B]
        num_subject_tokens: L, the number of rows of S*.
        scale: γ. 1 changes nothing, 0 takes the subject's own rows away.

    Returns:
        A new tensor. [B, T, D]

    Source: the authors' `refine_emb_scale`. The product is taken after the final layer norm, so no other row changes.

    Example:
        >>> import torch
        >>> from profusion_pipeline.method.subject_prompt import scale_subject_rows
        >>> states = scale_subject_rows(torch.ones(1, 77, 8), torch.tensor([4]), 1, 0.6)
    """
    batch, _, width = hidden_states.shape
    index = _subject_index(positions.to(hidden_states.device), (batch, num_subject_tokens, width))
    return hidden_states.scatter(1, index, scale * hidden_states.gather(1, index))
