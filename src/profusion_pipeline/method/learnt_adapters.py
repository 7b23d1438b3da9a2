"""LoRAs of learnt subjects on a pipeline: whether rows can tell them apart, and which rows and texts they compute."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from . import adapters, concept_loader, guidance_rows, image_prompts, learnt_subject, prediction, quoting

OTHER_BASE = ("size mismatch", "not found in the base model")  # what torch and PEFT say of it


@contextmanager
def refusing_other_bases() -> Iterator[None]:
    """A LoRA for another base model, which loads in the block, ends in one sentence.

    Raises:
        ValueError: It has other layers.

    Example:
        >>> with refusing_other_bases():  # doctest: +SKIP
        ...     pipe.unet.load_lora_adapter(weights)
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # several are what we want
            yield
    except (RuntimeError, ValueError) as error:
        if not any(phrase in str(error) for phrase in OTHER_BASE):
            raise
        detail = next((line for line in str(error).splitlines() if OTHER_BASE[0] in line), str(error))
        raise ValueError(
            f"The LoRA must be made for a base model like this one, got one with other layers: {quoting.brief(detail)}."
        ) from error


class LearntAdaptersMixin:
    """A pipeline whose LoRAs compute the rows of S* only, if a subject names them.

    Example:
        >>> pipe.load_lora_weights("me/my-dog", adapter_name="dog")  # doctest: +SKIP
        >>> dog = LearntSubject("sks dog", class_noun="dog", adapter="dog")  # doctest: +SKIP
        >>> pipe("S* on the moon", subject=dog).images[0]  # doctest: +SKIP
    """

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: Any, *args: Any, **kwargs: Any) -> None:
        """As of `StableDiffusionPipeline`; a LoRA for another base model is refused with a sentence.

        Args:
            pretrained_model_name_or_path_or_dict: Folder, file, Hub id or state dict; in PEFT's, diffusers' or kohya's
                format.
            *args: As there.
            **kwargs: As there: `adapter_name` is what a [`LearntSubject`] calls it by.

        Raises:
            ValueError: It was made for another base model, or is none.

        Example:
            >>> pipe.load_lora_weights("me/my-dog", adapter_name="dog")  # doctest: +SKIP
        """
        with refusing_other_bases():
            super().load_lora_weights(pretrained_model_name_or_path_or_dict, *args, **kwargs)

    def _adapted_models(self) -> list[torch.nn.Module]:
        return [self.unet, *self._text_encoders]

    def _prepare_adapters(self, subjects: Sequence[Any]) -> None:
        """Check that the adapters of a call's subjects can be told apart by rows, and let them be."""
        names = learnt_subject.all_adapters(subjects)
        if not names:
            return
        models = self._adapted_models()
        ours = {loaded.adapter for loaded in self.concepts.values()}
        there = dict.fromkeys(name for model in models for name in getattr(model, "peft_config", ()))
        loaded = ", ".join(repr(name) for name in there if name not in ours) or "none"
        for name in names:
            if name not in there or name in ours:
                raise ValueError(
                    f"`adapter` of a LearntSubject must name one that `load_lora_weights` has loaded ({loaded}), got "
                    f"{quoting.quote(name)}. One that was fused and unloaded can't be told apart by rows."
                )
        for model in models:
            self._check_layers(model, names)
            adapters.follow_rows(model)

    def _check_layers(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        with_them = [layer for layer in model.modules() if any(name in getattr(layer, "lora_A", ()) for name in names)]
        for layer in with_them:
            for name in names:
                if name in layer.merged_adapters:
                    raise ValueError(
                        f"The adapter {name!r} is fused into the weights, where it can't be told apart by rows: "
                        "`pipe.unfuse_lora()` first."
                    )
            dora = [name for name in (*names, *layer.active_adapters) if layer.use_dora.get(name)]
            if dora:
                raise ValueError(
                    f"The adapter {dora[0]!r} is a DoRA, which scales whole weights and can't be told apart by rows."
                )
        processors = getattr(model, "attn_processors", {}).values()
        if with_them and any("Fused" in type(processor).__name__ for processor in processors):
            raise ValueError(
                f"A LearntSubject's adapter can't change to_q, to_k and to_v of {type(model).__name__}, which has them "
                "fused: `unfuse_qkv_projections()` first."
            )

    def _whose_pictures(
        self, names: Sequence[str | None], subjects: Sequence[Any], num_images_per_prompt: int, base_guidance: bool
    ) -> concept_loader.CallConcepts:
        """The concept or learnt subject of each picture, from those of each prompt."""
        learnt = [one if learnt_subject.is_learnt(one) else None for one in subjects]
        self._prepare_adapters(learnt)
        self._check_image_prompts(learnt)
        for one in filter(None, learnt):
            self._check_unet(one.unet)
        names, learnt = (
            tuple(one for one in ones for _ in range(num_images_per_prompt)) if any(ones) else ()
            for ones in (names, learnt)
        )
        return concept_loader.CallConcepts(names, base_guidance, learnt)

    def _check_unet(self, unet: Any) -> None:
        for name in ("in_channels", "out_channels", "cross_attention_dim") if unet is not None else ():
            ours, theirs = (getattr(getattr(one, "config", None), name, None) for one in (self.unet, unet))
            if ours != theirs:
                raise ValueError(
                    f"`unet` of a LearntSubject must be a UNet like this pipeline's, whose `{name}` is {ours}, got "
                    f"{type(unet).__name__} with {quoting.quote(theirs)}."
                )
        if unet is not None and image_prompts.projections(unet):
            raise ValueError(
                "`unet` of a LearntSubject must be one without IP-Adapters, which would have no picture to read, got "
                "one with: `unload_ip_adapter()` of its own pipeline first."
            )

    def _plan_rows(self, state: prediction.CallState) -> tuple[guidance_rows.GuidanceRows, ...]:
        """The rows of both stages, and those without guidance, with the scales and the concepts of now."""
        planned = []
        for rows in prediction.plan_rows(state):
            num_made = len(state.references.owner) * rows.has_subject
            others = self._other_unets(state.concepts, rows.owner, rows.num_shared)
            elsewhere = {row for _, numbers in others for row in numbers}
            unet_adapters, promptnet_adapters = self._adapters_of(
                state.concepts, rows.owner, rows.num_shared, num_made, state.lora_scale, elsewhere
            )
            numbers = [row for row in range(len(rows.owner)) if row not in elsewhere]
            image_embeds, reads = self._image_embeds_of_rows(
                state.images,
                rows.owner.tolist(),
                num_null=rows.num_null,
                num_shared=rows.num_shared,
                base_guidance=state.concepts.base_guidance,
            )
            if reads is not None:
                unet_adapters = unet_adapters._replace(image_rows=reads[numbers])
            planned.append(
                replace(
                    rows,
                    unet_adapters=unet_adapters,
                    promptnet_adapters=promptnet_adapters,
                    other_unets=tuple((unet, rows.owner.new_tensor(rows_of_it)) for unet, rows_of_it in others),
                    base_rows=rows.owner.new_tensor(numbers) if others else None,
                    image_embeds=image_embeds,
                )
            )
        return tuple(planned)

    def _other_unets(
        self, concepts: concept_loader.CallConcepts, owner: torch.Tensor, num_shared: int
    ) -> list[tuple[torch.nn.Module, list[int]]]:
        """The UNets of learnt subjects, and the rows that each computes in place of the base's."""
        of_unet = {}
        if any(one is not None and one.unet is not None for one in concepts.learnt):
            for row, picture in enumerate(owner.tolist()):
                subject = concepts.learnt[picture]
                if subject is not None and subject.unet is not None:
                    if row >= num_shared or not concepts.base_guidance:
                        of_unet.setdefault(id(subject.unet), (subject.unet, []))[1].append(row)
        return list(of_unet.values())

    @contextmanager
    def _text_adapters(
        self,
        concepts: concept_loader.CallConcepts,
        subjects: Sequence[Any],
        num_pieces: int | None,
        lora_scale: float,
    ) -> Iterator[None]:
        """In the block, adapters of its subject compute each of a batch of texts in n pieces; None is the base's."""
        left_out, models = learnt_subject.all_adapters(concepts.learnt), self._adapted_models()[1:]
        active = [name for model in models for name in adapters.active_adapters(model)]
        of_text = [[] if one is None else one.weighted_adapters(active, lora_scale) for one in subjects]
        of_row = [pairs for pairs in of_text for _ in range(num_pieces or 1)]
        compiled = any(map(adapters.is_compiled, models)) if left_out else False
        with adapters.computed_by(adapters.RowAdapters.of(of_row, left_out), compiled=compiled):
            yield
