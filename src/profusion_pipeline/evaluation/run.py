"""Systems x settings x subjects x prompts x seeds -> rows, by one process or several, going on where a run stopped."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..common.files import whole_file
from ..customization.config import CustomizeConfig
from ..customization.learning import PRECISION
from ..method.base_hash import pipeline_hash
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.quoting import quote
from ..method.subject_prompt import find_placeholder
from .machine import PeakMemory, machine_name
from .measures import Measure, columns_of, try_measures
from .plan import Cell, save_plan, settings_of
from .rows import Row, RowWriter, Setting, check_columns, open_run, read_rows
from .subjects import Picture, Subject
from .systems.system import DrawTogether, Learnt, System, find_weights


class Progress(NamedTuple):
    """What [`evaluate`] yields after each piece of work.

    Args:
        setting: That was drawn.
        subjects: Names of those it was drawn for.
        drawn: Pictures of this piece.
        done: Pictures of this worker that have their rows, those of earlier runs included.
        total: Pictures that this worker is to draw in all.
        seconds: That the piece took, learning and measuring included.
    """

    setting: Setting
    subjects: list[str]
    drawn: int
    done: int
    total: int
    seconds: float


class Wanted(NamedTuple):
    """What a run still lacks of one subject in one setting.

    Args:
        subject: Who.
        asked: Prompts and seeds of the pictures.
    """

    subject: Subject
    asked: list[tuple[str, int]]


def evaluate(
    pipe: ProFusionPipeline,
    systems: Mapping[str, System],
    subjects: Sequence[Subject],
    measures: Sequence[Measure],
    cells: Sequence[Cell],
    folder: str | Path,
    *,
    class_noun: str = "person",
    learning_prompt: str = "a photo of S*",
    worker: int = 0,
    workers: int = 1,
    batch_size: int = 10,
    mixed_precision: str = "no",
) -> Iterator[Progress]:
    """Draw and measure what is not there yet, all subjects of a setting before the next setting.

    Args:
        pipe: The model that all systems share.
        systems: By name; at least those of the cells.
        subjects: Worker i of n takes every n-th of them, from the i-th on.
        measures: What scores pictures.
        cells: What is to be drawn, the most important first.
        folder: Where rows (in `rows/`) and what was learnt (in `learnt/`) are kept. A run that is there goes on.
        class_noun: What subjects are, in plain words.
        learning_prompt: Under which systems learn a photo, with the placeholder.
        worker: The number of this process, 0 to workers - 1.
        workers: How many processes share the run.
        batch_size: Pictures that are drawn in one call, at most.
        mixed_precision: "no", or "fp16" or "bf16" to draw under autocast; what is learnt is learnt without.

    Yields:
        A [`Progress`] after each setting and group of subjects that was drawn.

    Raises:
        ValueError: Two subjects have one name, a prompt lacks the placeholder, `worker` is not one of `workers`, a
            measure doesn't score, the folder holds another run, or this worker is at work in another process.
        TypeError: A measure has no `columns`, or can't be called.
        FileNotFoundError: A system is pre-trained, and its weights are not there.

    Example:
        >>> for progress in evaluate(pipe, SYSTEMS, subjects, measures, cells, "outputs/study"):  # doctest: +SKIP
        ...     print(f"{progress.done} of {progress.total}")
    """
    if not 0 <= worker < workers:
        raise ValueError(f"`worker` must be 0 to {workers - 1} with {workers} workers, got {worker}.")
    _check_subjects(subjects, [learning_prompt], pipe.config.placeholder)
    used = [systems[name] for name in dict.fromkeys(cell.setting.system for cell in cells)]
    for system in used:
        if system.pretrained:
            find_weights(system.name, system.weights, system.pretrained)
    columns = columns_of(measures)
    check_columns(columns)
    side, someone = pipe.unet.config.sample_size * pipe.vae_scale_factor, subjects[0]
    like_drawn = someone.photos[0].resize((side, side))
    try_measures(measures, Picture(like_drawn, someone, (*someone.prompts, learning_prompt)[0], 0))
    rows, learnt = Path(folder, "rows"), Path(folder, "learnt")
    about = {
        "model": pipeline_hash(pipe),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "mixed_precision": mixed_precision,
        "class_noun": class_noun,
        "learning_prompt": learning_prompt,
        "systems": {system.name: describe(system) for system in used},
        "subjects": {subject.name: subject.digest() for subject in subjects},
        "columns": columns,
    }
    open_run(rows, about)
    save_plan(rows, cells)
    mine = subjects[worker::workers]
    wanted = {
        setting: [Wanted(one, [(prompt, seed) for prompt in one.prompts for seed in range(seeds)]) for one in mine]
        for setting, seeds in settings_of(cells).items()
    }
    total = sum(len(one.asked) for all_of_setting in wanted.values() for one in all_of_setting)
    missing = without_rows(wanted, {row.key for row in read_rows(rows)})
    done = total - sum(len(one.asked) for all_of_setting in missing.values() for one in all_of_setting)
    work = _Work(pipe, systems, measures, learnt, class_noun, learning_prompt, batch_size, mixed_precision)
    with RowWriter(rows, worker, columns) as writer:
        for setting, all_of_setting in missing.items():
            for group in work.groups(setting, all_of_setting):
                began = time.perf_counter()
                writer.add(work.rows(setting, group))
                drawn, names = sum(len(one.asked) for one in group), [one.subject.name for one in group]
                done += drawn
                yield Progress(setting, names, drawn, done, total, time.perf_counter() - began)


def without_rows(wanted: Mapping[Setting, Sequence[Wanted]], there: set[tuple]) -> dict[Setting, list[Wanted]]:
    """What of the wanted pictures has no row yet; a subject that lacks one is drawn anew, for the seeds are compared.

    Args:
        wanted: For each setting, the pictures of each subject.
        there: Keys of rows.

    Returns:
        The same without what is there.

    Example:
        >>> without_rows({}, set())
        {}
    """
    return {
        setting: [
            one
            for one in all_of_setting
            if not all((setting, one.subject.name, prompt, seed) in there for prompt, seed in one.asked)
        ]
        for setting, all_of_setting in wanted.items()
    }


def describe(system: System) -> dict[str, Any]:
    """A system's settings as JSON holds them, with a hash of its pre-trained weights in place of where they lie.

    Args:
        system: Any.

    Returns:
        Name -> value.

    Example:
        >>> from profusion_pipeline.evaluation.systems.baselines import SYSTEMS
        >>> describe(SYSTEMS["Stable Diffusion"])["guidance_scale"]
        7.5
    """
    settings = asdict(system)
    settings.pop("weights", None)
    if system.pretrained:
        hashed = hashlib.sha256()
        for file in sorted(find_weights(system.name, system.weights, system.pretrained).rglob("*.safetensors")):
            hashed.update(file.read_bytes())
        settings["pretrained"] = hashed.hexdigest()[:16]
    return settings


def learn_measured(
    pipe: ProFusionPipeline, system: System, subject: Subject, config: CustomizeConfig
) -> tuple[Learnt, dict[str, Any]]:
    """Let a system learn a subject's first photo, and measure it.

    Args:
        pipe: The model that all systems share.
        system: One that learns.
        subject: Of whom.
        config: As from `system.config`.

    Returns:
        What was learnt, and `{"seconds", "gib", "machine"}`.

    Example:
        >>> learnt, cost = learn_measured(pipe, system, subject, system.config())  # doctest: +SKIP
        >>> cost["seconds"]  # doctest: +SKIP
        17.2
    """
    peak, began = PeakMemory(pipe.device), time.perf_counter()
    learnt = system.learn(pipe, subject.photos[0], config)
    seconds = time.perf_counter() - began
    return learnt, {"seconds": seconds, "gib": peak.gib(), "machine": machine_name(pipe.device)}


def autocast(device: torch.device, mixed_precision: str) -> AbstractContextManager:
    """What pictures are drawn under.

    Args:
        device: Where.
        mixed_precision: "no", "fp16" or "bf16".

    Returns:
        `torch.autocast`, or a context that does nothing.

    Example:
        >>> with autocast(torch.device("cpu"), "bf16"):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.bfloat16
    """
    return torch.autocast(device.type, PRECISION[mixed_precision]) if mixed_precision in PRECISION else nullcontext()


def picture_generator(subject: str, prompt: str, seed: int) -> torch.Generator:
    """The random numbers of a picture, the same for every system and setting, whatever else is drawn.

    Args:
        subject: Its name.
        prompt: With the placeholder.
        seed: 0, 1, ...

    Returns:
        A generator on the CPU.

    Example:
        >>> picture_generator("ada", "S*", 0).initial_seed() == picture_generator("ada", "S*", 1).initial_seed()
        False
    """
    return torch.Generator().manual_seed(_number(f"{subject}\n{prompt}\n{seed}"))


@dataclass(frozen=True)
class _Work:
    pipe: ProFusionPipeline
    systems: Mapping[str, System]
    measures: Sequence[Measure]
    folder: Path  # of what was learnt
    class_noun: str
    learning_prompt: str
    batch_size: int
    mixed_precision: str

    def groups(self, setting: Setting, wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
        """Subjects that are drawn together: as many as a batch takes, or one where the system can't."""
        size = 1
        if self.systems[setting.system].together and wanted:
            size = max(1, self.batch_size // max(len(one.asked) for one in wanted))
        for first in range(0, len(wanted), size):
            yield wanted[first : first + size]

    def rows(self, setting: Setting, group: Sequence[Wanted]) -> list[Row]:
        """Draw and score the pictures of some subjects."""
        asked = [(number, prompt, seed) for number, one in enumerate(group) for prompt, seed in one.asked]
        pictures, costs = [], []
        with self.drawing(setting, [one.subject for one in group]) as draw:
            for first in range(0, len(asked), self.batch_size):
                numbers, prompts, seeds = zip(*asked[first : first + self.batch_size], strict=True)
                subjects = [group[number].subject for number in numbers]
                keys = [(one.name, prompt, seed) for one, prompt, seed in zip(subjects, prompts, seeds, strict=True)]
                peak, began = PeakMemory(self.pipe.device), time.perf_counter()
                generators = [picture_generator(*key) for key in keys]
                with autocast(self.pipe.device, self.mixed_precision):
                    images = draw(list(prompts), generators, setting.sampling, list(numbers))
                costs += [((time.perf_counter() - began) / len(images), peak.gib())] * len(images)
                pictures += [Picture(*each) for each in zip(images, subjects, prompts, seeds, strict=True)]
        scores = {name: values for measure in self.measures for name, values in measure(pictures).items()}
        unet_rows, machine = self.systems[setting.system].unet_rows(setting.sampling), machine_name(self.pipe.device)
        return [
            Row(
                setting,
                picture.subject.name,
                picture.prompt,
                picture.seed,
                {name: float(values[number]) for name, values in scores.items()},
                unet_rows,
                *costs[number],
                machine,
            )
            for number, picture in enumerate(pictures)
        ]

    @contextmanager
    def drawing(self, setting: Setting, subjects: list[Subject]) -> Iterator[DrawTogether]:
        system = self.systems[setting.system]
        configs = [self.config(setting, subject) for subject in subjects]
        learnt = [self.learnt(setting, *each) for each in zip(subjects, configs, strict=True)]
        photos = [subject.photos[0] for subject in subjects]
        if system.together:
            with system.drawing_together(self.pipe, photos, learnt, configs) as draw:
                yield draw
        else:
            with system.drawing(self.pipe, photos[0], learnt[0], configs[0]) as draw:
                yield lambda prompts, generators, sampling, of: draw(prompts, generators, sampling)

    def config(self, setting: Setting, subject: Subject) -> CustomizeConfig:
        return setting.config(
            subject.caption, class_noun=self.class_noun, prompt=self.learning_prompt, seed=_number(subject.name)
        )

    def learnt(self, setting: Setting, subject: Subject, config: CustomizeConfig) -> Learnt:
        """What the system learnt of the subject, from its file; learnt now if there is none."""
        system = self.systems[setting.system]
        if not system.learns:
            return {}
        variant = f"{setting.system}-{_number(setting.learning):08x}".replace(" ", "_").replace(",", "")
        file = self.folder / variant / f"{subject.name}.safetensors"
        if not file.exists():
            learnt, cost = learn_measured(self.pipe, system, subject, config)
            file.parent.mkdir(parents=True, exist_ok=True)
            contiguous = {name: tensor.contiguous() for name, tensor in learnt.items()}
            with whole_file(file) as new:
                save_file(contiguous, new, metadata={name: json.dumps(value) for name, value in cost.items()})
        with safe_open(file, "pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no dictionary


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _check_subjects(subjects: Sequence[Subject], further_prompts: Sequence[str], placeholder: str) -> None:
    names = [subject.name for subject in subjects]
    if not names:
        raise ValueError("`subjects` must hold one at least, got none.")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`subjects` must have names of their own, got several of {quote(name)}.")
    for prompt in (*further_prompts, *(prompt for subject in subjects for prompt in subject.prompts)):
        find_placeholder(prompt, placeholder)
