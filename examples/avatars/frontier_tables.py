"""What the frontiers of `frontier.py` say: rows of scores -> tables and a plot, also for docs/study.md.

python examples/avatars/frontier_tables.py         # tables and plots of the page, from the rows in docs/frontiers
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from score import PROJECT
from trials import TRIALS

from profusion_pipeline.common.files import write_whole
from profusion_pipeline.evaluation.metrics import bootstrap_interval, bootstrap_means, paired_difference
from profusion_pipeline.evaluation.report import fill_marks, markdown

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
    scheduler: str = "UniPC"
    rival: str = ""  # whose concept stands for S*
    own_guidance: bool = False  # the rival's own, at ω_1 alone
    trial: str = ""  # of `trials.py`
    scales: Sequence[Scales] = ()  # in place of the grid of all

    def __post_init__(self):
        object.__setattr__(self, "scales", tuple(tuple(pair) for pair in self.scales))
        if self.caption not in CAPTIONS:
            raise ValueError(f"`caption` must be one of {CAPTIONS}, got {self.caption!r}.")
        if self.trial not in TRIALS:
            raise ValueError(f"`trial` must be one of {TRIALS}, got {self.trial!r}.")

    @property
    def key(self) -> str:
        """What tells it from others in the rows: all but the scales, of which each row has its own."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "scales"}, sort_keys=True)


def grids(variants: dict[str, Variant], usual: Sequence[Scales]) -> dict[str, Sequence[Scales]]:
    """The pairs of scales that each variant is drawn with."""
    return {name: variant.scales or usual for name, variant in variants.items()}


def validation_people(rows: "Rows", variants: dict[str, Variant], grid: Sequence[Scales]) -> list[str]:
    """Those whom all variants have been drawn of, over their whole grids."""
    return rows.people(list(zip(variants.values(), grids(variants, grid).values(), strict=True)), "validation")


class Rows:
    """The file: (variant, scales, person) -> identity and prompt score of each picture `[2, prompts]`."""

    def __init__(self, path: Path):
        self.path, self.known = path, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            variant = Variant(**json.loads(row["variant"]))  # rows may be older than a field
            self.known[variant.key, tuple(row["scales"]), row["person"]] = np.array(row["scores"], float)

    def add(self, variant: Variant, scales: Scales, person: str, scores: np.ndarray) -> None:
        self.known[variant.key, scales, person] = scores
        row = dict(variant=variant.key, scales=scales, person=person, scores=scores.round(6).tolist())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def people(self, drawn: Sequence[tuple[Variant, Sequence[Scales]]], split: str) -> list[str]:
        """Those of a split that have been drawn with every variant and its scales."""
        found = sorted({person for *_, person in self.known if person.startswith(split)})
        return [p for p in found if all((v.key, scales, p) in self.known for v, grid in drawn for scales in grid)]

    def pictures(self, variant: Variant, scales: Scales, people: Sequence[str]) -> np.ndarray:
        """Identity and prompt score `[people, 2, prompts]`."""
        return np.stack([self.known[variant.key, scales, person] for person in people])

    def points(self, variant: Variant, grid: Sequence[Scales], people: Sequence[str]) -> np.ndarray:
        """Means of each person `[people, scales, 2]`."""
        means = [np.nanmean(self.pictures(variant, scales, people), axis=2) for scales in grid]
        return np.stack(means, axis=1)


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


def chosen_scales(
    rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales], targets: Sequence[float] = TARGETS
) -> dict[str, list[Scales | None]]:
    """For each variant the scales that validation people choose for the three identities."""
    people, chosen = validation_people(rows, variants, grid), {}
    for name, scales in grids(variants, grid).items():
        points = rows.points(variants[name], scales, people).mean(axis=0)
        indices = [choose(points, target) for target in targets]
        chosen[name] = [None if index is None else scales[index] for index in indices]
    return chosen


