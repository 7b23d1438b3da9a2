"""Identity against prompt over guidance scales: `python examples/avatars/frontier.py variants.json`.

A variant is a way to draw, to customise or to make S*. Each is drawn over the same grid of (ω_1, ω_2), with the same
people, prompts and noise; what counts is the frontier, the highest prompt score at every identity. Validation people
choose the scales for three identities, test people confirm them. The file names the variants, for example:

    {"as shipped": {},
     "customised": {"learning": {"steps": 50, "learning_rate": 0.001}},
     "with caption": {"learning": {"steps": 50, "learning_rate": 0.001}, "caption": "right"},
     "another PromptNet": {"promptnet": "outputs/new/promptnet", "call": {"num_fusion_steps": 1}}}

`caption` says what the photo shows besides the person: all of it (right), half of it, or all with one word wrong;
`negative` gives the right caption as the negative prompt. Rows are written as they are finished, concepts are kept, so
a run that was stopped goes on.
"""

import argparse
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from study import Avatars
from tqdm import tqdm
from world import CONTROL_VALUES, Control, describe_control

from profusion_pipeline import PromptNet, load_demo_pipeline
from profusion_pipeline.demo import DEMO_CUSTOMIZE, DEMO_SETTINGS, FOLDER
from profusion_pipeline.evaluation.metrics import bootstrap_interval, bootstrap_means, paired_difference
from profusion_pipeline.evaluation.report import markdown
from profusion_pipeline.evaluation.run import picture_generator
from profusion_pipeline.evaluation.subjects import Picture, Subject
from profusion_pipeline.evaluation.systems.system import Sampling

Scales = tuple[float, float]  # ω_1, ω_2
GRID: tuple[Scales, ...] = ((1.9, 5.0), (2.5, 5.0), (3.75, 5.0), (2.5, 2.5), (3.75, 2.5), (5.0, 2.5))
TARGETS = (0.70, 0.75, 0.80)  # identities at which prompt scores are compared
AREA = np.linspace(0.5, 0.9, 81)  # identities over which the frontier's prompt score is averaged
SCORES = ("reader identity", "reader prompt")
# What each of the ten prompts of a person asks for, in the order of `study_prompts`.
KINDS = ("clothes", "glasses", "hat", "place", "colour", "expression", "style", "style", "two things", "two things")
CAPTIONS = ("", "right", "half", "wrong")


@dataclass(frozen=True)
class Variant:
    """What differs from the demo model's own way: Mixed, m = 0, without customising."""

    call: dict[str, Any] = field(default_factory=dict)
    learning: dict[str, Any] = field(default_factory=dict)
    caption: str = ""
    negative: bool = False
    promptnet: str = ""

    def __post_init__(self):
        if self.caption not in CAPTIONS:
            raise ValueError(f"`caption` must be one of {CAPTIONS}, got {self.caption!r}.")

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


class Rows:
    """The file: (variant, scales, person) -> identity and prompt score of each picture `[2, prompts]`."""

    def __init__(self, path: Path):
        self.path, self.known = path, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            self.known[row["variant"], tuple(row["scales"]), row["person"]] = np.array(row["scores"], float)

    def add(self, variant: Variant, scales: Scales, person: str, scores: np.ndarray) -> None:
        self.known[variant.key, scales, person] = scores
        row = dict(variant=variant.key, scales=scales, person=person, scores=scores.round(6).tolist())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def people(self, variants: Sequence[Variant], grid: Sequence[Scales], split: str) -> list[str]:
        """Those of a split that have been drawn with every variant and all scales."""
        found = sorted({person for *_, person in self.known if person.startswith(split)})
        return [p for p in found if all((v.key, scales, p) in self.known for v in variants for scales in grid)]

    def pictures(self, variant: Variant, scales: Scales, people: Sequence[str]) -> np.ndarray:
        """Identity and prompt score `[people, 2, prompts]`."""
        return np.stack([self.known[variant.key, scales, person] for person in people])

    def points(self, variant: Variant, grid: Sequence[Scales], people: Sequence[str]) -> np.ndarray:
        """Means of each person `[people, scales, 2]`."""
        return np.stack([np.nanmean(self.pictures(variant, scales, people), axis=2) for scales in grid], axis=1)


def frontier(points: np.ndarray) -> np.ndarray:
    """Of points (identity, prompt) `[G, 2]`, those that no other beats in both, by rising identity."""
    order = points[np.lexsort((-points[:, 1], -points[:, 0]))]  # falling identity
    best = np.maximum.accumulate(order[:, 1])
    return order[np.concatenate([[True], order[1:, 1] > best[:-1]])][::-1]


def prompt_at(points: np.ndarray, identity: float | np.ndarray) -> np.ndarray:
    """The prompt score of the frontier at an identity, on straight lines between its points; nan beyond the last."""
    front = frontier(points)
    return np.interp(identity, front[:, 0], front[:, 1], right=np.nan)


def area(points: np.ndarray) -> float:
    """The frontier's mean prompt score over identities 0.5 to 0.9; what is not reached counts as 0."""
    return float(np.nan_to_num(prompt_at(points, AREA)).mean())


