"""Which files of a folder are its pictures, and a sentence about those that are not."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ..method.picture_file import HEIF_SUFFIXES, picture_suffixes
from ..method.whole_files import shown_path

# What systems put beside people's files, in lower case.
SYSTEM_NAMES = {
    *("__macosx", "icon\r"),  # macOS
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
    *("@eadir", "#recycle", "#snapshot", "lost+found", "__pycache__"),  # disks in the network, Linux, Python
}
REASONS = HIDDEN, NO_PICTURE, HEIC, LINK = (
    "as hidden or a system's",
    "as no picture",
    "as HEIC (`pip install pillow-heif` reads them)",
    "as a link to a folder or to nothing",
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be seen: hidden, or put there by a system.

    Args:
        name: Without the folder it is in.

    Returns:
        True for `.ipynb_checkpoints`, `._photo.png`, `__MACOSX`, `Thumbs.db` and their like.

    Example:
        >>> is_hidden(".Trash-1000"), is_hidden("@eaDir"), is_hidden("ada")
        (True, True, False)
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def find_pictures(folder: str | Path, *, deep: bool = True) -> tuple[list[Path], dict[str, list[str]]]:
    """The pictures in a folder.

    Args:
        folder: Where to look.
        deep: Whether at every depth; links to folders are not followed.

    Returns:
        The pictures, in the order of their paths; and why others were left out -> their names, endings, or the hidden
        folders that they are in.

    Raises:
        OSError: A folder can't be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.JPG", "a.png", "notes.txt", "._a.png"):
        ...     (folder / name).touch()
        >>> pictures, left_out = find_pictures(folder)
        >>> [path.name for path in pictures]
        ['a.png', 'b.JPG']
        >>> say_left_out(left_out, "portraits")
        "Left out of 'portraits': 1 as hidden or a system's (._a.png), 1 as no picture (.txt)."
    """
    pictures, left_out = [], defaultdict(list)
    for place, folders, files in os.walk(folder, onerror=_give_up):
        below = Path(place).relative_to(folder).parts
        for name in files:
            path = Path(place, name)
            suffix = path.suffix.lower()
            if hidden := next(filter(is_hidden, (*below, name)), None):
                left_out[HIDDEN].append(hidden)
            elif suffix not in picture_suffixes():
                left_out[HEIC if suffix in HEIF_SUFFIXES else NO_PICTURE].append(suffix or name)
            elif not path.is_file():  # a link to nothing
                left_out[LINK].append(name)
            else:
                pictures.append(path)
        if not deep:
            break
        left_out[LINK] += [name for name in folders if os.path.islink(Path(place, name)) and not is_hidden(name)]
    return sorted(pictures), {why: sorted(names) for why, names in left_out.items() if names}


def say_left_out(left_out: Mapping[str, Sequence[str]], folder: str | Path) -> str:
    """One sentence about what was left out.

    Args:
        left_out: As from [`find_pictures`].
        folder: Where.

    Returns:
        How many files for which reason, some of them by name; empty if there are none.

    Example:
        >>> say_left_out({NO_PICTURE: [".txt", ".txt"]}, "portraits")
        "Left out of 'portraits': 2 as no picture (.txt)."
    """
    parts = []
    for why in REASONS:
        names = left_out.get(why, ())
        if not names:
            continue
        kinds = sorted(set(names))
        shown = ", ".join(kinds[:4]) + (", ..." if len(kinds) > 4 else "")
        parts.append(f"{len(names)} {why} ({shown})")
    return f"Left out of {shown_path(folder)}: {', '.join(parts)}." if parts else ""


def _give_up(error: OSError) -> NoReturn:
    raise error
