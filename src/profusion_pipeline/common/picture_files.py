"""Where a command's pictures go: names decided and checked before any work, files that appear whole or not at all."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from .files import check_file, shown_path, whole_files, write_or_keep


def output_paths(out: str | Path, count: int, *, force: bool = False) -> list[Path]:
    """The files that `count` pictures will be written to, checked while nothing has been computed yet.

    Args:
        out: The file for a single picture; several get `-1`, `-2`, ... before the extension. The extension says the
            format and must be one that Pillow writes in colour.
        count: How many pictures there will be.
        force: Whether existing files may be replaced.

    Returns:
        `count` paths.

    Raises:
        ValueError: The extension names no picture format that can be written.
        FileNotFoundError: The folder is not there.
        FileExistsError: One of the files is there and `force` is False.
        OSError: The folder can't be written to, or a name is too long.

    Example:
        >>> [path.name for path in output_paths("me.png", 2)]
        ['me-1.png', 'me-2.png']
    """
    out = Path(out)
    if not _holds_colour(out.suffix):
        what = "the extension of a picture format that can be written, e.g. .png"
        raise ValueError(f"--out must end in {what}, got {shown_path(out)}.")
    if not os.path.isdir(out.parent):
        raise FileNotFoundError(f"--out must lie in an existing folder, {shown_path(out.parent)} is not one.")
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(1, count + 1)]
    for path in paths:
        check_file(path, "--out")
        if path.is_dir():
            raise FileExistsError(f"--out must name a file, {shown_path(path)} is a folder.")
        if path.exists() and not force:
            raise FileExistsError(f"{shown_path(path)} exists already; --force replaces it.")
    return paths


def _holds_colour(suffix: str) -> bool:
    """By trying: Pillow lists formats for black and white, for icons, and some that others must write."""
    picture, file = Image.new("RGB", (300, 200)), io.BytesIO()
    try:
        picture.save(file, Image.registered_extensions()[suffix.lower()])
    except (KeyError, OSError, ValueError):
        return False
    try:
        with Image.open(file) as written:
            return written.size == picture.size  # icons are made smaller
    except UnidentifiedImageError:  # PDF, which Pillow writes only
        return True


def write_pictures(
    pictures: Sequence[Image.Image],
    paths: Sequence[Path],
    *,
    replace: bool = True,
    records: Sequence[dict[str, Any]] = (),
    mark: bool = False,
) -> None:
    """Write each picture under a temporary name and move all of them into place once the last is whole.

    Args:
        pictures: What to write.
        paths: As many files, in one folder that exists; the extensions say the formats.
        replace: Whether files that are there are replaced.
        records: What each file says of how its picture was made, as `made_with.record_of` gives it; nothing if empty.
        mark: Whether each says that a model drew it, as `made_with.save_options` has it.

    Raises:
        OSError: They could not be written, or one is there and `replace` is False; the sentence says where the
            pictures are kept.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_pictures([Image.new("RGB", (8, 8))], [folder / "black.png"])
        >>> [path.name for path in folder.iterdir()]
        ['black.png']
    """

    from .made_with import save_options  # needs torch, which a wrong name for the files is told without

    def write(folder: Path) -> None:
        with whole_files([folder / path.name for path in paths], replace=replace) as new:
            for picture, path, record in zip(pictures, new, records or [None] * len(new), strict=True):
                picture.save(path, **save_options(path.suffix, record, mark=mark))

    write_or_keep(write, paths[0].parent)
