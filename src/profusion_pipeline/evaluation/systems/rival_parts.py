"""What rivals are made of: an ordinary word with a vector of its own, the plain denoising loss, pictures of the photo.

Letters in shapes: P prompts, B samples, L pseudo words, T tokens, D width of the text encoder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn

from ...customization.config import CustomizeConfig
from ...customization.learning_weights import PROJECTIONS, adapters
from ...customization.subject_pool import EncodedPool, augmented_pictures, encode_pictures
from ...method.base_hash import base_weights
from ...method.call_inputs import choose_size
from ...method.pipeline_profusion import ProFusionPipeline
from ...method.subject_prompt import encode_subject_prompts, tokenize_subject_prompts
from ...training.losses import add_noise, prediction_target

ATTENTION = (*PROJECTIONS, "to_out.0")  # the layers that LoRA changes in the recipes of diffusers and of E4T


class WordPrompts(NamedTuple):
    """Prompts with room for a word.

    Args:
        input_ids: Token ids. [P, T]
        positions: The first position of the word. [P]
    """

    input_ids: torch.Tensor
    positions: torch.Tensor


def word_prompts(
    pipe: ProFusionPipeline, prompts: list[str], class_noun: str, *, num_words: int = 1, pad: bool = True
) -> WordPrompts:
    """Prompts about S* -> prompts about "a S*": the word takes the place of the noun alone, its article stays.

    Args:
        pipe: Whose tokenizer and placeholder are used.
        prompts: With the placeholder.
        class_noun: What the subject is; its last word gives way to the new one.
        num_words: L, the number of vectors that make the word.
        pad: Whether to pad to the tokenizer's length.

    Returns:
        The prompts, on the pipeline's device.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> word_prompts(load_demo_pipeline(), ["a portrait of S*"], "a person").positions  # after "a portrait of a"
        tensor([5])
    """
    placeholder = pipe.config.placeholder
    noun = " ".join([*class_noun.split()[:-1], placeholder])
    input_ids, positions = tokenize_subject_prompts(
        pipe.tokenizer,
        [prompt.replace(placeholder, noun) for prompt in prompts],
        placeholder=placeholder,
        num_subject_tokens=num_words,
        pad=pad,
    )
    return WordPrompts(input_ids.to(pipe.device), positions.to(pipe.device))


def noun_vector(pipe: ProFusionPipeline, class_noun: str) -> torch.Tensor:
    """The vector of a class noun: that of the last token of its last word.

    Args:
        pipe: Whose tokenizer and text encoder are asked.
        class_noun: What the subject is.

    Returns:
        A copy in float32. [D]

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> noun_vector(load_demo_pipeline(), "a person").shape
        torch.Size([192])
    """
    token = pipe.tokenizer(class_noun, add_special_tokens=False).input_ids[-1]
    return pipe.text_encoder.get_input_embeddings().weight[token].detach().to(torch.float32, copy=True)


def encode_word(text_encoder: nn.Module, prompts: WordPrompts, vectors: torch.Tensor) -> torch.Tensor:
    """c = text(prefix, v, suffix), where v is an ordinary word: its position is added to it, as to any other.

    Args:
        text_encoder: Of the pipeline.
        prompts: With room for the word.
        vectors: Of the word; as many as prompts, or one for all. [P, L, D]

    Returns:
        Text states. [P, T, D]

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> prompts, vector = word_prompts(pipe, ["S*"], "person"), noun_vector(pipe, "person")
        >>> ids = pipe.tokenizer("person", padding="max_length", return_tensors="pt").input_ids
        >>> with torch.no_grad():
        ...     states = encode_word(pipe.text_encoder, prompts, vector[None, None])
        ...     torch.allclose(states, pipe.text_encoder(ids).last_hidden_state, atol=1e-5)
        True
    """
    embeddings = getattr(text_encoder, "text_model", text_encoder).embeddings  # transformers 4 nests what 5 doesn't
    positions = prompts.positions[:, None] + torch.arange(vectors.shape[1], device=prompts.positions.device)  # [P, L]
    return encode_subject_prompts(text_encoder, *prompts, vectors + embeddings.position_embedding(positions))


def denoising_losses(
    unet: nn.Module,
    states: torch.Tensor,
    *,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """loss_b = mean ||UNet(x_t, t, c) - target||^2 of each sample.

    Args:
        unet: `UNet2DConditionModel`.
        states: c, text states. [B, T, D]
        latents: x_0. [B, C, h, w]
        noise: Standard normal. [B, C, h, w]
        timesteps: t. [B]
        alphas_cumprod: ᾱ of every timestep.
        prediction_type: What the UNet predicts.

    Returns:
        The losses, in float32. [B]

    Example:
        >>> denoising_losses(pipe.unet, states, **pairs, **noise_schedule).mean()  # doctest: +SKIP
    """
    alpha_bar = alphas_cumprod[timesteps]  # [B]
    target = prediction_target(latents, noise, alpha_bar, prediction_type)  # [B, C, h, w]
    prediction = unet(add_noise(latents, noise, alpha_bar), timesteps, states).sample  # [B, C, h, w]
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)  # [B]


def encode_photo(pipe: ProFusionPipeline, photo: Image.Image, config: CustomizeConfig) -> EncodedPool:
    """The photo and its augmentations, the very pictures that customising learns from.

    Args:
        pipe: Whose models encode them.
        photo: RGB.
        config: The augmentation settings are read.

    Returns:
        The pool.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> encode_photo(load_demo_pipeline(), demo_portraits()[0], CustomizeConfig(pool_size=2)).mean.shape
        torch.Size([2, 32, 8, 8])
    """
    height, width = choose_size(None, None, [], pipe.components)
    pictures = augmented_pictures(photo, config, side=min(height, width), mask=None, paint=None)
    return encode_pictures(pipe, pictures, height, width)


@contextmanager
def learnt_adapters(models: dict[str, nn.Module], learnt: dict[str, torch.Tensor], *, rank: int) -> Iterator[None]:
    """For the length of the block, adapters on the attention of models have the weights that were learnt.

    Args:
        models: By the name that their weights' names begin with.
        learnt: The weights by name; others are not read.
        rank: Of the adapters.

    Yields:
        Nothing.

    Example:
        >>> with learnt_adapters({"unet": pipe.unet}, learnt, rank=4):  # doctest: +SKIP
        ...     images = draw(prompts)
    """
    with adapters(models, rank=rank, projections=ATTENTION) as weights:
        for name, weight in weights.items():
            weight.data.copy_(learnt[name])
        yield


@contextmanager
def changed_weights(model: nn.Module, changes: dict[str, torch.Tensor], scale: float) -> Iterator[None]:
    """W + scale ΔW in place of W while the block runs; afterwards the very tensors of before.

    Args:
        model: Whose weights they are.
        changes: ΔW of each changed weight, by its name.
        scale: By which the changes are multiplied.

    Yields:
        Nothing.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad(), changed_weights(layer, {"weight": 2 - layer.weight}, 1.0):
        ...     layer.weight.item()
        2.0
    """
    weights = base_weights(model)
    before = {name: weights[name].data for name in changes}
    try:
        for name, change in changes.items():
            weights[name].data = before[name] + scale * change.to(before[name])
        yield
    finally:
        for name, data in before.items():
            weights[name].data = data
