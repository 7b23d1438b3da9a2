"""What customising gains, on people that the demo model has never seen: `python examples/avatars/score_customize.py`.

Every row of the CSV is one person under eight control prompts with one setting: how the concept was learnt, and how the
pictures were drawn. Identity and prompt scores are those of `score.py`. Rows are written as they are finished and
concepts are kept, so a run that was stopped goes on; `--worker 0 --workers 2` and `--worker 1 --workers 2` share the
people. `--plot` makes the table in `docs/customize.md` and the plot beside it from the CSV.
"""

import argparse
import csv
import random
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from attributes import AttributeReader
from matplotlib.figure import Figure
from PIL import Image
from score import IDENTITY_VALUES, PROJECT, SCORER, SYSTEMS, Scored, agreement, control_prompts, reference_portrait
from tqdm import tqdm
from world import Portrait, Renderer

from profusion_pipeline import CustomizeConfig, customizing, load_demo_pipeline
from profusion_pipeline.demo import DEMO_CUSTOMIZE, DEMO_SETTINGS, FOLDER

SAMPLERS = SYSTEMS | {"Fusion Sampling (m = 2)": {"num_fusion_steps": 2}}
FUSION, MIXED = "Fusion Sampling (m = 1)", "Mixed (m = 0)"
SNAPSHOTS = (20, 50, 100, 200)
# How a concept is learnt: what differs from the default.
VARIANTS = {
    "lora, rank 4": {},
    "lora, rank 8": {"rank": 8},
    "lora, rank 16": {"rank": 16},
    "full": {"mode": "full", "learning_rate": 1e-4},
    "affine": {"pool_size": 32, "background": "keep"},
    "background": {"pool_size": 32, "rotation": 0.0, "translation": 0.0, "zoom": 0.0},
    "affine + background": {"pool_size": 32},
    "rate 1e-3": {"learning_rate": 1e-3},
}
RATE = {"learning_rate": 3e-4}  # where a variant has no own
COMPARED_AT = 50  # steps of all variants
DEFAULT = "lora, rank 4"
FACTORS = (0.5, 1.5)  # of the curves, by which the guidance scales towards S* are multiplied; 1 is there anyway
MARKS = "<!-- customize -->", "<!-- /customize -->"
DOCUMENT, PLOT = PROJECT / "docs" / "customize.md", PROJECT / "docs" / "images" / "customize.png"


@dataclass(frozen=True)
class Setting:
    """One way to learn a concept (0 steps: none) and to draw with it."""

    variant: str = DEFAULT
    steps: int = 100
    sampler: str = FUSION
    factor: float = 1.0
    base_guidance: bool = False


def settings() -> list[Setting]:
    """One thing varied at a time around the default, the most important first."""
    samplers = sorted(SAMPLERS, key=lambda name: name not in (FUSION, MIXED))
    before_and_after = [Setting(steps=steps, sampler=sampler) for sampler in samplers for steps in (0, 100)]
    lengths = [Setting(steps=steps) for steps in SNAPSHOTS]
    base = [Setting(sampler=sampler, base_guidance=True) for sampler in (FUSION, MIXED)]
    variants = [Setting(variant=variant, steps=COMPARED_AT) for variant in reversed(VARIANTS)]
    curves = [replace(one, factor=factor) for one in before_and_after for factor in FACTORS]
    return list(dict.fromkeys(before_and_after[:4] + lengths + base + variants + before_and_after + curves))


