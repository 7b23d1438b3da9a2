"""What depends on the base model, Stable Diffusion 1.x or 2.x here: the components, and how latents become pictures.

`pipeline_profusion_xl.py` says the same for Stable Diffusion XL.
"""

import copy
from typing import Any, Self

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    ModelMixin,
    MultiControlNetModel,
    SchedulerMixin,
    StableDiffusionMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.utils import logging
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from . import framing, modeling_promptnet, noisy_latents, output, text_encoders

logger = logging.get_logger(__name__)


class BaseModel(
    DiffusionPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    StableDiffusionLoraLoaderMixin,
):
    """A pipeline around the components of Stable Diffusion and those that make S*.

    Args:
        vae: Autoencoder between pictures and latents.
        text_encoder: Its last hidden state is what the UNet reads.
        tokenizer: Of the text encoder.
        unet: Denoiser of Stable Diffusion's kind.
        scheduler: Any that Stable Diffusion takes.
        promptnet: Reference -> pseudo word. As wide as the text encoder and the image encoder. Not needed where S* is
            never made of a picture.
        image_encoder: CLIP vision tower; all its last hidden states are used. Not needed where only
            [`SubjectEmbedding`]s are given.
        feature_extractor: Of the image encoder.
        safety_checker: Looks at the finished pictures, as in `StableDiffusionPipeline`.
        controlnet: Reads the call's `control_image`. Several in a list, or as a `MultiControlNetModel`. Not needed
            without.
        placeholder: What stands for the subject in a prompt.
        placeholder_alias: Another spelling that prompts may use for it, as converted releases do for `holder`.
        requires_safety_checker: Whether a missing safety checker is worth a warning, as in `StableDiffusionPipeline`.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> isinstance(pipe, BaseModel), pipe.vae_scale_factor
        (True, 8)
    """

    # The UNet, the text encoder and PromptNet are all needed at every step: only the UNet, the largest, leaves (for the
    # VAE); the other two are loaded at their first use and stay until the call ends.
    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components = ["promptnet", "image_encoder", "feature_extractor", "safety_checker", "controlnet"]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    _own_settings = ("placeholder", "placeholder_alias")  # beside the components
    run_safety_checker = StableDiffusionPipeline.run_safety_checker
    prepare_extra_step_kwargs = StableDiffusionPipeline.prepare_extra_step_kwargs

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        # Without a default: else diffusers' own `from_pretrained` would not see one that the caller gives.
        promptnet: modeling_promptnet.PromptNet | ModelMixin | None,  # the latter of another repository's code
        image_encoder: CLIPVisionModel | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        safety_checker: torch.nn.Module | None = None,
        controlnet: ControlNetModel | MultiControlNetModel | list[ControlNetModel] | None = None,
        placeholder: str = "S*",
        placeholder_alias: str | None = None,
        requires_safety_checker: bool = False,
    ):
        if requires_safety_checker and safety_checker is None:
            logger.warning(
                "`safety_checker` is None, but this pipeline is published with one: load it with the others, or pass "
                "`requires_safety_checker=False` and look at the pictures yourself before others do."
            )
        components = dict(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            promptnet=promptnet,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            safety_checker=safety_checker,
            controlnet=controlnet,
        )
        self._assemble(
            components,
            placeholder=placeholder,
            placeholder_alias=placeholder_alias,
            requires_safety_checker=requires_safety_checker,
        )

    def _assemble(self, components: dict[str, Any], **config: Any) -> None:
        DiffusionPipeline.__init__(self)
        if isinstance(components["controlnet"], list | tuple):
            components["controlnet"] = MultiControlNetModel(components["controlnet"])
        self.register_modules(**components)
        self.register_to_config(**config)
        self.image_processor = VaeImageProcessor()  # is told every size

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return framing.vae_scale_factor(self.vae)

    def clone(self) -> Self:
        """Another pipeline around the same models, with a scheduler and a tokenizer of its own: one for each thread.

        Returns:
            A pipeline that draws what this one draws, with the same concepts loaded, at the same time.

        Example:
            >>> from profusion_pipeline import load_demo_pipeline
            >>> pipe = load_demo_pipeline()
            >>> pipe.clone().unet is pipe.unet
            True
        """
        names = ("scheduler", *(tokenizer for tokenizer, _ in self.TEXT_PARTS))
        own = {name: copy.deepcopy(self.components[name]) for name in names}
        other = type(self)(**self.components | own, **{name: self.config[name] for name in self._own_settings})
        other.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        for name, loaded in self.concepts.items():
            other.load_concept(loaded.concept, name)
            other.set_concept_scale(loaded.scale, name)
        return other

    # ------------------------------------------------------------ what another base model does in its own way

    def _check_base_inputs(self, base_inputs: dict[str, Any], num_prompts: int) -> None:
        for name in base_inputs:
            raise TypeError(f"{type(self).__name__} has no argument {name!r}.")

    def _added_conditions(
        self,
        null: text_encoders.TextOutput,
        class_text: text_encoders.TextOutput | None,
        height: int,
        width: int,
        base_inputs: dict[str, Any],
    ) -> Any:
        """What the UNet reads beside the time."""
        return None

    def _pictures(
        self, latents: torch.Tensor, output_type: str, generator: torch.Generator | list[torch.Generator] | None
    ) -> tuple[Any, list[bool] | None]:
        """What a call was asked for, and which pictures the safety checker flagged."""
        return (latents, None) if output_type == "latent" else self._decode(latents, output_type, generator)

    def _decode(
        self, latents: torch.Tensor, output_type: str, generator: torch.Generator | list[torch.Generator] | None
    ) -> tuple[Any, list[bool] | None]:
        """Pictures, and which of them the safety checker flagged."""
        latents = latents / self.vae.config.scaling_factor
        images = self.vae.decode(latents, return_dict=False, generator=generator)[0]  # [B, 3, H, W]
        noisy_latents.check_finite(images, "the decoded pictures")
        images, has_nsfw_concept = self.run_safety_checker(images, self._execution_device, images.dtype)
        harmless = [not flagged for flagged in has_nsfw_concept or [False] * len(images)]
        images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=harmless)
        return images, has_nsfw_concept

    def _output(
        self, images: Any, has_nsfw_concept: list[bool] | None, return_dict: bool
    ) -> output.ProFusionOutput | tuple:
        if not return_dict:
            return images, has_nsfw_concept
        return output.ProFusionOutput(images=images, nsfw_content_detected=has_nsfw_concept)
