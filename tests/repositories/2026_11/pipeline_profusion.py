"""ProFusionPipeline: a reference picture of somebody and a prompt -> pictures of that person as the prompt says.

    code name                paper     what
    prompt                   C, S*     the text with the placeholder, for which PromptNet's pseudo word stands in
    class prompt             C         the same text with a class noun in place of S*
    guidance_scale           ω_1       towards S* with C
    class_guidance_scale     ω_2       towards C
    fusion_guidance_scale    ω_f       towards γS* with C, in the fusion stage
    fusion_subject_scale     γ         how strong S* is in the fusion stage
    fusion_eta               η         how much noise the fusion stage renews
    num_fusion_steps         m         fusion steps at every timestep

Letters in shapes: P prompts, B pictures (P x num_images_per_prompt), R references of one subject, K references of all
pictures together, L pseudo words, T tokens, N vision tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    ModelMixin,
    SchedulerMixin,
    StableDiffusionMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from .fusion_sampling import fusion_step, guide, noise_share, predict_noise, renew_noise
from .modeling_promptnet import PromptNet
from .noise_levels import NoiseLevel, follow_fusion, fusion_levels
from .profusion_batch import list_class_prompts, list_prompts, list_subjects, list_texts
from .profusion_concept_loader import ConceptLoaderMixin
from .profusion_encoding import EncodingMixin
from .profusion_inputs import (
    check_choice,
    check_components_fit,
    check_count,
    check_fusion_eta,
    check_generator,
    check_not_both,
    check_number,
    check_strength,
    check_tensor,
    check_window,
    choose_size,
    read_lora_scale,
)
from .profusion_loading import LoadingMixin
from .profusion_repository import RepositoryMixin
from .profusion_rows import GuidanceRows, ReferenceRows
from .profusion_running_call import RunningCallMixin
from .reference_images import Reference
from .subject_embedding import SubjectEmbedding
from .subject_prompt import (
    encode_subject_prompts,
    scale_subject_rows,
    scaled_lora,
    tokenize_subject_prompts,
)

logger = logging.get_logger(__name__)


def _check_finite(tensor: torch.Tensor, what: str) -> None:
    # Waits for the device once per step. Schedulers that look ᾱ up by the timestep, as DDIM does, wait there anyway.
    if not torch.isfinite(tensor).all():
        raise RuntimeError(
            f"Not all of {what} are finite numbers in {tensor.dtype}. Try another dtype: `pipe.to(torch.bfloat16)` has "
            "the range of float32, `pipe.to(torch.float32)` also its precision."
        )


class ProFusionPipeline(
    ConceptLoaderMixin,
    EncodingMixin,
    RunningCallMixin,
    LoadingMixin,
    RepositoryMixin,
    DiffusionPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    StableDiffusionLoraLoaderMixin,
):
    """Customized text-to-image generation with PromptNet and Fusion Sampling, without fine-tuning on the subject.

    Args:
        vae: Autoencoder between pictures and latents.
        text_encoder: Its last hidden state is what the UNet reads.
        tokenizer: Of the text encoder.
        unet: Denoiser of Stable Diffusion's kind.
        scheduler: Any that Stable Diffusion takes.
        promptnet: Reference -> pseudo word. As wide as the text encoder and the image encoder.
        image_encoder: CLIP vision tower; all its last hidden states are used. Not needed where only
            [`SubjectEmbedding`]s are given.
        feature_extractor: Of the image encoder.
        safety_checker: Looks at the finished pictures, as in `StableDiffusionPipeline`.
        placeholder: What stands for the subject in a prompt.
        placeholder_alias: Another spelling that prompts may use for it, as converted releases do for `holder`.
        requires_safety_checker: Whether a missing safety checker is worth a warning, as in `StableDiffusionPipeline`.

    Source: Zhou et al. 2023, "Enhancing Detail Preservation for Customized Text-to-Image Generation: A
    Regularization-Free Approach" (arXiv 2305.13579).

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> pipe("a portrait of S*, at the beach", image=demo_portraits()[0], class_noun="a person").images
        [<PIL.Image.Image image mode=RGB size=64x64...>]
    """

    # The UNet, the text encoder and PromptNet are all needed at every step: only the UNet, the largest, leaves (for the
    # VAE); the other two are loaded at their first use and stay until the call ends.
    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components = ["image_encoder", "feature_extractor", "safety_checker"]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    run_safety_checker = StableDiffusionPipeline.run_safety_checker
    prepare_extra_step_kwargs = StableDiffusionPipeline.prepare_extra_step_kwargs

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        promptnet: PromptNet | ModelMixin,  # of another repository's code
        image_encoder: CLIPVisionModel | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        safety_checker: torch.nn.Module | None = None,
        placeholder: str = "S*",
        placeholder_alias: str | None = None,
        requires_safety_checker: bool = False,
    ):
        super().__init__()
        if requires_safety_checker and safety_checker is None:
            logger.warning(
                "`safety_checker` is None, but this pipeline is published with one: load it with the others, or pass "
                "`requires_safety_checker=False` and look at the pictures yourself before others do."
            )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            promptnet=promptnet,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            safety_checker=safety_checker,
        )
        self.register_to_config(
            placeholder=placeholder,
            placeholder_alias=placeholder_alias,
            requires_safety_checker=requires_safety_checker,
        )
        self.image_processor = VaeImageProcessor()  # is told every size

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        image: Reference | list | None = None,
        subject: SubjectEmbedding | list[SubjectEmbedding] | None = None,
        class_noun: str | list[str] | None = "person",
        class_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image_weights: list[float] | list[list[float]] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        strength: float = 1.0,
        guidance_scale: float = 7.0,
        class_guidance_scale: float = 5.0,
        num_fusion_steps: int = 1,
        fusion_guidance_scale: float = 7.0,
        fusion_subject_scale: float = 0.6,
        fusion_eta: float = 1.0,
        fusion_start: float = 0.0,
        fusion_end: float = 1.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        concept: str | list[str] | None = None,
        base_guidance: bool | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> StableDiffusionPipelineOutput | tuple:
        """Pictures of the subject in `image` as `prompt` says.

        At every timestep t the fusion stage renews part of the noise m times, mixing S* with the text; then the
        refinement stage moves on: ε = ε_∅ + ω_1 (ε_{S*,C} - ε_∅) + ω_2 (ε_C - ε_∅). With `guidance_scale=0` and
        `num_fusion_steps=0` this is classifier-free guidance of the base model with the class prompt, to the bit.

        Random numbers are drawn from `generator` in this order: the initial noise, then at every step the m fusion
        noises and what the scheduler draws itself.

        Args:
            prompt: What to show, with the placeholder (`S*`) exactly once for the subject. A list makes a batch.
            image: A picture of the subject: a PIL image, array, tensor or path. A list of references of it, for one
                prompt; for a list of prompts one entry for each of them, which may be a list of references.
            subject: In place of `image`, what `encode_subject` returned; one for all prompts, or a list with one each.
            class_noun: What the subject is; it takes the place of S* in the class prompt. A concept brings its own.
            class_prompt: The whole class prompt; `class_noun` isn't used then.
            negative_prompt: What not to show, the text of ε_∅. Empty if None.
            image_weights: The weight of each reference, nested as `image`. Equal with a sum of 1 if None. In the
                fusion stage only their proportions count; in refinement each reference pulls with ω_1 times its weight.
            height: Of the pictures in pixels, a multiple of VAE factor x PromptNet's grid (64 for Stable Diffusion).
                The subject's if one is given, else the UNet's trained size.
            width: As `height`.
            num_inference_steps: Denoising steps, 1 or more. More are slower and more exact.
            strength: In (0, 1]. Below 1 the call starts that far into the schedule, from the noised first reference,
                or from `latents` as they are.
            guidance_scale: ω_1, towards the subject; 0 switches S* off in the refinement stage.
            class_guidance_scale: ω_2, towards the text; 0 switches the class prompt off.
            num_fusion_steps: m, fusion steps at every timestep; 0 switches the fusion stage off. More bring subject and
                text closer together, each at the price of two UNet rows.
            fusion_guidance_scale: ω_f, towards subject and text together in the fusion stage.
            fusion_subject_scale: γ, the strength of S* in the fusion stage; below 1 the text gains.
            fusion_eta: η, how much noise a fusion step renews; 0 makes it the identity. The largest value allowed
                depends on the schedule and is at least 1.41.
            fusion_start: Share of the steps after which the fusion stage begins, 0 to 1.
            fusion_end: Share of the steps at which it ends, 0 to 1. Both as diffusers' `control_guidance_start` and
                `control_guidance_end`.
            num_images_per_prompt: Pictures for each prompt, 1 or more.
            eta: Noise of DDIM's own step, 0 to 1. Other schedulers don't read it.
            generator: Where random numbers come from; a list gives each picture its own.
            latents: Initial latents [B, C, h, w] in place of the initial noise.
            prompt_embeds: Text states [P, T, D] in place of the class prompt's.
            negative_prompt_embeds: Text states [P, T, D] in place of the negative prompt's.
            output_type: "pil", "np", "pt", or "latent" for the latents themselves.
            return_dict: Whether to return an output object or a tuple.
            cross_attention_kwargs: What the UNet's attention processors take; "scale" weighs the LoRA of UNet and text
                encoder, on top of `set_adapters`.
            concept: In place of `image`, the name of a loaded concept, or a list with one for each prompt. If None, and
                neither `image` nor `subject` is given, the one that is loaded.
            base_guidance: Whether ε_∅ and ε_C are left to the untouched base, so that a concept only changes ε_{S*,C}:
                more of the person for the same loss of the prompt. If None, yes, unless the concept's mode is full.
            callback_on_step_end: Called as `callback(pipe, index, timestep, tensors)` after every step; it returns the
                dictionary `tensors`, in which it may have replaced what is there. It may also set the scales of
                [`RunningCallMixin`] for the steps that follow.
            callback_on_step_end_tensor_inputs: What `tensors` holds: "latents" [B, C, h, w], "prompt_embeds" and
                "negative_prompt_embeds" [B, T, D].

        Returns:
            `images`, and `nsfw_content_detected` of the safety checker or None.

        Raises:
            TypeError: An argument is of another type than said above.
            ValueError: An argument is out of range, arguments contradict each other, the scheduler can't carry the
                fusion stage, or components don't fit. Nothing has been computed then.
            RuntimeError: The latents or the decoded pictures are not finite.

        Example:
            >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
            >>> pipe = load_demo_pipeline()
            >>> images = pipe(["a pencil sketch of S*", "S* in space"], image=demo_portraits()[0]).images
            >>> len(images)
            2
        """
        # 1. Check the inputs
        prompts = list_prompts(prompt)
        check_count("num_inference_steps", num_inference_steps, at_least=1)
        check_count("num_images_per_prompt", num_images_per_prompt, at_least=1)
        check_count("num_fusion_steps", num_fusion_steps, at_least=0)
        check_number("guidance_scale", guidance_scale)
        check_number("class_guidance_scale", class_guidance_scale)
        check_number("fusion_guidance_scale", fusion_guidance_scale)
        check_number("fusion_subject_scale", fusion_subject_scale)
        check_number("fusion_eta", fusion_eta)
        check_window("fusion_start", fusion_start, "fusion_end", fusion_end)
        check_number("eta", eta)
        check_strength(strength, num_inference_steps)
        check_choice("output_type", output_type, ("pil", "np", "pt", "latent"))
        lora_scale = read_lora_scale(cross_attention_kwargs)
        for name in callback_on_step_end_tensor_inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        check_generator(generator, len(prompts) * num_images_per_prompt)
        check_components_fit(self.components)
        uses_subject = guidance_scale > 0 or (num_fusion_steps > 0 and fusion_guidance_scale > 0)
        starts_from_image = strength < 1 and latents is None
        may_change = callback_on_step_end is not None  # then what has no weight at first may get one
        check_not_both("image", image, "subject", subject)
        has_subject = image is not None or subject is not None
        names = self._choose_concepts(concept, len(prompts), has_subject=has_subject, base_guidance=base_guidance)
        if base_guidance is None:
            base_guidance = all(self.concepts[name].concept.mode == "lora" for name in names)
        if names:
            subject = [self.concepts[name].concept for name in names]
            class_noun = [one.class_noun for one in subject]
        if image is None and subject is None and (uses_subject or starts_from_image):
            raise ValueError("`image` and `subject` are both None: give one of them, for S* to stand for somebody.")
        images = [] if image is None else self._read_images(prompt, image, image_weights)
        subjects = [] if subject is None else list_subjects(subject, len(prompts), self.promptnet.config)
        height, width = choose_size(height, width, subjects, self.components)
        grid = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        shape = (len(prompts) * num_images_per_prompt, self.unet.config.in_channels, *grid)  # B, C, h, w
        states_shape = (len(prompts), self.tokenizer.model_max_length, self.text_encoder.config.hidden_size)
        for name, tensor, wanted in (
            ("latents", latents, shape),
            ("prompt_embeds", prompt_embeds, states_shape),
            ("negative_prompt_embeds", negative_prompt_embeds, states_shape),
        ):
            if tensor is not None:
                check_tensor(name, tensor, wanted, self.text_encoder.dtype)
        check_not_both("class_prompt", class_prompt, "prompt_embeds", prompt_embeds)
        check_not_both("negative_prompt", negative_prompt, "negative_prompt_embeds", negative_prompt_embeds)

        self._guidance_scale, self._class_guidance_scale = guidance_scale, class_guidance_scale
        self._fusion_guidance_scale = fusion_guidance_scale
        self._cross_attention_kwargs, self._lora_scale = cross_attention_kwargs, lora_scale
        self._concept_of_picture = [name for name in names for _ in range(num_images_per_prompt)]
        self._base_guidance, self._interrupt = base_guidance, False

        # 2. Read the prompts
        if self.config.placeholder_alias is not None:
            prompts = [text.replace(self.config.placeholder_alias, self.config.placeholder) for text in prompts]
        input_ids, positions = tokenize_subject_prompts(
            self.tokenizer,
            self.maybe_convert_prompt(prompts, self.tokenizer),
            placeholder=self.config.placeholder,
            num_subject_tokens=self.promptnet.num_subject_tokens(*grid),
        )  # [P, T], [P]
        null_texts = class_texts = None
        if negative_prompt_embeds is None:
            null_texts = list_texts("negative_prompt", negative_prompt or "", len(prompts))
        has_class = class_noun is not None or class_prompt is not None
        if prompt_embeds is None and (class_guidance_scale > 0 or (may_change and has_class)):
            class_texts = list_class_prompts(prompts, self.config.placeholder, class_noun, class_prompt)

        # 3. Ask the scheduler for its timesteps and noise levels
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        begin = (num_inference_steps - int(num_inference_steps * strength)) * self.scheduler.order
        if begin > 0 and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        timesteps = self.scheduler.timesteps[begin:]
        self._num_timesteps = len(timesteps)
        count = len(timesteps)
        levels = fusion_levels(self.scheduler, begin) if num_fusion_steps > 0 else [None] * count
        in_window = [i / count >= fusion_start and (i + 1) / count <= fusion_end for i in range(count)]
        levels = [level if inside else None for level, inside in zip(levels, in_window, strict=True)]
        shares = [level and noise_share(level.alpha_bar, level.next_alpha_bar, fusion_eta) for level in levels]
        check_fusion_eta(fusion_eta, [share for share in shares if share is not None])

        # 4. Encode what stays the same over the call: the subjects, the class prompt and the negative prompt
        if images and (uses_subject or starts_from_image or may_change):
            subjects = self._encode_images(images, height, width)
        if null_texts is not None:
            negative_prompt_embeds = self._encode_texts(null_texts, lora_scale)  # [P, T, D]
        if class_texts is not None:
            prompt_embeds = self._encode_texts(class_texts, lora_scale)  # [P, T, D]
        null_states = negative_prompt_embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)  # [B, T, D]
        class_states = None
        if prompt_embeds is not None:
            class_states = prompt_embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)  # [B, T, D]
        references = ReferenceRows.of(subjects, input_ids, positions, num_images_per_prompt, like=null_states)

        # 5. Draw the initial latents
        if latents is None:
            noise = randn_tensor(shape, generator=generator, device=device, dtype=null_states.dtype)
            if starts_from_image:
                first = torch.cat([subject.latents[:1] for subject in subjects]).to(noise)  # [P, C, h, w]
                first = first.repeat_interleave(num_images_per_prompt, dim=0)  # [B, C, h, w]
                latents = self.scheduler.add_noise(first, noise, timesteps[:1].repeat(len(first)))
            else:
                latents = noise * self.scheduler.init_noise_sigma
        elif begin == 0:
            latents = latents.to(device) * self.scheduler.init_noise_sigma
        else:
            latents = latents.to(device)

        # 6. Denoise: at every timestep the fusion stage, which stays there, then the refinement stage, which moves on.
        step_settings = self.prepare_extra_step_kwargs(generator, eta)
        fusion, refinement = self._plan_rows(null_states, class_states, references, fusion_subject_scale)
        with self._weights_of_concept():
            for i, t in enumerate(self.progress_bar(timesteps)):
                if self.interrupt:
                    continue
                for _ in range(num_fusion_steps if levels[i] else 0):
                    noise = randn_tensor(shape, generator=generator, device=device, dtype=latents.dtype)
                    model_output = self._predict(latents, t, fusion, references)
                    latents = self._fuse(latents, model_output, noise, levels[i], shares[i])
                model_output = self._predict(latents, t, refinement, references)
                latents = self.scheduler.step(model_output, t, latents, **step_settings, return_dict=False)[0]
                _check_finite(latents, f"the latents after step {i + 1} of {len(timesteps)} (timestep {float(t):g})")
                if callback_on_step_end is not None:
                    tensors = dict(latents=latents, prompt_embeds=class_states, negative_prompt_embeds=null_states)
                    asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, i, t, asked)
                    latents, class_states, null_states = (changed.get(name, tensor) for name, tensor in tensors.items())
                    fusion, refinement = self._plan_rows(null_states, class_states, references, fusion_subject_scale)

        # 7. Decode
        if output_type == "latent":
            images, has_nsfw_concept = latents, None
        else:
            latents = latents / self.vae.config.scaling_factor
            images = self.vae.decode(latents, return_dict=False, generator=generator)[0]  # [B, 3, H, W]
            _check_finite(images, "the decoded pictures")
            images, has_nsfw_concept = self.run_safety_checker(images, device, images.dtype)
            harmless = [not flagged for flagged in has_nsfw_concept or [False] * len(images)]
            images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=harmless)

        self.maybe_free_model_hooks()
        if not return_dict:
            return images, has_nsfw_concept
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=has_nsfw_concept)

    def _plan_rows(
        self,
        null_states: torch.Tensor,
        class_states: torch.Tensor | None,
        references: ReferenceRows,
        fusion_subject_scale: float,
    ) -> tuple[GuidanceRows, GuidanceRows]:
        """The rows of both stages, with the scales and the concepts of now."""
        fusion = GuidanceRows.plan(
            null_states,
            class_states,
            references.owner,
            class_weight=0.0,
            subject_weights=[self.fusion_guidance_scale * proportion for proportion in references.proportions],
            subject_scale=fusion_subject_scale,
        )
        refinement = GuidanceRows.plan(
            null_states,
            class_states,
            references.owner,
            class_weight=self.class_guidance_scale,
            subject_weights=[self.guidance_scale * weight for weight in references.weights],
            subject_scale=1.0,
        )
        return tuple(
            replace(rows, adapters=self._adapters_of(rows.owner, len(rows.text_states)))
            for rows in (fusion, refinement)
        )

    def _predict(
        self, latents: torch.Tensor, t: torch.Tensor, rows: GuidanceRows, references: ReferenceRows
    ) -> torch.Tensor:
        """The guided model output at (latents, t): one UNet call for all rows, after one PromptNet call for all S*."""
        latents = self.scheduler.scale_model_input(latents, t)  # [B, C, h, w], variance-preserving
        text_states = rows.text_states
        if rows.has_subject:
            at_reference = latents[references.owner]  # [K, C, h, w]
            with self._row_adapters["promptnet"].computed_by(rows.adapters[len(rows.text_states) :]):
                words = self.promptnet(  # [K, L, D]
                    references.latents, t, references.image_states, at_reference, return_dict=False
                )[0]
            with scaled_lora(self.text_encoder, self._lora_scale):
                states = encode_subject_prompts(self.text_encoder, references.input_ids, references.positions, words)
            states = scale_subject_rows(states, references.positions, words.shape[1], rows.subject_scale)  # [K, T, D]
            text_states = torch.cat([text_states, states])  # [rows, T, D]
        with self._row_adapters["unet"].computed_by(rows.adapters):
            output = self.unet(
                latents[rows.owner],
                t,
                encoder_hidden_states=text_states,
                cross_attention_kwargs=self.cross_attention_kwargs,
                return_dict=False,
            )[0]  # [rows, C, h, w]
        # Without rows of ∅ the weights sum to one, and any tensor may stand in their place.
        null = output[: rows.num_null] if rows.num_null else torch.zeros_like(latents)  # [B, C, h, w]
        return guide(null, output[rows.num_null :], rows.weights, rows.owner[rows.num_null :])

    def _fuse(
        self, latents: torch.Tensor, model_output: torch.Tensor, noise: torch.Tensor, level: NoiseLevel, share: float
    ) -> torch.Tensor:
        """One fusion step of the scheduler's state."""
        latents = latents / level.state_scale  # [B, C, h, w], variance-preserving
        predicted = predict_noise(model_output, latents, level.alpha_bar, self.scheduler.config.prediction_type)
        renewed = renew_noise(predicted, noise, share)
        follow_fusion(self.scheduler, renewed - predicted)
        return fusion_step(latents, predicted, renewed, level.alpha_bar) * level.state_scale
