"""Where a training run reports to beside log.jsonl: accelerate's trackers, by their names there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, TensorBoardTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from ..method.quoting import quote

ALL, NONE = "all", "none"
TENSORBOARD = "tensorboard"  # its folder in the run's output, too
PROJECT = "profusion"
PLACES = ("model", "data", "output", "image_encoder", "hub_model_id")  # settings that may name folders of this machine


def chosen_trackers(report_to: Sequence[str]) -> list[str]:
    """The names of the trackers that a run reports to, once it is known that they can be had.

    Args:
        report_to: Names of trackers that accelerate knows, those that were registered with it included; or "all" that
            are installed, or "none", alone. Of an empty one, tensorboard if it is installed.

    Returns:
        The names, each once.

    Raises:
        ValueError: accelerate knows no such name, or "all" or "none" stands among others.
        ImportError: The package of one isn't installed.

    Example:
        >>> chosen_trackers(["none"])
        []
    """
    built_in = {str(kind) for kind in LoggerType} - {ALL}
    there = {str(kind) for kind in get_available_trackers()} | (set(LOGGER_TYPE_TO_CLASS) - built_in)
    if not report_to:
        return [TENSORBOARD] if TENSORBOARD in there else []
    if ALL in report_to or NONE in report_to:
        if len(report_to) > 1:
            raise ValueError(f"`report_to` must be {ALL!r} or {NONE!r} alone, or names, got {quote(list(report_to))}.")
        return sorted(there) if report_to[0] == ALL else []
    for name in report_to:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(
                f"`report_to` must be of accelerate's trackers ({known}), {ALL} or {NONE}, got {quote(name)}."
            )
        if name not in there:
            raise ImportError(f"`report_to` names {name}, which isn't installed: `pip install {name}`.")
    return list(dict.fromkeys(report_to))


def start_trackers(
    accelerator: Accelerator, names: Sequence[str], *, output: Path, step: int, settings: Mapping[str, object]
) -> None:
    """Let an accelerator report to trackers from now on, beginning with the settings.

    Places of this machine stay here: a tracker may lie on a server that others read.

    Args:
        accelerator: That of the run.
        names: As [`chosen_trackers`] gives them.
        output: Folder of the run.
        step: Steps done; what tensorboard was told of later ones, by a run that was killed, is dropped.
        settings: Of the run.

    Example:
        >>> start_trackers(  # doctest: +SKIP
        ...     accelerator, ["tensorboard"], output=Path("runs/first"), step=0, settings={})
    """
    accelerator.log_with = [
        TensorBoardTracker(TENSORBOARD, output, purge_step=step + 1) if name == TENSORBOARD else name for name in names
    ]
    told = {name: value for name, value in settings.items() if name not in PLACES and not name.endswith("_images")}
    told = {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in told.items()}
    accelerator.init_trackers(PROJECT, config=told)


def report_picture(tracker: GeneralTracker, name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in a tracker, if accelerate can: each wants it in a form of its own.

    Args:
        tracker: One of an accelerator's.
        name: Of the picture.
        picture: RGB.
        step: Steps done.

    Example:
        >>> for tracker in accelerator.trackers:  # doctest: +SKIP
        ...     report_picture(tracker, "validation", grid, 100)
    """
    if not hasattr(tracker, "log_images"):  # comet_ml, mlflow, dvclive, trackio
        return
    pixels = np.asarray(picture)  # [H, W, 3]
    if tracker.name == TENSORBOARD:
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
    else:
        tracker.log_images({name: pixels if tracker.name in ("aim", "clearml") else [pixels]}, step=step)
