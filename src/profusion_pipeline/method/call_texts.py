"""The texts of a call: which are read, as tokens before any work, and what the text encoders make of them."""

from dataclasses import dataclass

import torch

from . import (
    call_inputs,
    checks,
    concept_loader,
    encoding,
    guidance_rows,
    guidance_scales,
    learnt_subject,
    prompt_pieces,
    quoting,
    subject_prompt,
    tensor_checks,
    text_alignment,
    text_encoders,
)

NULL_POOLED, CLASS_POOLED = "negative_pooled_prompt_embeds", "pooled_prompt_embeds"  # that another base model reads


@dataclass(frozen=True, eq=False, kw_only=True)
class CallTexts:
    """What a call reads, checked and cut into tokens.

    Args:
        null: Texts of ∅, a negative prompt for each of P prompts; None where states are given, or none at all is read.
        class_prompts: Class prompts, likewise.
        embeds: Given states of C and of ∅ [P, T, D], or None each.
        learnt: The prompts whose subjects are words, with these in them.
        tokens: Of the prompts, with room for S*.
        align_with: The class prompts, where the fusion stage mixes texts.

    Example:
        >>> texts = pipe._choose_texts(["a photo of S*"], ...)  # doctest: +SKIP
    """

    null: list[str] | None
    class_prompts: list[str] | None
    embeds: dict[str, torch.Tensor | None]
    learnt: list[learnt_subject.LearntPrompt]
    tokens: prompt_pieces.SubjectTokens
    align_with: list[str] | None


