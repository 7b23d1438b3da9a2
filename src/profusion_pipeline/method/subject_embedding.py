"""What the pipeline remembers of a subject: all that PromptNet needs of its reference pictures."""

import os
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from . import checks, quoting, tensor_checks, whole_files


@dataclass(frozen=True, eq=False, repr=False)
class SubjectEmbedding:
    """R reference pictures of one subject, encoded. It takes the place of `image` in a call, and of the image encoder.

    Args:
        latents: Clean latents of the references, scaled as the UNet has them. [R, C, h, w]
        image_states: Last hidden state of the CLIP vision tower, all tokens. [R, N, V]
        weights: How much each reference counts, 0 or more and not all 0. [R]

    Raises:
        TypeError: One isn't a tensor of floats.
        ValueError: Shapes disagree, a number isn't finite, or a weight is negative, or all are 0.

    Example:
        >>> subject = SubjectEmbedding(torch.zeros(2, 4, 64, 64), torch.zeros(2, 257, 1280), torch.ones(2))
        >>> subject.to(torch.float16).latents.dtype
        torch.float16
    """

    latents: torch.Tensor
    image_states: torch.Tensor
    weights: torch.Tensor

    def __post_init__(self):
        tensor_checks.check_subject(self.latents, self.image_states, self.weights)

    def __repr__(self) -> str:
        shapes = f"latents {list(self.latents.shape)}, image_states {list(self.image_states.shape)}"
        return f"SubjectEmbedding({shapes}, weights {quoting.quote(self.weights.tolist())})"

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

    def blend(self, other: "SubjectEmbedding", share: float) -> "SubjectEmbedding":
        """Somebody between two people: the references of both, weighed so that `other` has a share of the whole.

        Args:
            other: Of the same pipeline and size.
            share: Of the other, 0 to 1: at 0 calls draw this subject alone, at 1 the other alone.

        Returns:
            A new SubjectEmbedding, which calls draw as they draw several references of one person.

        Raises:
            TypeError: `other` is no subject, or `share` no number.
            ValueError: `share` is out of its range, or the two have other sizes.

        Example:
            >>> ada = SubjectEmbedding(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 24), torch.ones(1))
            >>> bob = SubjectEmbedding(torch.ones(1, 4, 8, 8), torch.ones(1, 5, 24), torch.ones(1))
            >>> ada.blend(bob, 0.25).weights.tolist()
            [0.75, 0.25]
        """
        share = checks.check_number("share", share, at_most=1)
        names = ("latents", "image_states")
        if not all(isinstance(getattr(other, name, None), torch.Tensor) for name in names):
            raise TypeError(f"`other` must be a SubjectEmbedding, got {quoting.quote(other)}.")
        joined = []
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine.shape[1:] != theirs.shape[1:]:
                raise ValueError(
                    f"`other` must have {name} of {list(mine.shape[1:])} for each reference, got "
                    f"{list(theirs.shape[1:])}."
                )
            joined.append(torch.cat([mine, theirs.to(mine)]))
        weights = torch.cat([self.weights * (1 - share), other.weights.to(self.weights) * share])
        return SubjectEmbedding(*joined, weights)

    def save(self, path: str | os.PathLike) -> None:
        """Write the three tensors to one safetensors file, whole or not at all.

        Args:
            path: The file to write, in a folder that exists. It is replaced if it exists.

        Raises:
            OSError: It could not be written; an older file there is as it was.

        Example:
            >>> subject = SubjectEmbedding(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 24), torch.ones(1))
            >>> subject.save("ada.safetensors")
            >>> SubjectEmbedding.load("ada.safetensors").latents.shape
            torch.Size([1, 4, 8, 8])
        """
        tensors = {name: tensor.contiguous().cpu() for name, tensor in vars(self).items()}
        with whole_files.whole_file(path) as new:
            save_file(tensors, new)

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
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"`path` must be the path of a file, got {quoting.quote(path)}.")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"`path` must be a file that exists, got {quoting.quote(path)}.")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{whole_files.shown_path(path)} isn't a whole safetensors file: {quoting.brief(error)}."
            ) from error
        names = set(cls.__dataclass_fields__)
        if set(tensors) != names:
            raise ValueError(
                f"{whole_files.shown_path(path)} must hold the {sorted(names)} of a SubjectEmbedding, got "
                f"{quoting.quote(sorted(tensors))}."
            )
        try:
            return cls(**tensors)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{whole_files.shown_path(path)} holds no subject that can be drawn: {quoting.brief(error)}."
            ) from error
