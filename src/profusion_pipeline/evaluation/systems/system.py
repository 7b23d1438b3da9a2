"""What is compared: the interface of a system, and the first of them, Stable Diffusion.

A system learns something of one photo, or nothing, and draws prompts about its subject. The two are apart, so that what
was learnt can be stored once (it is a dictionary of tensors, as safetensors writes it) and drawn from in many ways:

    system = get_system("ProFusion", demo=True)              # from the tables in `baselines.py`
    config = system.config(class_noun="a person", seed=3)    # a CustomizeConfig: its own budget, and what all share
    learnt = system.learn(pipe, photo, config)               # {} where nothing is learnt
    with system.drawing(pipe, photo, learnt, config) as draw:
        images = draw(["a portrait of S*"], [torch.Generator().manual_seed(0)], Sampling(num_fusion_steps=2))
    system.unet_rows(Sampling(num_fusion_steps=2))           # rows of the UNet that one picture takes

All systems share one loaded pipeline `pipe`, whose models are as before after each call and each block, bit for bit.
Prompts hold its placeholder; each system says what it puts there. Random numbers of a picture come from its generator
alone, beginning with the initial noise, so that two systems given equal generators start from equal noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from ...customization.config import CustomizeConfig
from ...customization.subject_pool import Photo, read_photo
from ...method.base_hash import pipeline_hash
from ...method.pipeline_profusion import ProFusionPipeline
from ...method.quoting import quote
from ...method.whole_files import shown_path

Learnt = dict[str, torch.Tensor]

SCHEDULERS = {
    "DDIM": (DDIMScheduler, {}),
    "DPM++ 2M": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "UniPC": (UniPCMultistepScheduler, {}),
}
BASE = "base"  # of what was learnt: the hash of the weights that it was learnt with


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are drawn; what speaks of stages, of S* and of guidance's course is read by ProFusion only.

    Attributes:
        num_inference_steps: Denoising steps, 1 or more.
        scheduler: "DDIM", "DPM++ 2M" or "UniPC".
        guidance: By which the system's own guidance towards its subject is multiplied; 1 is the system as it was tuned.
        num_fusion_steps: m, fusion steps at every timestep.
        fusion_guidance_scale: ω_f before `guidance` multiplies it; the system's own if None.
        fusion_subject_scale: γ; the system's own if None.
        fusion_text: What γ does, "scaled" or "mixed"; the system's own if None.
        fusion_eta: η; the system's own if None.
        fusion_start: Share of the steps before the first with a fusion stage, 0 to 1.
        fusion_end: Share of the steps after which there is no fusion stage, 0 to 1.
        guidance_start: Share of the steps before the first that guides; ProFusion's own if None, as all that follow.
        guidance_end: Share of the steps after which there is no guidance.
        guidance_rescale: φ, how far guided predictions get the deviation of those with S*.
        subject_every: At every how many steps S* is made anew; 0 is at every prediction.
        base_guidance: Whether ∅ and C are left to the untouched base; the pipeline's own way if None.

    Raises:
        ValueError: A number is out of range, or there is no such scheduler.

    Example:
        >>> Sampling(num_inference_steps=25, scheduler="DPM++ 2M").num_fusion_steps
        1
    """

    num_inference_steps: int = 50
    scheduler: str = "DDIM"
    guidance: float = 1.0
    num_fusion_steps: int = 1
    fusion_guidance_scale: float | None = None
    fusion_subject_scale: float | None = None
    fusion_text: str | None = None
    fusion_eta: float | None = None
    fusion_start: float = 0.0
    fusion_end: float = 1.0
    guidance_start: float | None = None
    guidance_end: float | None = None
    guidance_rescale: float | None = None
    subject_every: int | None = None
    base_guidance: bool | None = None

    def __post_init__(self):
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"`scheduler` must be one of {', '.join(SCHEDULERS)}, got {quote(self.scheduler)}.")
        if self.num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {self.num_inference_steps}.")
        if self.guidance <= 0:
            raise ValueError(f"`guidance` must be greater than 0, got {self.guidance}.")

    def make_scheduler(self, base: SchedulerMixin) -> SchedulerMixin:
        """A scheduler of this kind with the noise schedule of another.

        Args:
            base: The pipeline's own; it isn't changed.

        Returns:
            A new one.
        """
        kind, settings = SCHEDULERS[self.scheduler]
        return kind.from_config(base.config, **settings)


