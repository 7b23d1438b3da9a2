"""What others have taught a model, from files and the Hub: LoRAs and textual inversions -> a LearntSubject."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..method import learnt_subject, pipeline_profusion


class Learnt(NamedTuple):
    """A subject, and where each part of it came from.

    Args:
        subject: For the call.
        loras: Place and tensors of each LoRA.
        textual_inversions: Place and tensors of each textual inversion.
    """

    subject: learnt_subject.LearntSubject
    loras: list[tuple[str, dict[str, torch.Tensor]]]
    textual_inversions: list[tuple[str, dict[str, torch.Tensor]]]


def load_learnt(
    pipe: pipeline_profusion.ProFusionPipeline,
    *,
    words: str | None,
    class_noun: str,
    loras: Sequence[str] = (),
    scales: Sequence[float] = (),
    textual_inversions: Sequence[str] = (),
) -> Learnt:
    """Load what a subject was learnt with into a pipeline.

    Args:
        pipe: Takes it in.
        words: In place of S*; None for the words of the textual inversions.
        class_noun: What the subject is.
        loras: A file, a folder or a Hub id each; "me/mine/dog.safetensors" is a file of a Hub repository.
        scales: Of each LoRA; 1 if there are none.
        textual_inversions: As `loras`.

    Returns:
        The subject, and what it is made of.

    Raises:
        OSError: There is nothing at one of these places.
        ValueError: A LoRA was made for another base model, or scales and LoRAs differ in number.

    Example:
        >>> load_learnt(pipe, words="sks dog", class_noun="dog", loras=["dog.safetensors"]).subject  # doctest: +SKIP
        LearntSubject(words='sks dog', class_noun='dog', adapter=['lora-1'], scale=1.0)
    """
    inverted = []
    for source in textual_inversions:
        before = _vectors_of(pipe)
        repository, file = _repository_and_file(source)
        pipe.load_textual_inversion(repository, weight_name=file)
        inverted.append((source, {word: vector for word, vector in _vectors_of(pipe).items() if word not in before}))
    if words is None:
        # The first vector's word stands for all of them.
        words = " ".join(min(tensors, key=len) for _, tensors in inverted if tensors)
    names = [f"lora-{number}" for number, _ in enumerate(loras, start=1)]
    adapted = []
    for name, source in zip(names, loras, strict=True):
        repository, file = _repository_and_file(source)
        pipe.load_lora_weights(repository, weight_name=file, adapter_name=name)
        adapted.append((source, _tensors_of(pipe, name)))
    subject = learnt_subject.LearntSubject(
        words, class_noun, adapter=names or None, scale=list(scales) if scales else 1.0
    )
    return Learnt(subject, adapted, inverted)


def _repository_and_file(source: str) -> tuple[str, str | None]:
    """diffusers takes the file of a Hub repository by an argument of its own."""
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    return (source, None) if os.path.exists(source) or not file else (f"{owner}/{name}", file)


def _vectors_of(pipe: Any) -> dict[str, torch.Tensor]:
    """What every loaded word of textual inversion is; in a second text encoder under its name and the word."""
    return {
        word if part == "text_encoder" else f"{part}.{word}": table[tokenizer.convert_tokens_to_ids(word)]
        for name, part in pipe.TEXT_PARTS
        for tokenizer, table in [(getattr(pipe, name), getattr(pipe, part).get_input_embeddings().weight)]
        for word in learnt_subject.loaded_words(tokenizer)
    }


def _tensors_of(pipe: Any, adapter: str) -> dict[str, torch.Tensor]:
    mark = f".{adapter}."
    return {
        f"{part}.{name}": parameter
        for part in ("unet", *(part for _, part in pipe.TEXT_PARTS))
        for name, parameter in getattr(pipe, part).named_parameters()
        if ".lora_" in name and mark in name
    }
