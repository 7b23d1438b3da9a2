"""What the tests of studies share: tiny subjects, quick systems, and a measure that needs no model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from profusion_pipeline.evaluation.plan import make_plan
from profusion_pipeline.evaluation.subjects import Subject
from profusion_pipeline.evaluation.systems.baselines import SYSTEMS

LEARNING = dict(pool_size=2)
QUICK = {name: SYSTEMS[name] for name in ("Stable Diffusion", "PromptNet")} | {
    name: replace(SYSTEMS[name], learning={"steps": 2, "batch_size": 2, "learning_rate": 0.05})
    for name in ("Textual Inversion", "ProFusion")
}
WORDS = dict(class_noun="a man", learning_prompt="a photo of S*")


class Colours:
    """Two scores and a place for what is drawn, so that a test can look at it."""

    columns = ("colour identity", "colour prompt")

    def __init__(self):
        self.pictures = {}

    def __call__(self, pictures):
        for one in pictures:
            self.pictures.setdefault((one.subject.name, one.prompt, one.seed), []).append(np.asarray(one.image))
        arrays = np.stack([np.asarray(one.image, dtype=float) for one in pictures]) / 255
        return {"colour identity": arrays.mean((1, 2, 3)), "colour prompt": arrays[..., 0].mean((1, 2))}


class Brightness(Colours):
    """As it is named on a command line."""

    def __init__(self, class_noun: str, placeholder: str, device: str):
        super().__init__()


def Bare(**words):  # noqa: N802 - it stands for a metric's class
    """A function where a measure should be."""
    return lambda pictures: {"colour prompt": np.zeros(len(pictures))}


class Textless(Brightness):
    """Nothing of it tells of the prompt."""

    columns = ("colour identity",)


class Numberless(Brightness):
    """Its scores are not those it names."""

    columns = ("colour identity", "colour prompt", "shape prompt")


def make_subjects(count: int = 3) -> list[Subject]:
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(count)]
    prompts = ("a photo of S*", "S* on the beach")
    return [Subject(f"person-{number}", (photo,), prompts) for number, photo in enumerate(photos)]


def quick_cells(questions=(1,), systems=QUICK) -> list:
    return make_plan(systems, learning=LEARNING, rows=10, questions=questions, seeds=2)


def write_subjects(folder: Path, count: int = 2) -> Path:
    for subject in make_subjects(count):
        (folder / subject.name).mkdir(parents=True)
        subject.photos[0].save(folder / subject.name / "1.png")
    return folder
