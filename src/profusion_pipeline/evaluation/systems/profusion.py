"""ProFusion behind the interface of `system.py`: PromptNet and Fusion Sampling, before and after customising."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from PIL import Image

from ...customization.config import CustomizeConfig
from ...customization.customize import customize
from ...method.base_hash import pipeline_hash
from ...method.concept_file import SUBJECT, Concept
from ...method.guidance_scales import Guidance
from ...method.modeling_promptnet import PromptNet
from ...method.pipeline_profusion import ProFusionPipeline
from .system import Draw, DrawTogether, Learnt, Sampling, System, find_weights


@dataclass(frozen=True, kw_only=True)
class ProFusion(System):
    """PromptNet and Fusion Sampling; customised to the photo if `learning` says how.

    Attributes:
        name: In tables and plots.
        learning: As of [`System`]; empty for PromptNet alone.
        call: Settings of the pipeline's call: ω_1, ω_2, ω_f, γ, η.
        promptnet: Name of another PromptNet's folder in `weights`; the pipeline's own if None.
        weights: The folder of pre-trained rivals.

    Example:
        >>> ProFusion(name="PromptNet").unet_rows(Sampling(num_inference_steps=50))
        250
    """

    call: Mapping[str, float] = field(default_factory=dict)
    promptnet: str | None = None
    weights: Path | None = None

    def unet_rows(self, sampling: Sampling) -> int:
        """Rows of the UNet that one picture takes: ∅ and S* for every fusion step, then ∅, C and S*.

        Args:
            sampling: How it is drawn.

        Returns:
            Rows of all steps together.
        """
        return self.guidance(sampling).unet_rows(sampling.num_inference_steps)

    def guidance(self, sampling: Sampling) -> Guidance:
        """What a call of the pipeline is guided by.

        Args:
            sampling: What it says goes before the system's own `call`, and that before the defaults of the pipeline.

        Returns:
            The record, with the scales towards the subject multiplied by `sampling.guidance`.
        """
        names = {field.name for field in fields(Guidance)}
        given = {name: value for name, value in asdict(sampling).items() if name in names and value is not None}
        own = Guidance.from_call(ProFusionPipeline.__call__, **dict(self.call) | given)
        return replace(
            own,
            guidance_scale=own.guidance_scale * sampling.guidance,
            fusion_guidance_scale=own.fusion_guidance_scale * sampling.guidance,
        )

    def _pipeline(self, pipe: ProFusionPipeline) -> ProFusionPipeline:
        """Another pipeline of the same models, with a PromptNet and a scheduler of its own."""
        parts = dict(pipe.components)
        if self.promptnet is not None:
            folder = find_weights(self.name, self.weights, self.promptnet)
            parts["promptnet"] = PromptNet.from_pretrained(folder, torch_dtype=pipe.unet.dtype).to(pipe.device).eval()
        ours = ProFusionPipeline(**parts, placeholder=pipe.config.placeholder)
        ours.set_progress_bar_config(disable=True)
        return ours

    def _learn(self, pipe: ProFusionPipeline, photo: Image.Image, config: CustomizeConfig) -> Learnt:
        concept = customize(self._pipeline(pipe), photo, config)
        return {f"subject.{name}": getattr(concept, name) for name in SUBJECT} | concept.changes

    @property
    def together(self) -> bool:
        """Whether pictures of several subjects can be drawn in one call: all but with `mode="full"`."""
        return self.learning.get("mode") != "full"

    @property
    def pretrained(self) -> str | None:
        """The folder in `weights` without which it can't work, if there is one."""
        return self.promptnet

    @contextmanager
    def _drawing(
        self, pipe: ProFusionPipeline, photo: Image.Image, learnt: Learnt, config: CustomizeConfig
    ) -> Iterator[Draw]:
        with self._drawing_together(pipe, [photo], [learnt], [config]) as draw:
            yield lambda prompts, generators, sampling: draw(prompts, generators, sampling, [0] * len(prompts))

    @contextmanager
    def _drawing_together(
        self, pipe: ProFusionPipeline, photos: list[Image.Image], learnt: list[Learnt], configs: list[CustomizeConfig]
    ) -> Iterator[DrawTogether]:
        ours = self._pipeline(pipe)
        try:
            names = [f"subject-{number}" for number in range(len(photos))]  # of concepts
            for name, one, config in zip(names, learnt, configs, strict=True):
                if one:
                    ours.load_concept(self._concept(ours, one, config), name=name)
            subjects = [] if self.learns else [ours.encode_subject(photo) for photo in photos]

            def draw(
                prompts: list[str], generators: list[torch.Generator], sampling: Sampling, of: list[int]
            ) -> list[Image.Image]:
                ours.scheduler = sampling.make_scheduler(pipe.scheduler)
                if self.learns:
                    who = {"concept": [names[number] for number in of]}
                else:
                    who = {"subject": [subjects[number] for number in of], "class_noun": configs[0].class_noun}
                call = asdict(self.guidance(sampling)) | {"base_guidance": sampling.base_guidance}
                steps = sampling.num_inference_steps
                return ours(prompts, num_inference_steps=steps, generator=generators, **who, **call).images

            yield draw
        finally:
            ours.unload_concept()

    def _concept(self, ours: ProFusionPipeline, learnt: Learnt, config: CustomizeConfig) -> Concept:
        return Concept(
            **{name: learnt[f"subject.{name}"] for name in SUBJECT},
            changes={name: t for name, t in learnt.items() if name.startswith(("unet.", "promptnet."))},
            class_noun=config.class_noun,
            base_model=self.name,
            base_hash=pipeline_hash(ours),
            settings=asdict(config),
            steps=config.steps,
            loss=float("nan"),
        )
