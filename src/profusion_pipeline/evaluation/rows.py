"""The rows of a run: one for each system, setting, subject, prompt and seed, in files that several processes share.

run.json      what all rows have in common; a run with anything else in it is refused
rows-0.csv    the rows of worker 0, appended as they are finished; rows-1.csv those of worker 1, ...
rows.csv.gz   all of them in order, once they have been collected
"""

import csv
import gzip
import io
import json
import logging
import typing
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ..common.files import only_process, write_whole
from ..customization.config import CustomizeConfig
from ..method.quoting import quote
from ..method.whole_files import shown_path
from .systems.system import Sampling

logger = logging.getLogger(__name__)

CAPTIONED = "captioned"  # among the settings of learning: whether with the caption of the subject's photo
PERSONAL = ("class_noun", "prompt", "caption", "seed")  # fields of a CustomizeConfig that a run, or a subject, decides
SAMPLING = {field.name: field.type for field in fields(Sampling)}
IDENTIFYING = ("system", "learning", *SAMPLING, "subject", "prompt", "seed")
MEASURED = ("unet_rows", "seconds", "gib", "machine")


@dataclass(frozen=True)
class Setting:
    """A system, how it learns and how it draws; what tables compare.

    Args:
        system: Its name.
        learning: As of [`learning_text`]; empty if nothing is learnt.
        sampling: How pictures are drawn.

    Example:
        >>> Setting("Stable Diffusion", "", Sampling(num_inference_steps=25)).sampling.scheduler
        'DDIM'
    """

    system: str
    learning: str
    sampling: Sampling

    def config(self, caption: str = "", **settings: Any) -> CustomizeConfig:
        """The settings of learning in full.

        Args:
            caption: Of the photo; it is learnt with if the settings say so.
            **settings: `class_noun`, `prompt` and `seed`.

        Returns:
            The config.
        """
        learning = json.loads(self.learning or "{}")
        if learning.pop(CAPTIONED, False):
            settings["caption"] = caption or None
        return CustomizeConfig(**learning, **settings)


class Row(NamedTuple):
    """One picture's scores and what it cost.

    Args:
        setting: How it was made.
        subject: Of whom.
        prompt: Under which prompt.
        seed: With which seed.
        scores: Column -> number; nan where nothing could be measured.
        unet_rows: Of the UNet, for this picture.
        seconds: Of drawing, its share of the call that it was drawn in.
        gib: The most memory during that call, in GiB: on the GPU, or resident; nan where it can't be told.
        machine: That drew it.
    """

    setting: Setting
    subject: str
    prompt: str
    seed: int
    scores: dict[str, float]
    unet_rows: int
    seconds: float
    gib: float
    machine: str

    @property
    def key(self) -> tuple[Setting, str, str, int]:
        """What tells it from other rows."""
        return self.setting, self.subject, self.prompt, self.seed


def check_columns(columns: Sequence[str]) -> None:
    """Refuse names of scores that a row can't hold.

    Args:
        columns: The scores' names.

    Raises:
        ValueError: There is none, one stands there twice, or is the name of something else in a row.

    Example:
        >>> check_columns(["reader identity", "reader prompt"])
    """
    taken = (*IDENTIFYING, *MEASURED)
    for column in columns:
        if columns.count(column) > 1 or column in taken:
            raise ValueError(
                f"Each score must have a name of its own and none of {', '.join(taken)}, got {quote(column)}."
            )
    if not columns:
        raise ValueError("There must be one metric at least, got none.")


def learning_text(config: CustomizeConfig, *, captioned: bool = False) -> str:
    """The settings of learning that are not the defaults, as JSON; without what a run or a subject decides.

    Args:
        config: All settings.
        captioned: Whether systems learn a photo with its caption.

    Returns:
        An object in one line.

    Example:
        >>> learning_text(CustomizeConfig(steps=50, class_noun="woman", seed=3))
        '{"steps": 50}'
    """
    usual = CustomizeConfig()
    changed = {name: value for name, value in vars(config).items() if value != getattr(usual, name)}
    shared = {name: value for name, value in changed.items() if name not in PERSONAL}
    return json.dumps(shared | ({CAPTIONED: True} if captioned else {}), sort_keys=True)


