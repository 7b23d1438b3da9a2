"""What the app does, without its widgets: draw, customise and compare within limits, saying how far it is."""

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any, NamedTuple

import torch
from PIL import Image

from ..common.made_with import LOCAL, record_of
from ..common.open_pipeline import DEMO
from ..common.picture_grid import PictureGrid
from ..customization.config import CustomizeConfig
from ..customization.customize import customizing
from ..demo import DEMO_CUSTOMIZE, DEMO_SETTINGS, demo_portraits
from ..method.checks import check_count, check_number
from ..method.concept_file import Concept
from ..method.faces import AUTO
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.subject_prompt import find_placeholder
from ..notebook.preview import LatentColours, live_preview
from ..notebook.sweeps import sweep
from .balance import balance
from .following import following
from .uploads import Limits

DECODED_SIDE = 16  # of the latent grid: up to here the VAE itself shows how far a picture is
AXES = ("guidance_scale", "class_guidance_scale", "num_fusion_steps", "fusion_guidance_scale", "fusion_subject_scale")
CONCEPT = "concept"  # its name while a visitor's call runs


class Stopped(RuntimeError):
    """The visitor has stopped the work.

    Args:
        sentence: What the visitor reads.

    Example:
        >>> raise Stopped("Stopped before anything was learnt.")
        Traceback (most recent call last):
        profusion_pipeline.app.studio.Stopped: Stopped before anything was learnt.
    """

    def __init__(self, sentence: str):
        super().__init__(sentence)


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom a visitor draws: photos, or a concept.

    Args:
        photos: Of one person.
        faces: The photos cut to their faces, where the visitor wants these seen.
        concept: In place of photos.
        class_noun: What the person is; a concept brings its own.
        source: Where the photos come from, in the words of `made_with.record_of`.

    Example:
        >>> Who(photos=demo_portraits()[:1]).class_noun
        'person'
    """

    photos: Sequence[Image.Image] = ()
    faces: Sequence[Image.Image] = ()
    concept: Concept | None = None
    class_noun: str = "person"
    source: str = LOCAL

    @property
    def seen(self) -> list[Image.Image]:
        """What PromptNet looks at."""
        return list(self.faces or self.photos)

    @property
    def crop_face(self) -> dict[str, str]:
        """The setting of a call or of customising that would have cut the photos."""
        return {"crop_face": AUTO} if self.faces else {}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a visitor draws.

    Args:
        position: Between the prompt, 0, and the person, 1.
        scales: Scales of the call that the visitor set one by one; they go before `position`.
        num_fusion_steps: m.
        num_inference_steps: Denoising steps.
        seed: Of the first picture; None for any.
        side: Of a picture in pixels; None for the model's own.

    Example:
        >>> Settings(position=1.0).call(learnt=True)["guidance_scale"]
        3.75
    """

    position: float = 0.5
    scales: dict[str, float] = field(default_factory=dict)
    num_fusion_steps: int = 0
    num_inference_steps: int = 25
    seed: int | None = None
    side: int | None = None

    def call(self, *, learnt: bool = False) -> dict[str, Any]:
        """What the pipeline's call is given.

        Args:
            learnt: Whether the person is a concept.

        Returns:
            Arguments.
        """
        size = {} if self.side is None else {"height": self.side, "width": self.side}
        steps = {"num_fusion_steps": self.num_fusion_steps, "num_inference_steps": self.num_inference_steps}
        return balance(self.position, learnt=learnt)._asdict() | self.scales | steps | size


class Step(NamedTuple):
    """How far some work is.

    Args:
        done: Of `total`.
        total: All of it.
        text: What is being done.
        preview: What pictures look like so far, or None.
        losses: So far, where something is learnt.
    """

    done: float
    total: float
    text: str
    preview: Image.Image | None = None
    losses: tuple[float, ...] = ()


class Drawn(NamedTuple):
    """What came out of drawing.

    Args:
        pictures: One for each prompt.
        prompts: The prompts.
        settings: What each picture is drawn with, in words.
        records: The same for programs, as `made_with.record_of` gives it.
        stopped: Whether the visitor stopped it half way.
    """

    pictures: list[Image.Image]
    prompts: list[str]
    settings: list[str]
    records: list[dict[str, Any]]
    stopped: bool


class Customised(NamedTuple):
    """What came out of customising.

    Args:
        concept: What was learnt.
        losses: Of each step.
        grid: The photo's subject before and after.
    """

    concept: Concept
    losses: list[float]
    grid: PictureGrid


