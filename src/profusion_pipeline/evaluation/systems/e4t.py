"""E4T: an encoder says how far the subject's word is from the class noun's, and the UNet's attention is offset with it.

    code name     paper    what
    noun          v_c      the class noun's vector [D]
    offset        s E(x)   OFFSET_SCALE times what the encoder says [B, L, D]
    word          v*       noun + offset [B, L, D]
    offset_l2     λ        weight of the regulariser, the offset's mean squared norm

The encoder here is a PromptNet, so that E4T and ProFusion differ in the method alone: S* is a word near the class noun
and is learnt with a regulariser, the attention of the UNet learns with it (LoRA in place of full weight offsets), and
pictures are drawn with plain guidance. `pretraining.py` trains both on many pictures; a few steps on one photo follow.

Source: Gal et al. 2023, "Encoder-based Domain Tuning for Fast Personalization of Text-to-Image Models"
(arXiv 2302.12228).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ...customization.config import CustomizeConfig
from ...customization.learning import Learning
from ...customization.learning_weights import adapters, only_learning
from ...method.modeling_promptnet import PromptNet
from ...method.pipeline_profusion import ProFusionPipeline
from ...training.losses import add_noise
from .rival_parts import (
    ATTENTION,
    WordPrompts,
    denoising_losses,
    encode_photo,
    encode_word,
    learnt_adapters,
    noun_vector,
    word_prompts,
)
from .system import Learnt, StableDiffusion, find_weights

FOLDER, OFFSETS = "e4t", "offsets.safetensors"  # of what was pre-trained
OFFSET_SCALE = 0.1


def word_offset(
    encoder: nn.Module,
    reference_latents: torch.Tensor,
    timesteps: torch.Tensor,
    image_states: torch.Tensor,
    noisy_latents: torch.Tensor,
) -> torch.Tensor:
    """offset = s E(z, t, V, x_t).

    Args:
        encoder: A PromptNet.
        reference_latents: z. [B, C, h, w]
        timesteps: t. [B] or []
        image_states: V. [B, N, W]
        noisy_latents: x_t. [B, C, h, w]

    Returns:
        The offset. [B, L, D]

    Example:
        >>> word_offset(encoder, z, t, image_states, noisy_latents)  # doctest: +SKIP
    """
    return OFFSET_SCALE * encoder(reference_latents, timesteps, image_states, noisy_latents).prompt_embeds


def e4t_loss(
    unet: nn.Module,
    text_encoder: nn.Module,
    encoder: nn.Module,
    noun: torch.Tensor,
    prompt: WordPrompts,
    *,
    latents: torch.Tensor,
    reference_latents: torch.Tensor,
    image_states: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
    offset_l2: float,
) -> torch.Tensor:
    """loss = mean ||UNet(x_t, t, text(noun + offset)) - target||^2 + λ mean ||offset||^2.

    Args:
        unet: With the offsets of its attention.
        text_encoder: Of the pipeline.
        encoder: A PromptNet.
        noun: v_c. [D]
        prompt: One, for all samples.
        latents: x_0. [B, C, h, w]
        reference_latents: z. [B, C, h, w]
        image_states: V. [B, N, W]
        noise: Standard normal. [B, C, h, w]
        timesteps: t. [B]
        alphas_cumprod: ᾱ of every timestep.
        prediction_type: What the UNet predicts.
        offset_l2: λ.

    Returns:
        The loss `[]`, in float32.

    Example:
        >>> e4t_loss(unet, text_encoder, encoder, noun, prompt, **pairs, **schedule, offset_l2=0.01)  # doctest: +SKIP
    """
    noisy_latents = add_noise(latents, noise, alphas_cumprod[timesteps])  # [B, C, h, w]
    offset = word_offset(encoder, reference_latents, timesteps, image_states, noisy_latents)  # [B, L, D]
    prompts = WordPrompts(prompt.input_ids.expand(len(latents), -1), prompt.positions.expand(len(latents)))
    states = encode_word(text_encoder, prompts, noun + offset)  # [B, T, D]
    sample = dict(latents=latents, noise=noise, timesteps=timesteps)
    schedule = dict(alphas_cumprod=alphas_cumprod, prediction_type=prediction_type)
    losses = denoising_losses(unet, states, **sample, **schedule)  # [B]
    return losses.mean() + offset_l2 * offset.float().square().sum(dim=-1).mean()


class _OffsetLearning(Learning):
    def __init__(self, *run: Any, **constants: Any):
        super().__init__(*run)
        self.constants = constants

    def objective(self, **pairs: torch.Tensor) -> torch.Tensor:
        models = self.pipe.unet, self.pipe.text_encoder
        return e4t_loss(*models, **pairs, **self.constants, **self.noise_schedule)


@dataclass(frozen=True, kw_only=True)
class E4T(StableDiffusion):
    """A pre-trained encoder and offsets of the UNet's attention, tuned on the photo for a few steps.

    In tuning the UNet's offsets go on learning, and adapters on the encoder's attention learn beside them.

    Attributes:
        name: In tables and plots.
        learning: As of `System`.
        guidance_scale: As of `StableDiffusion`.
        weights: The folder of pre-trained rivals.
        offset_l2: λ, as in pre-training.

    Example:
        >>> E4T(name="E4T", learning={"steps": 15}).learns
        True
    """

    weights: Path | None = None
    offset_l2: float = 0.01

    @property
    def pretrained(self) -> str | None:
        """The folder in `weights` without which it can't work."""
        return FOLDER

    def _learn(self, pipe: ProFusionPipeline, photo: Image.Image, config: CustomizeConfig) -> Learnt:
        encoder, offsets, rank = self._pretrained(pipe)
        pool = encode_photo(pipe, photo, config)
        with ExitStack() as undo:
            weights = undo.enter_context(adapters({"unet": pipe.unet}, rank=rank, projections=ATTENTION))
            for name, weight in weights.items():
                weight.data.copy_(offsets[name])
            weights |= undo.enter_context(
                adapters({"encoder": encoder}, rank=rank, seed=config.seed, projections=ATTENTION)
            )
            undo.enter_context(only_learning((pipe.unet, pipe.text_encoder, encoder), weights))
            run = _OffsetLearning(
                pipe,
                config,
                pool,
                weights.values(),
                encoder=encoder,
                noun=noun_vector(pipe, config.class_noun),
                prompt=self._places(pipe, encoder, [config.learning_prompt], config, pad=config.pad_prompt),
                offset_l2=self.offset_l2,
            )
            for _ in run.learn():
                pass
            return {name: weight.detach().to("cpu", torch.float16) for name, weight in weights.items()}

    @contextmanager
    def _subject(
        self, pipe: ProFusionPipeline, photo: Image.Image, learnt: Learnt, config: CustomizeConfig
    ) -> Iterator[Callable[[list[str]], dict[str, Any]]]:
        encoder, _, rank = self._pretrained(pipe)
        subject, noun = pipe.encode_subject(photo), noun_vector(pipe, config.class_noun)
        shown: list[WordPrompts] = []

        def put_word_in(unet: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            """The word depends on x_t and t: the states of the rows after ∅'s are made anew at every step."""
            noisy_latents, t = args
            (prompts,) = shown
            count = len(prompts.positions)
            latents, image_states = (
                part.expand(count, *part.shape[1:]) for part in (subject.latents, subject.image_states)
            )
            offset = word_offset(encoder, latents, t, image_states, noisy_latents[-count:])  # [P, L, D]
            states = encode_word(pipe.text_encoder, prompts, noun + offset)  # [P, T, D]
            null = kwargs["encoder_hidden_states"][:-count]
            return args, kwargs | {"encoder_hidden_states": torch.cat([null, states.to(null)])}

        def texts(prompts: list[str]) -> dict[str, Any]:
            shown[:] = [self._places(pipe, encoder, prompts, config)]
            return {"prompt": [prompt.replace(pipe.config.placeholder, config.class_noun) for prompt in prompts]}

        with learnt_adapters({"unet": pipe.unet, "encoder": encoder}, learnt, rank=rank):
            hook = pipe.unet.register_forward_pre_hook(put_word_in, with_kwargs=True)
            try:
                yield texts
            finally:
                hook.remove()

    def _places(
        self, pipe: ProFusionPipeline, encoder: PromptNet, prompts: list[str], config: CustomizeConfig, pad: bool = True
    ) -> WordPrompts:
        side = pipe.unet.config.sample_size
        return word_prompts(pipe, prompts, config.class_noun, num_words=encoder.num_subject_tokens(side, side), pad=pad)

    def _pretrained(self, pipe: ProFusionPipeline) -> tuple[PromptNet, dict[str, torch.Tensor], int]:
        """The encoder, the offsets of the UNet, and their rank."""
        folder = find_weights(self.name, self.weights, FOLDER)
        encoder = PromptNet.from_pretrained(folder, torch_dtype=pipe.unet.dtype).to(pipe.device).eval()
        offsets = load_file(folder / OFFSETS)
        rank = next(tensor.shape[0] for name, tensor in offsets.items() if name.endswith("lora_A.weight"))
        return encoder, offsets, rank