Draw = Callable[[list[str], list[torch.Generator], Sampling], list[Image.Image]]
DrawTogether = Callable[[list[str], list[torch.Generator], Sampling, list[int]], list[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class System(ABC):
    """The interface of all systems, and what they share. `dataclasses.replace` gives one with other settings.

    Attributes:
        name: In tables and plots.
        learning: Its own fields of `CustomizeConfig`: how long and how fast it learns. Empty if it learns nothing.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe, photo = load_demo_pipeline(), demo_portraits()[0]
        >>> system = StableDiffusion(name="Stable Diffusion", guidance_scale=5.0)
        >>> config = system.config(class_noun="a person")
        >>> with system.drawing(pipe, photo, system.learn(pipe, photo, config), config) as draw:
        ...     draw(["a portrait of S*"], [torch.Generator()], Sampling(num_inference_steps=2))
        [<PIL.Image.Image image mode=RGB size=64x64...>]
    """

    name: str
    learning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        """Whether it learns anything of the one photo."""
        return bool(self.learning)

    @property
    def together(self) -> bool:
        """Whether pictures of several subjects can be drawn in one call."""
        return False

    @property
    def pretrained(self) -> str | None:
        """The folder in `weights` without which it can't work, if there is one."""
        return None

    def config(self, **settings: Any) -> CustomizeConfig:
        """All settings of learning.

        Args:
            **settings: Fields of `CustomizeConfig`, which go before the system's own: what all systems share, such as
                `class_noun`, `prompt`, the augmentation (`pool_size=1` for none) and `seed`.

        Returns:
            The config.
        """
        return CustomizeConfig(**{**self.learning, **settings})

    def learn(self, pipe: ProFusionPipeline, photo: Photo, config: CustomizeConfig) -> Learnt:
        """Learn one photo.

        Args:
            pipe: The pipeline that all systems share.
            photo: Of the subject.
            config: As from `config`.

        Returns:
            What was learnt, on the CPU, with the hash of the base's weights; empty if the system learns nothing.

        Raises:
            ImportError: PEFT isn't installed.
            FileNotFoundError: The system is pre-trained, and its weights are not there.
            FloatingPointError: The loss is not finite.
        """
        if not self.learns:
            return {}
        return self._learn(pipe, read_photo(photo), config) | {BASE: _fingerprint(pipe)}

    @contextmanager
    def drawing(self, pipe: ProFusionPipeline, photo: Photo, learnt: Learnt, config: CustomizeConfig) -> Iterator[Draw]:
        """For the length of the block, what was learnt is in place.

        Args:
            pipe: The pipeline that all systems share.
            photo: Of the subject.
            learnt: As from `learn`.
            config: As given to `learn`.

        Yields:
            `draw(prompts, generators, sampling)`: a picture for each prompt, with the generator of that picture.

        Raises:
            FileNotFoundError: The system is pre-trained, and its weights are not there.
            ValueError: `learnt` is of another base, or missing.
        """
        self._check(pipe, [learnt])
        with self._drawing(pipe, read_photo(photo), learnt, config) as draw:
            yield draw

    @contextmanager
    def drawing_together(
        self, pipe: ProFusionPipeline, photos: list[Photo], learnt: list[Learnt], configs: list[CustomizeConfig]
    ) -> Iterator[DrawTogether]:
        """As `drawing`, for several subjects in one call; only if `together`.

        Args:
            pipe: The pipeline that all systems share.
            photos: Of each subject.
            learnt: Of each photo, as from `learn`.
            configs: As given to `learn`.

        Yields:
            `draw(prompts, generators, sampling, of)`, where `of` says for each prompt the number of its subject.

        Raises:
            FileNotFoundError: The system is pre-trained, and its weights are not there.
            ValueError: One of `learnt` is of another base, or missing.
        """
        self._check(pipe, learnt)
        with self._drawing_together(pipe, [read_photo(photo) for photo in photos], learnt, configs) as draw:
            yield draw

    def _check(self, pipe: ProFusionPipeline, learnt: list[Learnt]) -> None:
        fingerprint = _fingerprint(pipe) if any(learnt) else None
        for one in learnt:
            if self.learns != bool(one):
                wanted = "what `learn` returned" if self.learns else "empty, because it learns nothing"
                raise ValueError(f"`learnt` of {self.name} must be {wanted}, got {len(one)} tensors.")
            if one and not torch.equal(one[BASE], fingerprint):
                raise ValueError(
                    f"`learnt` of {self.name} must be of this pipeline's weights, got that of another base."
                )

    @abstractmethod
    def unet_rows(self, sampling: Sampling) -> int:
        """Rows of the UNet that one picture takes, its cost on any machine.

        Args:
            sampling: How it is drawn.

        Returns:
            Rows of all steps together.
        """

    @abstractmethod
    def _drawing(
        self, pipe: ProFusionPipeline, photo: Image.Image, learnt: Learnt, config: CustomizeConfig
    ) -> AbstractContextManager[Draw]: ...


def _fingerprint(pipe: ProFusionPipeline) -> torch.Tensor:
    digits = pipeline_hash(pipe)
    return torch.tensor(list(bytes.fromhex(digits)), dtype=torch.uint8)  # [32]


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(System):
    """The base model under the class noun: no subject. The others that diffusers' own pipeline draws build on it.

    Attributes:
        name: In tables and plots.
        learning: As of [`System`].
        guidance_scale: ω of classifier-free guidance, above 1.

    Example:
        >>> StableDiffusion(name="Stable Diffusion").unet_rows(Sampling(num_inference_steps=25))
        50
    """

    guidance_scale: float = 7.5

    def unet_rows(self, sampling: Sampling) -> int:
        """Rows of the UNet that one picture takes: ∅ and the text at every step.

        Args:
            sampling: How it is drawn.

        Returns:
            Rows of all steps together.
        """
        return sampling.num_inference_steps * (2 if self._scale(sampling) > 1 else 1)

    @property
    def together(self) -> bool:
        """Whether pictures of several subjects can be drawn in one call: where there is no subject, they can."""
        return not self.learns

    @contextmanager
    def _drawing_together(
        self, pipe: ProFusionPipeline, photos: list[Image.Image], learnt: list[Learnt], configs: list[CustomizeConfig]
    ) -> Iterator[DrawTogether]:
        with self._drawing(pipe, photos[0], learnt[0], configs[0]) as draw:
            yield lambda prompts, generators, sampling, of: draw(prompts, generators, sampling)

    def _scale(self, sampling: Sampling) -> float:
        return self.guidance_scale * sampling.guidance

    @contextmanager
    def _drawing(
        self, pipe: ProFusionPipeline, photo: Image.Image, learnt: Learnt, config: CustomizeConfig
    ) -> Iterator[Draw]:
        shared = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        ours = StableDiffusionPipeline(
            **shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        ours.set_progress_bar_config(disable=True)

        with self._subject(pipe, photo, learnt, config) as texts:

            def draw(prompts: list[str], generators: list[torch.Generator], sampling: Sampling) -> list[Image.Image]:
                ours.scheduler = sampling.make_scheduler(pipe.scheduler)
                return ours(
                    **texts(prompts),
                    guidance_scale=self._scale(sampling),
                    num_inference_steps=sampling.num_inference_steps,
                    generator=generators,
                ).images

            yield draw

    @contextmanager
    def _subject(
        self, pipe: ProFusionPipeline, photo: Image.Image, learnt: Learnt, config: CustomizeConfig
    ) -> Iterator[Callable[[list[str]], dict[str, Any]]]:
        """Puts what was learnt into place; yields what makes of prompts an argument of diffusers' pipeline."""
        yield lambda prompts: {
            "prompt": [prompt.replace(pipe.config.placeholder, config.class_noun) for prompt in prompts]
        }


def find_weights(name: str, weights: Path | None, part: str) -> Path:
    """The folder of one pre-trained part.

    Args:
        name: Of the system that needs it, for the sentence.
        weights: The folder of all.
        part: Of which it is a subfolder.

    Returns:
        The subfolder.

    Raises:
        FileNotFoundError: It isn't there.

    Example:
        >>> find_weights("E4T", None, "e4t")
        Traceback (most recent call last):
        FileNotFoundError: E4T is pre-trained, but its weights 'e4t' are not in None: ...
    """
    if weights is None or not Path(weights, part, "config.json").is_file():
        place = None if weights is None else shown_path(weights)
        raise FileNotFoundError(
            f"{name} is pre-trained, but its weights {part!r} are not in {place}: `python "
            f"examples/avatars/train_rivals.py --which {part}` trains those for the demo model; `weights` names their "
            "folder."
        )
    return Path(weights, part)
