"""A study from beginning to end: what `profusion evaluate` and the study on avatars have in common."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.files import check_folder, write_whole
from ..common.open_pipeline import DEMO, load_pipeline
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.whole_files import shown_path
from .config import EvaluationConfig
from .costs import Cost, load_costs, measure_alone, measure_cost, save_costs
from .measures import Measure, columns_of, get_measure
from .plan import QUESTIONS, Cell, load_plan, make_plan, save_plan
from .plots import need_matplotlib, plot_costs, plot_question
from .report import Scores, cost_table, fill_marks, question_table
from .rows import collect_rows, read_about, read_rows
from .run import evaluate
from .subjects import Subject, check_captions, read_prompts, read_subjects
from .systems.baselines import SYSTEMS, get_system
from .systems.system import System

COSTS = 6  # the question that is measured alone


def choose_systems(config: EvaluationConfig) -> dict[str, System]:
    """The systems that a study compares.

    Args:
        config: Its settings.

    Returns:
        By name, in the order of the tables.

    Raises:
        ValueError: There is no such system.

    Example:
        >>> list(choose_systems(EvaluationConfig(output="study", systems=("PromptNet",))))
        ['PromptNet']
    """
    weights = None if config.weights is None else Path(config.weights)
    known = {name: get_system(name, demo=config.model == DEMO, weights=weights) for name in config.systems or SYSTEMS}
    return {name: one for name, one in known.items() if config.systems or weights or not one.pretrained}


def evaluate_folder(config: EvaluationConfig, *, device: str, dtype: torch.dtype) -> Iterator[str]:
    """A study of the subjects in a folder, as `profusion evaluate` does it.

    Args:
        config: Its settings; model, subjects and prompts must be given, unless it only redraws.
        device: Where models run.
        dtype: Of their weights.

    Yields:
        Lines that say how far it is; the last one is the report's path.

    Raises:
        ValueError: A setting is missing or names nothing, a folder or file is not what it should be.
        FileExistsError: There is a run in `output` already, and `resume` is not set.
        OSError: `output` can't be written to.
        ImportError: An extra is not installed.

    Example:
        >>> for line in evaluate_folder(config, device="cuda", dtype=torch.float16):  # doctest: +SKIP
        ...     print(line)
    """
    check_folder(config.output, "`output`")
    ends_in_a_report = config.redraw or config.share[1] == 1
    if ends_in_a_report:
        need_matplotlib()
    if config.redraw:
        yield str(_report(config))
        return
    for name in ("model", "subjects", "prompts"):
        if getattr(config, name) is None:
            raise ValueError(f"`{name}` must be given, unless --redraw only makes tables and plots.")
    systems = choose_systems(config)
    subjects = read_subjects(config.subjects, read_prompts(config.prompts))
    pipe = open_model(config.model, device, dtype)
    shared = dict(class_noun=config.class_noun, placeholder=pipe.config.placeholder, device=device)
    measures = [get_measure(name, **shared) for name in config.metrics]
    yield from run_study(pipe, systems, subjects, measures, config)
    if ends_in_a_report:
        yield str(_report(config))


def run_study(
    pipe: ProFusionPipeline,
    systems: Mapping[str, System],
    subjects: Sequence[Subject],
    measures: Sequence[Measure],
    config: EvaluationConfig,
) -> Iterator[str]:
    """Draw, measure and store what the questions ask for and is not there yet.

    Args:
        pipe: The model, as `config.model` names it.
        systems: By name.
        subjects: On whom they are compared.
        measures: What scores pictures.
        config: Settings of the study; `subjects`, `prompts` and `metrics` are not read.

    Yields:
        Lines that say how far it is.

    Raises:
        FileExistsError: This worker has rows in `output` already, and `resume` is not set.
        ValueError: As of [`evaluate`].

    Example:
        >>> for line in run_study(pipe, systems, subjects, measures, config):  # doctest: +SKIP
        ...     print(line)
    """
    shown_columns(columns_of(measures))  # without which there will be no plots
    if config.captions:
        check_captions(subjects)
    worker, workers = config.share
    if Path(config.output, "rows", f"rows-{worker}.csv").exists() and not config.resume:
        raise FileExistsError(f"{shown_path(config.output)} holds rows of a run already: --resume goes on with it.")
    learning = {"class_noun": config.class_noun, "learning_prompt": config.learning_prompt}
    began, drawn = time.perf_counter(), 0
    for progress in evaluate(
        pipe,
        systems,
        subjects,
        measures,
        plan_of(systems, config),
        config.output,
        **learning,
        worker=worker,
        workers=workers,
        batch_size=config.batch_size,
        mixed_precision=config.precision,
    ):
        drawn += progress.drawn
        seconds = time.perf_counter() - began
        left = seconds / drawn * (progress.total - progress.done)
        yield (
            f"worker {worker}: {progress.done} of {progress.total} pictures, {seconds:.0f} s, about {left:.0f} s left; "
            f"{progress.setting.system}, {', '.join(progress.subjects)}: {progress.seconds:.1f} s"
        )
    if COSTS in config.questions and worker == 0:
        for cell in make_plan(
            systems, learning=shared_learning(config), captioned=config.captions, rows=config.unet_rows, questions=[1]
        ):
            opened = config.model, str(pipe.device), pipe.unet.dtype
            cost = measure_alone(_cost, opened, systems[cell.setting.system], cell, subjects[0], learning)
            save_costs(Path(config.output, "rows"), [cost])
            yield f"{cost.system}: {cost.learning_seconds:.1f} s to learn, {cost.drawing_seconds:.2f} s a picture"


def plan_of(systems: Mapping[str, System], config: EvaluationConfig) -> list[Cell]:
    """What the questions of a study ask for.

    Args:
        systems: By name.
        config: Settings of the study.

    Returns:
        The cells, the most important first.

    Example:
        >>> config = EvaluationConfig(output="study", systems=("PromptNet",), questions=(1,))
        >>> [cell.curve for cell in plan_of(choose_systems(config), config)]
        ['PromptNet, m = 1', 'PromptNet, m = 0']
    """
    return make_plan(
        systems,
        learning=shared_learning(config),
        captioned=config.captions,
        rows=config.unet_rows,
        questions=[question for question in config.questions if question != COSTS],
        seeds=config.seeds,
    )


def redraw(folder: Path, document: Path) -> Path:
    """Make tables and plots of a run from what is stored.

    Args:
        folder: With its rows, plan and costs.
        document: Markdown that gets a table and a plot between the marks of each question, `<!-- question 1 -->` and
            `<!-- /question 1 -->`; written anew, with these alone, if it is not there. Plots go to `images` beside it.

    Returns:
        The document.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: A mark is missing in the document.
        ImportError: matplotlib is not installed.

    Example:
        >>> redraw(Path("outputs/study/rows"), Path("outputs/study/study.md"))  # doctest: +SKIP
        PosixPath('outputs/study/study.md')
    """
    columns, cells, rows = read_about(folder)["columns"], load_plan(folder), read_rows(folder)
    scores = Scores(rows)
    adherence, likeness = shown_columns(columns)
    texts = {}
    for question, title in QUESTIONS.items():
        of_question = [cell for cell in cells if cell.question == question and scores.rows(cell.setting)]
        curves = list(dict.fromkeys(cell.curve for cell in of_question))
        of_question.sort(key=lambda cell: (curves.index(cell.curve), cell.setting.sampling.guidance))
        if not of_question:
            continue
        picture = Path("images", f"{document.stem}_{question}.png")
        plot_question(of_question, scores, adherence, likeness, title, document.parent / picture)
        table = question_table(of_question, scores, columns, [likeness, adherence])
        texts[f"question {question}"] = f"![{title}]({picture.as_posix()})\n\n{table}"
    costs = load_costs(folder)
    if costs:
        picture = Path("images", f"{document.stem}_{COSTS}.png")
        newest = [cost for cost in costs if cost.machine == costs[-1].machine]
        plot_costs(newest, document.parent / picture)
        texts[f"question {COSTS}"] = f"![What each system costs]({picture.as_posix()})\n\n{cost_table(costs)}"
    if not document.is_file():
        marks = [f"<!-- {name} -->\n<!-- /{name} -->\n" for name in texts]
        write_whole(document, "\n".join(["# Study\n", *marks]))
    fill_marks(document, texts)
    return document


def collect_run(folder: Path, target: Path) -> None:
    """A run of several workers as one small folder: rows in one file, plan, costs.

    Args:
        folder: With its rows.
        target: Made if it is not there; rows of the same run that are there are replaced.

    Raises:
        FileNotFoundError: `folder` holds no run.
        ValueError: `target` holds another run.

    Example:
        >>> collect_run(Path("outputs/study/rows"), Path("docs/study"))  # doctest: +SKIP
    """
    collect_rows(folder, target)
    save_plan(target, load_plan(folder))
    save_costs(target, load_costs(folder))


def shown_columns(columns: Sequence[str]) -> tuple[str, str]:
    """The scores that plots show.

    Args:
        columns: Of a run.

    Returns:
        The first column about the prompt, and the first about identity or likeness to the subject's pictures.

    Raises:
        ValueError: There is none of one kind.

    Example:
        >>> shown_columns(["sface image", "clip-rn50 prompt", "clip-rn50 image"])
        ('clip-rn50 prompt', 'sface image')
    """
    found = []
    for kind, metrics in (("texts", ("prompt",)), ("pictures of the subject", ("identity", "image"))):
        named = [column for column in columns if column.split()[-1] in metrics]
        if not named:
            raise ValueError(f"The metrics must have one that compares with {kind}, got the scores {list(columns)}.")
        found.append(named[0])
    return found[0], found[1]


def shared_learning(config: EvaluationConfig) -> dict[str, Any]:
    """What all systems share in learning a photo.

    Args:
        config: Settings of the study.

    Returns:
        Fields of `CustomizeConfig`.

    Example:
        >>> shared_learning(EvaluationConfig(output="study", pool_size=1))
        {'pool_size': 1}
    """
    return {"pool_size": config.pool_size}


def open_model(model: str, device: str, dtype: torch.dtype) -> ProFusionPipeline:
    """The pipeline that all systems share, without progress bars.

    Args:
        model: Folder, Hub id, or "demo".
        device: Where it runs.
        dtype: Of its weights.

    Returns:
        The pipeline.

    Example:
        >>> open_model("demo", "cpu", torch.float32).config.placeholder
        'S*'
    """
    pipe = load_pipeline(model, dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _report(config: EvaluationConfig) -> Path:
    """A document of a run's own; what it may lack of marks is of earlier questions, so it is written anew."""
    document = Path(config.output, "study.md")
    document.unlink(missing_ok=True)
    return redraw(Path(config.output, "rows"), document)


def _cost(opened: tuple[str, str, torch.dtype], system: System, cell: Cell, subject: Subject, learning: dict) -> Cost:
    return measure_cost(open_model(*opened), system, cell.curve, cell.setting, subject, **learning)