def choose(points: np.ndarray, identity: float) -> int | None:
    """Index of the point with the best prompt score among those that reach an identity."""
    reached = points[:, 0] >= identity
    return int(np.where(reached, points[:, 1], -1).argmax()) if reached.any() else None


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


class Drawing:
    """The pipeline, with one variant at a time."""

    def __init__(self, model: Path, work: Path, num_inference_steps: int, device: str, precision: str):
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        self.pipe = load_demo_pipeline(folder=model, device=device)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.scheduler = Sampling(scheduler="UniPC").make_scheduler(self.pipe.scheduler)
        self.work, self.steps = work, num_inference_steps
        self.promptnets = {"": self.pipe.promptnet}

    def scores(self, variant: Variant, scales: Scales, avatars: Avatars, subject: Subject) -> np.ndarray:
        """Identity and prompt score of one picture for each prompt of one person `[2, prompts]`."""
        if variant.promptnet not in self.promptnets:
            self.promptnets[variant.promptnet] = PromptNet.from_pretrained(variant.promptnet).to(self.pipe.device)
        self.pipe.register_modules(promptnet=self.promptnets[variant.promptnet])
        call = {**DEMO_SETTINGS, "num_fusion_steps": 0, "num_inference_steps": self.steps, **variant.call}
        call |= {"guidance_scale": scales[0], "class_guidance_scale": scales[1]}
        if variant.negative:
            call["negative_prompt"] = self.caption(avatars, subject, "right")
        if variant.learning:
            self.pipe.load_concept(self.concept(variant, avatars, subject))
        else:
            call["image"] = list(subject.photos) * len(subject.prompts)
        generators = [picture_generator(subject.name, prompt, 0) for prompt in subject.prompts]
        with self.autocast:
            images = self.pipe(list(subject.prompts), generator=generators, **call).images
        self.pipe.unload_concept()
        pairs = zip(images, subject.prompts, strict=True)
        found = avatars([Picture(image, subject, prompt, 0) for image, prompt in pairs])
        return np.stack([found[name] for name in SCORES])

    def concept(self, variant: Variant, avatars: Avatars, subject: Subject) -> Path:
        """Where the concept of a person lies; learnt now if it isn't there."""
        learning = json.dumps([variant.learning, variant.caption, variant.promptnet], sort_keys=True)
        folder = self.work / "concepts" / f"{zlib.crc32(learning.encode()):08x}" / subject.name
        if not folder.exists():
            settings = {**DEMO_CUSTOMIZE, "seed": _number(subject), **variant.learning}
            settings |= {"caption": self.caption(avatars, subject, variant.caption)} if variant.caption else {}
            self.pipe.customize(subject.photos[0], **settings).save_pretrained(folder)
        return folder

    @staticmethod
    def caption(avatars: Avatars, subject: Subject, kind: str) -> str:
        """Of the person's photo."""
        return photo_caption(avatars.truth[subject.name][0].control, kind, _number(subject))


def _number(subject: Subject) -> int:
    return int(subject.name.rsplit("-", 1)[1])


def chosen_scales(rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales]) -> dict[str, list[Scales | None]]:
    """For each variant the scales that validation people choose for the three identities."""
    people = rows.people(list(variants.values()), grid, "validation")
    means = {name: rows.points(variant, grid, people).mean(axis=0) for name, variant in variants.items()}
    indices = {name: [choose(points, target) for target in TARGETS] for name, points in means.items()}
    return {name: [None if i is None else grid[i] for i in found] for name, found in indices.items()}


def validation_table(rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales]) -> str:
    """Area and prompt at three identities with 95 % intervals over people, and the area's difference from the first."""
    people = rows.people(list(variants.values()), grid, "validation")
    draws = {
        name: bootstrap_means(rows.points(variant, grid, people)) for name, variant in variants.items()
    }  # [draws, scales, 2], of the same people in every draw
    areas = {name: np.array([area(points) for points in drawn]) for name, drawn in draws.items()}
    first = next(iter(variants))
    lines = [["variant", "area", "difference", *(f"prompt at {target:.2f}" for target in TARGETS)], ["---"] * 6]
    for name, variant in variants.items():
        points = rows.points(variant, grid, people).mean(axis=0)
        cells = [name, _cell(area(points), areas[name])]
        difference = areas[name] - areas[first]
        cells.append(
            "" if name == first else _cell(area(points) - _area_of(rows, variants[first], grid, people), difference)
        )
        for target in TARGETS:
            values = np.array([prompt_at(drawn, target) for drawn in draws[name]])
            cells.append(_cell(float(prompt_at(points, target)), values))
        lines.append(cells)
    return f"{len(people)} validation people, {len(grid)} pairs of scales.\n\n{markdown(lines)}"


def _area_of(rows: Rows, variant: Variant, grid: Sequence[Scales], people: Sequence[str]) -> float:
    return area(rows.points(variant, grid, people).mean(axis=0))