def open_run(folder: str | Path, about: dict[str, Any]) -> None:
    """Begin a run, or go on with one that has the same in common.

    Args:
        folder: Where its rows lie; made if it is not there.
        about: What all rows have in common, as JSON holds it. Of a dictionary in it (systems and subjects, by name)
            a run may have other entries, and gets these as well, but none of the same name that differs.

    Raises:
        ValueError: The folder holds rows of a run with something else in common; the sentence names it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> open_run(folder, {"model": "a"})
        >>> open_run(folder, {"model": "b"})
        Traceback (most recent call last):
        ValueError: ... holds rows of another run: its `model` is 'a', that of this run 'b'. ...
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = json.loads(json.dumps(about))  # tuples become lists
    try:
        there = read_about(folder)
    except FileNotFoundError:
        there = {name: {} if isinstance(value, dict) else value for name, value in about.items()}
    for name in sorted(about.keys() | there.keys()):
        ours, theirs = about.get(name), there.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            for entry in sorted(ours.keys() & theirs.keys()):
                _check_same(folder, f"{name}[{entry!r}]", theirs[entry], ours[entry])
            about[name] = theirs | ours
        else:
            _check_same(folder, name, theirs, ours)
    if about != there or not Path(folder, "run.json").is_file():
        write_whole(folder / "run.json", json.dumps(about, indent=1) + "\n")


def read_about(folder: str | Path) -> dict[str, Any]:
    """What the rows of a run have in common.

    Args:
        folder: Of the run.

    Returns:
        As it was given to [`open_run`].

    Raises:
        FileNotFoundError: The folder holds no run.

    Example:
        >>> read_about("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: There is no run in 'nowhere': it has no run.json.
    """
    file = Path(folder, "run.json")
    if not file.is_file():
        raise FileNotFoundError(f"There is no run in {shown_path(folder)}: it has no run.json.")
    return json.loads(file.read_text(encoding="utf-8"))


def read_rows(folder: str | Path) -> list[Row]:
    """All rows of a run, of all its workers, in order.

    A line that a kill cut short is no row, and the log says so; of a row that stands there twice the last one counts.

    Args:
        folder: Of the run.

    Returns:
        The rows.

    Example:
        >>> import tempfile
        >>> read_rows(tempfile.mkdtemp())
        []
    """
    rows = {}
    for file in sorted(Path(folder).glob("rows*.csv*")):
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == ".gz" else data
        whole = data.rfind(b"\n") + 1  # in bytes, for a kill cuts characters too
        if whole < len(data):
            logger.warning("%s: the last row was cut short and is left out.", file)
        for cells in csv.DictReader(io.StringIO(data[:whole].decode())):
            row = _row(cells)
            rows[row.key] = row
    return [rows[key] for key in sorted(rows, key=repr)]


def collect_rows(folder: str | Path, target: str | Path) -> Path:
    """All rows of a run in one file, in order, beside what they have in common.

    Args:
        folder: Of the run.
        target: Folder for `rows.csv.gz` and `run.json`; made if it is not there.

    Returns:
        The file.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: `target` holds another run.

    Example:
        >>> import tempfile
        >>> source, target = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
        >>> open_run(source, {})
        >>> collect_rows(source, target).name
        'rows.csv.gz'
    """
    about, rows = read_about(folder), read_rows(folder)
    open_run(target, about)
    columns = [*IDENTIFYING, *about.get("columns", ()), *MEASURED]
    file = Path(target, "rows.csv.gz")
    lines = _lines([columns, *([_cells(row)[name] for name in columns] for row in rows)])
    write_whole(file, gzip.compress(lines.encode(), mtime=0))  # the same rows are the same file
    return file


class RowWriter:
    """Appends rows to the file of one worker, those of a call at once, so that a kill leaves whole lines.

    Args:
        folder: Of the run, as [`open_run`] made it.
        worker: Its number.
        columns: The scores' names.

    Raises:
        ValueError: Another process writes as this worker, or the file has other scores.

    Example:
        >>> import tempfile
        >>> folder, setting = Path(tempfile.mkdtemp()), Setting("A", "", Sampling(num_inference_steps=1))
        >>> with RowWriter(folder, 0, ["identity"]) as writer:
        ...     writer.add([Row(setting, "ada", "S*", 0, {"identity": 0.5}, 2, 1.0, 0.1, "a laptop")])
        >>> read_rows(folder)[0].scores
        {'identity': 0.5}
    """

    def __init__(self, folder: str | Path, worker: int, columns: Sequence[str]):
        self.columns = [*IDENTIFYING, *columns, *MEASURED]
        path = Path(folder, f"rows-{worker}.csv")
        self.stack = ExitStack()
        sentence = f"Worker {worker} of this run is at work already, in another process."
        self.stack.enter_context(only_process(path.parent, path.stem, sentence))
        self.file = self.stack.enter_context(path.open("ab+"))
        self.file.seek(0)
        content = self.file.read()
        whole = content.rfind(b"\n") + 1  # what follows was cut short by a kill
        self.file.truncate(whole)
        heads = _lines([self.columns]).encode()
        if not whole:
            self._append(heads)
        elif not content.startswith(heads):
            self.stack.close()
            raise ValueError(f"{shown_path(path)} has other columns than this run: choose another folder.")

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stack.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows in one write.

        Args:
            rows: With a score for each column; one that is missing is left empty.
        """
        cells = [_cells(row) for row in rows]
        self._append(_lines([[line.get(name, "") for name in self.columns] for line in cells]).encode())

    def _append(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()


def _cells(row: Row) -> dict[str, str]:
    setting = row.setting
    measured = (str(row.unet_rows), f"{row.seconds:.4g}", _number(row.gib), row.machine)
    return {
        "system": setting.system,
        "learning": setting.learning,
        **{name: "" if value is None else str(value) for name, value in vars(setting.sampling).items()},
        "subject": row.subject,
        "prompt": row.prompt,
        "seed": str(row.seed),
        **{name: _number(score) for name, score in row.scores.items()},
        **dict(zip(MEASURED, measured, strict=True)),
    }


def _row(cells: dict[str, str]) -> Row:
    known = SAMPLING.keys() & cells.keys()  # older rows know fewer
    sampling = Sampling(**{name: _value(cells[name], SAMPLING[name]) for name in known})
    return Row(
        Setting(cells["system"], cells["learning"], sampling),
        cells["subject"],
        cells["prompt"],
        int(cells["seed"]),
        {name: float(text or "nan") for name, text in cells.items() if name not in (*IDENTIFYING, *MEASURED)},
        int(cells["unet_rows"]),
        float(cells["seconds"]),
        float(cells["gib"] or "nan"),
        cells["machine"],
    )


def _value(text: str, kind: Any) -> Any:
    if kind in (str, int, float):
        return kind(text)
    if not text:
        return None
    kind = next(one for one in typing.get_args(kind) if one is not type(None))
    return text == "True" if kind is bool else kind(text)


def _number(value: float) -> str:
    return "" if value != value else f"{value:.5g}"


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _check_same(folder: Path, name: str, there: Any, ours: Any) -> None:
    if there != ours:
        raise ValueError(
            f"{shown_path(folder)} holds rows of another run: its `{name}` is {_short(there)}, that of this run "
            f"{_short(ours)}. Rows of both can't be mixed: choose another folder."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
