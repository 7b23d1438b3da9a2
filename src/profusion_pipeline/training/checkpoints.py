"""The numbered checkpoints of a run."""

import os
from pathlib import Path

from ..common.files import scratch_folder


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
    superseded = list_checkpoints(folder)[:-keep]
    if superseded:
        # Moved first, so that a kill in the midst of deleting leaves nothing that looks like a checkpoint.
        with scratch_folder(folder) as scratch:
            for path in superseded:
                os.replace(path, scratch / path.name)
