"""The systems that are compared, by name: ours and its rivals, all with the interface of `system.py`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ...customization.config import CustomizeConfig
from ...customization.learning import Learning
from ...customization.learning_weights import adapters, only_learning
from ...customization.subject_pool import EncodedPool, encode_pictures
from ...method.base_hash import base_weights
from ...method.pipeline_profusion import ProFusionPipeline
from ...method.quoting import quote
from ...method.subject_prompt import encode_texts
from .e4t import E4T
from .profusion import ProFusion
from .rival_parts import (
    ATTENTION,
    WordPrompts,
    changed_weights,
    denoising_losses,
    encode_photo,
    encode_word,
    learnt_adapters,
    noun_vector,
    word_prompts,
)
from .system import Learnt, Sampling, StableDiffusion, System


class _WordLearning(Learning):
    def __init__(self, *run: Any, prompt: WordPrompts, word: nn.Parameter):
        super().__init__(*run, [word])
        self.prompt, self.word = prompt, word

    def objective(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, **_) -> torch.Tensor:
        states = encode_word(self.pipe.text_encoder, self.prompt, self.word[None, None])  # [1, T, D]
        sample = dict(latents=latents, noise=noise, timesteps=timesteps)
        return denoising_losses(
            self.pipe.unet, states.expand(len(latents), -1, -1), **sample, **self.noise_schedule
        ).mean()


@dataclass(frozen=True, kw_only=True)
class TextualInversion(StableDiffusion):
    """One word's vector learns, beginning as the class noun's; every weight stays.

    Attributes:
        name: In tables and plots.
        learning: As of `System`.
        guidance_scale: As of `StableDiffusion`.

    Source: Gal et al. 2022, "An Image is Worth One Word" (arXiv 2208.01618).

    Example:
        >>> TextualInversion(name="Textual Inversion", learning={"steps": 3000}).config().steps
        3000
    """

    def _learn(self, pipe: ProFusionPipeline, photo: Image.Image, config: CustomizeConfig) -> Learnt:
        pool = encode_photo(pipe, photo, config)
        prompt = word_prompts(pipe, [config.learning_prompt], config.class_noun, pad=config.pad_prompt)
        word = nn.Parameter(noun_vector(pipe, config.class_noun))
        with only_learning((pipe.unet, pipe.text_encoder), {"word": word}):
            for _ in _WordLearning(pipe, config, pool, prompt=prompt, word=word).learn():
                pass
            return {"word": word.detach().cpu()}

    @contextmanager
    def _subject(
        self, pipe: ProFusionPipeline, photo: Image.Image, learnt: Learnt, config: CustomizeConfig
    ) -> Iterator[Callable[[list[str]], dict[str, Any]]]:
        @torch.no_grad()
        def texts(prompts: list[str]) -> dict[str, Any]:
            places = word_prompts(pipe, prompts, config.class_noun)
            return {"prompt_embeds": encode_word(pipe.text_encoder, places, learnt["word"].to(pipe.device)[None, None])}

        yield texts


class _PriorLearning(Learning):
    def __init__(self, *run: Any, class_pool: EncodedPool, states: torch.Tensor, prior_weight: float):
        super().__init__(*run)
        self.class_pool, self.states, self.prior_weight = class_pool, states, prior_weight

    def draw_pairs(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The subject's samples, and after them as many of the class, drawn by numbers beyond all of the subject's."""
        beyond = [self.config.steps * self.config.batch_size + number for number in numbers]
        pairs, prior = super().draw_pairs(numbers), super().draw_pairs(beyond, self.class_pool)
        return {name: torch.cat([pairs[name], prior[name]]) for name in ("latents", "noise", "timesteps")}

    def objective(self, **samples: torch.Tensor) -> torch.Tensor:
        batch = len(samples["latents"]) // 2
        states = self.states.repeat_interleave(batch, dim=0)  # [2 B, T, D]
        losses = denoising_losses(self.pipe.unet, states, **samples, **self.noise_schedule)
        return losses[:batch].mean() + self.prior_weight * losses[batch:].mean()