def _cell(mean: float, values: np.ndarray) -> str:
    if not np.isfinite(mean):
        return "not reached"
    low, high = np.nanquantile(values, (0.025, 0.975))
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def confirmed_table(rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales]) -> str:
    """What the chosen scales give on test people, and the paired difference of the prompt score from the first's."""
    chosen = chosen_scales(rows, variants, grid)
    lines = [["variant", "for identity", "ω_1, ω_2", "people", "identity", "prompt", "difference"], ["---"] * 7]
    first = next(iter(variants))
    for name, variant in variants.items():
        for target, scales, usual in zip(TARGETS, chosen[name], chosen[first], strict=True):
            people = rows.people([variant], [scales], "test") if scales else []
            if not people:
                continue
            scores = rows.pictures(variant, scales, people)  # [people, 2, prompts]
            owner = np.repeat(np.arange(len(people)), scores.shape[2])
            cells = [
                "{:.3f} ({:.3f} to {:.3f})".format(*bootstrap_interval(scores[:, i].ravel(), owner)) for i in (0, 1)
            ]
            if name != first and usual and rows.people([variants[first]], [usual], "test") == people:
                others = rows.pictures(variants[first], usual, people)[:, 1].ravel()
                found = paired_difference(scores[:, 1].ravel(), others, owner)
                cells.append(f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})")
            else:
                cells.append("")
            lines.append([name, f"{target:.2f}", f"{scales[0]:g}, {scales[1]:g}", str(len(people)), *cells])
    return markdown(lines)


def kinds_table(rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales], identity: float = TARGETS[1]) -> str:
    """The prompt score of each kind of prompt, on validation people, with the scales chosen for one identity."""
    people, kinds = rows.people(list(variants.values()), grid, "validation"), list(dict.fromkeys(KINDS))
    lines = [["variant", "ω_1, ω_2", *kinds], ["---"] * (2 + len(kinds))]
    for name, variant in variants.items():
        index = choose(rows.points(variant, grid, people).mean(axis=0), identity)
        if index is not None:
            prompts = rows.pictures(variant, grid[index], people)[:, 1]  # [people, prompts]
            cells = [np.nanmean(prompts[:, [kind == one for one in KINDS]]) for kind in kinds]
            scales = "{:g}, {:g}".format(*grid[index])
            lines.append([name, scales, *(f"{cell:.2f}" for cell in cells)])
    return markdown(lines)


def plot(rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales], path: Path) -> None:
    """All pairs of scales as points, frontiers as lines; test people as crosses."""
    figure = Figure(figsize=(7, 5), layout="tight")
    axes = figure.subplots()
    people, chosen = rows.people(list(variants.values()), grid, "validation"), chosen_scales(rows, variants, grid)
    for number, (name, variant) in enumerate(variants.items()):
        points, colour = rows.points(variant, grid, people).mean(axis=0), f"C{number}"
        front = frontier(points)
        axes.plot(points[:, 1], points[:, 0], "o", color=colour, markersize=4)
        axes.plot(front[:, 1], front[:, 0], "-", color=colour, label=name)
        for scales in filter(None, chosen[name]):
            if tested := rows.people([variant], [scales], "test"):
                identity, prompt = rows.points(variant, [scales], tested).mean(axis=(0, 1))
                axes.plot(prompt, identity, "x", color=colour)
    axes.set(xlabel="prompt", ylabel="identity", title="validation people; test people as crosses")
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


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

    fill(Avatars(people, "validation"), dict.fromkeys(variants, grid))
    chosen = chosen_scales(rows, variants, grid)
    fill(Avatars(test_people, "test"), {n: list(dict.fromkeys(filter(None, found))) for n, found in chosen.items()})
    return rows


def read_variants(path: str) -> dict[str, Variant]:
    """Name -> variant, from a JSON file."""
    return {name: Variant(**given) for name, given in json.loads(Path(path).read_text(encoding="utf-8")).items()}


def read_scales(text: str) -> Scales:
    """`2.5,5` -> (2.5, 5.0)."""
    first, second = map(float, text.split(","))
    return first, second


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", type=read_variants, help="JSON file, as this script's beginning shows it")
    parser.add_argument("--work", type=Path, default=Path("outputs/frontier"), help="folder for concepts and scores")
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a ProFusion folder")
    parser.add_argument("--grid", type=read_scales, nargs="+", default=GRID, help="pairs of ω_1,ω_2")
    parser.add_argument("--people", type=int, default=6, help="validation people, ten prompts each")
    parser.add_argument("--test-people", type=int, default=15, help="test people, ten prompts each")
    parser.add_argument("--num-inference-steps", type=int, default=10, help="steps of UniPC")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the pipeline")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"), help="in which pictures are drawn")
    words = vars(parser.parse_args())
    found = main(**words)
    print(validation_table(found, words["variants"], words["grid"]))
    print(confirmed_table(found, words["variants"], words["grid"]))
    print(kinds_table(found, words["variants"], words["grid"]))
    plot(found, words["variants"], words["grid"], words["work"] / "frontier.png")