class Studio:
    """One pipeline and what visitors may do with it, one at a time.

    Args:
        pipe: The pipeline; after each visitor it is as it was before.
        model: Where the pipeline came from: folder, Hub id, or "demo", which has settings of its own.
        limits: What one visitor may ask for.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> studio = Studio(load_demo_pipeline(), model="demo")
        >>> quick = Settings(num_inference_steps=2, seed=1)
        >>> *steps, drawn = studio.draw(Who(photos=demo_portraits()[:1]), "a portrait of S*", quick, Event())
        >>> len(steps), drawn.settings[0][:6]
        (2, 'seed 1')
    """

    def __init__(self, pipe: ProFusionPipeline, *, model: str = LOCAL, limits: Limits | None = None):
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.model, self.limits = pipe, model, limits or Limits()
        self.demo = model == DEMO
        self.portraits = demo_portraits()
        self.settings = {name: DEMO_SETTINGS[name] for name in AXES[3:]} if self.demo else {}
        self.class_noun = DEMO_SETTINGS["class_noun"] if self.demo else "person"
        self.decoder = {"decoder": pipe.vae}
        if pipe.unet.config.sample_size > DECODED_SIDE:
            self.decoder = {"photo": LatentColours.fit(pipe, self.portraits)}

    def prompts_of(self, text: str) -> list[str]:
        """The prompts in a text, one a line.

        Args:
            text: As typed.

        Returns:
            At least one.

        Raises:
            ValueError: There is none, there are too many, or one has no placeholder.
        """
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
        if not 1 <= len(prompts) <= self.limits.prompts:
            raise ValueError(f"There must be 1 to {self.limits.prompts} prompts, one a line, got {len(prompts)}.")
        for prompt in prompts:
            find_placeholder(prompt, self.pipe.config.placeholder)
        return prompts

    def draw(self, who: Who, text: str, settings: Settings, stop: Event) -> Iterator[Step | Drawn]:
        """Draw each prompt.

        Args:
            who: Whom.
            text: Prompts, one a line.
            settings: How.
            stop: Ends it early when set.

        Yields:
            A [`Step`] after each step, and at last a [`Drawn`].

        Raises:
            ValueError: A setting is out of its range, or the pipeline refuses something.
        """
        prompts, seed, call = self._asked(text, settings, learnt=who.concept is not None)

        def work(say) -> None:
            with self._subject(who) as subject:
                pictures = self._pictures(prompts, seed, call | subject, say, stop, "step")
            pairs = ", ".join(f"{name} {value:g}" for name, value in call.items())
            described = [f"seed {seed + number}, {pairs}" for number in range(len(prompts))]
            records = [self._record(who, prompts, number, seed, call) for number in range(len(prompts))]
            say(Drawn(pictures, prompts, described, records, stop.is_set()))

        yield from following(work, stop)

    def customise(
        self, who: Who, text: str, settings: Settings, stop: Event, **learning: Any
    ) -> Iterator[Step | Customised]:
        """Learn the photos, and draw the prompts before and after.

        Args:
            who: Whose photo.
            text: Prompts, one a line.
            settings: How they are drawn.
            stop: Ends it early when set; what was learnt by then is kept.
            **learning: Fields of `CustomizeConfig`.

        Yields:
            A [`Step`] after each step, and at last a [`Customised`].

        Raises:
            ValueError: There is no photo, a setting is out of its range, or the pipeline refuses something.
            Stopped: The visitor stopped it before the first step of learning.
        """
        if not who.photos:
            raise ValueError("Customising needs a photo: choose a portrait or upload one.")
        given = {"class_noun": who.class_noun, **who.crop_face, **(DEMO_CUSTOMIZE if self.demo else {}), **learning}
        config = CustomizeConfig(**{name: value for name, value in given.items() if value not in (None, "")})
        if config.steps > self.limits.learning_steps:
            raise ValueError(f"There may be at most {self.limits.learning_steps} steps, got {config.steps}.")
        prompts, seed, asked = self._asked(text, settings, learnt=False)

        def work(say) -> None:
            with self._subject(who) as subject:
                before = self._pictures(prompts, seed, asked | subject, say, stop, "before: step")
            if stop.is_set():
                raise Stopped("Stopped before anything was learnt.")
            losses = []
            with customizing(self.pipe, list(who.photos), config, warn=lambda text: None) as run:  # told by then
                for record in run.learn():
                    losses.append(record.loss)
                    text = f"learning: step {record.step} of {config.steps}"
                    say(Step(record.step, config.steps, text, losses=tuple(losses)))
                    if stop.is_set():
                        break
                concept = run.concept()
            with self._subject(Who(concept=concept)) as subject:
                call = self.settings | settings.call(learnt=True)
                after = self._pictures(prompts, seed, call | subject, say, Event(), "after: step")
            say(Customised(concept, losses, PictureGrid([before, after], ["before", "after"], prompts)))

        yield from following(work, stop)

    def compare(
        self, who: Who, prompt: str, settings: Settings, axes: dict[str, list[float]], stop: Event
    ) -> Iterator[Step | PictureGrid]:
        """Draw one prompt with every combination of some settings, from the same noise.

        Args:
            who: Whom.
            prompt: The first line counts.
            settings: All other settings.
            axes: Names of scales, and the values of each; the last axis runs across.
            stop: Ends it early when set.

        Yields:
            A [`Step`] after each step, and at last the grid.

        Raises:
            ValueError: A setting is out of its range, there are too many pictures, or the pipeline refuses something.
            Stopped: The visitor stopped it.
        """
        prompts, seed, call = self._asked(prompt, settings, learnt=who.concept is not None)
        count = math.prod(map(len, axes.values()))
        if count > self.limits.cells:
            raise ValueError(f"There may be at most {self.limits.cells} pictures in a grid, got {count}.")
        call = {name: value for name, value in call.items() if name not in axes}

        def work(say) -> None:
            def progress(done: float, total: int) -> None:
                if stop.is_set():
                    raise Stopped("Stopped before the grid was whole.")
                say(Step(done, total, f"picture {min(total, int(done) + 1)} of {total}"))

            with self._subject(who) as subject:
                if "image" in subject:  # of which a list would be an axis
                    subject["image"] = subject["image"][0] if len(subject["image"]) == 1 else [subject["image"]]
                say(sweep(self.pipe, prompts[0], seed=seed, progress=progress, **subject, **axes, **call))

        yield from following(work, stop)

    def _asked(self, text: str, settings: Settings, *, learnt: bool) -> tuple[list[str], int, dict[str, Any]]:
        """Prompts, seed and scales, once they are known to be within the limits."""
        prompts = self.prompts_of(text)
        self._check(settings)
        seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
        return prompts, seed, self.settings | settings.call(learnt=learnt)

    def _check(self, settings: Settings) -> None:
        limits = self.limits
        for name, value, least, most in (
            ("num_inference_steps", settings.num_inference_steps, 1, limits.inference_steps),
            ("num_fusion_steps", settings.num_fusion_steps, 0, limits.fusion_steps),
            ("side", settings.side or 8, 8, limits.side),
        ):
            if check_count(name, value, at_least=least) > most:
                raise ValueError(f"`{name}` may be at most {most} here, got {value}.")
        for name, value in settings.scales.items():
            check_number(name, value, at_most=100)
        if settings.seed is not None:
            check_count("seed", settings.seed, at_least=0)

    @contextmanager
    def _subject(self, who: Who) -> Iterator[dict[str, Any]]:
        """What the call is told of a person; a concept is on the pipeline for this block only."""
        if who.concept is None:
            yield {"image": who.seen, "class_noun": who.class_noun}
            return
        self.pipe.load_concept(who.concept, name=CONCEPT)
        try:
            yield {"concept": CONCEPT}
        finally:
            self.pipe.unload_concept(CONCEPT)

    def _record(self, who: Who, prompts: list[str], number: int, seed: int, call: dict[str, Any]) -> dict[str, Any]:
        whose = {"references": [(who.source, photo) for photo in who.photos]}
        if who.concept is not None:
            whose = {"concept": (LOCAL, who.concept)}
        return record_of(
            self.pipe,
            model=self.model,
            prompt=prompts[number],
            seed=seed + number,
            settings=call | ({} if who.concept is not None else {"class_noun": who.class_noun, **who.crop_face}),
            batch=(len(prompts), 1, number),
            **whose,
        )

    def _pictures(
        self, prompts: list[str], seed: int, call: dict[str, Any], say, stop: Event, text: str
    ) -> list[Image.Image]:
        seen = []
        watch = live_preview(self.pipe, **self.decoder, show=seen.append)

        def follow(pipe: ProFusionPipeline, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
            watch(pipe, index, timestep, tensors)
            say(Step(index + 1, pipe.num_timesteps, f"{text} {index + 1} of {pipe.num_timesteps}", seen.pop()))
            pipe._interrupt = stop.is_set()
            return tensors

        call = dict(call)
        if "image" in call:
            call["image"] = [call["image"]] * len(prompts)
        generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
        return self.pipe(prompts, generator=generators, callback_on_step_end=follow, **call).images
