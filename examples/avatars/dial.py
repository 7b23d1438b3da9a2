"""Where does fusion win? Ways to draw, while S* drowns the prompt more and more: `python examples/avatars/dial.py`.

The dial is how long S* is customised: not at all, up to far too long; also in full, with a caption, and without the
untouched base for ∅ and C. Every way to draw has as many trials (pairs of scales) and as many rows of the UNet.
Validation people choose the pair with the best mean of identity and prompt, test people are what is shown. A run that
was stopped goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from frontier import main as draw
from frontier_tables import DOCUMENT, PUBLISHED, Rows, Scales, Variant, grids, stored_rows, validation_people
from matplotlib.figure import Figure

from profusion_pipeline.common.files import write_whole
from profusion_pipeline.evaluation.metrics import Difference, bootstrap_interval, paired_difference
from profusion_pipeline.evaluation.report import fill_marks, markdown

ROWS = 48  # of the UNet, a picture at most
DIAL = (0, 25, 50, 100, 200, 400)  # steps of customising
HARD = 100  # the dial's notch at which full mode, a caption and no base are looked at too
FUSION = {"num_fusion_steps": 1, "fusion_guidance_scale": 2.5}
PAIRS: tuple[Scales, ...] = ((1.9, 5.0), (2.5, 5.0), (3.75, 5.0), (3.75, 2.5))
# Way to draw -> rows of a step, how it differs, pairs of scales
WAYS: dict[str, tuple[int, dict, Sequence[Scales]]] = {
    "S* alone": (2, {}, ((1.9, 0.0), (2.5, 0.0), (3.75, 0.0), (5.0, 0.0))),
    "Mixed": (3, {}, PAIRS),
    "Mixed, DDIM with η = 1": (3, {"trial": "DDIM, eta 1"}, PAIRS),
    "fusion as published": (5, {"call": FUSION | {"fusion_subject_scale": 0.5}}, PAIRS),
    "fusion, mixed text": (5, {"call": FUSION | {"fusion_text": "mixed", "fusion_subject_scale": 0.5}}, PAIRS),
}
REFERENCE = "Mixed"


def notches() -> dict[str, dict]:
    """Notches of the dial -> how S* is customised there, and drawn with."""
    lora = {f"{steps} steps": {"learning": {"steps": steps}} for steps in DIAL if steps}
    hard = {"steps": HARD}
    return {
        "0 steps": {},
        **lora,
        f"{HARD} steps, captioned": {"learning": hard, "caption": "right"},
        f"{HARD} steps, in full": {"learning": hard | {"mode": "full", "learning_rate": 1e-4}},
        f"{HARD} steps, no base": {"learning": hard, "call": {"base_guidance": False}},
    }


def variants() -> dict[tuple[str, str], Variant]:
    """Notch of the dial and way to draw -> variant."""
    found = {}
    for notch, settings in notches().items():
        for way, (rows, differs, scales) in WAYS.items():
            call = {"num_inference_steps": ROWS // rows} | settings.get("call", {}) | differs.get("call", {})
            found[notch, way] = Variant(**settings | differs | {"call": call, "scales": scales})
    return found


def best_scales(
    rows: Rows, variants: dict, grid: Sequence[Scales], targets: Sequence[float] = ()
) -> dict[tuple[str, str], list[Scales]]:
    """The pair with the best mean of identity and prompt on validation people."""
    people = validation_people(rows, variants, grid)
    of = grids(variants, grid)
    means = {name: rows.points(variant, of[name], people).mean(axis=(0, 2)) for name, variant in variants.items()}
    return {name: [of[name][int(mean.argmax())]] for name, mean in means.items()}


def both(rows: Rows, variant: Variant, scales: Scales, people: Sequence[str]) -> np.ndarray:
    """Mean of identity and prompt of each picture `[people x prompts]`."""
    return np.nanmean(rows.pictures(variant, scales, people), axis=1).ravel()


def differences(rows: Rows, people: Sequence[str], chosen: dict) -> dict[tuple[str, str], Difference]:
    """Of each notch and way from Mixed at the same notch, picture by picture."""
    known = variants()
    scores = {name: both(rows, variant, *chosen[name], people) for name, variant in known.items()}
    owner = np.repeat(np.arange(len(people)), len(next(iter(scores.values()))) // len(people))
    return {
        (notch, way): paired_difference(scores[notch, way], scores[notch, REFERENCE], owner)
        for notch, way in known
        if way != REFERENCE
    }


def table(rows: Rows) -> str:
    """What the chosen pairs give on test people, and the difference from Mixed at the same notch of the dial."""
    known, chosen, people = variants(), *confirmed(rows)
    ahead = differences(rows, people, chosen)
    lines = [["S*", "drawn by", "ω_1, ω_2", "identity", "prompt", "mean of both, against Mixed"], ["---"] * 6]
    for name, variant in known.items():
        scores = rows.pictures(variant, chosen[name][0], people)
        owner = np.repeat(np.arange(len(people)), scores.shape[2])
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*bootstrap_interval(scores[:, i].ravel(), owner)) for i in (0, 1)]
        found = ahead.get(name)
        against = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})" if found else ""
        lines.append([*name, "{:g}, {:g}".format(*chosen[name][0]), *cells, against])
    return f"{len(people)} test people, at most {ROWS} rows of the UNet a picture.\n\n{markdown(lines)}"


def confirmed(rows: Rows) -> tuple[dict[tuple[str, str], list[Scales]], list[str]]:
    """The chosen pairs, and the test people who have been drawn with all of them."""
    known = variants()
    chosen = best_scales(rows, known, ())
    return chosen, rows.people([(known[name], scales) for name, scales in chosen.items()], "test")


def plot(rows: Rows, path: Path) -> None:
    """Left identity against prompt along the dial; right how far each way is from Mixed."""
    known, (chosen, people) = variants(), confirmed(rows)
    ahead = differences(rows, people, chosen)
    figure = Figure(figsize=(13, 5), layout="tight")
    left, right = figure.subplots(1, 2)
    dial, names = [f"{steps} steps" for steps in DIAL], list(notches())
    for number, way in enumerate(WAYS):
        colour = f"C{number}"
        points = np.array(
            [rows.points(known[notch, way], chosen[notch, way], people).mean(axis=(0, 1)) for notch in dial]
        )
        left.plot(points[:, 1], points[:, 0], "o-", color=colour, label=way, markersize=4)
        if way != REFERENCE:
            found = [ahead[notch, way] for notch in names]
            shift = np.arange(len(names)) + 0.12 * (number - 2)
            means = np.array([one.mean for one in found])
            errors = np.array([[one.mean - one.low for one in found], [one.high - one.mean for one in found]])
            right.errorbar(shift, means, errors, fmt="o", color=colour, markersize=4, label=way)
    left.set(xlabel="prompt", ylabel="identity", title="from 0 to 400 steps of customising, upwards")
    left.legend(frameon=False, fontsize=8)
    right.axhline(0, color="0.6", linewidth=1)
    right.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    right.set(ylabel="mean of identity and prompt, against Mixed", title="which way to draw is ahead, 95 % intervals")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def redraw(folder: Path = PUBLISHED, document: Path = DOCUMENT) -> None:
    """Table and plot of the page, from the rows in docs/frontiers."""
    rows, picture = Rows(folder / "dial.jsonl"), Path("images", "dial.png")
    plot(rows, document.parent / picture)
    fill_marks(document, {"dial": f"![Along the dial]({picture.as_posix()})\n\n{table(rows)}"})


def main(work: Path, publish: bool = False, **settings) -> None:
    """Fill in the rows that are missing, and show what they say."""
    known = variants()
    rows = draw(known, work=work, chooser=best_scales, **settings)
    print(table(rows))
    plot(rows, work / "dial.png")
    if publish:
        write_whole(PUBLISHED / "dial.jsonl", stored_rows(work / "rows.jsonl", known, ()))
        redraw()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/dial"), help="folder for concepts and scores")
    parser.add_argument("--people", type=int, default=6, help="validation people, ten prompts each")
    parser.add_argument("--test-people", type=int, default=12, help="test people, ten prompts each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the pipeline")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"), help="in which pictures are drawn")
    parser.add_argument("--publish", action="store_true", help="put rows, table and plot into docs/study.md")
    parser.add_argument("--redraw", action="store_true", help="table and plot of the page, from its stored rows")
    given = vars(parser.parse_args())
    redraw() if given.pop("redraw") else main(**given)
