"""Eight trials of each system's settings, on validation people: `python examples/avatars/tune_systems.py`.

The best of a system, by the sum of its identity and prompt scores, is what `DEMO_SYSTEMS` says of it. Systems that
learn are tried with two rates, two lengths and two strengths of guidance; Stable Diffusion with eight strengths; a
PromptNet with eight settings of the call. Rows and what was learnt are kept, so a run that was stopped goes on;
`--worker 0 --workers 2` and `--worker 1 --workers 2` share the people. `--table` puts the table into `docs/study.md`.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from study import DEFAULTS, DOCUMENT, Avatars
from tqdm import tqdm

from profusion_pipeline import load_demo_pipeline
from profusion_pipeline.demo import DEMO_CUSTOMIZE, FOLDER
from profusion_pipeline.evaluation.plan import Cell, steps_within
from profusion_pipeline.evaluation.report import Scores, fill_marks, markdown
from profusion_pipeline.evaluation.rows import Setting, learning_text, read_rows
from profusion_pipeline.evaluation.run import evaluate
from profusion_pipeline.evaluation.systems.baselines import get_system
from profusion_pipeline.evaluation.systems.profusion import ProFusion
from profusion_pipeline.evaluation.systems.system import Sampling, System

COLUMNS = Avatars.columns
# Learning: rates x steps. The most steps of each take about ten seconds of one CPU core.
LEARNING = {
    "Textual Inversion": ((1e-2, 3e-2), (40, 80)),
    "DreamBooth LoRA": ((2e-3, 6e-3), (15, 30)),
    "DreamBooth": ((1e-4, 4e-4), (15, 30)),
    "E4T": ((1e-4, 1e-3), (8, 16)),
    "ProFusion": ((3e-4, 1e-3), (25, 50)),
}
GUIDANCE = (0.75, 1.5)  # factors, for each of these
BASE_GUIDANCE = (0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)
# ω_1, ω_2, ω_f, γ: the first is the call's default; the last was the best when the demo model was made.
CALLS = (
    (7.0, 5.0, 7.0, 0.6),
    (2.0, 4.0, 4.0, 0.6),
    (2.0, 4.0, 2.0, 0.6),
    (3.0, 5.0, 4.0, 0.6),
    (4.0, 4.0, 4.0, 0.6),
    (5.0, 2.5, 5.0, 0.4),
    (5.0, 2.5, 5.0, 0.8),
    (5.0, 2.5, 2.5, 0.8),
)
CALL = ("guidance_scale", "class_guidance_scale", "fusion_guidance_scale", "fusion_subject_scale")
SYMBOLS = ("ω_1", "ω_2", "ω_f", "γ")
SCALE, OURS = 5.0, dict(zip(CALL, CALLS[-1], strict=True))  # what the factors of guidance multiply
PROMPTNETS = ("PromptNet", "PromptNet, L2")
NAMES = ("Stable Diffusion", *LEARNING, *PROMPTNETS)


@dataclass(frozen=True)
class Trial:
    """One way to set one system."""

    name: str
    system: System
    learning: dict[str, Any]
    guidance: float = 1.0

    def setting(self, rows: int) -> Setting:
        config = self.system.config(pool_size=DEMO_CUSTOMIZE["pool_size"], **self.learning)
        sampling = steps_within(self.system, Sampling(guidance=self.guidance), rows)
        return Setting(
            self.system.name,
            learning_text(config, captioned=DEFAULTS["captions"]) if self.system.learns else "",
            sampling,
        )

    @property
    def label(self) -> str:
        if self.name in PROMPTNETS:
            said = zip(SYMBOLS, self.system.call.values(), strict=True)
        else:
            said = (self.learning | {"guidance": f"x {self.guidance:g}"}).items()
        return ", ".join(f"{name} {value}" for name, value in said)


def trials(weights: Path | None, names: tuple[str, ...] = NAMES) -> Iterator[Trial]:
    """Eight of each system."""
    for name in names:
        system = get_system(name, demo=True, weights=weights)
        system = replace(system, **({"call": OURS} if isinstance(system, ProFusion) else {"guidance_scale": SCALE}))
        if name in PROMPTNETS:
            for number, call in enumerate(CALLS):
                variant = replace(system, name=f"{name} {number}", call=dict(zip(CALL, call, strict=True)))
                yield Trial(name, variant, {})
        elif name in LEARNING:
            rates, steps = LEARNING[name]
            for rate, count, guidance in itertools.product(rates, steps, GUIDANCE):
                yield Trial(name, system, {"learning_rate": rate, "steps": count}, guidance)
        else:
            yield from (Trial(name, system, {}, guidance) for guidance in BASE_GUIDANCE)


def table(tried: list[Trial], work: Path, rows: int) -> str:
    """Means with 95 % intervals over people; the best of each system is printed bold."""
    scores = Scores(read_rows(work / "rows"))
    lines = [["system", "trial", *COLUMNS, "sum"], ["---"] * (3 + len(COLUMNS))]
    for _, group in itertools.groupby(tried, key=lambda trial: trial.name):
        found = []
        for trial in group:
            estimates = [scores.estimate(trial.setting(rows), column) for column in COLUMNS]
            if None not in estimates:
                found.append((sum(one.mean for one in estimates), trial, estimates))
        best = max((total for total, *_ in found), default=None)
        for total, trial, estimates in found:
            cells = [f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})" for one in estimates]
            lines.append([trial.name, trial.label, *cells, f"**{total:.3f}**" if total == best else f"{total:.3f}"])
    return markdown(lines)


def main(
    weights: Path | None = Path("outputs/avatars/rivals"),
    work: Path = Path("outputs/tuning"),
    model: Path = FOLDER / "model",
    people: int = 4,
    rows: int = DEFAULTS["unet_rows"],
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    systems: tuple[str, ...] = NAMES,
    worker: int = 0,
    workers: int = 1,
) -> str:
    """Fill in the rows that are missing and return the table."""
    avatars, tried = Avatars(people, "validation"), list(trials(weights, systems))
    pipe = load_demo_pipeline(folder=model, device=device)
    cells = [Cell(1, trial.name, trial.label, trial.setting(rows), 1) for trial in tried]
    shared = dict(class_noun=DEMO_CUSTOMIZE["class_noun"], learning_prompt=DEMO_CUSTOMIZE["prompt"])
    run = evaluate(
        pipe,
        {trial.system.name: trial.system for trial in tried},
        avatars.subjects,
        [avatars],
        cells,
        work,
        **shared,
        batch_size=DEFAULTS["batch_size"],
        mixed_precision=DEFAULTS["mixed_precision"],
        worker=worker,
        workers=workers,
    )
    with tqdm(desc="pictures", mininterval=5) as bar:
        for progress in run:
            bar.total = progress.total
            bar.update(progress.done - bar.n)
    return table(tried, work, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, default=Path("outputs/avatars/rivals"), help="pre-trained rivals")
    parser.add_argument("--work", type=Path, default=Path("outputs/tuning"), help="folder for rows and what was learnt")
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a ProFusion folder")
    parser.add_argument("--people", type=int, default=4, help="validation people, ten prompts each")
    parser.add_argument("--rows", type=int, default=DEFAULTS["unet_rows"], help="UNet rows that a picture may take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where it is run")
    parser.add_argument("--systems", nargs="+", default=NAMES, choices=NAMES, help="which to try")
    parser.add_argument("--worker", type=int, default=0, help="which share of the people")
    parser.add_argument("--workers", type=int, default=1, help="how many share them")
    parser.add_argument("--table", action="store_true", help="only make the table in docs/study.md from what is there")
    words = vars(parser.parse_args())
    if words.pop("table"):
        text = table(list(trials(words["weights"], words["systems"])), words["work"], words["rows"])
        fill_marks(DOCUMENT, {"tuning": text})
        print(text)
    else:
        print(main(**words))
