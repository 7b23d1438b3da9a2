"""Rows -> the plot of each question: likeness against adherence, with intervals over subjects. Needs matplotlib."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .costs import Cost
from .metrics import Estimate
from .plan import Cell
from .report import Scores


def plot_question(cells: Sequence[Cell], scores: Scores, adherence: str, likeness: str, title: str, path: Path) -> None:
    """Each curve of a question as a line through its cells, with 95 % intervals; cells without rows are left out.

    Args:
        cells: Of one question; those of a curve are joined in this order.
        scores: Of the run.
        adherence: Column of the horizontal axis, how much of the prompt is there.
        likeness: Column of the vertical axis, how much of the subject is there.
        title: Above the plot.
        path: The picture; its folder is made.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> plot_question(cells, scores, "prompt", "identity", "Guidance", Path("guidance.png"))  # doctest: +SKIP
    """
    figure = _figure()
    axes = figure.subplots()
    curves: dict[str, list[tuple[str, Estimate, Estimate]]] = {}
    for cell in cells:
        point = scores.estimate(cell.setting, adherence), scores.estimate(cell.setting, likeness)
        if None not in point:
            curves.setdefault(cell.curve, []).append((cell.label, *point))
    for number, (curve, points) in enumerate(curves.items()):
        x, y = [point[1] for point in points], [point[2] for point in points]
        axes.errorbar(
            [one.mean for one in x],
            [one.mean for one in y],
            xerr=_bars(x),
            yerr=_bars(y),
            label=curve,
            color=f"C{number % 10}",
            linestyle="-" if number < 10 else "--",
            marker="osD^v<>PX*"[number % 10],
            markersize=5,
            linewidth=1.2,
            elinewidth=0.5,
        )
        for label, across, up in points:
            axes.annotate(label, (across.mean, up.mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(title=title, xlabel=f"{adherence} (how much of the text)", ylabel=f"{likeness} (how much of the subject)")
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def plot_costs(costs: Sequence[Cost], path: Path) -> None:
    """Seconds and peak memory, of learning and of one picture, for each system.

    Args:
        costs: Of one machine.
        path: The picture; its folder is made.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> plot_costs(costs, Path("costs.png"))  # doctest: +SKIP
    """
    figure = _figure()
    seconds, memory = figure.subplots(1, 2, sharey=True)
    places = range(len(costs))
    for axes, unit, pairs in (
        (seconds, "seconds", [(cost.learning_seconds, cost.drawing_seconds) for cost in costs]),
        (memory, "peak memory, GiB", [(cost.learning_gib, cost.drawing_gib) for cost in costs]),
    ):
        for number, what in enumerate(("learning one photo", "one picture")):
            offsets = [place + 0.4 * number - 0.2 for place in places]
            axes.barh(offsets, [pair[number] for pair in pairs], height=0.4, label=what)
        axes.set(xlabel=unit)
    seconds.set(xscale="log", yticks=places, yticklabels=[cost.system for cost in costs])
    seconds.invert_yaxis()
    memory.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def need_matplotlib() -> Any:
    """The part of matplotlib that plots are made with; called before long work that ends in a plot.

    Returns:
        `matplotlib.figure`.

    Raises:
        ImportError: It is not installed; the sentence names the package.

    Example:
        >>> need_matplotlib().Figure.__name__
        'Figure'
    """
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("Plots need matplotlib, which is not installed: `pip install matplotlib`.") from error


def _figure() -> Any:
    return need_matplotlib().Figure(figsize=(10, 6), layout="constrained")


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    return [[one.mean - one.low for one in estimates], [one.high - one.mean for one in estimates]]
