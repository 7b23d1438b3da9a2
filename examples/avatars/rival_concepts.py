"""What rivals learnt of a photo, kept in a file, and drawn by their own guidance or as the subject of our pipeline."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from profusion_pipeline import LearntSubject, ProFusionPipeline
from profusion_pipeline.common.files import whole_file
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.demo import DEMO_CUSTOMIZE
from profusion_pipeline.evaluation.systems.baselines import DEMO_SYSTEMS, DreamBooth
from profusion_pipeline.evaluation.systems.rival_parts import changed_weights
from profusion_pipeline.evaluation.systems.system import Learnt, Sampling

RIVALS = ("Textual Inversion", "DreamBooth LoRA", "DreamBooth")
WORD, ADAPTER = "<one>", "rival"
Draw = Callable[[list[str], list[torch.Generator]], list[Image.Image]]


class RivalConcept:
    """One photo, learnt by one rival; from its file, if it is there."""

    def __init__(self, pipe: ProFusionPipeline, rival: str, photo: Image.Image, file: Path, **learning: object):
        self.pipe, self.system, self.photo = pipe, DEMO_SYSTEMS[rival], photo
        shared = {name: DEMO_CUSTOMIZE[name] for name in ("class_noun", "prompt", "pool_size")}
        self.config: CustomizeConfig = self.system.config(**shared | learning)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            learnt = self.system.learn(pipe, photo, self.config)
            with whole_file(file) as new:
                save_file({name: tensor.contiguous() for name, tensor in learnt.items()}, new)
        self.learnt: Learnt = load_file(file)

    def by_its_own_guidance(
        self, prompts: list[str], generators: list[torch.Generator], scale: float, sampling: Sampling
    ) -> list[Image.Image]:
        """Classifier-free guidance, all of it by the model that learnt."""
        sampling = Sampling(
            scheduler=sampling.scheduler,
            num_inference_steps=sampling.num_inference_steps,
            guidance=scale / self.system.guidance_scale,
        )
        with self.system.drawing(self.pipe, self.photo, self.learnt, self.config) as draw:
            return draw(prompts, generators, sampling)

    def as_subject(self, prompts: list[str], generators: list[torch.Generator], **call: object) -> list[Image.Image]:
        """Our guidance: what learnt predicts for S* and C alone, the untouched base for ∅ and C."""
        changed = {name: copy.deepcopy(self.pipe.components[name]) for name in ("tokenizer", "text_encoder", "unet")}
        own = ProFusionPipeline(**self.pipe.components | changed)
        own.set_progress_bar_config(disable=True)
        noun = self.config.class_noun
        tensors = {name: tensor for name, tensor in self.learnt.items() if name.startswith("unet.")}
        if not isinstance(self.system, DreamBooth):
            own.load_textual_inversion({WORD: self.learnt["word"]}, token=WORD)
            subject = LearntSubject(" ".join([*noun.split()[:-1], WORD]), class_noun=noun)
        elif self.config.mode == "full":
            changes = {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
            with changed_weights(own.unet, changes, 1.0):
                unet = copy.deepcopy(own.unet)
            subject = LearntSubject(self.system.words(noun), class_noun=noun, unet=unet)
        else:
            own.load_lora_weights({name: tensor.float() for name, tensor in tensors.items()}, adapter_name=ADAPTER)
            subject = LearntSubject(self.system.words(noun), class_noun=noun, adapter=ADAPTER)
        return own(prompts, subject=subject, generator=generators, **call).images
