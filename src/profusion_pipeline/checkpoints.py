"""Folders that appear whole or not at all, and the numbered checkpoints of a run."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_of(path: Path) -> Path:
    """Where the folder `path` is being written.

    Args:
        path: Where it shall be.

    Returns:
        A hidden name beside it.

    Example:
        >>> part_of(Path("runs/weights")).name
        '.weights.part'
    """
    return path.with_name(f".{path.name}.part")


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `path` when the block ends without error.

    A process that is killed meanwhile leaves `path` as it was, and beside it a hidden rest that the next call removes.

    Args:
        path: Where the folder shall be; an older one there is replaced.

    Yields:
        The folder to write into, empty.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights")
        >>> with replaced_folder(path) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> [file.name for file in path.iterdir()]
        ['a.txt']
    """
    part, old = part_of(path), path.with_name(f".{path.name}.old")
    for rest in (part, old):
        shutil.rmtree(rest, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    if path.exists():
        os.replace(path, old)
    os.replace(part, path)
    shutil.rmtree(old, ignore_errors=True)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies.

    Args:
        folder: The run's checkpoints.
        step: Optimiser steps done.

    Returns:
        A path whose name sorts by step.

    Example:
        >>> checkpoint_path(Path("checkpoints"), 1000).name
        'step-00001000'
    """
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first.

    Args:
        folder: The run's checkpoints; it need not exist.

    Returns:
        Their folders.

    Example:
        >>> list_checkpoints(Path("no-such-folder"))
        []
    """
    return sorted(folder.glob("step-*"))


def delete_all_but_newest(folder: Path, keep: int) -> None:
    """Delete the oldest checkpoints of a run.

    Args:
        folder: The run's checkpoints.
        keep: How many stay, at least 1.

    Example:
        >>> delete_all_but_newest(Path("no-such-folder"), keep=2)
    """
    for path in list_checkpoints(folder)[:-keep]:
        # Renamed first, so that a kill in the midst of deleting leaves nothing that looks like a checkpoint.
        doomed = path.with_name(f".{path.name}.old")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
