"""Folders that appear whole or not at all, and the numbered checkpoints of a run."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


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

    An error, a full disk for one, leaves `path` as it was. So does a kill, except between the two renames at the end,
    when there is no `path`: the next call then puts the older one back.

    Args:
        path: Where the folder shall be; an older one there is replaced.

    Yields:
        The folder to write into, empty.

    Raises:
        OSError: It could not be written; the sentence names `path` and says why.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights")
        >>> with replaced_folder(path) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> [file.name for file in path.iterdir()]
        ['a.txt']
    """
    _restore(path)
    part = part_of(path)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            os.replace(path, _old_of(path))
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # as files, torch and safetensors say that a disk is full
        raise OSError(f"{str(path)!r} could not be written, what was there before is whole: {error}") from error
    finally:
        _restore(path)


def _restore(path: Path) -> None:
    old = _old_of(path)
    if old.exists() and not path.exists():
        os.replace(old, path)
    for rest in (part_of(path), old):
        shutil.rmtree(rest, ignore_errors=True)


def _old_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


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
    """Delete the oldest checkpoints of a run, and what a kill has left of others.

    Args:
        folder: The run's checkpoints; none is being written.
        keep: How many stay, at least 1.

    Example:
        >>> delete_all_but_newest(Path("no-such-folder"), keep=2)
    """
    for path in list_checkpoints(folder)[:-keep]:
        # Renamed first, so that a kill in the midst of deleting leaves nothing that looks like a checkpoint.
        os.replace(path, _old_of(path))
    for rest in folder.glob(".step-*"):
        shutil.rmtree(rest)