def validation_table(
    rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales], targets: Sequence[float] = TARGETS
) -> str:
    """Area and prompt at three identities with 95 % intervals over people, and the area's difference from the first."""
    people, of = validation_people(rows, variants, grid), grids(variants, grid)
    points = {name: rows.points(variant, of[name], people) for name, variant in variants.items()}
    draws = {name: bootstrap_means(one) for name, one in points.items()}  # [draws, scales, 2], of the same people
    areas = {name: np.array([area(drawn) for drawn in draws[name]]) for name in variants}
    means = {name: area(points[name].mean(axis=0)) for name in variants}
    first = next(iter(variants))
    lines = [
        ["variant", "area", "difference", *(f"prompt at {target:.2f}" for target in targets)],
        ["---"] * (3 + len(targets)),
    ]
    for name in variants:
        difference = _cell(means[name] - means[first], areas[name] - areas[first])
        cells = [name, _cell(means[name], areas[name]), "" if name == first else difference]
        for target in targets:
            values = np.array([prompt_at(drawn, target) for drawn in draws[name]])
            cells.append(_cell(float(prompt_at(points[name].mean(axis=0), target)), values))
        lines.append(cells)
    pairs = " or ".join(map(str, sorted({len(scales) for scales in of.values()})))
    return f"{len(people)} validation people, {pairs} pairs of scales.\n\n{markdown(lines)}"


def _cell(mean: float, values: np.ndarray) -> str:
    if not np.isfinite(mean):
        return "not reached"
    low, high = np.nanquantile(values, (0.025, 0.975))
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def confirmed_table(
    rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales], targets: Sequence[float] = TARGETS
) -> str:
    """What the chosen scales give on test people, and the paired difference of the prompt score from the first's."""
    chosen = chosen_scales(rows, variants, grid, targets)
    lines = [["variant", "for identity", "ω_1, ω_2", "people", "identity", "prompt", "difference"], ["---"] * 7]
    first = next(iter(variants))
    for name, variant in variants.items():
        for target, scales, usual in zip(targets, chosen[name], chosen[first], strict=True):
            people = rows.people([(variant, [scales])], "test") if scales else []
            if not people:
                continue
            scores = rows.pictures(variant, scales, people)  # [people, 2, prompts]
            owner = np.repeat(np.arange(len(people)), scores.shape[2])
            cells = [
                "{:.3f} ({:.3f} to {:.3f})".format(*bootstrap_interval(scores[:, i].ravel(), owner)) for i in (0, 1)
            ]
            if name != first and usual and rows.people([(variants[first], [usual])], "test") == people:
                others = rows.pictures(variants[first], usual, people)[:, 1].ravel()
                found = paired_difference(scores[:, 1].ravel(), others, owner)
                cells.append(f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})")
            else:
                cells.append("")
            lines.append([name, f"{target:.2f}", f"{scales[0]:g}, {scales[1]:g}", str(len(people)), *cells])
    return markdown(lines)


