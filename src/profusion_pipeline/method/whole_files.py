"""Files and folders that appear whole or not at all, in place of what was there before.

What isn't whole yet lies in a hidden scratch folder beside its place, under a name that nobody else gives:
`.profusion-`, the machine, the process, and eight random signs. What a kill has left is known by that name alone; the
next who writes there takes it away, and puts back what the kill had left without a place.
"""

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from . import quoting

SCRATCH = re.compile(r"\.profusion-([0-9a-f]{8})-(\d{1,9})-\w{8}")
REPLACED = "replaced"  # in a scratch folder: what has left its place
DAY = 24 * 60 * 60


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write a file to that takes the place of `path` when the block ends without error.

    An error, a full disk for one, or a kill leaves `path` as it was.

    Args:
        path: Where the file shall be, in a folder that exists; an older file there is replaced.

    Yields:
        Where to write: a file of the same name, in a folder of its own.

    Raises:
        OSError: It could not be written; the sentence names `path` and says why.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "a.txt")
        >>> with whole_file(path) as new:
        ...     _ = new.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    path = Path(path)
    with writing(path), scratch_folder(path.parent) as scratch:
        yield scratch / path.name
        os.replace(scratch / path.name, path)


@contextmanager
def whole_folder(path: str | os.PathLike, *, replace: bool = True) -> Iterator[Path]:
    """A folder to write into that takes the place of `path` when the block ends without error.

    An error, a full disk for one, leaves `path` as it was. So does a kill, except between the two renames at the end,
    when there is no `path`: whoever writes beside it next puts the older one back.

    Args:
        path: Where the folder shall be; the folders around it are made.
        replace: Whether an older one there is replaced; else what has files in it stays, and that is an error.

    Yields:
        The folder to write into, empty.

    Raises:
        OSError: It could not be written; the sentence names `path` and says why.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "weights")
        >>> with whole_folder(path) as new:
        ...     _ = (new / "a.txt").write_text("whole")
        >>> [file.name for file in path.iterdir()]
        ['a.txt']
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path.parent) as scratch:
            new = scratch / "new"
            new.mkdir()
            yield new
            if replace and path.exists():
                (scratch / REPLACED).mkdir()
                os.replace(path, scratch / REPLACED / path.name)
            os.replace(new, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence what could not be written in the block, and why.

    Args:
        path: What the block writes.

    Raises:
        OSError: In place of what files, torch and safetensors raise.
        ValueError: No path can be `path`.

    Example:
        >>> with writing(Path("a.txt")):
        ...     raise OSError("No space left on device")
        Traceback (most recent call last):
        OSError: 'a.txt' could not be written, what was there before is whole: No space left on device.
    """
    if "\0" in os.fspath(path):
        raise ValueError(f"{shown_path(path)} must be a path without null characters.")
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # as files, torch and safetensors say that a disk is full
        why = getattr(error, "strerror", None) or error  # without the name in the scratch folder
        raise OSError(
            f"{shown_path(path)} could not be written, what was there before is whole: {quoting.brief(why)}."
        ) from error


def shown_path(path: str | os.PathLike) -> str:
    """A path as an error shows it: in quotes, and without its middle if it is long.

    Args:
        path: Any.

    Returns:
        At most 200 characters.

    Example:
        >>> shown_path("a.txt"), len(shown_path("a" * 1000))
        ("'a.txt'", 199)
    """
    text = repr(os.fspath(path))
    return text if len(text) <= 200 else f"{text[:98]}...{text[-98:]}"


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new hidden folder in `folder`, which is gone when the block ends; what kills have left in `folder` goes too.

    Args:
        folder: Where what is written shall be moved to.

    Yields:
        The new folder, empty.

    Raises:
        OSError: `folder` can't be written to.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with scratch_folder(folder) as scratch:
        ...     scratch.parent == folder
        True
        >>> list(folder.iterdir())
        []
    """
    for path in Path(folder).glob(".profusion-*"):
        if _is_left_over(path):
            _put_back_and_remove(path)
    scratch = Path(tempfile.mkdtemp(prefix=f".profusion-{_machine()}-{os.getpid()}-", dir=folder))
    try:
        yield scratch
    finally:
        _put_back_and_remove(scratch)


def _put_back_and_remove(scratch: Path) -> None:
    with suppress(OSError):  # another process may be at it too; what can't be put back is not removed
        for path in (scratch / REPLACED).glob("*"):
            if not (scratch.parent / path.name).exists():
                os.replace(path, scratch.parent / path.name)
        shutil.rmtree(scratch)


def _is_left_over(path: Path) -> bool:
    """Whether its process has ended; of one that can't be asked, whether nothing happened there for a day."""
    name = SCRATCH.fullmatch(path.name)
    if name is None:
        return False
    with suppress(OSError):
        old = time.time() - path.stat().st_mtime > DAY
        return old or (name[1] == _machine() and os.name == "posix" and not _is_running(int(name[2])))
    return False  # gone already


def _machine() -> str:
    """Where a process number means one process: the machine and, on Linux, the container."""
    container = Path("/proc/self/ns/pid")
    names = [socket.gethostname(), os.readlink(container) if container.exists() else ""]
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # on Windows this would end it
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
