"""Which text state of the class prompt stands where in the prompt with S*, so that both can be mixed row by row.

The class noun may take more tokens than S*, or fewer, and then all that follows stands elsewhere. Tokens that both
texts begin with belong together, and those that both end with. What is between, as a rule the noun, belongs to S*: its
last tokens count, since a causal text encoder has read the whole noun only there. Begin tokens belong together, and so
do end tokens and the padding behind them.

Letters in shapes: P prompts, n pieces (1 for a whole prompt), T tokens.
"""

from collections.abc import Sequence

import torch
from transformers import CLIPTokenizer

from . import prompt_pieces, subject_prompt


def match_tokens(tokens: Sequence[int], others: Sequence[int]) -> list[int]:
    """For each token of a text its partner in another: equal beginnings, equal ends, and what is between.

    Args:
        tokens: Of the text.
        others: Of the other text.

    Returns:
        For each of `tokens` an index in `others`; -1 is what stands before all of them.

    Example:
        >>> match_tokens(["a", "S*", "at", "sea"], ["a", "tall", "man", "at", "sea"])
        [0, 2, 3, 4]
        >>> match_tokens(["a", "S1", "S2", "at", "sea"], ["a", "man", "at", "sea"])
        [0, 1, 1, 2, 3]
    """
    shorter = min(len(tokens), len(others))
    begin = next((i for i in range(shorter) if tokens[i] != others[i]), shorter)
    end = next((i for i in range(shorter - begin) if tokens[-1 - i] != others[-1 - i]), shorter - begin)
    between, others_between = len(tokens) - begin - end, len(others) - begin - end
    skipped = begin + max(others_between - between, 0)
    middle = [skipped + min(i, others_between - 1) for i in range(between)]
    return [*range(begin), *middle, *range(len(others) - end, len(others))]


def match_positions(
    ids: torch.Tensor, other_ids: torch.Tensor, partners: Sequence[int], end_token: int
) -> torch.Tensor:
    """For each position of a text its partner in another: of tokens as given, of begin, end and padding by their kind.

    Args:
        ids: Of all pieces of the text, with begin, end and padding. [n, T]
        other_ids: Of all pieces of the other. [n, T]
        partners: For each token of the whole text, from [`match_tokens`]; some may have been left out at the end.
        end_token: Id of the end token.

    Returns:
        Indices in the pieces of the other, one after another. [n T]

    Example:
        >>> match_positions(torch.tensor([[7, 1, 9, 0]]), torch.tensor([[7, 2, 3, 9]]), [1], 9).tolist()
        [0, 2, 3, 3]
    """
    count, length = ids.shape
    ends, other_ends = ([row.index(end_token) for row in rows.tolist()] for rows in (ids, other_ids))
    inside = [piece * length + token for piece in range(count) for token in range(1, other_ends[piece])]
    last = (count - 1) * length + other_ends[-1]
    found, token = [], 0
    for piece in range(count):
        first = piece * length
        found.append(first)
        for _ in range(1, ends[piece]):
            partner = partners[token]
            found.append(0 if partner < 0 else inside[partner] if partner < len(inside) else last)
            token += 1
        found += [first + min(other_ends[piece] + i, length - 1) for i in range(length - ends[piece])]
    return torch.tensor(found)


def align_prompts(
    tokenizer: CLIPTokenizer,
    prompts: Sequence[str],
    class_texts: Sequence[str],
    tokens: prompt_pieces.SubjectTokens,
    *,
    placeholder: str,
    num_subject_tokens: int,
) -> torch.Tensor:
    """For each text state of prompts with S* the one of their class prompts that it is mixed with.

    Args:
        tokenizer: The text encoder's.
        prompts: P prompts with one placeholder each.
        class_texts: P class prompts, as they are encoded.
        tokens: Of the prompts, whole or in pieces.
        placeholder: What stands for the subject.
        num_subject_tokens: L, its positions.

    Returns:
        Indices. [P, n T]

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> tokenizer, shared = load_demo_pipeline().tokenizer, dict(placeholder="S*", num_subject_tokens=1)
        >>> tokens = prompt_pieces.SubjectTokens(
        ...     *subject_prompt.tokenize_subject_prompts(tokenizer, ["S* in a hat"], **shared)
        ... )
        >>> align_prompts(tokenizer, ["S* in a hat"], ["a person in a hat"], tokens, **shared)[0, :6].tolist()
        [0, 2, 3, 4, 5, 6]
    """
    found = []
    pieces = tokens.input_ids[:, None] if tokens.pieces is None else tokens.pieces  # [P, n, T]
    for prompt, text, ids in zip(prompts, class_texts, pieces, strict=True):
        before, after = (
            subject_prompt.token_ids(tokenizer, part) for part in subject_prompt.find_placeholder(prompt, placeholder)
        )
        subject = [*before, *[tokenizer.bos_token_id] * num_subject_tokens, *after]
        others, other_ids = _tokens_and_ids(tokenizer, text, tokens.num_pieces)
        found.append(match_positions(ids, other_ids, match_tokens(subject, others), tokenizer.eos_token_id))
    return torch.stack(found)


def align_texts(
    tokenizer: CLIPTokenizer, texts: Sequence[str], class_texts: Sequence[str], num_pieces: int | None
) -> torch.Tensor:
    """As [`align_prompts`], for prompts with learnt words in place of S*.

    Args:
        tokenizer: The text encoder's.
        texts: P prompts with the words in them.
        class_texts: P class prompts.
        num_pieces: n, or None for whole prompts.

    Returns:
        Indices. [P, n T]

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> align_texts(load_demo_pipeline().tokenizer, ["a hat"], ["a red hat"], None)[0, :4].tolist()
        [0, 1, 3, 4]
    """
    found = []
    for text, class_text in zip(texts, class_texts, strict=True):
        tokens, ids = _tokens_and_ids(tokenizer, text, num_pieces)
        others, other_ids = _tokens_and_ids(tokenizer, class_text, num_pieces)
        found.append(match_positions(ids, other_ids, match_tokens(tokens, others), tokenizer.eos_token_id))
    return torch.stack(found)


def _tokens_and_ids(tokenizer: CLIPTokenizer, text: str, num_pieces: int | None) -> tuple[list[int], torch.Tensor]:
    """All tokens of a text, and what the text encoder reads of it [n, T]."""
    tokens = subject_prompt.token_ids(tokenizer, text)
    room = tokenizer.model_max_length - 2
    split = [tokens[:room]] if num_pieces is None else prompt_pieces.split(tokens, room)
    return tokens, prompt_pieces.pad_pieces(tokenizer, split, num_pieces or 1)


def mix(states: torch.Tensor, class_states: torch.Tensor, partners: torch.Tensor, scale: float) -> torch.Tensor:
    """E_γ = E_C + γ (E_{S*,C} - E_C)

    Args:
        states: E_{S*,C}, of the prompt with S*. [K, n T, D]
        class_states: E_C, of its class prompt. [K, n T, D]
        partners: For each state of the one its partner in the other, from [`align_prompts`]. [K, n T]
        scale: γ. At 1 `states` come back to the bit, at 0 those of the class prompt, where their partners are.

    Returns:
        States between both. [K, n T, D]

    Example:
        >>> mix(torch.ones(1, 2, 1), torch.tensor([[[0.0], [4.0]]]), torch.tensor([[0, 0]]), 0.25).flatten()
        tensor([0.2500, 0.2500])
    """
    partner_states = class_states.gather(1, partners[:, :, None].expand_as(states))  # [K, n T, D]
    return torch.lerp(partner_states, states, scale)