def kinds_table(
    rows: Rows, variants: dict[str, Variant], grid: Sequence[Scales], targets: Sequence[float] = TARGETS
) -> str:
    """The prompt score of each kind of prompt, on validation people, with the scales chosen for the middle identity."""
    identity = targets[len(targets) // 2]
    people, kinds = validation_people(rows, variants, grid), list(dict.fromkeys(KINDS))
    of = grids(variants, grid)
    lines = [["variant", "ω_1, ω_2", *kinds], ["---"] * (2 + len(kinds))]
    for name, variant in variants.items():
        index = choose(rows.points(variant, of[name], people).mean(axis=0), identity)
        if index is not None:
            prompts = rows.pictures(variant, of[name][index], people)[:, 1]  # [people, prompts]
            cells = [np.nanmean(prompts[:, [kind == one for one in KINDS]]) for kind in kinds]
            scales = "{:g}, {:g}".format(*of[name][index])
            lines.append([name, scales, *(f"{cell:.2f}" for cell in cells)])
    return markdown(lines)


def plot(
    rows: Rows,
    variants: dict[str, Variant],
    grid: Sequence[Scales],
    path: Path,
    targets: Sequence[float] = TARGETS,
) -> None:
    """All pairs of scales as points, frontiers as lines; test people as crosses."""
    figure = Figure(figsize=(10, 5), layout="tight")
    axes = figure.subplots()
    people, chosen = validation_people(rows, variants, grid), chosen_scales(rows, variants, grid, targets)
    of = grids(variants, grid)
    for number, (name, variant) in enumerate(variants.items()):
        points, colour = rows.points(variant, of[name], people).mean(axis=0), f"C{number}"
        front = frontier(points)
        axes.plot(points[:, 1], points[:, 0], "o", color=colour, markersize=4)
        axes.plot(front[:, 1], front[:, 0], "-", color=colour, label=name)
        for scales in filter(None, chosen[name]):
            if tested := rows.people([(variant, [scales])], "test"):
                identity, prompt = rows.points(variant, [scales], tested).mean(axis=(0, 1))
                axes.plot(prompt, identity, "x", color=colour)
    axes.set(xlabel="prompt", ylabel="identity", title="validation people; test people as crosses")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # beside the points
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def read_variants(path: str) -> dict[str, Variant]:
    """Name -> variant, from a JSON file."""
    return {name: Variant(**given) for name, given in json.loads(Path(path).read_text(encoding="utf-8")).items()}


def read_scales(text: str) -> Scales:
    """`2.5,5` -> (2.5, 5.0)."""
    first, second = map(float, text.split(","))
    return first, second


PUBLISHED, DOCUMENT = PROJECT / "docs" / "frontiers", PROJECT / "docs" / "study.md"


def publish(
    work: Path, variants: dict[str, Variant], grid: Sequence[Scales], targets: Sequence[float], name: str
) -> Path:
    """The rows of a run, and what they are of, take their place in `docs/frontiers`; then the page is redrawn."""
    about = {"variants": {one: asdict(variant) for one, variant in variants.items()}, "grid": grid, "targets": targets}
    PUBLISHED.mkdir(exist_ok=True)
    write_whole(PUBLISHED / f"{name}.json", json.dumps(about, indent=1) + "\n")
    write_whole(PUBLISHED / f"{name}.jsonl", stored_rows(work / "rows.jsonl", variants, grid))
    return redraw(PUBLISHED, DOCUMENT)


def stored_rows(path: Path, variants: dict[str, Variant], grid: Sequence[Scales]) -> str:
    """The lines of a file of rows that belong to these variants with their scales, each once."""
    of, lines = grids(variants, grid), {}
    wanted = {(variants[one].key, tuple(scales)) for one in variants for scales in of[one]}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if (Variant(**json.loads(row["variant"])).key, tuple(row["scales"])) in wanted:
            lines[line] = None
    return "\n".join(lines) + "\n"


def redraw(folder: Path, document: Path) -> Path:
    """Tables between the marks `frontier NAME` of the document, plots beside it, for each run in the folder."""
    texts = {}
    for path in sorted(folder.glob("*.json")):
        name, about = path.stem, json.loads(path.read_text(encoding="utf-8"))
        variants = {one: Variant(**given) for one, given in about["variants"].items()}
        grid, rows = [tuple(scales) for scales in about["grid"]], Rows(path.with_suffix(".jsonl"))
        picture = Path("images", f"frontier_{name}.png")
        targets = about["targets"]
        plot(rows, variants, grid, document.parent / picture, targets)
        tables = [table(rows, variants, grid, targets) for table in (validation_table, confirmed_table, kinds_table)]
        titles = ["", "Test people, with the scales that validation people chose:", _kinds_title(targets)]
        parts = [f"{title}\n\n{table}".strip() for title, table in zip(titles, tables, strict=True)]
        texts[f"frontier {name}"] = "\n\n".join([f"![Identity against prompt]({picture.as_posix()})", *parts])
    fill_marks(document, texts)
    return document


def _kinds_title(targets: Sequence[float]) -> str:
    identity = targets[len(targets) // 2]
    return f"Validation people, the prompt score by what is asked, at the scales chosen for identity {identity:.2f}:"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    print(redraw(PUBLISHED, DOCUMENT))
