"""ProFusionPipeline: a reference picture of somebody and a prompt -> pictures of that person as the prompt says.

Here is the call, in nine steps; the loop is step 8. Its symbols are explained in `guidance_scales.py`, its mathematics
is `fusion_sampling.py`, and its components are named in `base_model.py`.

Letters in shapes: P prompts, B pictures (P x num_images_per_prompt), R references of one subject, K references of all
pictures together, L pseudo words, T tokens, N vision tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from . import (
    base_model,
    call_inputs,
    call_texts,
    callbacks,
    checks,
    concept_loader,
    control,
    fusion_stage,
    guidance_scales,
    image_prompts,
    learnt_adapters,
    learnt_subject,
    loading,
    noisy_latents,
    output,
    prediction,
    recipes,
    reference_images,
    repository,
    shared_models,
    structure,
    subject_embedding,
    tensor_checks,
)


class ProFusionPipeline(
    concept_loader.ConceptLoaderMixin,
    learnt_adapters.LearntAdaptersMixin,
    image_prompts.ImagePromptsMixin,
    call_texts.CallTextsMixin,
    callbacks.CallbackMixin,
    loading.LoadingMixin,
    repository.RepositoryMixin,
    base_model.BaseModel,
):
    """Customized text-to-image generation with PromptNet and Fusion Sampling, without fine-tuning on the subject.

    Its components are those of [`BaseModel`].

    Source: Zhou et al. 2023, "Enhancing Detail Preservation for Customized Text-to-Image Generation: A
    Regularization-Free Approach" (arXiv 2305.13579).

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> pipe("a portrait of S*, at the beach", image=demo_portraits()[0], class_noun="a person").images
        [<PIL.Image.Image image mode=RGB size=64x64...>]
    """

    LearntSubject = learnt_subject.LearntSubject  # for those who have this code from a repository alone

    @torch.no_grad()
    @recipes.takes_recipe
    @shared_models.one_call_at_a_time
    def __call__(
        self,
        prompt: str | list[str],
        image: reference_images.Reference | list | None = None,
        *,
        subject: subject_embedding.SubjectEmbedding | learnt_subject.LearntSubject | list | None = None,
        class_noun: str | list[str] | None = "person",
        class_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image_weights: list[float] | list[list[float]] | None = None,
        init_image: reference_images.Reference | list | None = None,
        mask_image: reference_images.Reference | list | None = None,
        control_image: reference_images.Reference | list | None = None,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        recipe: str | None = None,
        height: int | None = None,
        width: int | None = None,
        crop_face: str | None = None,
        num_inference_steps: int = 50,
        strength: float = 1.0,
        guidance_scale: float = 7.0,
        class_guidance_scale: float = 5.0,
        num_fusion_steps: int = 1,
        fusion_guidance_scale: float = 7.0,
        fusion_subject_scale: float = 0.6,
        fusion_text: str = "scaled",
        fusion_eta: float = 1.0,
        fusion_start: float = 0.0,
        fusion_end: float = 1.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        subject_every: int = 0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        long_prompts: bool = False,
        concept: str | list[str] | None = None,
        base_guidance: bool | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        **base_inputs: Any,
    ) -> output.ProFusionOutput | tuple:
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
            subject: In place of `image`, what `encode_subject` returned, or a [`LearntSubject`]; one for all prompts,
                or a list with one each.
            class_noun: What the subject is; it takes the place of S* in the class prompt. Concepts and learnt subjects
                bring their own.
            class_prompt: The whole class prompt; `class_noun` isn't used then.
            negative_prompt: What not to show, the text of ε_∅. Empty if None.
            image_weights: The weight of each reference, nested as `image`. Equal with a sum of 1 if None. In the
                fusion stage only their proportions count; in refinement each reference pulls with ω_1 times its weight.
            init_image: A picture to begin with and to take the layout from, of somebody or something else: as `image`
                one; for a list of prompts one for all, or a list. It is scaled and cropped to the size that is drawn.
            mask_image: What of `init_image` is drawn anew, where it is white; what is black is kept, at every step at
                that step's level of noise. Of its size; strokes on a transparent layer count as white. As `init_image`
                a list has one for each prompt.
            control_image: What the pipeline's `controlnet` reads: edges, a pose, depth, as it learnt them. As
                `init_image`; with several ControlNets a list with one for each, or for each prompt such a list.
            controlnet_conditioning_scale: How much ControlNet counts, 0 or more; a list has one for each. 0 switches it
                off.
            control_guidance_start: Share of the steps after which it does, 0 to 1; a list as above.
            control_guidance_end: Share of the steps at which it stops, 0 to 1; a list as above.
            recipe: Settings that belong together: "fast", "best" or "paper" (docs/speed.md). Those that are given
                beside it go before its own. None is "paper": the authors' settings, which are the defaults here.
            height: Of the pictures in pixels, a multiple of VAE factor x PromptNet's grid (64 for Stable Diffusion).
                The subject's if one is given, else the UNet's trained size.
            width: As `height`.
            crop_face: "auto" cuts each photo to its face, as the pictures of FFHQ were cut, and needs OpenCV 4; the
                path of an ONNX file of YuNet does so with that detector; None takes the middle. A `subject` is encoded
                already.
            num_inference_steps: Denoising steps, 1 or more. More are slower and more exact.
            strength: In (0, 1]. Below 1 the call starts that far into the schedule, from the noised `init_image`, from
                the first reference where there is none, or from `latents` as they are. 1 is pure noise.
            guidance_scale: ω_1, towards the subject; 0 switches S* off in the refinement stage.
            class_guidance_scale: ω_2, towards the text; 0 switches the class prompt off.
            num_fusion_steps: m, fusion steps at every timestep; 0 switches the fusion stage off. More bring subject and
                text closer together, each at the price of two UNet rows.
            fusion_guidance_scale: ω_f, towards subject and text together in the fusion stage.
            fusion_subject_scale: γ, the strength of S* in the fusion stage; below 1 the text gains.
            fusion_text: What γ does. "scaled", the authors' way: it multiplies the text state of S* alone; those after
                it have heard S* in full. "mixed": all text states go from the class prompt's (γ = 0) to those with S*
                (γ = 1). Where the noun takes more places than S*, its last tokens are mixed with S*.
            fusion_eta: η, how much noise a fusion step renews; 0 makes it the identity. The largest value allowed
                depends on the schedule and is at least 1.41.
            fusion_start: Share of the steps after which the fusion stage begins, 0 to 1.
            fusion_end: Share of the steps at which it ends, 0 to 1. Both as diffusers' `control_guidance_start` and
                `control_guidance_end`.
            guidance_start: Share of the steps after which the refinement stage guides, 0 to 1. Outside of both shares
                it is ε_{S*,C} alone, one UNet row for each reference; ε_C where ω_1 is 0.
            guidance_end: Share of the steps at which it stops, 0 to 1. The fusion stage has its own two.
            guidance_rescale: φ, 0 to 1: how far ε of the refinement stage gets the standard deviation of ε_{S*,C},
                which high scales lose, as diffusers has it. Several references are mixed by their proportions first.
                Where ω_1 is 0, that of ε_C. 0 switches it off.
            subject_every: S* is made anew at the first prediction of every so many steps, and shared by all others. 1
                is once at each step, for both stages; 0, the authors' way, at every single prediction.
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
            long_prompts: Whether texts beyond the text encoder's length T are read in pieces of T, side by side: more
                of the prompt, for more time in every attention to it. Else what doesn't fit is left out, and named.
            concept: In place of `image`, the name of a loaded concept, or a list with one for each prompt; a name in
                `subject` says the same, also beside subjects of other kinds. If None, and
                neither `image` nor `subject` is given, the one that is loaded.
            base_guidance: Whether ε_∅ and ε_C are left to the untouched base, so that a concept, or the adapter of a
                [`LearntSubject`], only changes ε_{S*,C}: more of the person for the same loss of the prompt. If None,
                yes, unless a concept's mode is full.
            callback_on_step_end: Called as `callback(pipe, index, timestep, tensors)` after every step; it returns the
                dictionary `tensors`, in which it may have replaced what is there, or None. It changes a scale for the
                steps that follow with `pipe._guidance_scale = 3.0` (or `_class_guidance_scale`,
                `_fusion_guidance_scale`), and ends the call with `pipe._interrupt = True`. diffusers' callback objects
                are taken, too.
            callback_on_step_end_tensor_inputs: What `tensors` holds: "latents" [B, C, h, w], "prompt_embeds" and
                "negative_prompt_embeds" [B, T, D]. A callback object's own `tensor_inputs` go before it.
            **base_inputs: What only another base model reads, as that of `ProFusionXLPipeline` does; nothing here.

        Returns:
            `images`, and `nsfw_content_detected` of the safety checker or None.

        Raises:
            ImportError: `crop_face` is given and OpenCV isn't installed, or has no such detector.
            TypeError: An argument is of another type than said above.
            ValueError: An argument is out of range, arguments contradict each other, the scheduler can't carry the
                fusion stage, or components don't fit. Nothing has been computed then.
            RuntimeError: The latents or the decoded pictures are not finite, or another call is using the scheduler.

        Example:
            >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
            >>> pipe = load_demo_pipeline()
            >>> images = pipe(["a pencil sketch of S*", "S* in space"], image=demo_portraits()[0]).images
            >>> len(images)
            2
        """
        # 1. Check
        guidance = guidance_scales.Guidance(
            guidance_scale=guidance_scale,
            class_guidance_scale=class_guidance_scale,
            num_fusion_steps=num_fusion_steps,
            fusion_guidance_scale=fusion_guidance_scale,
            fusion_subject_scale=fusion_subject_scale,
            fusion_text=fusion_text,
            fusion_eta=fusion_eta,
            fusion_start=fusion_start,
            fusion_end=fusion_end,
            guidance_start=guidance_start,
            guidance_end=guidance_end,
            guidance_rescale=guidance_rescale,
            subject_every=subject_every,
        )
        prompts = call_inputs.list_prompts(prompt)
        self._check_base_inputs(base_inputs, len(prompts))
        num_inference_steps, num_images_per_prompt = checks.check_counts(
            num_inference_steps=num_inference_steps, num_images_per_prompt=num_images_per_prompt
        )
        num_pictures = len(prompts) * num_images_per_prompt
        eta = checks.check_number("eta", eta, at_most=1)
        strength = checks.check_strength(strength, num_inference_steps)
        lora_scale = checks.check_lora_scale(cross_attention_kwargs)
        checks.check_choice("output_type", output_type, ("pil", "np", "pt", "latent"))
        tensor_checks.check_generator(generator, num_pictures)
        call_inputs.check_components_fit(self.components)
        tensor_inputs = self._tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)

        # 2. Who S* is
        begun = structure.read(init_image, mask_image, len(prompts), strength, latents, self.scheduler)
        starts_from_subject = strength < 1 and latents is None and init_image is None
        may_change = callback_on_step_end is not None  # then what has no weight at first may get one
        checks.check_not_both("image", image, "subject", subject)
        names, base_guidance = self._choose_concepts(concept, subject, len(prompts), image is not None, base_guidance)
        subject, class_noun = self._subjects_of(names, subject, class_noun)
        checks.check_not_both("image_weights", image_weights, "subject", subject)
        images = [] if image is None else self._read_images(prompt, image, image_weights, crop_face)
        subjects = [] if subject is None else call_inputs.list_subjects(subject, len(prompts), self.promptnet)
        class_noun = call_inputs.class_nouns(subjects, class_noun)
        concepts = self._whose_pictures(names, subjects, num_images_per_prompt, base_guidance)
        call_inputs.check_somebody(images, subjects, needed=guidance.uses_subject, pictured=starts_from_subject)

        # 3. Which size
        height, width = call_inputs.choose_size(height, width, subjects, self.components)
        grid = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        shape = (num_pictures, self.unet.config.in_channels, *grid)  # B, C, h, w
        tensor_checks.check_tensor("latents", latents, shape, self.text_encoder.dtype)
        counts = (controlnet_conditioning_scale, control_guidance_start, control_guidance_end)
        controls = control.read(self.components, control_image, len(prompts), *counts)

        # 4. Which words
        texts = self._choose_texts(
            prompts,
            subjects,
            guidance,
            grid,
            class_noun=class_noun,
            class_prompt=class_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            long_prompts=checks.check_flag("long_prompts", long_prompts),
            may_change=may_change,
        )

        # 5. Which timesteps, which of them have a fusion stage, and which of them guide
        device = self._execution_device
        timesteps, begin = noisy_latents.set_timesteps(self.scheduler, num_inference_steps, strength, device)
        plan, guided = fusion_stage.plan(self.scheduler, guidance, begin), guidance.guided_steps(len(timesteps))

        # 6. Encode what stays the same over the call: the subjects, the class prompt and the negative prompt
        if images and (guidance.uses_subject or starts_from_subject or may_change):
            subjects = self._encode_images(images, height, width)
        null, class_text, words, references = self._encode_call_texts(
            texts, subjects, concepts, num_images_per_prompt, lora_scale, base_inputs
        )
        state = prediction.CallState(
            guidance=guidance,
            null_states=null.states,
            class_states=class_text and class_text.states,
            references=references,
            words=words,
            concepts=concepts,
            models=self._models_of(concepts),
            cross_attention_kwargs=cross_attention_kwargs,
            lora_scale=lora_scale,
            added=self._added_conditions(null, class_text, height, width, base_inputs),
            images=self._encode_image_prompts(concepts),
        )
        fusion, refinement, unguided = self._plan_rows(state)
        shared = prediction.SharedSubject(guidance)
        controlled = control.plan(controls, (height, width), num_pictures, len(timesteps), null.states)

        # 7. Draw the initial latents, over those of the picture that the call begins with
        photos = subjects if starts_from_subject else []
        clean = self._clean_latents(begun.pictures, photos, height, width, num_pictures)
        noise = noisy_latents.noise(latents, shape, generator, like=null.states)
        latents = noisy_latents.first(self.scheduler, begin, noise, clean)
        kept = structure.keep(begun.masks, (height, width), clean, noise, self.scheduler, begin)

        # 8. Denoise: at every timestep the fusion stage, which stays there, then the refinement stage, which moves on
        step_options, watched = self.prepare_extra_step_kwargs(generator, eta), noisy_latents.FiniteSteps(timesteps)
        self._show_to_callbacks(state, len(timesteps))
        for i, t in enumerate(self.progress_bar(timesteps)):
            if self.interrupt:
                continue
            shared.begin_step(i)
            for _ in range(guidance.num_fusion_steps if plan[i] else 0):
                noise = randn_tensor(shape, generator=generator, device=device, dtype=latents.dtype)
                model_input = self.scheduler.scale_model_input(latents, t)
                model_output = prediction.predict(state, fusion, model_input, t, shared, controlled[i])
                latents = fusion_stage.renew(self.scheduler, latents, model_output, noise, *plan[i])
                latents = kept.put_back(latents, i)
            rows, model_input = refinement if guided[i] else unguided, self.scheduler.scale_model_input(latents, t)
            model_output = prediction.predict(state, rows, model_input, t, shared, controlled[i])
            latents = self.scheduler.step(model_output, t, latents, **step_options, return_dict=False)[0]
            latents = kept.put_back(latents, i + 1)
            watched.add(latents)
            if callback_on_step_end is not None:
                latents, state = self._call_back(callback_on_step_end, tensor_inputs, i, t, latents, state)
                fusion, refinement, unguided = self._plan_rows(state)
        watched.check()

        # 9. Decode
        images, has_nsfw_concept = self._pictures(latents, output_type, generator)
        self.maybe_free_model_hooks()
        return self._output(images, has_nsfw_concept, return_dict)
