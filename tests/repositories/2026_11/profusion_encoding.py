"""What stays the same over a call and can be made beforehand: a subject from its pictures, states from texts."""

from dataclasses import replace

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image

from .profusion_batch import list_per_prompt, list_prompts, list_texts, list_weights
from .profusion_inputs import check_components_fit, check_image_encoder, check_weights, check_without, choose_size
from .reference_images import Reference, load_reference_images
from .subject_embedding import SubjectEmbedding
from .subject_prompt import encode_texts, scaled_lora


class EncodingMixin:
    """A pipeline's `encode_subject` and `encode_prompt`.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> subject = pipe.encode_subject(demo_portraits()[0])
        >>> images = pipe("a portrait of S*", subject=subject).images
    """

    @torch.no_grad()
    def encode_subject(
        self,
        image: Reference | list[Reference],
        weights: list[float] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> SubjectEmbedding:
        """Encode reference pictures of one subject once, to be saved or given to many calls as `subject`.

        Args:
            image: A picture of the subject, or a list of them: PIL images, arrays, tensors or paths.
            weights: How much each reference counts. Equal with a sum of 1 if None.
            height: Of the pictures to be made, in pixels. References are scaled and cropped to it. The UNet's trained
                size if None.
            width: As `height`.

        Returns:
            The subject, on the pipeline's device.

        Raises:
            TypeError: A reference is nothing that makes a picture.
            ValueError: A reference can't be read, a size or weight is out of range, or there is no image encoder.

        Example:
            >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
            >>> load_demo_pipeline().encode_subject(demo_portraits()[0]).latents.shape
            torch.Size([1, 32, 8, 8])
        """
        check_components_fit(self.components)
        check_image_encoder(self.components)
        references = load_reference_images(image)
        weights = check_weights(weights, len(references))
        subject = self._encode_references(references, weights, *choose_size(height, width, [], self.components))
        self.maybe_free_model_hooks()
        return subject

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        lora_scale: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode class prompts and negative prompts once, to be changed or given to many calls.

        What S* turns a prompt into can't be had from here: it changes at every step.

        Args:
            prompt: Class prompt, without the placeholder. A list makes a batch.
            negative_prompt: One text for all prompts, or a list with one for each. Empty if None.
            lora_scale: Weighs the text encoder's LoRA, on top of `set_adapters`.

        Returns:
            What `__call__` takes as `prompt_embeds` and as `negative_prompt_embeds`, each [P, T, D].

        Raises:
            TypeError: They are no texts.
            ValueError: A prompt holds the placeholder, or a list has another length.

        Example:
            >>> from profusion_pipeline import load_demo_pipeline
            >>> prompt_embeds, negative_prompt_embeds = load_demo_pipeline().encode_prompt("a person at the beach")
            >>> prompt_embeds.shape == negative_prompt_embeds.shape
            True
        """
        prompts = list_prompts(prompt)
        check_without("prompt", prompts, self.config.placeholder)
        negative_prompts = list_texts("negative_prompt", negative_prompt or "", len(prompts))
        prompt_embeds = self._encode_texts(prompts, lora_scale)  # [P, T, D]
        negative_prompt_embeds = self._encode_texts(negative_prompts, lora_scale)  # [P, T, D]
        self.maybe_free_model_hooks()
        return prompt_embeds, negative_prompt_embeds

    def _read_images(
        self, prompt: str | list[str], image: Reference | list, image_weights: list | None
    ) -> list[tuple[int, list[Image.Image], list[float]]]:
        """For each prompt a key of its `image`, the references in it and their weights."""
        check_image_encoder(self.components)
        images = [image] if isinstance(prompt, str) else list_per_prompt("image", image, len(prompt))
        read = []
        for one, weights in zip(images, list_weights(image_weights, len(images)), strict=True):
            references = load_reference_images(one)
            read.append((id(one), references, check_weights(weights, len(references))))
        return read

    def _encode_images(
        self, images: list[tuple[int, list[Image.Image], list[float]]], height: int, width: int
    ) -> list[SubjectEmbedding]:
        """A subject for each prompt; an image that several prompts share is encoded once."""
        encoded = {}
        for key, references, weights in images:
            if key not in encoded:
                encoded[key] = self._encode_references(references, weights, height, width)
        return [replace(encoded[key], weights=torch.tensor(weights).double()) for key, _, weights in images]

    def _encode_references(
        self, references: list[Image.Image], weights: list[float], height: int, width: int
    ) -> SubjectEmbedding:
        device = self._execution_device
        pixels = self.image_processor.preprocess(references, height, width, resize_mode="crop")  # [R, 3, H, W]
        latents = retrieve_latents(self.vae.encode(pixels.to(device, self.vae.dtype)), sample_mode="argmax")
        views = self.feature_extractor(references, return_tensors="pt").pixel_values
        image_states = self.image_encoder(views.to(device, self.image_encoder.dtype)).last_hidden_state  # [R, N, V]
        latents = latents * self.vae.config.scaling_factor  # [R, C, h, w]
        return SubjectEmbedding(latents, image_states, torch.tensor(weights).double())

    def _encode_texts(self, texts: list[str], lora_scale: float) -> torch.Tensor:
        """Text states of each text. [P, T, D]"""
        texts = self.maybe_convert_prompt(texts, self.tokenizer)
        with scaled_lora(self.text_encoder, lora_scale):
            return encode_texts(self.text_encoder, self.tokenizer, texts, device=self._execution_device)
