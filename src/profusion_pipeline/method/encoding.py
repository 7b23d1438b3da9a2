"""What stays the same over a call and can be made beforehand: a subject from its pictures, states from texts."""

from dataclasses import replace

import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPVisionModel

from . import (
    call_inputs,
    checks,
    framing,
    guidance_rows,
    learnt_subject,
    prompt_pieces,
    quoting,
    reference_images,
    subject_embedding,
    subject_prompt,
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
        Both times the VAE's scaling factor. [R, C, h, w] each

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> posterior(load_demo_pipeline().vae, torch.zeros(1, 3, 64, 64), "cpu")[0].shape
        torch.Size([1, 32, 8, 8])
    """
    encoded, scale = vae.encode(pixels.to(device, vae.dtype)), vae.config.scaling_factor
    if hasattr(encoded, "latents"):
        return encoded.latents * scale, torch.zeros_like(encoded.latents)
    return encoded.latent_dist.mean * scale, encoded.latent_dist.std * scale


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
    ) -> subject_embedding.SubjectEmbedding:
        """Encode reference pictures of one subject once, to be saved or given to many calls as `subject`.

        Args:
            image: A picture of the subject, or a list of them, each as [`load_reference_image`] takes it.
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
        call_inputs.check_components_fit(self.components)
        call_inputs.check_image_encoder(self.components)
        references = reference_images.load_reference_images(image)
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
        prompts = call_inputs.list_prompts(prompt)
        checks.check_without("prompt", prompts, self.config.placeholder)
        negative_prompts = call_inputs.list_texts("negative_prompt", negative_prompt or "", len(prompts))
        num_pieces = self._num_pieces(prompts + negative_prompts) if long_prompts else None
        prompt_embeds = self._encode_texts(prompts, lora_scale, num_pieces)  # [P, T, D]
        negative_prompt_embeds = self._encode_texts(negative_prompts, lora_scale, num_pieces)  # [P, T, D]
        self.maybe_free_model_hooks()
        return prompt_embeds, negative_prompt_embeds

    def _read_images(
        self, prompt: str | list[str], image: reference_images.Reference | list, image_weights: list | None
    ) -> list[tuple[int, list[Image.Image], list[float]]]:
        """For each prompt a key of its `image`, the references in it and their weights."""
        call_inputs.check_image_encoder(self.components)
        images = [image] if isinstance(prompt, str) else call_inputs.list_per_prompt("image", image, len(prompt))
        read, files = [], {}
        for one, weights in zip(images, call_inputs.list_weights(image_weights, len(images)), strict=True):
            if id(one) not in files:  # an open file can be read once
                files[id(one)] = reference_images.load_reference_images(one)
            references = files[id(one)]
            read.append((id(one), references, checks.check_weights(weights, len(references))))
        return read

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
        device = self._execution_device
        pixels = framing.vae_pixels(self.image_processor, [reference], height, width)  # [1, 3, H, W]
        views = framing.vision_pixels(self.feature_extractor, [reference])  # [1, 3, h, w]
        return posterior(self.vae, pixels, device)[0], vision_states(self.image_encoder, views, device)

    def _with_learnt_words(self, texts: list[str]) -> list[str]:
        """A word of textual inversion that has several vectors -> a word for each of them."""
        return (
            self.maybe_convert_prompt(texts, self.tokenizer) if learnt_subject.loaded_words(self.tokenizer) else texts
        )

    def _encode_texts(self, texts: list[str], lora_scale: float, num_pieces: int | None = None) -> torch.Tensor:
        """Text states of each text, whole or in n pieces. [P, T, D] or [P, n T, D]"""
        texts = self._with_learnt_words(texts)
        if num_pieces is None:
            with subject_prompt.scaled_lora(self.text_encoder, lora_scale):
                device = self._execution_device
                return subject_prompt.encode_texts(self.text_encoder, self.tokenizer, texts, device=device)
        split = [prompt_pieces.split_text(self.tokenizer, text) for text in texts]
        pieces = torch.stack([prompt_pieces.pad_pieces(self.tokenizer, one, num_pieces) for one in split])  # [P, n, T]
        return self._encode_pieces(pieces, lora_scale).flatten(1, 2)

    def _encode_pieces(self, pieces: torch.Tensor, lora_scale: float) -> torch.Tensor:
        """Text states of pieces [P, n, T] -> [P, n, T, D]"""
        with subject_prompt.scaled_lora(self.text_encoder, lora_scale):
            states = self.text_encoder(pieces.flatten(0, 1).to(self._execution_device)).last_hidden_state
        return states.unflatten(0, pieces.shape[:2])

    def _num_pieces(self, texts: list[str]) -> int:
        """How many pieces the longest of some texts has."""
        texts = self._with_learnt_words(texts)
        return max((len(prompt_pieces.split_text(self.tokenizer, text)) for text in texts), default=1)

    def _tokenize(
        self,
        prompts: list[str],
        texts: list[str] | None,
        num_subject_tokens: int,
        given: dict[str, torch.Tensor | None],
    ) -> prompt_pieces.SubjectTokens:
        """Tokens of the prompts, in as many pieces as `texts` or given states need; whole if `texts` is None."""
        prompts = self._with_learnt_words(prompts)
        words = dict(placeholder=self.config.placeholder, num_subject_tokens=num_subject_tokens)
        length = self.tokenizer.model_max_length
        if texts is None:
            tokens = prompt_pieces.SubjectTokens(
                *subject_prompt.tokenize_subject_prompts(self.tokenizer, prompts, **words)
            )
        else:
            counts = [tensor.shape[1] // length for tensor in given.values() if tensor is not None and tensor.ndim == 3]
            at_least = max(self._num_pieces(texts), *counts, 1)
            tokens = prompt_pieces.split_prompts(self.tokenizer, prompts, **words, at_least=at_least)
        shape = (len(prompts), length * (tokens.num_pieces or 1), self.text_encoder.config.hidden_size)
        for name, tensor in given.items():
            checks.check_tensor(name, tensor, shape, self.text_encoder.dtype)
        return tokens

    def _text_states(
        self,
        texts: list[str] | None,
        given: torch.Tensor | None,
        num_pieces: int | None,
        lora_scale: float,
        num_images_per_prompt: int,
    ) -> torch.Tensor | None:
        """States of texts, or given ones [P, T, D], or none -> those of each picture. [B, T, D]"""
        states = given if texts is None else self._encode_texts(texts, lora_scale, num_pieces)
        if states is None:
            return None
        return states.to(self._execution_device).repeat_interleave(num_images_per_prompt, dim=0)

    def _reference_rows(
        self,
        subjects: list,
        tokens: prompt_pieces.SubjectTokens,
        num_images_per_prompt: int,
        lora_scale: float,
        *,
        like: torch.Tensor,
    ) -> guidance_rows.ReferenceRows:
        """What S* is made from, with the states of the pieces around it."""
        subjects, pieces = [None if learnt_subject.is_learnt(one) else one for one in subjects], {}
        if tokens.num_pieces is not None and any(subjects):
            pieces = dict(around=self._encode_pieces(tokens.pieces, lora_scale), piece=tokens.piece)
        return guidance_rows.ReferenceRows.of(
            subjects, tokens.input_ids, tokens.positions, num_images_per_prompt, like=like, **pieces
        )

    def _learnt_prompts(
        self, prompts: list[str], subjects: list, long_prompts: bool
    ) -> list[learnt_subject.LearntPrompt]:
        """The prompts whose subjects are words, with those in them."""
        learnt, loaded = [], learnt_subject.loaded_words(self.tokenizer)
        for number, (prompt, subject) in enumerate(zip(prompts, subjects, strict=False)):
            if not learnt_subject.is_learnt(subject):
                continue
            if subject not in subjects[:number]:
                checks.check_without("words", [subject.words], self.config.placeholder)
                learnt_subject.name_missing_words(subject.words, loaded)
            prefix, suffix = subject_prompt.find_placeholder(prompt, self.config.placeholder)
            text = prefix + subject.words + suffix
            parts = self._with_learnt_words([prefix, text, suffix])
            places = learnt_subject.places_of_words(self.tokenizer, *parts)
            if not long_prompts and places.stop > self.tokenizer.model_max_length - 2:
                raise ValueError(
                    f"`prompt` must hold the placeholder {self.config.placeholder!r} nearer to its beginning: the text "
                    f"encoder reads {self.tokenizer.model_max_length} tokens, got {quoting.quote(subject.words)} at "
                    f"tokens {places.start + 1} to {places.stop} of {quoting.quote(text)}."
                )
            learnt.append(learnt_subject.LearntPrompt(number, text, places, subject))
        return learnt

    def _word_rows(
        self,
        learnt: list[learnt_subject.LearntPrompt],
        num_pieces: int | None,
        lora_scale: float,
        num_images_per_prompt: int,
    ) -> guidance_rows.WordRows | None:
        """Text states with learnt words, for each picture that has them."""
        if not learnt:
            return None
        states = self._encode_texts([one.text for one in learnt], lora_scale, num_pieces)  # [P, T, D]
        length = self.tokenizer.model_max_length
        places = torch.zeros(states.shape[:2], dtype=torch.bool)  # [P, T]
        for row, one in zip(places, learnt, strict=True):
            for place in one.places:
                piece, place = divmod(place, length - 2)
                row[piece * length + place + 1] = True  # behind the begin token
        pictures = torch.arange(num_images_per_prompt)
        owner = torch.cat([one.number * num_images_per_prompt + pictures for one in learnt])
        rows = (states, places.to(states.device))
        return guidance_rows.WordRows(
            *(one.repeat_interleave(num_images_per_prompt, dim=0) for one in rows), owner.to(states.device)
        )
