"""The rows of one noise prediction: what is computed under ∅, C and S* for which picture, and with which weight.

    code name          paper    what
    owner              -        the picture that a row belongs to
    weights            w_r      how much each reference counts
    class_weight       ω_2      `class_guidance_scale`
    subject_weights    ω_1 w_r, or ω_f w_r / Σw in the fusion stage

Letters in shapes: P prompts, B pictures, K references of all pictures together, T tokens, N vision tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """All references of all pictures, a row each: what S* is made from. References of weight 0 are not among them.

    Args:
        latents: Clean latents. [K, C, h, w]
        image_states: Vision states. [K, N, V]
        input_ids: Token ids of the prompt around S*. [K, T]
        positions: The place of S* in them. [K]
        owner: The picture of each row. [K]
        weights: w_r of each row.
        proportions: w_r / Σw, the sum taken over the references of the same picture.

    Example:
        >>> ReferenceRows.of([], torch.zeros(1, 77), torch.zeros(1), 1, like=torch.zeros(1, 77, 8)).weights
        []
    """

    latents: torch.Tensor
    image_states: torch.Tensor
    input_ids: torch.Tensor
    positions: torch.Tensor
    owner: torch.Tensor
    weights: list[float]
    proportions: list[float]

    @classmethod
    def of(
        cls,
        subjects: Sequence,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        num_images_per_prompt: int,
        *,
        like: torch.Tensor,
    ) -> "ReferenceRows":
        """Lay out the references of a call.

        Args:
            subjects: The SubjectEmbedding of each of P prompts, with any number of references; or nothing.
            input_ids: Token ids of the prompts. [P, T]
            positions: The place of S* in each prompt. [P]
            num_images_per_prompt: How many pictures in a row share a prompt.
            like: A tensor of the device and dtype that the rows get.

        Returns:
            The rows, picture by picture.

        Example:
            >>> rows = ReferenceRows.of([], torch.zeros(1, 77), torch.zeros(1), 1, like=torch.zeros(1, 77, 8))
            >>> len(rows.latents)
            0
        """
        prompts, references, owner, weights, proportions = [], [], [], [], []
        for picture in range(len(subjects) * num_images_per_prompt):
            prompt = picture // num_images_per_prompt
            all_weights = subjects[prompt].weights.tolist()
            for reference, weight in enumerate(all_weights):
                if weight > 0:
                    prompts.append(prompt)
                    references.append(reference)
                    owner.append(picture)
                    weights.append(weight)
                    proportions.append(weight / math.fsum(all_weights))

        def rows(name: str) -> torch.Tensor:
            if not owner:
                return like.new_zeros(0)
            each = zip(prompts, references, strict=True)
            # A concept's are float16, which autocast on a CPU can't stack.
            return torch.stack([getattr(subjects[p], name)[r].to(like) for p, r in each])

        return cls(
            latents=rows("latents"),
            image_states=rows("image_states"),
            input_ids=input_ids[prompts].to(like.device),
            positions=positions[prompts].to(like.device),
            owner=torch.tensor(owner, dtype=torch.long, device=like.device),
            weights=weights,
            proportions=proportions,
        )


@dataclass(frozen=True, eq=False)
class GuidanceRows:
    """The rows of a noise prediction in the order ∅, C, S*. A kind of row that has no weight isn't computed.

    Args:
        text_states: Of the rows that are the same at every timestep, ∅ and C. [rows without S*, T, D]
        owner: The picture of every row. [rows]
        weights: ω of every row but those of ∅. [rows without ∅]
        num_null: The number of rows with ∅: B, or 0 where the other weights sum to one.
        has_subject: Whether there are rows with S*.
        subject_scale: γ, by which the text states of S* are multiplied.
        adapters: The adapter that computes each row; empty where no concept is used.

    Example:
        >>> states = torch.zeros(1, 77, 8)
        >>> rows = GuidanceRows.plan(states, states, torch.tensor([0]), 5.0, [7.0], subject_scale=1.0)
        >>> rows.owner.tolist(), rows.weights.tolist(), rows.num_null
        ([0, 0, 0], [5.0, 7.0], 1)
    """

    text_states: torch.Tensor
    owner: torch.Tensor
    weights: torch.Tensor
    num_null: int
    has_subject: bool
    subject_scale: float
    adapters: tuple[str, ...] = ()

    @classmethod
    def plan(
        cls,
        null_states: torch.Tensor,
        class_states: torch.Tensor | None,
        reference_owner: torch.Tensor,
        class_weight: float,
        subject_weights: list[float],
        *,
        subject_scale: float,
    ) -> "GuidanceRows":
        """Choose the rows that the weights ask for.

        Args:
            null_states: Text states of ∅ for each picture. [B, T, D]
            class_states: Text states of C for each picture; not read if `class_weight` is 0. [B, T, D]
            reference_owner: The picture of each reference. [K]
            class_weight: ω_2, of C for every picture.
            subject_weights: The weight of S* from each reference; all of them are 0, or none. [K]
            subject_scale: γ.

        Returns:
            The rows.

        Example:
            >>> states = torch.zeros(1, 77, 8)
            >>> GuidanceRows.plan(states, None, torch.tensor([0]), 0.0, [1.0], subject_scale=1.0).num_null
            0
        """
        num_pictures, device = len(null_states), null_states.device
        pictures = torch.arange(num_pictures, device=device)
        of_picture = [[class_weight] for _ in range(num_pictures)]
        for picture, weight in zip(reference_owner.tolist(), subject_weights, strict=True):
            of_picture[picture].append(weight)
        has_null = any(math.fsum(weights) != 1 for weights in of_picture)
        has_class, has_subject = class_weight != 0, any(subject_weights)
        text_states = [null_states] * has_null + [class_states] * has_class
        owner = [pictures] * (has_null + has_class) + [reference_owner] * has_subject
        weights = [class_weight] * num_pictures * has_class + subject_weights * has_subject
        return cls(
            text_states=torch.cat([null_states[:0], *text_states]),
            owner=torch.cat(owner),
            weights=torch.tensor(weights, dtype=torch.float32, device=device),
            num_null=num_pictures * has_null,
            has_subject=has_subject,
            subject_scale=subject_scale,
        )
