"""Prompts longer than the text encoder reads: in pieces of its length T, each encoded alone, their states side by side.

A piece has its own begin and end token and is padded, as a whole prompt is; S* stays in one piece. All texts of a call
get as many pieces as the longest of them, so that the UNet reads one number of states. With one piece nothing changes.

Letters in shapes: P prompts, K references of all pictures together, n pieces, T tokens, D width of the text encoder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import CLIPTokenizer

from . import subject_prompt


class SubjectTokens(NamedTuple):
    """Prompts with S*, whole or in pieces.

    Args:
        input_ids: The prompts, or the piece of each that holds S*. [P, T]
        positions: The position of S* in them. [P]
        pieces: All pieces, or None. [P, n, T]
        piece: Which of them holds S*, or None. [P]
        partners: For each position the one in the class prompt that belongs to it, or None. [P, n T]
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    pieces: torch.Tensor | None = None
    piece: torch.Tensor | None = None
    partners: torch.Tensor | None = None

    @property
    def num_pieces(self) -> int | None:
        """n, or None for whole prompts."""
        return None if self.pieces is None else self.pieces.shape[1]


def split(tokens: Sequence[int], room: int, together: range = range(0)) -> list[list[int]]:
    """Tokens in pieces of at most `room`; the tokens `together` are in one piece.

    Args:
        tokens: Without begin and end.
        room: Tokens of a piece.
        together: Places that must not be parted, at most `room` of them.

    Returns:
        At least one piece.

    Example:
        >>> split([1, 2, 3, 4, 5], 2), split([1, 2, 3, 4, 5], 2, together=range(1, 3))
        ([[1, 2], [3, 4], [5]], [[1], [2, 3], [4, 5]])
    """
    pieces, start = [], 0
    while start < len(tokens) or not pieces:
        end = start + room
        if start < together.start < end < together.stop:
            end = together.start
        pieces.append(list(tokens[start:end]))
        start = end
    return pieces


def split_text(tokenizer: CLIPTokenizer, text: str) -> list[list[int]]:
    """A text without S* in pieces.

    Args:
        tokenizer: The text encoder's.
        text: Of any length.

    Returns:
        Tokens of each piece, without begin and end.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> len(split_text(load_demo_pipeline().tokenizer, "hat " * 100))
        2
    """
    return split(subject_prompt.token_ids(tokenizer, text), tokenizer.model_max_length - 2)


def split_prompts(
    tokenizer: CLIPTokenizer, prompts: Sequence[str], *, placeholder: str, num_subject_tokens: int, at_least: int = 1
) -> SubjectTokens:
    """Prompts with S* in pieces, all in as many.

    Args:
        tokenizer: The text encoder's.
        prompts: P prompts with one placeholder each, of any length.
        placeholder: What stands for the subject.
        num_subject_tokens: L, its positions.
        at_least: How many pieces there are at least, because other texts of the call have them.

    Returns:
        The pieces, and where S* is.

    Raises:
        ValueError: A prompt doesn't hold exactly one placeholder.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> tokenizer = load_demo_pipeline().tokenizer
        >>> split_prompts(tokenizer, ["hat " * 100 + "S*"], placeholder="S*", num_subject_tokens=1).piece
        tensor([1])
    """
    room, split_up, found = tokenizer.model_max_length - 2, [], []
    for prompt in prompts:
        prefix, suffix = subject_prompt.find_placeholder(prompt, placeholder)
        before, after = subject_prompt.token_ids(tokenizer, prefix), subject_prompt.token_ids(tokenizer, suffix)
        together = range(len(before), len(before) + num_subject_tokens)
        pieces = split([*before, *[tokenizer.bos_token_id] * num_subject_tokens, *after], room, together)
        first = 0
        for piece, tokens in enumerate(pieces):
            if together.start < first + len(tokens):
                found.append((piece, together.start - first + 1))  # behind the begin token
                break
            first += len(tokens)
        split_up.append(pieces)
    count = max(at_least, *map(len, split_up))
    pieces = torch.stack([pad_pieces(tokenizer, pieces, count) for pieces in split_up])  # [P, n, T]
    piece, positions = torch.tensor(found).unbind(1)  # [P], [P]
    return SubjectTokens(pieces[torch.arange(len(pieces)), piece], positions, pieces, piece)


def pad_pieces(tokenizer: CLIPTokenizer, pieces: Sequence[list[int]], count: int) -> torch.Tensor:
    """Pieces with begin, end and padding, and empty ones up to a number.

    Args:
        tokenizer: The text encoder's.
        pieces: Tokens without begin and end.
        count: n.

    Returns:
        Ids. [n, T]

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> pad_pieces(load_demo_pipeline().tokenizer, [[5, 6]], 2).shape
        torch.Size([2, 64])
    """
    length = tokenizer.model_max_length
    filled = [*pieces, *[[]] * (count - len(pieces))]
    rows = [[tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id] for tokens in filled]
    return torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])


def put_piece(around: torch.Tensor, piece: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The states of whole prompts, with those of the piece that holds S* in their place.

    Args:
        around: States of all pieces; what is in place of the one with S* isn't read. [K, n, T, D]
        piece: Which piece holds S*. [K]
        states: Of that piece. [K, T, D]

    Returns:
        A new tensor. [K, n T, D]

    Example:
        >>> put_piece(torch.zeros(1, 2, 1, 1), torch.tensor([1]), torch.ones(1, 1, 1)).flatten().tolist()
        [0.0, 1.0]
    """
    index = piece[:, None, None, None].expand(-1, 1, *states.shape[1:])  # [K, 1, T, D]
    return around.scatter(1, index, states[:, None]).flatten(1, 2)
