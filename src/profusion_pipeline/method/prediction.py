"""One noise prediction of a call: S* from PromptNet, the text with S* in it, one UNet call for all rows, guided.

Letters in shapes: B pictures, K references of all pictures together, L pseudo words, T tokens.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from . import (
    adapters,
    concept_loader,
    control,
    fusion_sampling,
    guidance_rows,
    guidance_scales,
    image_prompts,
    prompt_pieces,
    subject_prompt,
    text_alignment,
    text_encoders,
    xl_conditions,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class CallState:
    """All that a prediction of one call depends on beside x_t and t; where a callback changes something, a new one.

    Args:
        guidance: The scales.
        null_states: Text states of ∅ for each picture. [B, T, D]
        class_states: Text states of C for each picture, or None. [B, T, D]
        references: What S* is made from.
        words: Learnt words in place of S*, where a picture has them.
        concepts: Whose each picture is.
        models: UNet, PromptNet and text encoders, by the names of the pipeline's components.
        cross_attention_kwargs: What the UNet's attention processors take.
        lora_scale: Of the text encoders' LoRA, on top of `set_adapters`.
        added: What Stable Diffusion XL's UNet reads beside the time; else None.
        images: What loaded IP-Adapters may read; else None.

    Example:
        >>> replace(state, guidance=replace(state.guidance, guidance_scale=3.0))  # doctest: +SKIP
    """

    guidance: guidance_scales.Guidance
    null_states: torch.Tensor
    class_states: torch.Tensor | None
    references: guidance_rows.ReferenceRows
    words: guidance_rows.WordRows | None = None
    concepts: concept_loader.CallConcepts
    models: dict[str, torch.nn.Module]
    cross_attention_kwargs: dict[str, Any] | None
    lora_scale: float
    added: xl_conditions.AddedConditions | None = None
    images: image_prompts.ImagePrompts | None = None

    @functools.cached_property
    def compiled(self) -> bool:
        """Whether any of the models is compiled."""
        return any(map(adapters.is_compiled, self.models.values()))

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        """The one or two that read the prompt."""
        return [model for name, model in self.models.items() if name.startswith("text_encoder")]


class SharedSubject:
    """S* of a running call, as long as several predictions share it: the text states that it was made into.

    Args:
        guidance: Says how often S* is made anew.

    Example:
        >>> shared = SharedSubject(state.guidance)  # doctest: +SKIP
        >>> shared.begin_step(0)  # doctest: +SKIP
    """

    def __init__(self, guidance: guidance_scales.Guidance):
        self._guidance = guidance
        self._made: tuple[text_encoders.TextOutput, int] | None = None

    def begin_step(self, step: int) -> None:
        """Forget S* where it is to be made anew; where no prediction needed it so far, the first that does makes it.

        Args:
            step: Its number, from 0 on.
        """
        if self._guidance.renews_subject(step):
            self._made = None

    def text_output(
        self, state: CallState, rows: guidance_rows.GuidanceRows, latents: torch.Tensor, t: torch.Tensor
    ) -> tuple[text_encoders.TextOutput, int]:
        """The text with S* in it, made from (x_t, t) if there is none to share.

        Args:
            state: Of the call.
            rows: Of the prediction.
            latents: x_t. [B, C, h, w]
            t: The timestep.

        Returns:
            States for each reference [K, T, D], and L, how many of them are those of S*.
        """
        if self._made is None or not self._guidance.subject_every:
            self._made = _subject_text(state, rows, latents, t)
        return self._made


def plan_rows(state: CallState) -> tuple[guidance_rows.GuidanceRows, ...]:
    """The rows of the fusion stage, ε_∅ + ω_f (ε_{γS*,C} - ε_∅), of the refinement stage, and of one without guidance.

    Args:
        state: Of the call.

    Returns:
        Rows of all three; those of adapters are not told apart yet. Without guidance they are of S* with C, of C where
        S* has no weight, or of ∅.

    Example:
        >>> fusion, refinement, unguided = plan_rows(state)  # doctest: +SKIP
    """
    guidance, references = state.guidance, state.references
    shared = (state.null_states, state.class_states, references.owner)
    fusion = guidance_rows.GuidanceRows.plan(
        *shared,
        words=state.words,
        word_weight=guidance.fusion_guidance_scale,
        class_weight=0.0,
        subject_weights=[guidance.fusion_guidance_scale * proportion for proportion in references.proportions],
        subject_scale=guidance.fusion_subject_scale,
        mixes_text=guidance.mixes_text,
    )
    refinement = guidance_rows.GuidanceRows.plan(
        *shared,
        words=state.words,
        word_weight=guidance.guidance_scale,
        class_weight=guidance.class_guidance_scale,
        subject_weights=[guidance.guidance_scale * weight for weight in references.weights],
        subject_scale=1.0,
        rescale=guidance.guidance_rescale,
        proportions=references.proportions,
    )
    of_subject = guidance.guidance_scale > 0
    unguided = guidance_rows.GuidanceRows.plan(
        *shared,
        words=state.words,
        word_weight=float(of_subject),
        class_weight=float(guidance.class_guidance_scale > 0 and not of_subject),
        subject_weights=[of_subject * proportion for proportion in references.proportions],
        subject_scale=1.0,
    )
    return fusion, refinement, unguided


def predict(
    state: CallState,
    rows: guidance_rows.GuidanceRows,
    latents: torch.Tensor,
    t: torch.Tensor,
    subject: SharedSubject,
    controlled: control.Control | None = None,
) -> torch.Tensor:
    """The guided model output at (x_t, t): one UNet call for all rows, after one PromptNet call for all S*.

    Args:
        state: Of the call.
        rows: Of one of its stages.
        latents: x_t, variance-preserving, as the UNet reads it. [B, C, h, w]
        t: The timestep.
        subject: S* that predictions of the call share.
        controlled: ControlNets that count at this step; one call of theirs for all rows, before the UNet's.

    Returns:
        Of the UNet's prediction type. [B, C, h, w]

    Example:
        >>> model_output = predict(state, refinement, latents, t, SharedSubject(state.guidance))  # doctest: +SKIP
    """
    text_states, pooled, added = rows.text_states, None, None
    if rows.has_subject:
        output, num_subject_tokens = subject.text_output(state, rows, latents, t)
        states, pooled = _subject_rows(state, rows, output, num_subject_tokens)
        text_states = torch.cat([text_states, states])  # [rows, T, D]
    if state.added is not None:
        words = state.words if len(rows.text_states) > rows.num_shared else None
        added = state.added.of_rows(
            num_null=rows.num_null,
            num_class=rows.num_shared - rows.num_null,
            words_pooled=None if words is None else _mixed_pooled(state, rows, words.pooled, words.owner),
            subject_pooled=pooled,
        )
    x_t, residuals = latents[rows.owner], None
    if controlled is not None:
        residuals = controlled.residuals(x_t, t, text_states, added, rows.owner, rows.num_null)
    if rows.image_embeds:
        added = (added or {}) | {"image_embeds": list(rows.image_embeds)}
    inputs = (state, x_t, t, text_states, added, residuals)
    with adapters.computed_by(rows.unet_adapters, compiled=state.compiled):
        output = _unet_output(state.models["unet"], *inputs, rows.base_rows)
    if rows.base_rows is not None:
        output = output.new_empty(len(rows.owner), *output.shape[1:]).index_copy(0, rows.base_rows, output)
        for unet, numbers in rows.other_unets:
            output = output.index_copy(0, numbers, _unet_output(unet, *inputs, numbers))  # [rows, C, h, w]
    # Without rows of ∅ the weights sum to one, and any tensor may stand in their place.
    null = output[: rows.num_null] if rows.num_null else torch.zeros_like(latents)  # [B, C, h, w]
    conditional, owner = output[rows.num_null :], rows.owner[rows.num_null :]
    guided = fusion_sampling.guide(null, conditional, rows.weights, owner)  # [B, C, h, w]
    if not rows.rescale:
        return guided
    target = fusion_sampling.guide(torch.zeros_like(guided), conditional, rows.target, owner)  # [B, C, h, w]
    return fusion_sampling.rescale(guided, target, rows.rescale)


def _unet_output(
    unet: torch.nn.Module,
    state: CallState,
    latents: torch.Tensor,
    t: torch.Tensor,
    text_states: torch.Tensor,
    added: dict[str, Any] | None,
    residuals: control.Residuals | None,
    numbers: torch.Tensor | None,
) -> torch.Tensor:
    """What a UNet makes of all rows, or of those with some numbers. [rows, C, h, w]"""
    if numbers is not None:
        latents, text_states = latents[numbers], text_states[numbers]
        added = added and {
            name: [one[numbers] for one in of_rows] if name == "image_embeds" else of_rows[numbers]
            for name, of_rows in added.items()
        }
        residuals = residuals and control.of_rows(residuals, numbers)
        if not len(numbers):
            return latents
    down, middle = residuals or (None, None)
    return unet(
        latents,
        t,
        encoder_hidden_states=text_states,
        cross_attention_kwargs=state.cross_attention_kwargs,
        added_cond_kwargs=added,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]


def _subject_text(
    state: CallState, rows: guidance_rows.GuidanceRows, latents: torch.Tensor, t: torch.Tensor
) -> tuple[text_encoders.TextOutput, int]:
    """The text, or the piece of it, with S* of now in it, for each reference. [K, T, D], and L"""
    references, promptnet = state.references, state.models["promptnet"]
    with adapters.computed_by(rows.promptnet_adapters, compiled=state.compiled):
        inputs = (references.latents, t, references.image_states, latents[references.owner])
        (subject_embeds,) = promptnet(*inputs, return_dict=False)  # [K, L, D]
        output = text_encoders.encode_ids(
            state.text_encoders,
            references.input_ids,
            lora_scale=state.lora_scale,
            positions=references.positions,
            subject_embeds=subject_embeds,
        )
    return output, subject_embeds.shape[1]


def _subject_rows(
    state: CallState, rows: guidance_rows.GuidanceRows, output: text_encoders.TextOutput, num_subject_tokens: int
) -> text_encoders.TextOutput:
    """What the UNet reads of it at the strength γ. [K, T, D], or [K, n T, D] for a long prompt"""
    references, (states, pooled) = state.references, output
    if not rows.mixes_text:
        states = subject_prompt.scale_subject_rows(states, references.positions, num_subject_tokens, rows.subject_scale)
    if references.around is not None:
        states = prompt_pieces.put_piece(references.around, references.piece, states)  # [K, n T, D]
        if pooled is not None:
            pooled = torch.where(references.piece[:, None] == 0, pooled, references.around_pooled)
    if rows.mixes_text:
        class_states = state.class_states[references.owner]  # [K, n T, D]
        states = text_alignment.mix(states, class_states, references.partners, rows.subject_scale)
    return text_encoders.TextOutput(states, _mixed_pooled(state, rows, pooled, references.owner))


def _mixed_pooled(
    state: CallState, rows: guidance_rows.GuidanceRows, pooled: torch.Tensor | None, owner: torch.Tensor
) -> torch.Tensor | None:
    """Pooled text with S*, at the strength γ where it is mixed into that of C. [K, F]"""
    if pooled is None or not rows.mixes_text:
        return pooled
    return torch.lerp(state.added.class_pooled[owner], pooled, rows.subject_scale)
