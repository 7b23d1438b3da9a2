"""How a call guides, and the rows of one noise prediction: what is computed under ∅, C and S*, with which weight.

    code name               paper    what
    guidance_scale          ω_1      towards S* with C
    class_guidance_scale    ω_2      towards C
    fusion_guidance_scale   ω_f      towards γS* with C, in the fusion stage
    guidance_rescale        φ        how far guided predictions get the deviation of ε_{S*,C}
    weights                 w_r      how much each reference counts
    subject_weights         ω_1 w_r, or ω_f w_r / Σw in the fusion stage
    owner                   -        the picture that a row belongs to

Letters in shapes: P prompts, B pictures, K references of all pictures together, T tokens, N vision tokens.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from . import adapters, checks, text_alignment


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The scales of both stages, the steps that have them, and how often S* is made: one record for all who guide.

    Args:
        guidance_scale: ω_1, towards the subject.
        class_guidance_scale: ω_2, towards the text.
        num_fusion_steps: m, fusion steps at every timestep.
        fusion_guidance_scale: ω_f, towards subject and text together in the fusion stage.
        fusion_subject_scale: γ, the strength of S* in the fusion stage.
        fusion_text: What γ does: "scaled" multiplies the state of S*, "mixed" mixes the text with S* into the class
            prompt's.
        fusion_eta: η, how much noise a fusion step renews.
        fusion_start: Share of the steps after which the fusion stage begins.
        fusion_end: Share of the steps at which it ends.
        guidance_start: Share of the steps after which the refinement stage guides.
        guidance_end: Share of the steps at which it stops.
        guidance_rescale: φ, how far guided predictions get the deviation of ε_{S*,C}.
        subject_every: At every how many steps S* is made anew; 0 is at every prediction.

    Raises:
        TypeError: A field isn't a number.
        ValueError: A field is out of its range.

    Example:
        >>> from profusion_pipeline import ProFusionPipeline
        >>> guidance = Guidance.from_call(ProFusionPipeline.__call__, fusion_end=0.5)
        >>> guidance.unet_rows(num_inference_steps=50)
        200
    """

    guidance_scale: float
    class_guidance_scale: float
    num_fusion_steps: int
    fusion_guidance_scale: float
    fusion_subject_scale: float
    fusion_text: str
    fusion_eta: float
    fusion_start: float
    fusion_end: float
    guidance_start: float
    guidance_end: float
    guidance_rescale: float
    subject_every: int

    def __post_init__(self):
        checks.check_choice("fusion_text", self.fusion_text, ("scaled", "mixed"))
        for field in fields(self):
            if field.type is int:
                value = checks.check_count(field.name, getattr(self, field.name), at_least=0, at_most=checks.MOST)
                object.__setattr__(self, field.name, value)
            elif field.type is float:
                object.__setattr__(self, field.name, checks.check_number(field.name, getattr(self, field.name)))
        checks.check_number("guidance_rescale", self.guidance_rescale, at_most=1)
        for stage in ("fusion", "guidance"):
            start, end = getattr(self, f"{stage}_start"), getattr(self, f"{stage}_end")
            if not start < end <= 1:
                raise ValueError(
                    f"`{stage}_start` must be less than `{stage}_end`, and that at most 1, got {start!r} and {end!r}."
                )

    @classmethod
    def from_call(cls, call: Callable, **given: Any) -> "Guidance":
        """The record with the defaults of a call, which stand in its signature alone.

        Args:
            call: A function that has the fields as parameters.
            **given: Fields that differ.

        Returns:
            The record.
        """
        parameters = inspect.signature(call).parameters
        return cls(**{field.name: parameters[field.name].default for field in fields(cls)} | given)

    @property
    def uses_subject(self) -> bool:
        """Whether S* has a weight in any stage."""
        return self.guidance_scale > 0 or (self.num_fusion_steps > 0 and self.fusion_guidance_scale > 0)

    @property
    def mixes_text(self) -> bool:
        """Whether the fusion stage mixes the prompt with S* into the class prompt."""
        return self.num_fusion_steps > 0 and self.fusion_text == "mixed"

    @property
    def reads_class(self) -> bool:
        """Whether the class prompt is read in any stage."""
        return self.class_guidance_scale > 0 or self.mixes_text

    def fused_steps(self, num_steps: int) -> list[bool]:
        """Which steps have a fusion stage, as far as their number says it.

        Args:
            num_steps: That the call makes.

        Returns:
            An entry for each step.
        """
        if not self.num_fusion_steps:
            return [False] * num_steps
        return steps_between(self.fusion_start, self.fusion_end, num_steps)

    def guided_steps(self, num_steps: int) -> list[bool]:
        """Which steps guide in the refinement stage; in the others ε = ε_{S*,C}, one row for each reference.

        Args:
            num_steps: That the call makes.

        Returns:
            An entry for each step.
        """
        return steps_between(self.guidance_start, self.guidance_end, num_steps)

    def unet_rows(self, num_inference_steps: int) -> int:
        """Rows of the UNet that one picture of one reference takes, its cost on any machine.

        Args:
            num_inference_steps: Of a scheduler that takes one model output a step.

        Returns:
            Rows of all steps together.
        """
        guided = sum(self.guided_steps(num_inference_steps))
        refinement = sum(rows_with_weight(self.class_guidance_scale, [self.guidance_scale]))
        fusion = self.num_fusion_steps * sum(rows_with_weight(0.0, [self.fusion_guidance_scale]))
        rows = guided * refinement + (num_inference_steps - guided)
        return rows + sum(self.fused_steps(num_inference_steps)) * fusion

    def promptnet_calls(self, num_inference_steps: int) -> int:
        """How often S* is made for one picture: calls of PromptNet, and of the text encoder for the prompt with S*.

        Args:
            num_inference_steps: As of `unet_rows`.

        Returns:
            Calls of all steps together.
        """
        calls, kept = 0, False
        for i, fused in enumerate(self.fused_steps(num_inference_steps)):
            fusion = self.num_fusion_steps if fused and self.fusion_guidance_scale > 0 else 0
            predictions = fusion + (self.guidance_scale > 0)  # with S* in them
            if not self.subject_every:
                calls += predictions
                continue
            kept = kept and not self.renews_subject(i)
            calls += predictions > 0 and not kept
            kept = kept or predictions > 0
        return calls

    def text_sequences(self, num_inference_steps: int) -> int:
        """Texts of the text encoder's length that it reads for one picture: ∅ and C once, the prompt with S* each time.

        Args:
            num_inference_steps: As of `unet_rows`.

        Returns:
            Texts of all steps together.
        """
        return 1 + self.reads_class + self.promptnet_calls(num_inference_steps)

    def renews_subject(self, step: int) -> bool:
        """Whether the first prediction of a step makes S* anew, and those after it share it.

        Args:
            step: Its number, from 0 on.

        Returns:
            False where `subject_every` is 0: then every prediction does.
        """
        return self.subject_every > 0 and step % self.subject_every == 0


