"""What stays the same over a call and can be made beforehand: a subject from its pictures, states from texts."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTokenizer, CLIPVisionModel

from . import (
    call_inputs,
    checks,
    faces,
    framing,
    learnt_subject,
    prompt_pieces,
    quoting,
    reference_images,
    subject_embedding,
    subject_prompt,
    text_encoders,
)


@torch.no_grad()
def posterior(
    vae: AutoencoderKL, pixels: torch.Tensor, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of pictures; the mean is what PromptNet reads of a reference.

    Args:
        vae: The autoencoder. `AutoencoderTiny` knows no deviation: it is 0.
        pixels: In -1..1. [R, 3, H, W]
        device: Where the VAE computes.

    Returns:
        Both times the VAE's scaling factor; where its config tells the statistics of latents, less their mean and
        divided by their deviation. [R, C, h, w] each

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> posterior(load_demo_pipeline().vae, torch.zeros(1, 3, 64, 64), "cpu")[0].shape
        torch.Size([1, 32, 8, 8])
    """
    encoded, scale = vae.encode(pixels.to(device, vae.dtype)), vae.config.scaling_factor
    if hasattr(encoded, "latents"):
        return encoded.latents * scale, torch.zeros_like(encoded.latents)
    mean, std = encoded.latent_dist.mean * scale, encoded.latent_dist.std * scale
    if (statistics := latents_statistics(vae, mean)) is None:
        return mean, std
    center, deviation = statistics
    return (mean - center * scale) / deviation, std / deviation


