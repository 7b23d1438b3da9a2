"""How a call guides: its scales, the steps that have them, what that costs.

code name                paper     what
prompt                   C, S*     the text with the placeholder, for which PromptNet's pseudo word stands in
class prompt             C         the same text with a class noun in place of S*
guidance_scale           ω_1       towards S* with C
class_guidance_scale     ω_2       towards C
fusion_guidance_scale    ω_f       towards γS* with C, in the fusion stage
fusion_subject_scale     γ         how strong S* is in the fusion stage
fusion_eta               η         how much noise the fusion stage renews
num_fusion_steps         m         fusion steps at every timestep
guidance_rescale         φ         how far guided predictions get the deviation of ε_{S*,C}
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from . import checks


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
                object.__setattr__(self, field.name, checks.check_scale(field.name, getattr(self, field.name)))
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
