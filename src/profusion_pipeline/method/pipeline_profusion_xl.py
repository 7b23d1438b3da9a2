"""ProFusionXLPipeline: ProFusionPipeline with Stable Diffusion XL as its base.

The loop, its rows and its records are those of `pipeline_profusion.py`. Here is what XL does in its own way: two text
encoders side by side, pooled text and sizes beside the time, no text at all for an empty negative prompt, a VAE that
may need float32, and the watermark.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ModelMixin,
    MultiControlNetModel,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from diffusers.pipelines.stable_diffusion_xl.watermark import StableDiffusionXLWatermarker
from diffusers.utils.import_utils import is_invisible_watermark_available
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
)

from . import (
    call_texts,
    encoding,
    learnt_adapters,
    modeling_promptnet,
    noisy_latents,
    pipeline_profusion,
    reference_images,
    tensor_checks,
    text_encoders,
    xl_conditions,
)

_UPCASTING = threading.Lock()  # calls in other threads may share the VAE


@contextmanager
def in_float32(vae: AutoencoderKL) -> Iterator[None]:
    """In the block a VAE that says of itself that float16 is too narrow for it computes in float32, for one thread.

    Args:
        vae: With `force_upcast` in its config, or without.

    Example:
        >>> with in_float32(pipe.vae):  # doctest: +SKIP
        ...     pictures = pipe.vae.decode(latents.float()).sample
    """
    if not vae.config.get("force_upcast"):
        yield
        return
    with _UPCASTING:
        upcasts = vae.dtype == torch.float16
        try:
            if upcasts:
                vae.to(torch.float32)
            yield
        finally:
            if upcasts:
                vae.to(torch.float16)


class ProFusionXLPipeline(StableDiffusionXLLoraLoaderMixin, pipeline_profusion.ProFusionPipeline):
    """Customized text-to-image generation with Fusion Sampling on Stable Diffusion XL, its Turbo and Lightning.

    Args:
        vae: Autoencoder between pictures and latents.
        text_encoder: The first; the UNet reads its last but one hidden state.
        text_encoder_2: The second; beside its last but one hidden state its pooled text is read.
        tokenizer: Of the first text encoder.
        tokenizer_2: Of the second.
        unet: Denoiser of Stable Diffusion XL's kind.
        scheduler: Any that Stable Diffusion XL takes.
        promptnet: Reference -> pseudo word, as wide as both text encoders together. Not needed where S* is never made
            of a picture.
        image_encoder: CLIP vision tower of PromptNet.
        feature_extractor: Of the image encoder.
        controlnet: Reads the call's `control_image`. Several in a list, or as a `MultiControlNetModel`. Not needed
            without.
        placeholder: What stands for the subject in a prompt.
        placeholder_alias: Another spelling that prompts may use for it.
        force_zeros_for_empty_prompt: Whether ε_∅ without a negative prompt is that of no text at all, zeros.
        add_watermarker: Whether pictures get an invisible watermark, which needs `invisible_watermark`. If None, where
            that is installed, as of `StableDiffusionXLPipeline`.

    Source: Zhou et al. 2023 (arXiv 2305.13579); Podell et al. 2023, "SDXL" (arXiv 2307.01952).

    Example:
        >>> pipe = ProFusionXLPipeline.from_pretrained("stabilityai/sdxl-turbo")  # doctest: +SKIP
        >>> pipe.load_lora_weights("me/my-dog", adapter_name="dog")  # doctest: +SKIP
    """

    PIPELINE = "pipeline_profusion_xl.ProFusionXLPipeline"
    TEXT_PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    _optional_components = ["promptnet", "image_encoder", "feature_extractor", "controlnet"]
    _exclude_from_cpu_offload = []
    _own_settings = (*pipeline_profusion.ProFusionPipeline._own_settings, "force_zeros_for_empty_prompt")
    _callback_tensor_inputs = [
        *pipeline_profusion.ProFusionPipeline._callback_tensor_inputs,
        call_texts.CLASS_POOLED,
        call_texts.NULL_POOLED,
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        # Without a default: else diffusers' own `from_pretrained` would not see one that the caller gives.
        promptnet: modeling_promptnet.PromptNet | ModelMixin | None,  # the latter of another repository's code
        image_encoder: CLIPVisionModel | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        controlnet: ControlNetModel | MultiControlNetModel | list[ControlNetModel] | None = None,
        placeholder: str = "S*",
        placeholder_alias: str | None = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ):
        components = dict(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            promptnet=promptnet,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            controlnet=controlnet,
        )
        self._assemble(
            components,
            placeholder=placeholder,
            placeholder_alias=placeholder_alias,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        )
        if add_watermarker is None:
            add_watermarker = is_invisible_watermark_available()
        self.watermark = StableDiffusionXLWatermarker() if add_watermarker else None

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: Any, *args: Any, **kwargs: Any) -> None:
        """As of `StableDiffusionXLPipeline`; a LoRA for another base model is refused with a sentence.

        Args:
            pretrained_model_name_or_path_or_dict: Folder, file, Hub id or state dict; in PEFT's, diffusers' or kohya's
                format.
            *args: As there.
            **kwargs: As there: `adapter_name` is what a [`LearntSubject`] calls it by.

        Raises:
            ValueError: It was made for another base model, or is none.
        """
        with learnt_adapters.refusing_other_bases():
            super().load_lora_weights(pretrained_model_name_or_path_or_dict, *args, **kwargs)

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | None = None,
        tokenizer: CLIPTokenizer | None = None,
        text_encoder: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """As of `StableDiffusionXLPipeline`; a file with vectors for both text encoders is loaded into both.

        Args:
            pretrained_model_name_or_path: File, Hub id, tensors or state dict; of one text encoder, or with the keys
                "clip_l" and "clip_g".
            token: The word. If None, what the file says, or its name.
            tokenizer: Of the one text encoder that the file is for; for both None.
            text_encoder: That one; for both None.
            **kwargs: As there.

        Example:
            >>> pipe.load_textual_inversion("cat-toy.safetensors", token="<cat-toy>")  # doctest: +SKIP
        """
        if text_encoder is None and isinstance(pretrained_model_name_or_path, str | Path | dict):
            options = {name: kwargs[name] for name in kwargs if name not in ("mean_resizing",)}
            (state,) = load_textual_inversion_state_dicts([pretrained_model_name_or_path], **options)
            if isinstance(state, dict) and {"clip_l", "clip_g"} <= state.keys():
                if token is None:
                    file = kwargs.get("weight_name") or pretrained_model_name_or_path
                    token = "<learnt>" if isinstance(file, dict) else f"<{Path(file).stem}>"
                for name, (own_tokenizer, own_encoder) in zip(("clip_l", "clip_g"), self.TEXT_PARTS, strict=True):
                    own = dict(tokenizer=getattr(self, own_tokenizer), text_encoder=getattr(self, own_encoder))
                    super().load_textual_inversion(state[name], token=token, **own)
                return
        super().load_textual_inversion(pretrained_model_name_or_path, token, tokenizer, text_encoder, **kwargs)

    def __call__(
        self,
        prompt: str | list[str],
        image: reference_images.Reference | list | None = None,
        *,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        **settings: Any,
    ) -> StableDiffusionXLPipelineOutput | tuple:
        """Pictures of the subject as `prompt` says, at 1024 x 1024 unless told otherwise.

        With `guidance_scale=0` and `num_fusion_steps=0` this is `StableDiffusionXLPipeline` with the class prompt at
        the scale `class_guidance_scale`, to the bit. Both text encoders read `prompt`.

        Args:
            prompt: As of [`ProFusionPipeline`].
            image: As of [`ProFusionPipeline`].
            original_size: Height and width that the picture is said to have had before it was cropped; its own if None.
            crops_coords_top_left: Where the crop is said to begin, from the top and from the left.
            target_size: Height and width that the picture is said to have; its own if None.
            negative_original_size: The same for ε_∅. That and the two below are those of ε_C, unless this and
                `negative_target_size` are given.
            negative_crops_coords_top_left: The same for ε_∅.
            negative_target_size: The same for ε_∅.
            pooled_prompt_embeds: Pooled text [P, F] beside `prompt_embeds`.
            negative_pooled_prompt_embeds: Pooled text [P, F] beside `negative_prompt_embeds`.
            **settings: All that the call of [`ProFusionPipeline`] takes: `subject`, `class_noun`, `negative_prompt`,
                `height`, `width`, `num_inference_steps`, `guidance_scale`, `class_guidance_scale`, `generator`, ...
                Callbacks may ask for "pooled_prompt_embeds" and "negative_pooled_prompt_embeds" [B, F], too.

        Returns:
            `images`.

        Raises:
            TypeError: An argument is of another type than said above.
            ValueError: An argument is out of range, arguments contradict each other, the scheduler can't carry the
                fusion stage, or components don't fit. Nothing has been computed then.
            RuntimeError: The latents or the decoded pictures are not finite, or another call is using the scheduler.

        Example:
            >>> subject = pipe.LearntSubject("sks dog", class_noun="dog")  # doctest: +SKIP
            >>> image = pipe("S* on the moon", subject=subject).images[0]  # doctest: +SKIP
        """
        sizes = dict(
            original_size=original_size,
            crops_coords_top_left=crops_coords_top_left,
            target_size=target_size,
            negative_original_size=negative_original_size,
            negative_crops_coords_top_left=negative_crops_coords_top_left,
            negative_target_size=negative_target_size,
        )
        sizes = {name: xl_conditions.check_pair(name, pair) for name, pair in sizes.items()}
        pooled = {
            call_texts.CLASS_POOLED: pooled_prompt_embeds,
            call_texts.NULL_POOLED: negative_pooled_prompt_embeds,
        }
        for name, tensor in pooled.items():
            beside = name.replace("pooled_", "")
            if (tensor is None) != (settings.get(beside) is None):
                raise ValueError(f"`{name}` and `{beside}` must be given together, as `encode_prompt` makes them.")
        return super().__call__(prompt, image, **settings, **sizes, **pooled)

    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        lora_scale: float = 1.0,
        long_prompts: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode class prompts and negative prompts once, to be changed or given to many calls.

        Args:
            prompt: Class prompt, without the placeholder. A list makes a batch.
            negative_prompt: One text for all prompts, or a list with one for each. If None, no text at all, or an
                empty one without `force_zeros_for_empty_prompt`.
            lora_scale: Weighs the text encoders' LoRA, on top of `set_adapters`.
            long_prompts: As of the call.

        Returns:
            What `__call__` takes as `prompt_embeds` and as `negative_prompt_embeds` [P, T, D], and what it takes as
            `pooled_prompt_embeds` and as `negative_pooled_prompt_embeds` [P, F].

        Raises:
            TypeError: They are no texts.
            ValueError: A prompt holds the placeholder, or a list has another length.

        Example:
            >>> embeds = pipe.encode_prompt("a dog at the beach")  # doctest: +SKIP
        """
        text, null = self._encode_prompts(prompt, negative_prompt, lora_scale, long_prompts)
        return text.states, null.states, text.pooled, null.pooled

    @property
    def _null_is_zero(self) -> bool:
        return self.config.force_zeros_for_empty_prompt

    def _check_base_inputs(self, base_inputs: dict[str, Any], num_prompts: int) -> None:
        ours = {"original_size", "crops_coords_top_left", "target_size"}
        ours |= {f"negative_{name}" for name in ours} | {
            call_texts.CLASS_POOLED,
            call_texts.NULL_POOLED,
        }
        super()._check_base_inputs({name: one for name, one in base_inputs.items() if name not in ours}, num_prompts)
        projection = self.text_encoder_2.config.projection_dim
        for name in (call_texts.CLASS_POOLED, call_texts.NULL_POOLED):
            tensor_checks.check_tensor(name, base_inputs[name], (num_prompts, projection), self.text_encoder.dtype)
        xl_conditions.check_unet(self.unet, projection)

    def _added_conditions(
        self,
        null: text_encoders.TextOutput,
        class_text: text_encoders.TextOutput | None,
        height: int,
        width: int,
        base_inputs: dict[str, Any],
    ) -> xl_conditions.AddedConditions:
        sizes, null_sizes = xl_conditions.sizes_of(base_inputs, height, width)
        return xl_conditions.AddedConditions(
            null_pooled=null.pooled,
            class_pooled=class_text and class_text.pooled,
            null_sizes=torch.tensor(null_sizes).to(null.states),
            sizes=torch.tensor(sizes).to(null.states),
        )

    def _posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with in_float32(self.vae):
            return super()._posterior(pixels)

    def _decode(
        self, latents: torch.Tensor, output_type: str, generator: torch.Generator | list[torch.Generator] | None
    ) -> tuple[Any, None]:
        with in_float32(self.vae):
            latents = latents.to(self.vae.dtype)
            mean, std = encoding.latents_statistics(self.vae, latents) or (0.0, 1.0)
            latents = latents * std / self.vae.config.scaling_factor + mean
            images = self.vae.decode(latents, return_dict=False)[0]  # [B, 3, H, W]
        noisy_latents.check_finite(images, "the decoded pictures")
        if self.watermark is not None:
            images = self.watermark.apply_watermark(images)
        return self.image_processor.postprocess(images, output_type=output_type), None

    def _output(
        self, images: Any, has_nsfw_concept: None, return_dict: bool
    ) -> StableDiffusionXLPipelineOutput | tuple:
        return StableDiffusionXLPipelineOutput(images=images) if return_dict else (images,)
