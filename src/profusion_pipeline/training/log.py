"""What a training run tells while it goes on: log.jsonl, the check for broken losses, and the signals it hears."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from ..common.files import write_whole


class TrainingLog:
    """Losses stay on their device until a line is due, so that no step waits for the device.

    Args:
        path: The file of JSON lines; None (in all processes but the main one) writes none.
        first_step: Steps done before; lines of later steps, written by a run that was killed after its last
            checkpoint, are dropped from the file, and so is the torn line that a full disk leaves.
        losses: Of the last of these steps, those that no line tells of yet.
        average: Mean of a tensor over all processes.

    Example:
        >>> import tempfile
        >>> log = TrainingLog(Path(tempfile.mkdtemp(), "log.jsonl"), first_step=0)
        >>> log.note(torch.tensor(0.5), learning_rate=1e-4)
        >>> log.write(samples_per_step=8)["loss"]
        0.5
    """

    def __init__(
        self,
        path: Path | None,
        *,
        first_step: int,
        losses: Sequence[float] = (),
        average: Callable[[torch.Tensor], torch.Tensor] = lambda losses: losses,
    ):
        self.path, self.step, self.average = path, first_step, average
        self.earlier_losses, self.losses = list(losses), []
        self.learning_rate = 0.0
        self.start = time.perf_counter()
        if path and path.exists():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_whole(path, "".join(line for line in whole if json.loads(line)["step"] <= first_step))

    def note(self, loss: torch.Tensor, learning_rate: float) -> None:
        """Remember one step.

        Args:
            loss: Of the step `[]`, detached.
            learning_rate: With which it was taken.
        """
        self.step += 1
        self.losses.append(loss)
        self.learning_rate = learning_rate

    def check(self) -> list[float]:
        """Look at the losses since the last line.

        Returns:
            Their means over all processes, to be kept in a checkpoint.

        Raises:
            FloatingPointError: One of them is not a number; the sentence names its step.
        """
        losses = self.average(torch.stack(self.losses)).tolist() if self.losses else []
        for i, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"The loss of step {i} must be finite, got {loss}; nothing was saved since. A lower "
                    "learning_rate, or mixed_precision='bf16' instead of 'fp16', usually helps."
                )
        return self.earlier_losses + losses

    def write(self, *, samples_per_step: int) -> dict[str, float]:
        """Append a line about the steps since the last one: their mean loss and pictures per second.

        Args:
            samples_per_step: Pictures learnt from in one step, over all processes.

        Returns:
            The line.

        Raises:
            FloatingPointError: See [`check`].
        """
        losses = self.check()
        seconds = time.perf_counter() - self.start
        line = {
            "step": self.step,
            "loss": math.fsum(losses) / len(losses),
            "learning_rate": self.learning_rate,
            "images_per_second": round(len(self.losses) * samples_per_step / seconds, 2),
        }
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.earlier_losses.clear()
        self.losses.clear()
        self.start += seconds
        return line

    @contextmanager
    def time_out(self) -> Iterator[None]:
        """The time spent in the block is not counted as learning."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start


class StopSignal:
    """SIGTERM or SIGINT (Ctrl-C) asks to stop after the step; a second one works as usual.

    Leaving the block raises the signal again, so that the process ends as it would have, only later. In threads other
    than the main one, which Python sends no signals, it does nothing.

    Example:
        >>> with StopSignal() as stop:
        ...     stop.received is None
        True
    """

    def __init__(self):
        self.received: int | None = None
        self._previous = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self._restore()
        if self.received is not None and kind is None:
            signal.raise_signal(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
