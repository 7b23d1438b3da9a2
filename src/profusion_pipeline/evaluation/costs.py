"""What a system costs, measured alone: seconds and peak memory of learning one photo and of drawing one picture."""

import csv
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..common.files import write_whole
from ..method.pipeline_profusion import ProFusionPipeline
from .machine import PeakMemory, machine_name
from .rows import Setting
from .run import learn_measured, picture_generator
from .subjects import Subject
from .systems.system import System

REPEATS = 3


class Cost(NamedTuple):
    """Of one system on one machine.

    Args:
        system: Its name, and how it draws where that is varied.
        learning: As of [`Setting`]; empty if nothing is learnt.
        learning_seconds: Of learning one photo; 0 if nothing is learnt.
        learning_gib: The most memory meanwhile, the models' own included; nan where it can't be told, or for nothing.
        unet_rows: Of one picture.
        drawing_seconds: Of one picture, median of three after one that does not count.
        drawing_gib: The most memory meanwhile, the models' own included.
        stored_mb: Of what was learnt, in 10^6 bytes.
        machine: That it was measured on.
    """

    system: str
    learning: str
    learning_seconds: float
    learning_gib: float
    unet_rows: int
    drawing_seconds: float
    drawing_gib: float
    stored_mb: float
    machine: str


def measure_cost(
    pipe: ProFusionPipeline,
    system: System,
    label: str,
    setting: Setting,
    subject: Subject,
    *,
    class_noun: str,
    learning_prompt: str,
) -> Cost:
    """Let one system learn one photo and draw one picture at a time, in this process.

    Args:
        pipe: The model.
        system: Which.
        label: What the cost is called.
        setting: How it learns and draws.
        subject: Of whom; the first photo and the first prompt count.
        class_noun: What the subject is.
        learning_prompt: Under which the system learns.

    Returns:
        The cost.

    Example:
        >>> measure_cost(pipe, system, "ours", setting, subject, **learning).drawing_seconds  # doctest: +SKIP
        0.41
    """
    config = setting.config(subject.caption, class_noun=class_noun, prompt=learning_prompt, seed=0)
    learnt, learning = {}, {"seconds": 0.0, "gib": float("nan")}
    if system.learns:
        learnt, learning = learn_measured(pipe, system, subject, config)
    with system.drawing(pipe, subject.photos[0], learnt, config) as draw:
        seconds, peaks = [], []
        for seed in range(1 + REPEATS):
            peak, began = PeakMemory(pipe.device), time.perf_counter()
            generator = picture_generator(subject.name, subject.prompts[0], seed)
            draw(list(subject.prompts[:1]), [generator], setting.sampling)
            seconds.append(time.perf_counter() - began)
            peaks.append(peak.gib())
    return Cost(
        label,
        setting.learning,
        learning["seconds"],
        learning["gib"],
        system.unet_rows(setting.sampling),
        statistics.median(seconds[1:]),
        max(peaks),
        sum(tensor.nbytes for tensor in learnt.values()) / 1e6,
        machine_name(pipe.device),
    )


def measure_alone(measure: Callable[..., Cost], *arguments: object) -> Cost:
    """A cost in a fresh process, so that no memory of another system is counted.

    Args:
        measure: A function at the top level of a module.
        *arguments: It is called with; they must be possible to pickle.

    Returns:
        What it returns.

    Example:
        >>> measure_alone(measure, "ProFusion")  # doctest: +SKIP
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def save_costs(folder: str | Path, costs: Sequence[Cost]) -> None:
    """Keep costs beside the rows of a run; those of other machines and systems that are there stay.

    Args:
        folder: Of the run.
        costs: Of any machines.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_costs(folder, [Cost("A", "", 0.0, 0.0, 80, 1.0, 0.5, 0.0, "a laptop")])
        >>> load_costs(folder)[0].drawing_seconds
        1.0
    """
    there = {(cost.machine, cost.system): cost for cost in [*load_costs(folder), *costs]}
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(Cost._fields)
    lines.writerows(
        [f"{value:.4g}" if isinstance(value, float) else value for value in cost] for cost in there.values()
    )
    write_whole(Path(folder, "costs.csv"), text.getvalue())


def load_costs(folder: str | Path) -> list[Cost]:
    """The costs of a run.

    Args:
        folder: Of the run.

    Returns:
        The costs; none if none were measured.

    Example:
        >>> load_costs("nowhere")
        []
    """
    file = Path(folder, "costs.csv")
    if not file.is_file():
        return []
    kinds = Cost.__annotations__.values()
    with file.open(newline="", encoding="utf-8") as lines:
        cells = list(csv.reader(lines))[1:]
    return [Cost(*(kind(cell) for kind, cell in zip(kinds, line, strict=True))) for line in cells]
