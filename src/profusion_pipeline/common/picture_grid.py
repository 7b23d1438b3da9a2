"""Pictures in rows and columns, with what is true of each row and column written beside it."""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .files import whole_file

# Pixels
GAP = 6  # between pictures
MARGIN = 24
FONT_SIZE = 15
LINE = round(1.3 * FONT_SIZE)
INK, GREY, PAPER = (28, 30, 36), (120, 124, 132), (255, 255, 255)


@dataclass(frozen=True, eq=False, repr=False)
class PictureGrid:
    """Pictures with labels: a notebook shows it as one picture, and the pictures themselves stay at hand.

    Args:
        pictures: Rows of pictures, all of the same length; None leaves a cell empty.
        rows: What is written beside each row.
        columns: What is written above each column.
        cell: Side of a cell in pixels; pictures are scaled to fit.

    Raises:
        ValueError: There is no picture, or the labels are not as many as rows and columns.

    Example:
        >>> face = Image.new("RGB", (64, 64))
        >>> PictureGrid([[face, face]], ["one person"], ["S* smiling", "S* in space"])
        PictureGrid(1 x 2: 'one person' | 'S* smiling', 'S* in space')
    """

    pictures: Sequence[Sequence[Image.Image | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    cell: int = 128

    def __post_init__(self):
        lengths = {len(row) for row in self.pictures}
        if not any(self.pictures) or len(self.pictures) != len(self.rows) or lengths != {len(self.columns)}:
            raise ValueError(
                f"A grid must have a picture for each of {len(self.rows)} rows and {len(self.columns)} columns, got "
                f"rows of {sorted(lengths)}, {len(self.pictures)} of them."
            )

    def __repr__(self) -> str:
        labels = f"{', '.join(map(repr, self.rows))} | {', '.join(map(repr, self.columns))}"
        labels = labels if len(labels) <= 200 else f"{labels[:197]}..."
        return f"PictureGrid({len(self.rows)} x {len(self.columns)}: {labels})"

    @cached_property
    def image(self) -> Image.Image:
        """The whole grid as one RGB picture on white."""
        font = ImageFont.load_default(FONT_SIZE)
        beside = [wrapped(label, font, 1.5 * self.cell) for label in self.rows]
        widest = max(font.getlength(line) for label in beside for line in (label.splitlines() or [""]))
        left = MARGIN + (round(widest) + 2 * GAP if widest else 0)
        top = MARGIN + header_height(self.columns, self.cell)
        width = left + len(self.columns) * (self.cell + GAP) - GAP + MARGIN
        height = top + len(self.rows) * (self.cell + GAP) - GAP + MARGIN
        page = Image.new("RGB", (width, height), PAPER)
        write_header(page, self.columns, left, top, self.cell)
        for row, (label, pictures) in enumerate(zip(beside, self.pictures, strict=True)):
            place_row(page, pictures, label, left, top + row * (self.cell + GAP), self.cell)
        return page

    def save(self, path: str | os.PathLike) -> None:
        """Write the whole grid to a file.

        Args:
            path: With the suffix of a picture format; an older file there is replaced.

        Raises:
            OSError: It could not be written.

        Example:
            >>> PictureGrid([[Image.new("RGB", (64, 64))]], [""], ["S*"]).save("grid.png")
        """
        with whole_file(Path(path)) as new:
            self.image.save(new)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.image)


def png_bytes(picture: Image.Image, **options: Any) -> bytes:
    """A picture as the bytes of a PNG file.

    Args:
        picture: Of a mode that PNG has.
        **options: As of `Image.save`, such as those of `made_with.save_options`.

    Returns:
        The file.

    Example:
        >>> png_bytes(Image.new("RGB", (8, 8)))[1:4]
        b'PNG'
    """
    file = io.BytesIO()
    picture.save(file, "png", optimize=True, **options)
    return file.getvalue()


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Break a text after commas, and between words so that no line is wider than `width`; long_names after a `_`.

    Args:
        text: Lines that it has already stay.
        font: In which it is written.
        width: In pixels.

    Returns:
        The text with more ends of lines.

    Example:
        >>> wrapped("a, b", ImageFont.load_default(15), 100)
        'a,\\nb'
    """
    lines = []
    for phrase in text.replace(", ", ",\n").splitlines():
        lines.append("")
        for word in phrase.split():
            is_long = font.getlength(word) > width
            for number, piece in enumerate(re.findall("[^_]+_*|_+", word) if is_long else [word]):
                longer = f"{lines[-1]}{'' if number else ' '}{piece}".strip()
                if lines[-1] and font.getlength(longer) > width:
                    lines.append(piece)
                else:
                    lines[-1] = longer
    return "\n".join(lines)


def header_height(columns: Sequence[str], cell: int) -> int:
    """How high the texts above the columns are, with the gap below them.

    Args:
        columns: The texts.
        cell: Width of a column.

    Returns:
        Pixels.

    Example:
        >>> header_height(["S*"], 128)
        26
    """
    font = ImageFont.load_default(FONT_SIZE)
    return LINE * max(wrapped(column, font, cell).count("\n") + 1 for column in columns) + GAP


def write_header(page: Image.Image, columns: Sequence[str], left: int, top: int, cell: int) -> None:
    """Write a text above each column.

    Args:
        page: Where to.
        columns: The texts.
        left: Where the first column begins.
        top: Where the pictures begin.
        cell: Width of a column.

    Example:
        >>> write_header(Image.new("RGB", (200, 40)), ["S*"], 24, 30, 128)
    """
    for number, column in enumerate(columns):
        x = left + number * (cell + GAP) + cell / 2
        _write(page, (x, top - GAP), wrapped(column, ImageFont.load_default(FONT_SIZE), cell), INK, "md", "center")


def place_row(
    page: Image.Image,
    pictures: Sequence[Image.Image | None],
    label: str,
    left: int,
    top: int,
    cell: int,
    ink: tuple[int, int, int] = INK,
) -> None:
    """Put a row of pictures on a page, its label before them.

    Args:
        page: Where to.
        pictures: Scaled to fit their cells: enlarged without blur, made smaller with care.
        label: Its lines end before the pictures begin.
        left: Where the first picture begins.
        top: Where the row begins.
        cell: Side of a cell.
        ink: Colour of the label.

    Example:
        >>> place_row(Image.new("RGB", (300, 140)), [Image.new("RGB", (64, 64))], "S*", 100, 4, 128)
    """
    _write(page, (left - 2 * GAP, top + cell / 2), label, ink, "rm", "right")
    for column, picture in enumerate(pictures):
        if picture is not None:
            page.paste(_fitted(picture, cell), (left + column * (cell + GAP), top))


def _fitted(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return picture.resize([max(1, round(side * scale)) for side in picture.size], way)


def _write(page: Image.Image, place: tuple[float, float], text: str, ink: tuple, anchor: str, align: str) -> None:
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(page).multiline_text(
        place, text, ink, anchor=anchor, align=align, font=font, spacing=LINE - FONT_SIZE
    )
