"""The study on the avatar world: systems side by side, on people that the demo model has never seen.

    torchrun --nproc-per-node 2 examples/avatars/study.py      # draws and measures what is not there yet
    python examples/avatars/study.py --questions 6             # seconds and memory, one system after another, alone
    python examples/avatars/study.py --redraw                  # rows -> docs/study, tables and plots -> docs/study.md

Everything is `profusion evaluate`'s; only people, prompts and scores are of this world.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from attributes import AttributeReader
from PIL import Image
from score import IDENTITY_VALUES, PROJECT, SCORER, MiniCLIP, agreement, control_prompts, reference_portrait
from world import CONTROL_VALUES, PLACE_WORDS, SCENES, Control, Portrait, Renderer, describe_control

from profusion_pipeline import ProFusionPipeline
from profusion_pipeline.common.files import whole_folder
from profusion_pipeline.common.flags import add_flags, flags_of_dataclass, given_flags
from profusion_pipeline.demo import DEMO_CUSTOMIZE
from profusion_pipeline.evaluation.config import EvaluationConfig
from profusion_pipeline.evaluation.encoders import Encoder
from profusion_pipeline.evaluation.measures import Measure, Similarity
from profusion_pipeline.evaluation.study import choose_systems, collect_run, open_model, redraw, run_study
from profusion_pipeline.evaluation.subjects import Picture, Subject

PUBLISHED, DOCUMENT = PROJECT / "docs" / "study", PROJECT / "docs" / "study.md"
Asked = dict[str, str]
OTHER_PHOTOS = 100_000  # how far apart the seeds of a person's photos are


def study_prompts(rng: random.Random) -> list[tuple[str, Asked]]:
    """The eight control prompts, and two that ask for two things at once: clothes and place, glasses and expression."""
    prompts = control_prompts(rng)
    (clothes, clothes_asked), (glasses, glasses_asked), *_ = prompts
    (expression, expression_asked), place = prompts[5], rng.choice(SCENES)
    return [
        *prompts,
        (f"{clothes}, {PLACE_WORDS[place]}", clothes_asked | {"background": place}),
        (f"{glasses}, {expression.removeprefix('a portrait of S*, ')}", glasses_asked | expression_asked),
    ]


def photo_caption(control: Control, kind: str, number: int) -> str:
    """What a photo shows besides the person, as somebody writes it who is right, lazy (half) or mistaken (wrong)."""
    rng = random.Random(number)
    if kind == "wrong":
        name = rng.choice(("clothes", "expression", "background"))
        others = [value for value in CONTROL_VALUES[name] if value != getattr(control, name)]
        control = replace(control, **{name: rng.choice(others)})
    said = describe_control(control, rng)
    if kind == "half":
        said = said[: (len(said) + number % 2) // 2]  # of three parts one or two, in turn
    return ", ".join(said)


class Avatars(Measure):
    """People of a split, and the measure that knows what is true of them."""

    columns = ("reader identity", "reader prompt")

    def __init__(self, people: int, split: str = "test"):
        self.reader = AttributeReader.from_pretrained(SCORER / "reader", torch_dtype=torch.float32).eval()
        render, self.truth, self.subjects = Renderer(), {}, []
        for number in range(people):
            portrait, asked = reference_portrait(number, split), dict(study_prompts(random.Random(number)))
            name = f"{split}-{number:03d}"
            self.truth[name] = portrait, asked
            caption = photo_caption(portrait.control, "right", number)
            self.subjects.append(Subject(name, (Image.fromarray(render(portrait)),), tuple(asked), caption))

    def other_photo(self, name: str, number: int) -> tuple[Image.Image, Control]:
        """Another photo of one of them, in other clothes and elsewhere, and what it shows besides the person."""
        portrait, _ = self.truth[name]
        other = reference_portrait(OTHER_PHOTOS * number + int(name.rsplit("-", 1)[1]), name.rsplit("-", 1)[0])
        portrait = Portrait(portrait.identity, other.control)
        return Image.fromarray(Renderer()(portrait)), portrait.control

    def __call__(self, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
        """Share of the person's attributes, and of what the prompt asks for, that the classifier reads."""
        images = np.stack([np.asarray(picture.image) for picture in pictures])
        wanted, asked = [], []
        for picture in pictures:
            portrait, prompts = self.truth[picture.subject.name]
            asked.append(prompts[picture.prompt])
            wanted.append(Portrait(portrait.identity, replace(portrait.control, **asked[-1])))
        return {
            "reader identity": agreement(self.reader, images, wanted, [set(IDENTITY_VALUES)] * len(images)),
            "reader prompt": agreement(self.reader, images, wanted, [set(values) for values in asked]),
        }


