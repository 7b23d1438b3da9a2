"""Identity against prompt over guidance scales: `python examples/avatars/frontier.py variants.json`.

A variant is a way to draw, to customise or to make S*. Each is drawn over the same grid of (ω_1, ω_2), with the same
people, prompts and noise; what counts is the frontier, the highest prompt score at every identity. Validation people
choose the scales for three identities, test people confirm them. The file names the variants, for example:

    {"as shipped": {},
     "customised": {"learning": {"steps": 50, "learning_rate": 0.001}},
     "with caption": {"learning": {"steps": 50, "learning_rate": 0.001}, "caption": "right"},
     "another PromptNet": {"promptnet": "outputs/new/promptnet", "call": {"num_fusion_steps": 1}}}

`caption` says what the photo shows besides the person: all of it (right), half of it, or all with one word wrong;
`negative` gives the right caption as the negative prompt; `trial` is one of `trials.py`. `rival` draws what one of the
study's rivals learnt of the photo as the subject, with `own_guidance` by classifier-free guidance at ω_1, as the rival
itself does. Rows are written as they are finished, concepts are kept, so a run that was stopped goes on. Its tables are
made by `frontier_tables.py`.
"""

import argparse
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trials
from frontier_tables import (
    GRID,
    SCORES,
    TARGETS,
    Rows,
    Scales,
    Variant,
    chosen_scales,
    confirmed_table,
    grids,
    kinds_table,
    plot,
    publish,
    read_scales,
    read_variants,
    validation_table,
)
from PIL import Image
from rival_concepts import RivalConcept
from study import Avatars, photo_caption
from tqdm import tqdm

from profusion_pipeline import PromptNet, load_demo_pipeline
from profusion_pipeline.demo import DEMO_CUSTOMIZE, DEMO_SETTINGS, FOLDER
from profusion_pipeline.evaluation.run import picture_generator
from profusion_pipeline.evaluation.subjects import Picture, Subject
from profusion_pipeline.evaluation.systems.system import Sampling


class Drawing:
    """The pipeline, with one variant at a time."""

    def __init__(self, model: Path, work: Path, num_inference_steps: int, device: str, precision: str):
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        self.pipe = load_demo_pipeline(folder=model, device=device)
        self.pipe.set_progress_bar_config(disable=True)
        self.work, self.steps = work, num_inference_steps
        self.promptnets = {"": self.pipe.promptnet}

    def scores(self, variant: Variant, scales: Scales, avatars: Avatars, subject: Subject) -> np.ndarray:
        """Identity and prompt score of one picture for each prompt of one person `[2, prompts]`."""
        if variant.promptnet not in self.promptnets:
            self.promptnets[variant.promptnet] = PromptNet.from_pretrained(variant.promptnet).to(self.pipe.device)
        self.pipe.register_modules(promptnet=self.promptnets[variant.promptnet])
        self.pipe.scheduler = Sampling(scheduler=variant.scheduler).make_scheduler(self.pipe.scheduler)
        call = {**DEMO_SETTINGS, "num_fusion_steps": 0, "num_inference_steps": self.steps, **variant.call}
        call |= {"guidance_scale": scales[0], "class_guidance_scale": scales[1]}
        if variant.negative:
            call["negative_prompt"] = self.caption(avatars, subject, "right")
        if variant.rival:
            images = self.draw_rival(variant, avatars, subject, call)
        else:
            images = self.draw(variant, avatars, subject, call)
        pairs = zip(images, subject.prompts, strict=True)
        found = avatars([Picture(image, subject, prompt, 0) for image, prompt in pairs])
        return np.stack([found[name] for name in SCORES])

    def draw(self, variant: Variant, avatars: Avatars, subject: Subject, call: dict[str, Any]) -> list[Image.Image]:
        """By the pipeline's own S*."""
        if variant.learning:
            self.pipe.load_concept(self.concept(variant, avatars, subject))
        else:
            call["image"] = list(subject.photos) * len(subject.prompts)
        with self.autocast, trials.drawing(self.pipe, variant.trial) as more:
            images = self.pipe(list(subject.prompts), generator=_generators(subject), **call | more).images
        self.pipe.unload_concept()
        return images

    def draw_rival(
        self, variant: Variant, avatars: Avatars, subject: Subject, call: dict[str, Any]
    ) -> list[Image.Image]:
        """By what a rival learnt of the photo, under its own guidance or under ours."""
        learning = dict(variant.learning) | {"seed": _number(subject)}
        learning |= {"caption": self.caption(avatars, subject, variant.caption)} if variant.caption else {}
        name = json.dumps([variant.rival, variant.learning, variant.caption], sort_keys=True)
        file = self.work / "concepts" / f"{zlib.crc32(name.encode()):08x}" / f"{subject.name}.safetensors"
        concept = RivalConcept(self.pipe, variant.rival, subject.photos[0], file, **learning)
        prompts, generators = list(subject.prompts), _generators(subject)
        with self.autocast:
            if variant.own_guidance:
                sampling = Sampling(scheduler=variant.scheduler, num_inference_steps=call["num_inference_steps"])
                return concept.by_its_own_guidance(prompts, generators, call["guidance_scale"], sampling)
            return concept.as_subject(prompts, generators, **call)

    def concept(self, variant: Variant, avatars: Avatars, subject: Subject) -> Path:
        """Where the concept of a person lies; learnt now if it isn't there."""
        trial = [variant.trial] if variant.trial in (*trials.CUSTOMISING, trials.SEVERAL) else []
        learning = json.dumps([variant.learning, variant.caption, variant.promptnet, *trial], sort_keys=True)
        folder = self.work / "concepts" / f"{zlib.crc32(learning.encode()):08x}" / subject.name
        if not folder.exists():
            settings = {**DEMO_CUSTOMIZE, "seed": _number(subject), **variant.learning}
            photos = [(subject.photos[0], avatars.truth[subject.name][0].control)]
            if variant.trial == trials.SEVERAL:
                photos += [avatars.other_photo(subject.name, number) for number in (1, 2)]
            if variant.caption:
                said = (photo_caption(control, variant.caption, _number(subject)) for _, control in photos)
                settings["caption"] = tuple(said)
            images = [image for image, _ in photos]
            trials.customize(self.pipe, variant.trial, images, **settings).save_pretrained(folder)
        return folder

    @staticmethod
    def caption(avatars: Avatars, subject: Subject, kind: str) -> str:
        """Of the person's photo."""
        return photo_caption(avatars.truth[subject.name][0].control, kind, _number(subject))