def steps_between(start: float, end: float, num_steps: int) -> list[bool]:
    """Which steps lie whole between two shares of them.

    Args:
        start: Share, 0 to 1.
        end: Share, 0 to 1.
        num_steps: Of all.

    Returns:
        An entry for each step.

    Example:
        >>> steps_between(0.3, 0.8, 4)
        [False, False, True, False]
    """
    return [i / num_steps >= start and (i + 1) / num_steps <= end for i in range(num_steps)]


def rows_with_weight(class_weight: float, subject_weights: Sequence[float]) -> tuple[bool, bool, bool]:
    """Which of ∅, C and S* one picture needs: ε = (1 - Σω) ε_∅ + ω_2 ε_C + Σ_r ω_r ε_{S*_r,C}.

    Args:
        class_weight: ω_2.
        subject_weights: ω of S* from each reference; all are 0, or none.

    Returns:
        Whether ∅, C and S* have a weight.

    Example:
        >>> rows_with_weight(0.0, [1.0])
        (False, False, True)
    """
    total = math.fsum([class_weight, *subject_weights])
    return not math.isclose(total, 1, rel_tol=1e-12), class_weight != 0, any(subject_weights)


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """All references of all pictures, a row each: what S* is made from. References of weight 0 are not among them.

    Args:
        latents: Clean latents. [K, C, h, w]
        image_states: Vision states. [K, N, V]
        input_ids: Token ids of the prompt around S*. [K, T], or [K, E, T] for E text encoders
        positions: The place of S* in them. [K]
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
            positions: The place of S* in each prompt. [P]
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
        places: Which of them are those of the words. [J, T]
        owner: The picture of each row. [J]
        pooled: Pooled text, of Stable Diffusion XL, or None. [J, F]
        partners: For each text state the one of the class prompt that belongs to it, or None. [J, T]

    Example:
        >>> rows = WordRows(torch.ones(1, 3, 1), torch.tensor([[False, True, False]]), torch.tensor([0]))
        >>> rows.scaled(0.5).flatten().tolist()
        [1.0, 0.5, 1.0]
    """

    states: torch.Tensor
    places: torch.Tensor
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
        return self.states if scale == 1 else torch.where(self.places[..., None], scale * self.states, self.states)

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
        needed = [rows_with_weight(class_weight, weights) for weights in of_picture]
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