def latents_statistics(vae: AutoencoderKL, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and deviation of the latents of a VAE whose config tells them.

    Args:
        vae: The autoencoder.
        like: A tensor of the device and dtype that they get.

    Returns:
        Both [1, C, 1, 1], or None.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> latents_statistics(load_demo_pipeline().vae, torch.zeros(1))
    """
    told = [vae.config.get(name) for name in ("latents_mean", "latents_std")]
    if None in told:
        return None
    return tuple(torch.tensor(numbers).view(1, -1, 1, 1).to(like) for numbers in told)


@torch.no_grad()
def vision_states(image_encoder: CLIPVisionModel, pixels: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """V, what the vision tower sees in pictures.

    Args:
        image_encoder: The CLIP vision tower.
        pixels: From the feature extractor. [R, 3, h, w]
        device: Where the tower computes.

    Returns:
        The last hidden states of all tokens, without the post layer norm. [R, N, V]

    Example:
        >>> vision_states(pipe.image_encoder, pixels, "cuda").shape  # doctest: +SKIP
        torch.Size([1, 257, 1280])
    """
    return image_encoder(pixels.to(device, image_encoder.dtype)).last_hidden_state


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
        image: reference_images.Reference | list[reference_images.Reference],
        weights: list[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        crop_face: str | None = None,
    ) -> subject_embedding.SubjectEmbedding:
        """Encode reference pictures of one subject once, to be saved or given to many calls as `subject`.

        Args:
            image: A picture of the subject, or a list of them, each as [`load_reference_image`] takes it.
            weights: How much each reference counts. Equal with a sum of 1 if None.
            height: Of the pictures to be made, in pixels. References are scaled and cropped to it. The UNet's trained
                size if None.
            width: As `height`.
            crop_face: As of the call.

        Returns:
            The subject, on the pipeline's device.

        Raises:
            ImportError: Faces are to be found and OpenCV isn't installed, or has no such detector.
            TypeError: A reference is nothing that makes a picture.
            ValueError: A reference can't be read, a size or weight is out of range, or there is no image encoder.

        Example:
            >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
            >>> load_demo_pipeline().encode_subject(demo_portraits()[0]).latents.shape
            torch.Size([1, 32, 8, 8])
        """
        call_inputs.check_components_fit(self.components)
        call_inputs.check_image_encoder(self.components)
        references = self._read_references(image, crop_face)
        weights = checks.check_weights(weights, len(references))
        subject = self._encode_references(
            references, weights, *call_inputs.choose_size(height, width, [], self.components)
        )
        self.maybe_free_model_hooks()
        return subject

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        lora_scale: float = 1.0,
        long_prompts: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode class prompts and negative prompts once, to be changed or given to many calls.

        What S* turns a prompt into can't be had from here: it changes at every step.

        Args:
            prompt: Class prompt, without the placeholder. A list makes a batch.
            negative_prompt: One text for all prompts, or a list with one for each. Empty if None.
            lora_scale: Weighs the text encoder's LoRA, on top of `set_adapters`.
            long_prompts: As of the call.

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
        text, null = self._encode_prompts(prompt, negative_prompt, lora_scale, long_prompts)
        return text.states, null.states

    _null_is_zero = False  # whether ∅ without a negative prompt is no text at all

    @torch.no_grad()
    def _encode_prompts(
        self, prompt: str | list[str], negative_prompt: str | list[str] | None, lora_scale: float, long_prompts: bool
    ) -> tuple[text_encoders.TextOutput, text_encoders.TextOutput]:
        """Of class prompts, and of negative prompts."""
        prompts = call_inputs.list_prompts(prompt)
        checks.check_without("prompt", prompts, self.config.placeholder)
        is_zero = negative_prompt is None and self._null_is_zero
        negative_prompts = call_inputs.list_texts("negative_prompt", negative_prompt or "", len(prompts))
        num_pieces = self._num_pieces(prompts + negative_prompts) if long_prompts else None
        text = self._encode_texts(prompts, lora_scale, num_pieces)
        if is_zero:
            null = self._zero_text(len(prompts), num_pieces)
        else:
            null = self._encode_texts(negative_prompts, lora_scale, num_pieces)
        self.maybe_free_model_hooks()
        return text, null

    def _read_images(
        self,
        prompt: str | list[str],
        image: reference_images.Reference | list,
        image_weights: list | None,
        crop_face: str | None,
    ) -> list[tuple[int, list[Image.Image], list[float]]]:
        """For each prompt a key of its `image`, the references in it and their weights."""
        call_inputs.check_image_encoder(self.components)
        images = [image] if isinstance(prompt, str) else call_inputs.list_per_prompt("image", image, len(prompt))
        read, files = [], {}
        for i, (one, weights) in enumerate(
            zip(images, call_inputs.list_weights(image_weights, len(images)), strict=True)
        ):
            if id(one) not in files:  # an open file can be read once
                files[id(one)] = self._read_references(one, crop_face, quoting.entry("image", i, len(images)))
            references, name = files[id(one)], quoting.entry("image_weights", i, len(images))
            read.append((id(one), references, checks.check_weights(weights, len(references), name)))
        return read

    @staticmethod
    def _read_references(
        image: reference_images.Reference | list[reference_images.Reference], crop_face: str | None, name: str = "image"
    ) -> list[Image.Image]:
        if crop_face is not None:
            faces.check_detector(crop_face)
        references = reference_images.load_reference_images(image, name)
        return references if crop_face is None else [faces.crop_face(one, detector=crop_face) for one in references]

    def _encode_images(
        self, images: list[tuple[int, list[Image.Image], list[float]]], height: int, width: int
    ) -> list[subject_embedding.SubjectEmbedding]:
        """A subject for each prompt; an image that several prompts share is encoded once."""
        encoded = {}
        for key, references, weights in images:
            if key not in encoded:
                encoded[key] = self._encode_references(references, weights, height, width)
        return [replace(encoded[key], weights=torch.tensor(weights).double()) for key, _, weights in images]

    def _encode_references(
        self, references: list[Image.Image], weights: list[float], height: int, width: int
    ) -> subject_embedding.SubjectEmbedding:
        # One by one, so that what a reference becomes doesn't depend on those beside it, on any processor.
        encoded = [self._encode_reference(reference, height, width) for reference in references]
        latents, image_states = (torch.cat(rows) for rows in zip(*encoded, strict=True))
        return subject_embedding.SubjectEmbedding(latents, image_states, torch.tensor(weights).double())

    def _encode_reference(self, reference: Image.Image, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [1, C, h, w] and vision states [1, N, V]."""
        views = framing.vision_pixels(self.feature_extractor, [reference])  # [1, 3, h, w]
        latents = self._picture_latents(reference, height, width)
        return latents, vision_states(self.image_encoder, views, self._execution_device)

    def _clean_latents(
        self,
        pictures: Sequence[Image.Image],
        subjects: Sequence[subject_embedding.SubjectEmbedding],
        height: int,
        width: int,
        num_pictures: int,
    ) -> torch.Tensor | None:
        """x_0 that a call begins with, of pictures or of the subjects' first references; None for neither.

        For each of B pictures, P x num_images_per_prompt. [B, C, h, w]
        """
        if not pictures and not subjects:
            return None
        encoded = {id(picture): picture for picture in pictures}  # what prompts share once
        encoded = {key: self._picture_latents(picture, height, width) for key, picture in encoded.items()}
        each = [encoded[id(picture)] for picture in pictures] or [subject.latents[:1] for subject in subjects]
        return torch.cat(each).repeat_interleave(num_pictures // len(each), dim=0)  # [B, C, h, w]

    def _picture_latents(self, picture: Image.Image, height: int, width: int) -> torch.Tensor:
        """A picture as the UNet knows pictures, without noise. [1, C, h, w]"""
        pixels = framing.vae_pixels(self.image_processor, [picture], height, width)  # [1, 3, H, W]
        return self._posterior(pixels)[0]

    def _posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latents of pictures. [R, C, h, w] each"""
        return posterior(self.vae, pixels, self._execution_device)

    TEXT_PARTS = (("tokenizer", "text_encoder"),)  # names of the components that read texts

    @property
    def _tokenizers(self) -> list[CLIPTokenizer]:
        return [getattr(self, tokenizer) for tokenizer, _ in self.TEXT_PARTS]

    @property
    def _text_encoders(self) -> list[torch.nn.Module]:
        return [getattr(self, text_encoder) for _, text_encoder in self.TEXT_PARTS]

    def _with_learnt_words(self, texts: list[str], tokenizer: CLIPTokenizer) -> list[str]:
        """A word of textual inversion that has several vectors -> a word for each of them."""
        return self.maybe_convert_prompt(texts, tokenizer) if learnt_subject.loaded_words(tokenizer) else texts

    def _encode_texts(
        self, texts: list[str], lora_scale: float, num_pieces: int | None = None
    ) -> text_encoders.TextOutput:
        """Of each text, whole or in n pieces. [P, T, D] or [P, n T, D]"""
        ids = []
        for number, tokenizer in enumerate(self._tokenizers):
            converted = self._with_learnt_words(texts, tokenizer)
            if num_pieces is None:
                ids.append(subject_prompt.tokenize_texts(tokenizer, converted, name_what_is_cut=number == 0))
            else:
                split = [prompt_pieces.split_text(tokenizer, text) for text in converted]
                pieces = [prompt_pieces.pad_pieces(tokenizer, one, num_pieces) for one in split]
                ids.append(torch.stack(pieces))  # [P, n, T]
        ids = text_encoders.stack_ids(ids).to(self._execution_device)
        if num_pieces is None:
            return text_encoders.encode_ids(self._text_encoders, ids, lora_scale=lora_scale)
        states, pooled = self._encode_pieces(ids, lora_scale)
        return text_encoders.TextOutput(states.flatten(1, 2), None if pooled is None else pooled[:, 0])

    def _encode_pieces(self, pieces: torch.Tensor, lora_scale: float) -> text_encoders.TextOutput:
        """Of pieces [P, n, T] -> [P, n, T, D] and [P, n, F]"""
        ids = pieces.flatten(0, 1).to(self._execution_device)
        output = text_encoders.encode_ids(self._text_encoders, ids, lora_scale=lora_scale)
        parts = (None if one is None else one.unflatten(0, pieces.shape[:2]) for one in output)
        return text_encoders.TextOutput(*parts)

    def _num_pieces(self, texts: list[str]) -> int:
        """How many pieces the longest of some texts has."""
        split = [
            prompt_pieces.split_text(tokenizer, text)
            for tokenizer in self._tokenizers
            for text in self._with_learnt_words(texts, tokenizer)
        ]
        return max(map(len, split), default=1)
