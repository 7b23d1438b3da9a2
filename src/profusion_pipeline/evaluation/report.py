"""Rows -> the table of each question, in Markdown, and documents that hold them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..common.files import write_whole
from .costs import Cost
from .metrics import Difference, Estimate, bootstrap_interval, paired_difference
from .plan import Cell
from .rows import Row, Setting


class Scores:
    """The rows of a run by setting.

    Args:
        rows: Of any settings.

    Example:
        >>> from profusion_pipeline.evaluation.systems.system import Sampling
        >>> setting = Setting("A", "", Sampling())
        >>> rows = [Row(setting, "ada", "S*", 0, {"identity": 0.5}, 100, 1.0, 0.1, "a laptop")]
        >>> Scores(rows).estimate(setting, "identity").mean
        0.5
    """

    def __init__(self, rows: Sequence[Row]):
        self.of_setting: dict[Setting, dict[tuple[str, str, int], Row]] = {}
        for row in rows:
            self.of_setting.setdefault(row.setting, {})[row.key[1:]] = row

    def rows(self, setting: Setting) -> list[Row]:
        """All rows of a setting.

        Args:
            setting: Which.

        Returns:
            The rows; none if it was not drawn.
        """
        return list(self.of_setting.get(setting, {}).values())

    def estimate(self, setting: Setting, column: str) -> Estimate | None:
        """Mean and interval over subjects.

        Args:
            setting: Which.
            column: Of the scores.

        Returns:
            The estimate; None if there is no number.
        """
        rows = self.rows(setting)
        values = np.array([row.scores.get(column, np.nan) for row in rows])
        if not np.isfinite(values).any():
            return None
        return bootstrap_interval(values, np.array([row.subject for row in rows]))

    def difference(self, setting: Setting, reference: Setting, column: str) -> Difference | None:
        """How much a setting differs from another one where both have the same subject, prompt and seed.

        Args:
            setting: Which.
            reference: From which.
            column: Of the scores.

        Returns:
            The difference; None if no picture has both scores.
        """
        ours, theirs = (self.of_setting.get(one, {}) for one in (setting, reference))
        keys = [key for key in ours if key in theirs]
        first, second = (np.array([rows[key].scores.get(column, np.nan) for key in keys]) for rows in (ours, theirs))
        if not np.isfinite(first - second).any():
            return None
        return paired_difference(first, second, np.array([subject for subject, *_ in keys]))


def question_table(cells: Sequence[Cell], scores: Scores, columns: Sequence[str], compared: Sequence[str]) -> str:
    """One line for each cell that has rows: means with 95 % intervals, and differences from its reference.

    Args:
        cells: Of one question.
        scores: Of the run.
        columns: The scores that have a column.
        compared: Those of them that have a second one, the difference from the cell's reference, if any cell has one.

    Returns:
        Markdown.

    Example:
        >>> print(question_table([], Scores([]), ["identity"], ["identity"]))
        |  |  | steps | UNet rows | people | pictures | identity |
        |---|---|---|---|---|---|---|
    """
    columns = [column for column in columns if any(scores.estimate(cell.setting, column) for cell in cells)] or columns
    heads = ["", "", "steps", "UNet rows", "people", "pictures", *columns]
    compared = [column for column in compared if any(cell.reference for cell in cells)]
    heads += [f"{column}, against its reference" for column in compared]
    lines = [heads, ["---"] * len(heads)]
    for cell in cells:
        rows = scores.rows(cell.setting)
        if not rows:
            continue
        line = [cell.curve, cell.label, str(cell.setting.sampling.num_inference_steps), str(rows[0].unet_rows)]
        line += [str(len({row.subject for row in rows})), str(len(rows))]
        line += [_estimate(scores.estimate(cell.setting, column)) for column in columns]
        differences = [cell.reference and scores.difference(cell.setting, cell.reference, one) for one in compared]
        lines.append(line + [_difference(one) for one in differences])
    return markdown(lines)


def cost_table(costs: Sequence[Cost]) -> str:
    """One line for each system and machine.

    Args:
        costs: Of any machines.

    Returns:
        Markdown.

    Example:
        >>> print(cost_table([Cost("A", "", 0.0, float("nan"), 80, 1.0, 0.5, 0.0, "a laptop")]))
        | system | machine | s to learn | GiB | stored, MB | UNet rows | s a picture | GiB |
        |---|---|---|---|---|---|---|---|
        | A | a laptop |  |  |  | 80 | 1.00 | 0.50 |
    """
    heads = ["system", "machine", "s to learn", "GiB", "stored, MB", "UNet rows", "s a picture", "GiB"]
    lines = [heads, ["---"] * len(heads)]
    for cost in costs:
        learning = ["", "", ""]
        if cost.learning:
            learning = [f"{cost.learning_seconds:.1f}", _gib(cost.learning_gib), f"{cost.stored_mb:.2f}"]
        drawing = [str(cost.unet_rows), f"{cost.drawing_seconds:.2f}", _gib(cost.drawing_gib)]
        lines.append([cost.system, cost.machine, *learning, *drawing])
    return markdown(lines)


def _gib(value: float) -> str:
    return "not measured" if math.isnan(value) else f"{value:.2f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table.

    Args:
        lines: Heads, dashes, and lines of cells.

    Returns:
        Markdown.

    Example:
        >>> print(markdown([["a", "b"], ["---", "---"], ["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" if cells[0] != "---" else f"|{'|'.join(cells)}|" for cells in lines)


def fill_marks(document: Path, texts: Mapping[str, str]) -> None:
    """Put each text between its marks, `<!-- name -->` and `<!-- /name -->`, in place of what is there.

    Args:
        document: A file that has all these marks.
        texts: Name -> text.

    Raises:
        ValueError: A mark is missing.

    Example:
        >>> import tempfile
        >>> document = Path(tempfile.mkdtemp(), "a.md")
        >>> _ = document.write_text("<!-- table -->\\n<!-- /table -->")
        >>> fill_marks(document, {"table": "| 1 |"})
        >>> print(document.read_text())
        <!-- table -->
        | 1 |
        <!-- /table -->
    """
    whole = document.read_text(encoding="utf-8")
    for name, text in texts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if whole.count(begin) != 1 or whole.count(end) != 1:
            raise ValueError(f"{document.name} must have the marks {begin} and {end} once each.")
        before, _, rest = whole.partition(begin)
        whole = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    write_whole(document, whole)


def _estimate(one: Estimate | None) -> str:
    return "" if one is None else f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})"


def _difference(one: Difference | None) -> str:
    if not one:
        return ""
    return f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f}), ahead in {one.share:.0%}"