@dataclass(frozen=True, kw_only=True)
class DreamBooth(StableDiffusion):
    """The UNet learns that "a sks person" is the subject, and keeps what it says of "a person" on pictures of its own.

    All of the UNet learns with `mode="full"` in `learning`, LoRA adapters on its attention with `mode="lora"`.

    Attributes:
        name: In tables and plots.
        learning: As of `System`.
        guidance_scale: As of `StableDiffusion`.
        rare_word: What stands before the class noun; a word that the text encoder knows little of.
        num_class_pictures: How many pictures the base model draws under the class prompt, in 25 steps of DPM++ 2M.
        prior_weight: Of the loss on these.

    Source: Ruiz et al. 2022, "DreamBooth" (arXiv 2208.12242).

    Example:
        >>> DreamBooth(name="DreamBooth", rare_word="ohwx").words("a person")
        'a ohwx person'
    """

    rare_word: str = "sks"
    num_class_pictures: int = 32
    prior_weight: float = 1.0

    def words(self, class_noun: str) -> str:
        """What stands in a prompt for the subject.

        Args:
            class_noun: What the subject is.

        Returns:
            The class noun with the rare word before its last word.
        """
        *before, noun = class_noun.split()
        return " ".join([*before, self.rare_word, noun])

    def _learn(self, pipe: ProFusionPipeline, photo: Image.Image, config: CustomizeConfig) -> Learnt:
        pool, class_pool = encode_photo(pipe, photo, config), self._class_pool(pipe, photo, config)
        texts = [  # the class pictures were drawn without the photo's caption
            config.learning_prompt.replace(pipe.config.placeholder, self.words(config.class_noun)),
            config.prompt.replace(pipe.config.placeholder, config.class_noun),
        ]
        with torch.no_grad():
            states = encode_texts(pipe.text_encoder, pipe.tokenizer, texts, device=pipe.device)  # [2, T, D]
        with self._weights(pipe.unet, config) as weights, only_learning((pipe.unet,), weights) as before:
            run = _PriorLearning(
                pipe,
                config,
                pool,
                weights.values(),
                class_pool=class_pool,
                states=states,
                prior_weight=self.prior_weight,
            )
            for _ in run.learn():
                pass
            start = before if config.mode == "full" else {}
            return {name: (w.detach() - start.get(name, 0)).to("cpu", torch.float16) for name, w in weights.items()}

    @contextmanager
    def _weights(self, unet: nn.Module, config: CustomizeConfig) -> Iterator[dict[str, nn.Parameter]]:
        if config.mode == "full":
            yield {f"unet.{name}": weight for name, weight in base_weights(unet).items()}
        else:
            with adapters({"unet": unet}, rank=config.rank, seed=config.seed, projections=ATTENTION) as weights:
                yield weights

    def _class_pool(self, pipe: ProFusionPipeline, photo: Image.Image, config: CustomizeConfig) -> EncodedPool:
        base = StableDiffusion(name="class pictures", guidance_scale=self.guidance_scale)
        sampling, pictures = Sampling(num_inference_steps=25, scheduler="DPM++ 2M"), []
        with base.drawing(pipe, photo, {}, config) as draw:
            for first in range(0, self.num_class_pictures, config.batch_size):
                numbers = range(first, min(first + config.batch_size, self.num_class_pictures))
                generators = [torch.Generator().manual_seed(1_000_000 * config.seed + number) for number in numbers]
                pictures += draw([config.prompt] * len(numbers), generators, sampling)
        return encode_pictures(pipe, pictures, *reversed(pictures[0].size))

    @contextmanager
    def _subject(
        self, pipe: ProFusionPipeline, photo: Image.Image, learnt: Learnt, config: CustomizeConfig
    ) -> Iterator[Callable[[list[str]], dict[str, Any]]]:
        if config.mode == "full":
            changes = {name.removeprefix("unet."): t for name, t in learnt.items() if name.startswith("unet.")}
            in_place = changed_weights(pipe.unet, changes, 1.0)
        else:
            in_place = learnt_adapters({"unet": pipe.unet}, learnt, rank=config.rank)
        with in_place:
            words = self.words(config.class_noun)
            yield lambda prompts: {"prompt": [prompt.replace(pipe.config.placeholder, words) for prompt in prompts]}


