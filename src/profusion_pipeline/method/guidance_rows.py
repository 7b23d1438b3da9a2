"""The rows of one noise prediction: what is computed under ∅, C and S*, with which weight.

    code name               paper    what
    guidance_scale          ω_1      towards S* with C
    class_guidance_scale    ω_2      towards C
    fusion_guidance_scale   ω_f      towards γS* with C, in the fusion stage
    weights                 w_r      how much each reference counts
    subject_weights         ω_1 w_r, or ω_f w_r / Σw in the fusion stage
    owner                   -        the picture that a row belongs to

Letters in shapes: P prompts, B pictures, K references of all pictures together, T tokens, N vision tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import adapters, guidance_scales, text_alignment


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """All references of all pictures, a row each: what S* is made from. References of weight 0 are not among them.

    Args:
        latents: Clean latents. [K, C, h, w]
        image_states: Vision states. [K, N, V]
        input_ids: Token ids of the prompt around S*. [K, T], or [K, E, T] for E text encoders
        positions: The position of S* in them. [K]
        owner: The picture of each row. [K]
        weights: w_r of each row.
        proportions: w_r / Σw, the sum taken over the references of the same picture.
        around: Text states of all pieces of a long prompt, or None. [K, n, T, D]
        piece: Which of them holds S*, or None. [K]
        around_pooled: Pooled text of the first piece of a long prompt, of Stable Diffusion XL, or None. [K, F]
        partners: For each text state the one of the class prompt that belongs to it, or None. [K, n T]

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
    around: torch.Tensor | None = None
    piece: torch.Tensor | None = None
    around_pooled: torch.Tensor | None = None
    partners: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        subjects: Sequence,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        num_images_per_prompt: int,
        *,
        like: torch.Tensor,
        around: torch.Tensor | None = None,
        piece: torch.Tensor | None = None,
        around_pooled: torch.Tensor | None = None,
        partners: torch.Tensor | None = None,
    ) -> "ReferenceRows":
        """Lay out the references of a call.

        Args:
            subjects: The SubjectEmbedding of each of P prompts, with any number of references; or nothing. None for a
                prompt without.
            input_ids: Token ids of the prompts. [P, T], or [P, E, T] for E text encoders
            positions: The position of S* in each prompt. [P]
            num_images_per_prompt: How many pictures in a row share a prompt.
            like: A tensor of the device and dtype that the rows get.
            around: Text states of all pieces of long prompts, or None. [P, n, T, D]
            piece: Which of them holds S*, or None. [P]
            around_pooled: Pooled text of the first piece of each, or None. [P, F]
            partners: For each text state the one of the class prompt that belongs to it, or None. [P, n T]

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
            all_weights = [] if subjects[prompt] is None else subjects[prompt].weights.tolist()
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
            around=None if around is None else around[prompts],
            piece=None if piece is None else piece[prompts].to(like.device),
            around_pooled=None if around_pooled is None else around_pooled[prompts],
            partners=None if partners is None else partners[prompts].to(like.device),
        )


@dataclass(frozen=True, eq=False)
class WordRows:
    """Prompts with learnt words in place of S*, a row for each picture that has such a subject: the same at all steps.

    Args:
        states: Text states. [J, T, D]
        of_words: Which of them are those of the words. [J, T]
        owner: The picture of each row. [J]
        pooled: Pooled text, of Stable Diffusion XL, or None. [J, F]
        partners: For each text state the one of the class prompt that belongs to it, or None. [J, T]

    Example:
        >>> rows = WordRows(torch.ones(1, 3, 1), torch.tensor([[False, True, False]]), torch.tensor([0]))
        >>> rows.scaled(0.5).flatten().tolist()
        [1.0, 0.5, 1.0]
    """

    states: torch.Tensor
    of_words: torch.Tensor
    owner: torch.Tensor
    pooled: torch.Tensor | None = None
    partners: torch.Tensor | None = None

    def scaled(self, scale: float) -> torch.Tensor:
        """c[S*] ← γ c[S*], as `subject_prompt.scale_subject_rows` does it.

        Args:
            scale: γ.

        Returns:
            Text states. [J, T, D]
        """
        return self.states if scale == 1 else torch.where(self.of_words[..., None], scale * self.states, self.states)

    def mixed(self, scale: float, class_states: torch.Tensor) -> torch.Tensor:
        """E_γ = E_C + γ (E_{S*,C} - E_C), as `text_alignment.mix` does it.

        Args:
            scale: γ.
            class_states: E_C of each picture. [B, T, D]

        Returns:
            Text states. [J, T, D]
        """
        return text_alignment.mix(self.states, class_states[self.owner], self.partners, scale)


@dataclass(frozen=True, eq=False)
class GuidanceRows:
    """The rows of a noise prediction in the order ∅, C, learnt words, S*. What has no weight isn't computed.

    Args:
        text_states: Of the rows that are the same at every timestep: all but those of S*. [rows without S*, T, D]
        owner: The picture of every row. [rows]
        weights: ω of every row but those of ∅. [rows without ∅]
        num_null: The number of rows with ∅: B, or 0 where the other weights sum to one.
        num_shared: The number of rows with ∅ or C.
        has_subject: Whether there are rows with S* that PromptNet makes.
        subject_scale: γ, by which the text states of S* are multiplied.
        mixes_text: Whether γ mixes the text with S* into that of the class prompt instead.
        rescale: φ, how far the guided prediction gets the deviation of another.
        target: Of what rows that one is a mixture, their weights; None where φ is 0. [rows without ∅]
        unet_adapters: Which adapters compute which rows.
        promptnet_adapters: The same of PromptNet's rows, those with S* alone.
        other_unets: UNets that compute some of the rows, each with the rows' numbers.
        base_rows: The numbers of all others, or None where the pipeline's own UNet computes all.
        image_embeds: What each loaded IP-Adapter reads of every row; nothing where none is. [rows, n, F]

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
    num_shared: int
    has_subject: bool
    subject_scale: float
    mixes_text: bool = False
    rescale: float = 0.0
    target: torch.Tensor | None = None
    unet_adapters: adapters.RowAdapters = adapters.NOBODY
    promptnet_adapters: adapters.RowAdapters = adapters.NOBODY
    other_unets: tuple[tuple[torch.nn.Module, torch.Tensor], ...] = ()
    base_rows: torch.Tensor | None = None
    image_embeds: tuple[torch.Tensor, ...] = ()

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
        mixes_text: bool = False,
        rescale: float = 0.0,
        proportions: Sequence[float] = (),
        words: WordRows | None = None,
        word_weight: float = 0.0,
    ) -> "GuidanceRows":
        """Choose the rows that the weights ask for.

        Args:
            null_states: Text states of ∅ for each picture. [B, T, D]
            class_states: Text states of C for each picture; not read if `class_weight` is 0. [B, T, D]
            reference_owner: The picture of each reference. [K]
            class_weight: ω_2, of C for every picture.
            subject_weights: The weight of S* from each reference; all of them are 0, or none. [K]
            subject_scale: γ.
            mixes_text: Whether γ mixes both texts; then `class_states` are read.
            rescale: φ. The deviation is that of ε_{S*,C}, mixed of all references of a picture as the fusion stage
                mixes them; that of ε_C where S* has no weight. Nothing is rescaled where neither has one.
            proportions: w_r / Σw of each reference, for `rescale`. [K]
            words: The rows of learnt words, if there are any.
            word_weight: The weight of S* in those.

        Returns:
            The rows.

        Example:
            >>> states = torch.zeros(1, 77, 8)
            >>> GuidanceRows.plan(states, None, torch.tensor([0]), 0.0, [1.0], subject_scale=1.0).num_null
            0
        """
        num_pictures, device = len(null_states), null_states.device
        pictures = torch.arange(num_pictures, device=device)
        word_owner = reference_owner[:0] if words is None else words.owner
        word_weights = [word_weight] * len(word_owner)
        of_picture = [[] for _ in range(num_pictures)]
        owners = [*word_owner.tolist(), *reference_owner.tolist()]
        for picture, weight in zip(owners, word_weights + subject_weights, strict=True):
            of_picture[picture].append(weight)
        needed = [guidance_scales.rows_with_weight(class_weight, weights) for weights in of_picture]
        has_null, has_class, _ = map(any, zip(*needed, strict=True))
        has_words, has_subject = any(word_weights), any(subject_weights)
        text_states = [null_states] * has_null + [class_states] * has_class
        if has_words:
            at_strength = words.mixed(subject_scale, class_states) if mixes_text else words.scaled(subject_scale)
            text_states.append(at_strength)
        owner = [pictures] * (has_null + has_class) + [word_owner] * has_words + [reference_owner] * has_subject
        weights = [class_weight] * num_pictures * has_class + word_weights * has_words + subject_weights * has_subject
        target = [float(not (has_words or has_subject))] * num_pictures * has_class
        target += [1.0] * len(word_owner) * has_words + [*proportions] * has_subject
        rescale = rescale if weights else 0.0
        return cls(
            text_states=torch.cat([null_states[:0], *text_states]),
            owner=torch.cat(owner),
            weights=torch.tensor(weights, dtype=torch.float32, device=device),
            num_null=num_pictures * has_null,
            num_shared=num_pictures * (has_null + has_class),
            has_subject=has_subject,
            subject_scale=subject_scale,
            mixes_text=mixes_text,
            rescale=rescale,
            target=torch.tensor(target, dtype=torch.float32, device=device) if rescale else None,
        )