def _generators(subject: Subject) -> list[torch.Generator]:
    return [picture_generator(subject.name, prompt, 0) for prompt in subject.prompts]


def _number(subject: Subject) -> int:
    return int(subject.name.rsplit("-", 1)[1])


def main(
    variants: dict[str, Variant],
    work: Path = Path("outputs/frontier"),
    model: Path = FOLDER / "model",
    grid: Sequence[Scales] = GRID,
    people: int = 6,
    test_people: int = 15,
    num_inference_steps: int = 10,
    device: str = "cpu",
    precision: str = "no",
    targets: Sequence[float] = TARGETS,
    chooser: Callable = chosen_scales,
) -> Rows:
    """Fill in the rows that are missing: validation people on the whole grid, test people with the chosen scales."""
    work.mkdir(parents=True, exist_ok=True)
    rows, drawing = Rows(work / "rows.jsonl"), Drawing(model, work, num_inference_steps, device, precision)

    def fill(avatars: Avatars, wanted: dict[str, Sequence[Scales]]) -> None:
        jobs = [(one, name, scales) for one in avatars.subjects for name in variants for scales in wanted[name]]
        for subject, name, scales in tqdm(jobs, desc="people x variants x scales"):
            if (variants[name].key, scales, subject.name) not in rows.known:
                scores = drawing.scores(variants[name], scales, avatars, subject)
                rows.add(variants[name], scales, subject.name, scores)

    fill(Avatars(people, "validation"), grids(variants, grid))
    chosen = chooser(rows, variants, grid, targets)
    fill(Avatars(test_people, "test"), {n: list(dict.fromkeys(filter(None, found))) for n, found in chosen.items()})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", type=read_variants, help="JSON file, as this script's beginning shows it")
    parser.add_argument("--work", type=Path, default=Path("outputs/frontier"), help="folder for concepts and scores")
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a ProFusion folder")
    parser.add_argument("--grid", type=read_scales, nargs="+", default=GRID, help="pairs of ω_1,ω_2")
    parser.add_argument("--people", type=int, default=6, help="validation people, ten prompts each")
    parser.add_argument("--test-people", type=int, default=15, help="test people, ten prompts each")
    parser.add_argument("--num-inference-steps", type=int, default=10, help="steps, where a variant has no own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the pipeline")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"), help="in which pictures are drawn")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="identities to choose scales for")
    parser.add_argument("--publish", metavar="NAME", help="put rows, tables and plot into docs/study.md at this mark")
    words = vars(parser.parse_args())
    name = words.pop("publish")
    found = main(**words)
    shown = found, words["variants"], words["grid"]
    for table in (validation_table, confirmed_table, kinds_table):
        print(table(*shown, words["targets"]))
    plot(*shown, words["work"] / "frontier.png", words["targets"])
    if name:
        print(publish(words["work"], *shown[1:], words["targets"], name))
