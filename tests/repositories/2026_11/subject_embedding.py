"""What the pipeline remembers of a subject: all that PromptNet needs of its reference pictures."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, eq=False)
class SubjectEmbedding:
    """R reference pictures of one subject, encoded. It takes the place of `image` in a call, and of the image encoder.

    Args:
        latents: Clean latents of the references, scaled as the UNet has them. [R, C, h, w]
        image_states: Last hidden state of the CLIP vision tower, all tokens. [R, N, V]
        weights: How much each reference counts, 0 or more and not all 0. [R]

    Raises:
        ValueError: Shapes disagree, or a weight is negative, not finite, or all are 0.

    Example:
        >>> subject = SubjectEmbedding(torch.zeros(2, 4, 64, 64), torch.zeros(2, 257, 1280), torch.ones(2))
        >>> subject.to(torch.float16).latents.dtype
        torch.float16
    """

    latents: torch.Tensor
    image_states: torch.Tensor
    weights: torch.Tensor

    def __post_init__(self):
        shapes = [tuple(tensor.shape) for tensor in (self.latents, self.image_states, self.weights)]
        if [len(shape) for shape in shapes] != [4, 3, 1] or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(
                "A SubjectEmbedding has `latents` [R, C, h, w], `image_states` [R, N, V] and `weights` [R] of the "
                f"same R references, not {shapes[0]}, {shapes[1]} and {shapes[2]}."
            )
        weights = self.weights.tolist()
        if not (all(0 <= weight < float("inf") for weight in weights) and any(weights)):
            raise ValueError(f"The weights of the references must be finite, 0 or more, and not all 0, not {weights}.")

    def to(self, *args) -> "SubjectEmbedding":
        """The same subject on another device or in another dtype.

        Args:
            *args: As of `torch.Tensor.to`. The weights are numbers for Python and stay as they are.

        Returns:
            A new SubjectEmbedding.

        Example:
            >>> subject = SubjectEmbedding(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 24), torch.ones(1))
            >>> subject.to("cpu", torch.bfloat16).image_states.dtype
            torch.bfloat16
        """
        return SubjectEmbedding(self.latents.to(*args), self.image_states.to(*args), self.weights)

    def save(self, path: str | os.PathLike) -> None:
        """Write the three tensors to one safetensors file, whole or not at all.

        Args:
            path: The file to write. It is replaced if it exists.

        Example:
            >>> subject = SubjectEmbedding(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 24), torch.ones(1))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     subject.save(f"{folder}/ada.safetensors")
            ...     SubjectEmbedding.load(f"{folder}/ada.safetensors").latents.shape
            torch.Size([1, 4, 8, 8])
        """
        path = Path(path)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in vars(self).items()}
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            save_file(tensors, Path(scratch, "subject"))
            os.replace(Path(scratch, "subject"), path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SubjectEmbedding":
        """Read what `save` wrote.

        Args:
            path: A safetensors file.

        Returns:
            The subject, on the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file isn't a whole safetensors file, or holds something else.

        Example:
            >>> SubjectEmbedding.load("ada.safetensors")  # doctest: +SKIP
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{os.fspath(path)!r} isn't a whole safetensors file: {error}") from error
        names = set(cls.__dataclass_fields__)
        if set(tensors) != names:
            raise ValueError(
                f"{os.fspath(path)!r} holds {sorted(tensors)}, not the {sorted(names)} of a SubjectEmbedding."
            )
        return cls(**tensors)
