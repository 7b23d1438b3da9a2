"""`metadata.jsonl`: the lines of a data set in the layout of Hugging Face's `imagefolder`."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from ..common.text_files import read_lines
from ..method.quoting import brief, quote
from ..method.whole_files import shown_path


class MetadataRow(NamedTuple):
    """What a line says of a picture.

    Args:
        others: Names of other pictures of the same person (`ref_img`).
        text: Its caption, of any type, not looked at yet; None if there is none.
    """

    others: tuple[str, ...] = ()
    text: object = None


def read_metadata(path: Path, *, allow_outside_files: bool = False) -> dict[str, MetadataRow]:
    r"""Read the lines of a `metadata.jsonl`.

    Args:
        path: The file. A line is an object with `file_name`, and may have `ref_img` and `text`.
        allow_outside_files: Whether the files that it names may lie outside its folder.

    Returns:
        File name -> row, in the order of the lines.

    Raises:
        ValueError: A line is no such object, or names a file twice or one outside; the sentence says which line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "metadata.jsonl")
        >>> _ = path.write_text('{"file_name": "a.png", "ref_img": "b.png"}\n')
        >>> read_metadata(path)
        {'a.png': MetadataRow(others=('b.png',), text=None)}
    """
    rows = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{shown_path(path)}, line {number},"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} must be one JSON object, got {quote(line)}: {brief(error)}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f"{where} must be an object with a text `file_name`, got {quote(line)}.")
        others = row.get("ref_img") or []
        others = [others] if isinstance(others, str) else others
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise ValueError(f"{where} must have as `ref_img` one file name or a list of them, got {quote(others)}.")
        if row["file_name"] in rows:
            raise ValueError(f"{where} must name each file once, {quote(row['file_name'])} was there before.")
        for name in (row["file_name"], *others):
            if not allow_outside_files and is_outside(path.parent, name):
                raise ValueError(
                    f"{where} must name files of its folder, {quote(name)} lies outside: allow_outside_files=True "
                    "allows it, if you trust this data set with all your files."
                )
        rows[row["file_name"]] = MetadataRow(tuple(others), row.get("text"))
    return rows


def is_outside(folder: Path, name: str | Path) -> bool:
    """Whether a file that a data set names lies elsewhere, by `..`, as an absolute path or behind a link.

    Args:
        folder: The data set. In the cache of the Hub its files are links to `blobs`, which belongs to it.
        name: Of the file, relative to the folder.

    Returns:
        True if it does; False too for what is no name of a file.

    Example:
        >>> is_outside(Path("portraits"), "../secret.png"), is_outside(Path("portraits"), "ada/1.png")
        (True, False)
    """
    roots = [Path(os.path.realpath(folder))]
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parent.parent / "blobs")
    try:
        target = Path(os.path.realpath(folder / name))
    except ValueError:  # a zero, or half a character
        return False
    return not any(target.is_relative_to(root) for root in roots)