class Results:
    """The CSV: (setting, person) -> identity and prompt score, appended row by row."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        self.names = [field.name for field in fields(Setting)]
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    self.rows[self.key(row)] = (float(row["identity"]), float(row["prompt"]))

    def key(self, row: dict) -> tuple[Setting, int]:
        setting = Setting(
            row["variant"], int(row["steps"]), row["sampler"], float(row["factor"]), row["base_guidance"] == "True"
        )
        return setting, int(row["person"])

    def add(self, setting: Setting, person: int, identity: float, prompt: float) -> None:
        self.rows[setting, person] = (identity, prompt)
        row = [*vars(setting).values(), person, identity, prompt]
        with self.path.open("a", newline="") as file:  # a line at once, so that several workers can share the file
            if file.tell() == 0:
                csv.writer(file).writerow([*self.names, "person", "identity", "prompt"])
            csv.writer(file).writerow(row)

    def scored(self, setting: Setting) -> Scored | None:
        """The scores of a setting over people, for `score.py`'s intervals."""
        people = sorted(person for one, person in self.rows if one == setting)
        if not people:
            return None
        values = np.array([self.rows[setting, person] for person in people])
        name = f"{setting.variant}, {setting.steps} steps" if setting.steps else "before"
        return Scored(name, {"identity": values[:, 0], "prompt": values[:, 1]}, np.array(people))


class Study:
    """The pipeline, the reader, and people with their prompts and concepts."""

    def __init__(self, model: Path, work: Path, split: str, num_inference_steps: int, dtype: torch.dtype, device: str):
        self.pipe = load_demo_pipeline(folder=model, dtype=dtype, device=device)
        self.pipe.set_progress_bar_config(disable=True)
        self.reader = AttributeReader.from_pretrained(SCORER / "reader", torch_dtype=torch.float32).eval()
        self.render, self.split, self.work = Renderer(), split, work
        self.num_inference_steps = num_inference_steps

    def person(self, number: int) -> tuple[Portrait, Image.Image]:
        portrait = reference_portrait(number, self.split)
        return portrait, Image.fromarray(self.render(portrait))

    def concept(self, number: int, variant: str, steps: int) -> Path:
        """Where the concept lies; if it isn't there, it is learnt once for all the steps that any setting asks for."""
        folder = self.work / f"{number:03d}" / variant.replace(", ", "-").replace(" ", "_")
        if not (folder / f"{steps}").exists():
            asked = {setting.steps for setting in settings() if setting.variant == variant}
            given = DEMO_CUSTOMIZE | RATE | VARIANTS[variant] | {"steps": max(asked), "seed": number}
            config = CustomizeConfig(**given)
            with customizing(self.pipe, self.person(number)[1], config) as run:
                for record in run.learn():
                    if record.step in asked:
                        run.concept().save_pretrained(folder / f"{record.step}")
        return folder / f"{steps}"

    def score(self, setting: Setting, number: int) -> tuple[float, float]:
        """Identity and prompt score of eight pictures of one person."""
        portrait, photo = self.person(number)
        asked = control_prompts(random.Random(number))
        texts = [text for text, _ in asked]
        call = {**DEMO_SETTINGS, **SAMPLERS[setting.sampler], "num_inference_steps": self.num_inference_steps}
        for name in ("guidance_scale", "fusion_guidance_scale"):
            call[name] = call[name] * setting.factor
        if setting.steps:
            self.pipe.load_concept(self.concept(number, setting.variant, setting.steps))
            call["base_guidance"] = setting.base_guidance
        else:
            call["image"] = [photo] * len(texts)
        generators = [torch.Generator().manual_seed(1000 * number + row) for row in range(len(texts))]
        images = self.pipe(texts, generator=generators, output_type="np", **call).images
        self.pipe.unload_concept()
        images = (images * 255).round().astype(np.uint8)
        wanted = [Portrait(portrait.identity, replace(portrait.control, **values)) for _, values in asked]
        identity = agreement(self.reader, images, wanted, [set(IDENTITY_VALUES)] * len(texts))
        prompt = agreement(self.reader, images, wanted, [set(values) for _, values in asked])
        return round(float(np.nanmean(identity)), 6), round(float(np.nanmean(prompt)), 6)