# As published, for Stable Diffusion 2: the recipes of diffusers' examples for Textual Inversion and DreamBooth, a few
# steps on large batches for E4T, and the defaults of this project for ProFusion.
SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        StableDiffusion(name="Stable Diffusion"),
        TextualInversion(name="Textual Inversion", learning={"steps": 3000, "learning_rate": 2e-3}),
        DreamBooth(name="DreamBooth LoRA", learning={"steps": 500, "learning_rate": 1e-4, "batch_size": 1}),
        DreamBooth(name="DreamBooth", learning={"mode": "full", "steps": 800, "learning_rate": 5e-6, "batch_size": 1}),
        E4T(name="E4T", learning={"steps": 15, "learning_rate": 1e-4, "batch_size": 16}),
        ProFusion(name="PromptNet"),
        ProFusion(name="PromptNet, plain", promptnet="plain"),
        ProFusion(name="PromptNet, L2", promptnet="l2"),
        ProFusion(name="ProFusion", learning={"steps": 100}),
        ProFusion(name="ProFusion, plain", promptnet="plain", learning={"steps": 100}),
        ProFusion(name="ProFusion, L2", promptnet="l2", learning={"steps": 100}),
    )
}


def _call(subject: float, text: float, fusion: float, subject_scale: float) -> dict[str, dict[str, float]]:
    return {
        "call": {
            "guidance_scale": subject,
            "class_guidance_scale": text,
            "fusion_guidance_scale": fusion,
            "fusion_subject_scale": subject_scale,
        }
    }


_CUSTOMISED = _call(3.75, 2.5, 1.875, 0.8) | {"learning": {"steps": 50, "learning_rate": 1e-3}}
# "z" is a token of the demo model's vocabulary that none of its captions has.
_RARE = {"rare_word": "z", "num_class_pictures": 12}
# For the demo model: what differs, the best of eight trials each (examples/avatars/tune_systems.py, docs/study.md).
_DEMO: Mapping[str, dict[str, Any]] = {
    "Stable Diffusion": {"guidance_scale": 10.0},
    "Textual Inversion": {"guidance_scale": 7.5, "learning": {"steps": 80, "learning_rate": 1e-2}},
    "DreamBooth LoRA": _RARE | {"guidance_scale": 7.5, "learning": {"steps": 15, "learning_rate": 6e-3}},
    "DreamBooth": _RARE | {"guidance_scale": 3.75, "learning": {"mode": "full", "steps": 30, "learning_rate": 1e-4}},
    "E4T": {"guidance_scale": 3.75, "learning": {"steps": 8, "learning_rate": 1e-3, "batch_size": 16}},
    "PromptNet": _call(5.0, 2.5, 5.0, 0.4),
    "PromptNet, plain": _call(5.0, 2.5, 5.0, 0.4),
    "PromptNet, L2": _call(5.0, 2.5, 5.0, 0.8),
    "ProFusion": _CUSTOMISED,
    "ProFusion, plain": _CUSTOMISED,
    "ProFusion, L2": _CUSTOMISED,
}
DEMO_SYSTEMS: Mapping[str, System] = {name: replace(system, **_DEMO[name]) for name, system in SYSTEMS.items()}


def get_system(name: str, *, demo: bool = False, weights: Path | None = None) -> System:
    """A system by its name.

    Args:
        name: One of `SYSTEMS`.
        demo: Whether with the settings for the demo model rather than those for Stable Diffusion 2.
        weights: The folder of pre-trained rivals; systems that need none don't read it.

    Returns:
        The system.

    Raises:
        ValueError: There is no such system.

    Example:
        >>> get_system("Stable Diffusion", demo=True).guidance_scale
        10.0
    """
    table = DEMO_SYSTEMS if demo else SYSTEMS
    if name not in table:
        raise ValueError(f"`name` of a system must be one of {', '.join(map(repr, table))}, got {quote(name)}.")
    system = table[name]
    return replace(system, weights=weights) if hasattr(system, "weights") else system