def mini_clip(pipe: ProFusionPipeline, class_noun: str) -> Similarity:
    """Similarities by the demo model's own two towers."""
    clip = MiniCLIP(pipe)
    encoder = Encoder(
        lambda images: clip.images(np.stack([np.asarray(image) for image in images])).numpy(),
        lambda texts: clip.texts(texts).numpy(),
    )
    return Similarity("mini-CLIP", encoder, class_noun)


def main(config: EvaluationConfig, *, people: int, split: str, device: str) -> None:
    """Draw and measure what is not there yet."""
    pipe = open_model(config.model, device, torch.float32)
    avatars = Avatars(people, split)
    measures = [avatars, mini_clip(pipe, config.class_noun)]
    for line in run_study(pipe, choose_systems(config), avatars.subjects, measures, config):
        print(line, flush=True)


def publish(output: Path) -> Path:
    """The rows of a run, if there is one, take the place of those in `docs/study`; these go into `docs/study.md`."""
    if (output / "rows").is_dir():
        with whole_folder(PUBLISHED) as folder:
            collect_run(output / "rows", folder)
    return redraw(PUBLISHED, DOCUMENT)


# What the study of the demo model takes in place of the defaults of `profusion evaluate`.
DEFAULTS = {
    "model": "demo",
    "output": "outputs/study",
    "questions": (1, 2, 3, 4, 5),
    "class_noun": DEMO_CUSTOMIZE["class_noun"],
    "learning_prompt": DEMO_CUSTOMIZE["prompt"],
    "pool_size": DEMO_CUSTOMIZE["pool_size"],
    "unet_rows": 60,
    "batch_size": 20,
    "captions": True,
    "mixed_precision": "bf16",  # on a CPU that knows it, twice as fast
    "resume": True,
}
QUICK = {"unet_rows": 30, "seeds": 1, "output": "outputs/study-quick"}
NOT_OURS = ("model", "subjects", "prompts", "metrics", "class_noun", "learning_prompt", "resume")

if __name__ == "__main__":
    flags = [flag for flag in flags_of_dataclass(EvaluationConfig) if flag.name not in NOT_OURS]
    flags = [replace(flag, default=DEFAULTS.get(flag.name, flag.default)) for flag in flags]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], argument_default=argparse.SUPPRESS)
    add_flags(parser, flags)
    parser.add_argument("--people", type=int, default=30, help="held-out people; ten prompts each (default: 30)")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="which people")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (default: cpu)")
    parser.add_argument("--quick", action="store_true", default=False, help="two people, few steps: ten minutes")
    arguments = parser.parse_args()
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given_flags(arguments, flags).items()}
    settings = EvaluationConfig(**{**DEFAULTS, **(QUICK if arguments.quick else {}), **given})
    if settings.redraw and arguments.quick:
        print(redraw(Path(settings.output, "rows"), Path(settings.output, "study.md")))
    elif settings.redraw:
        print(publish(Path(settings.output)))
    else:
        people = 2 if arguments.quick else arguments.people
        main(settings, people=people, split=arguments.split, device=arguments.device)