def table(results: Results) -> str:
    """The settings without the curves in Markdown: mean (95 % interval over people)."""
    lines = ["| concept | steps | sampler | ∅ and C by | people | identity | prompt |", "|---" * 7 + "|"]
    for setting in settings():
        scored = results.scored(setting)
        if setting.factor != 1 or scored is None:
            continue
        concept = setting.variant if setting.steps else "none"
        by = "the base" if setting.base_guidance or not setting.steps else "the concept"
        cells = [concept, str(setting.steps), setting.sampler, by, str(len(scored.person))]
        cells += ["{:.3f} ({:.3f}-{:.3f})".format(*scored.interval(name)) for name in ("identity", "prompt")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Identity against prompt score: curves over guidance scales, then steps, ranks and augmentations."""
    figure = Figure(figsize=(12, 5), layout="tight")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for number, sampler in enumerate(SAMPLERS):
        for steps, line in ((0, ":"), (100, "-")):
            factors = sorted([1.0, *FACTORS])
            curve = [Setting(steps=steps, sampler=sampler, factor=factor) for factor in factors]
            label = f"{sampler}, {'customised' if steps else 'before'}"
            _draw(left, results, curve, label, f"C{number}", line)
    left.set(title="100 steps of rank 4; guidance x 0.5, 1 and 1.5", xlabel="prompt", ylabel="identity")
    steps = [Setting(steps=steps) for steps in (0, *SNAPSHOTS)]
    _draw(right, results, steps, "0, 20, 50, 100 and 200 steps of rank 4", "C2", "-")
    for number, variant in enumerate(name for name in VARIANTS if name != DEFAULT):
        shown = [Setting(variant=variant, steps=COMPARED_AT)]
        _draw(right, results, shown, f"{variant}, {COMPARED_AT} steps", f"C{number + 3}", "")
    _draw(right, results, [Setting(base_guidance=True)], "100 steps, ∅ and C by the base", "black", "")
    _draw(right, results, [Setting(sampler=MIXED, base_guidance=True)], "the same, Mixed (m = 0)", "navy", "")
    right.set(title=FUSION, xlabel="prompt")
    left.legend(fontsize=8, frameon=False, loc="upper right")
    right.legend(fontsize=8, frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw(axes, results: Results, curve: list[Setting], label: str, colour: str, line: str) -> None:
    known = [scored for scored in map(results.scored, curve) if scored]
    if not known:
        return
    identity, prompt = ([one.interval(name) for one in known] for name in ("identity", "prompt"))

    def bars(values: list[tuple]) -> list[list[float]]:
        return [[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]]

    axes.errorbar(
        [mean for mean, *_ in prompt],
        [mean for mean, *_ in identity],
        xerr=bars(prompt),
        yerr=bars(identity),
        label=label,
        color=colour,
        linestyle=line,
        marker="o",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.6,
    )


def update_document(text: str, document: Path = DOCUMENT) -> None:
    """Put the table between the marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    document.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def main(
    model: Path = FOLDER / "model",
    work: Path = Path("outputs/customize"),
    people: int = 30,
    split: str = "test",
    num_inference_steps: int = 15,
    dtype: str = "float32",
    device: str = "cpu",
    worker: int = 0,
    workers: int = 1,
) -> Results:
    """Fill in the rows that are missing, all people of a setting before the next setting."""
    work.mkdir(parents=True, exist_ok=True)
    results = Results(work / "scores.csv")
    jobs = [(setting, number) for setting in settings() for number in range(worker, people, workers)]
    missing = [job for job in jobs if job not in results.rows]
    study = Study(model, work, split, num_inference_steps, getattr(torch, dtype), device)
    for setting, number in tqdm(missing, desc="settings x people"):
        results.add(setting, number, *study.score(setting, number))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a ProFusion folder")
    parser.add_argument("--work", type=Path, default=Path("outputs/customize"), help="folder for concepts and scores")
    parser.add_argument("--people", type=int, default=30, help="held-out people; eight pictures each and setting")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="which people")
    parser.add_argument("--num-inference-steps", type=int, default=15, help="denoising steps")
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"), help="of the pipeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the pipeline")
    parser.add_argument("--worker", type=int, default=0, help="which share of the people")
    parser.add_argument("--workers", type=int, default=1, help="how many share them")
    parser.add_argument("--plot", action="store_true", help="only make table and plot from the scores that are there")
    words = vars(parser.parse_args())
    if words.pop("plot"):
        found = Results(words["work"] / "scores.csv")
        plot(found, PLOT)
        update_document(table(found))
        print(table(found))
    else:
        main(**words)
