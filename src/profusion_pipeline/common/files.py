"""Files and folders that appear whole or not at all: tried before the work, kept elsewhere if they fail after it.

How one file or folder appears is the method's part, which travels with it: `method/whole_files.py`.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..method.whole_files import scratch_folder as scratch_folder
from ..method.whole_files import shown_path as shown_path
from ..method.whole_files import whole_file as whole_file
from ..method.whole_files import whole_folder as whole_folder


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a small file, whole or not at all.

    Args:
        path: Where it shall be; an older file there is replaced.
        content: What it holds; text is written as UTF-8.

    Raises:
        OSError: It could not be written.

    Example:
        >>> write_whole("a.txt", "whole")
        >>> Path("a.txt").read_text()
        'whole'
    """
    with whole_file(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_files(paths: Sequence[Path], *, replace: bool = True) -> Iterator[list[Path]]:
    """Paths to write several files to, which are moved into their places once the last one is whole.

    Args:
        paths: Where the files shall be, in folders that exist.
        replace: Whether older files there are replaced; else one that is there, even by then only, is an error.

    Yields:
        Where to write, one for each.

    Raises:
        FileExistsError: One is there and `replace` is False; none of the others has appeared.
        OSError: One could not be written; those that are there are as they were.

    Example:
        >>> with whole_files([Path("a.txt"), Path("b.txt")]) as (a, b):
        ...     _ = a.write_text("one"), b.write_text("two")
        >>> sorted(path.name for path in Path(".").iterdir())
        ['a.txt', 'b.txt']
    """
    with ExitStack() as stack:
        scratch = {folder: stack.enter_context(scratch_folder(folder)) for folder in {path.parent for path in paths}}
        new = [scratch[path.parent] / path.name for path in paths]
        yield new
        if replace:
            for one, path in zip(new, paths, strict=True):
                os.replace(one, path)
        else:
            _move_to_free_places(new, paths)


def _move_to_free_places(new: Sequence[Path], paths: Sequence[Path]) -> None:
    moved = []
    try:
        for one, path in zip(new, paths, strict=True):
            _move_to_free_place(one, path)
            moved.append(path)
    except OSError as error:
        for done in moved:
            done.unlink()
        if isinstance(error, FileExistsError):
            raise FileExistsError(
                f"{shown_path(path)} must not exist, something else has written it meanwhile."
            ) from error
        raise


def _move_to_free_place(new: Path, path: Path) -> None:
    """Unlike a rename, a second name for the file is refused by the system if the place is taken."""
    try:
        os.link(new, path)
    except FileExistsError:
        raise
    except OSError:  # a file system where a file has one name only
        with path.open("xb"):
            os.replace(new, path)


def check_file(path: str | os.PathLike, name: str) -> None:
    """Try whether a file or folder of that name can be made in its folder, by making one in a scratch folder there.

    Args:
        path: Where it shall be; the folder around it must exist.
        name: What the user calls it, e.g. `--out`.

    Raises:
        OSError: It can't; the sentence says why.

    Example:
        >>> check_file("a.txt", "--out")
        >>> list(Path(".").iterdir())
        []
    """
    path = Path(path)
    with _tried(path, name), scratch_folder(path.parent) as scratch:
        (scratch / path.name).write_bytes(b"a")


def check_folder(path: str | os.PathLike, name: str) -> None:
    """Try whether files can be written into a folder, which is made with all folders around it if it is not there.

    Args:
        path: The folder. It is not made yet.
        name: What the user calls it, e.g. `--output`.

    Raises:
        OSError: They can't; the sentence says why.

    Example:
        >>> check_folder("runs/first", "--output")
        >>> list(Path(".").iterdir())
        []
    """
    path = Path(path)
    with _tried(path, name):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        with scratch_folder(there) as scratch:
            inside = scratch / path.relative_to(there)
            inside.mkdir(parents=True, exist_ok=True)
            (inside / "a").write_bytes(b"a")


@contextmanager
def _tried(path: Path, name: str) -> Iterator[None]:
    if "\0" in str(path):
        raise OSError(f"{name} must be a path without null characters, got {shown_path(path)}.")
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{name} must be a place that can be written to ({error.strerror}), got {shown_path(path)}."
        ) from error


def write_or_keep(write: Callable[[Path], None], folder: Path) -> None:
    """Write what long work has made; where that fails, write it into a new folder among the temporary ones instead.

    Args:
        write: Is called with the folder to write into.
        folder: Where it belongs.

    Raises:
        OSError: It could not be written there; the sentence says why, and where it is kept.

    Example:
        >>> write_or_keep(lambda folder: write_whole(folder / "a.txt", "whole"), Path("no-such-folder"))
        Traceback (most recent call last):
        OSError: 'no-such-folder/a.txt' could not be written, ...: No such file or directory. It is kept in '...'.
    """
    try:
        write(folder)
    except OSError as error:
        kept = _kept(write)
        if kept is None:
            raise
        raise OSError(f"{str(error).rstrip('.')}. It is kept in {str(kept)!r}.") from error


def _kept(write: Callable[[Path], None]) -> Path | None:
    """Where it is kept; None if the disk of temporary files is full too."""
    try:
        kept = Path(tempfile.mkdtemp(prefix="profusion-"))
    except OSError:
        return None
    try:
        write(kept)
    except OSError:
        shutil.rmtree(kept)
        return None
    return kept


@contextmanager
def only_process(folder: Path, work: str, sentence: str) -> Iterator[None]:
    """Refuse to do in the block what another process, or another thread, is doing in the same folder.

    A process that ends, however it does, lets the next one in; the hidden file that it held stays.

    Args:
        folder: It must exist.
        work: What is done in it, one word.
        sentence: Of the error.

    Raises:
        ValueError: Another one is at it.

    Example:
        >>> with only_process(Path("."), "train", "A run is under way."):
        ...     with only_process(Path("."), "train", "A run is under way."):
        ...         pass
        Traceback (most recent call last):
        ValueError: A run is under way.
    """
    lock = FileLock(folder / f".{work}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(sentence) from None
    try:
        yield
    finally:
        lock.release()