class CallTextsMixin(encoding.EncodingMixin):
    """What a pipeline does with the texts of a call, beside encoding them.

    Example:
        >>> from profusion_pipeline import ProFusionPipeline
        >>> issubclass(ProFusionPipeline, CallTextsMixin)
        True
    """

    _null_is_zero = False  # whether ∅ without a negative prompt is no text at all

    def _choose_texts(
        self,
        prompts: list[str],
        subjects: list,
        guidance: guidance_scales.Guidance,
        grid: tuple[int, int],
        *,
        class_noun: str | list[str] | None,
        class_prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        long_prompts: bool,
        may_change: bool,
    ) -> CallTexts:
        """The texts that the guidance reads, or may read once a callback has changed it (`may_change`)."""
        checks.check_not_both("class_prompt", class_prompt, "prompt_embeds", prompt_embeds)
        checks.check_not_both("negative_prompt", negative_prompt, "negative_prompt_embeds", negative_prompt_embeds)
        checks.check_not_both('fusion_text="mixed"', guidance.mixes_text or None, "prompt_embeds", prompt_embeds)
        placeholder = self.config.placeholder
        prompts = [text.replace(self.config.placeholder_alias or placeholder, placeholder) for text in prompts]
        null = class_prompts = None
        if negative_prompt_embeds is None and not (negative_prompt is None and self._null_is_zero):
            null = call_inputs.list_texts("negative_prompt", negative_prompt or "", len(prompts), without=placeholder)
        reads_class = guidance.reads_class or (may_change and (class_noun is not None or class_prompt is not None))
        if prompt_embeds is None and reads_class:
            class_prompts = call_inputs.list_class_prompts(prompts, placeholder, class_noun, class_prompt)
        learnt = self._learnt_prompts(prompts, subjects, long_prompts) if guidance.uses_subject or may_change else []
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        beside = [*(null or ()), *(class_prompts or ()), *(one.text for one in learnt)] if long_prompts else None
        align_with = class_prompts if guidance.mixes_text else None
        tokens = self._tokenize(
            learnt_subject.without_learnt(prompts, subjects, placeholder),
            beside,
            1 if self.promptnet is None else self.promptnet.num_subject_tokens(*grid),
            embeds,
            align_with,
        )
        return CallTexts(
            null=null, class_prompts=class_prompts, embeds=embeds, learnt=learnt, tokens=tokens, align_with=align_with
        )

    def _encode_call_texts(
        self,
        texts: CallTexts,
        subjects: list,
        concepts: concept_loader.CallConcepts,
        num_images_per_prompt: int,
        lora_scale: float,
        pooled: dict,
    ) -> tuple[
        text_encoders.TextOutput,
        text_encoders.TextOutput | None,
        guidance_rows.WordRows | None,
        guidance_rows.ReferenceRows,
    ]:
        """∅ and C of each picture [B, T, D], the learnt words' rows and what S* is made from; by whose LoRA, too."""
        num_pieces, num_pictures = texts.tokens.num_pieces, len(texts.tokens.input_ids) * num_images_per_prompt
        guides = [] if concepts.base_guidance else concepts.learnt[::num_images_per_prompt]
        null_given, class_given = (
            text_encoders.TextOutput(texts.embeds[name], pooled.get(name_of_pooled))
            for name, name_of_pooled in (("negative_prompt_embeds", NULL_POOLED), ("prompt_embeds", CLASS_POOLED))
        )
        with self._text_adapters(concepts, guides, num_pieces, lora_scale):
            null, class_text = (
                self._text_of_pictures(said, given, num_pieces, lora_scale, num_images_per_prompt)
                for said, given in ((texts.null, null_given), (texts.class_prompts, class_given))
            )
        null = null or self._zero_text(num_pictures, num_pieces)
        with self._text_adapters(concepts, [one.subject for one in texts.learnt], num_pieces, lora_scale):
            words = self._word_rows(texts.learnt, num_pieces, lora_scale, num_images_per_prompt, texts.align_with)
        with self._text_adapters(concepts, [], num_pieces, lora_scale):
            references = self._reference_rows(
                subjects, texts.tokens, num_images_per_prompt, lora_scale, like=null.states
            )
        return null, class_text, words, references

    def _tokenize(
        self,
        prompts: list[str],
        texts: list[str] | None,
        num_subject_tokens: int,
        given: dict[str, torch.Tensor | None],
        align_with: list[str] | None = None,
    ) -> prompt_pieces.SubjectTokens:
        """Tokens of the prompts, in as many pieces as `texts` or given states need; whole if `texts` is None.

        With class prompts to `align_with` they know their partners in these.
        """
        shared = dict(placeholder=self.config.placeholder, num_subject_tokens=num_subject_tokens)
        own = [(tokenizer, self._with_learnt_words(prompts, tokenizer)) for tokenizer in self._tokenizers]
        length = self.tokenizer.model_max_length
        if texts is None:
            per_tokenizer = [
                prompt_pieces.SubjectTokens(
                    *subject_prompt.tokenize_subject_prompts(*one, **shared, name_what_is_cut=number == 0)
                )
                for number, one in enumerate(own)
            ]
        else:
            counts = [tensor.shape[1] // length for tensor in given.values() if tensor is not None and tensor.ndim == 3]
            at_least = max(self._num_pieces(texts), *counts, 1)
            for _ in own:  # the last one may need the most pieces
                per_tokenizer = [prompt_pieces.split_prompts(*one, **shared, at_least=at_least) for one in own]
                at_least = max(one.num_pieces for one in per_tokenizer)
        tokens = text_encoders.stack_tokens(per_tokenizer)
        width = text_encoders.text_width(self._text_encoders)
        shape = (len(prompts), length * (tokens.num_pieces or 1), width)
        for name, tensor in given.items():
            tensor_checks.check_tensor(name, tensor, shape, self.text_encoder.dtype)
        if align_with is None:
            return tokens
        class_texts = self._with_learnt_words(align_with, self.tokenizer)
        partners = text_alignment.align_prompts(*own[0], class_texts, per_tokenizer[0], **shared)
        return tokens._replace(partners=partners)

    def _text_of_pictures(
        self,
        texts: list[str] | None,
        given: text_encoders.TextOutput,
        num_pieces: int | None,
        lora_scale: float,
        num_images_per_prompt: int,
    ) -> text_encoders.TextOutput | None:
        """Of texts, or what is given [P, T, D], or none -> that of each picture. [B, T, D]"""
        output = given if texts is None else self._encode_texts(texts, lora_scale, num_pieces)
        if output.states is None:
            return None
        parts = (
            None if part is None else part.to(self._execution_device).repeat_interleave(num_images_per_prompt, dim=0)
            for part in output
        )
        return text_encoders.TextOutput(*parts)

    def _zero_text(self, num_pictures: int, num_pieces: int | None) -> text_encoders.TextOutput:
        """In place of ∅ [B, T, D], or [B, n T, D]"""
        length = self.tokenizer.model_max_length * (num_pieces or 1)
        zero = text_encoders.zero_text(self._text_encoders, num_pictures, length)
        return text_encoders.TextOutput(*(part.to(self._execution_device) for part in zero))

    def _reference_rows(
        self,
        subjects: list,
        tokens: prompt_pieces.SubjectTokens,
        num_images_per_prompt: int,
        lora_scale: float,
        *,
        like: torch.Tensor,
    ) -> guidance_rows.ReferenceRows:
        """What S* is made from, with what the text encoders make of the pieces around it."""
        subjects = [None if learnt_subject.is_learnt(one) else one for one in subjects]
        pieces = {"partners": tokens.partners}
        if tokens.num_pieces is not None and any(subjects):
            around, pooled = self._encode_pieces(tokens.pieces, lora_scale)
            pieces |= dict(around=around, piece=tokens.piece, around_pooled=None if pooled is None else pooled[:, 0])
        return guidance_rows.ReferenceRows.of(
            subjects, tokens.input_ids, tokens.positions, num_images_per_prompt, like=like, **pieces
        )

    def _learnt_prompts(
        self, prompts: list[str], subjects: list, long_prompts: bool
    ) -> list[learnt_subject.LearntPrompt]:
        """The prompts whose subjects are words, with those in them."""
        learnt, loaded = [], [learnt_subject.loaded_words(tokenizer) for tokenizer in self._tokenizers]
        for number, (prompt, subject) in enumerate(zip(prompts, subjects, strict=False)):
            if not learnt_subject.is_learnt(subject):
                continue
            if subject not in subjects[:number]:
                checks.check_without("words", [subject.words], self.config.placeholder)
                for words in loaded:
                    learnt_subject.name_missing_words(subject.words, words)
            prefix, suffix = subject_prompt.find_placeholder(prompt, self.config.placeholder)
            text = prefix + subject.words + suffix
            parts = self._with_learnt_words([prefix, text, suffix], self.tokenizer)
            tokens = learnt_subject.tokens_of_words(self.tokenizer, *parts)
            if not long_prompts and tokens.stop > self.tokenizer.model_max_length - 2:
                raise ValueError(
                    f"`prompt` must hold the placeholder {self.config.placeholder!r} nearer to its beginning: the text "
                    f"encoder reads {self.tokenizer.model_max_length} tokens, got {quoting.quote(subject.words)} at "
                    f"tokens {tokens.start + 1} to {tokens.stop} of {quoting.quote(text)}."
                )
            learnt.append(learnt_subject.LearntPrompt(number, text, tokens, subject))
        return learnt

    def _word_rows(
        self,
        learnt: list[learnt_subject.LearntPrompt],
        num_pieces: int | None,
        lora_scale: float,
        num_images_per_prompt: int,
        align_with: list[str] | None = None,
    ) -> guidance_rows.WordRows | None:
        """Text states with learnt words, for each picture that has them; `align_with` as of `_tokenize`."""
        if not learnt:
            return None
        states, pooled = self._encode_texts([one.text for one in learnt], lora_scale, num_pieces)  # [P, T, D], [P, F]
        length = self.tokenizer.model_max_length
        of_words = torch.zeros(states.shape[:2], dtype=torch.bool)  # [P, T]
        for row, one in zip(of_words, learnt, strict=True):
            for token in one.tokens:
                piece, token = divmod(token, length - 2)
                row[piece * length + token + 1] = True  # behind the begin token
        pictures = torch.arange(num_images_per_prompt)
        owner = torch.cat([one.number * num_images_per_prompt + pictures for one in learnt])
        partners = None
        if align_with is not None:
            pairs = zip(*((one.text, align_with[one.number]) for one in learnt), strict=True)
            texts, class_texts = (self._with_learnt_words([*each], self.tokenizer) for each in pairs)
            partners = text_alignment.align_texts(self.tokenizer, texts, class_texts, num_pieces)
        states, of_words, pooled, partners = (
            None if one is None else one.to(states.device).repeat_interleave(num_images_per_prompt, dim=0)
            for one in (states, of_words, pooled, partners)
        )
        return guidance_rows.WordRows(states, of_words, owner.to(states.device), pooled, partners)
