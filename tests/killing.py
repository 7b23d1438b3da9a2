"""Kills a process at a moment that it reaches, not after a time: slow machines and fast ones kill alike.

What a process does with files, its own audit events tell (`sys.addaudithook`). It rings a bell when it comes to the
operation that is its last; the killer sleeps until then, and sends SIGKILL. Until that arrives the process runs on,
into whatever it does next, but not further than its leash.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


def kill_at(
    work: Callable[[], Any],
    folder: Path,
    *,
    number: int,
    leash: int,
    counts: Callable[[str, tuple], bool] = lambda event, args: True,
) -> bool:
    """Do `work` in a child and kill it at a file operation below `folder`.

    Args:
        work: Done by the child.
        folder: Where operations count.
        number: The child is killed at the operation of this number, counted from 1.
        leash: Operations that it may still come to; it stands still before the next one, so that it can't escape. With
            0 it dies just before the operation, else at any moment soon after.
        counts: Audit event and arguments -> whether the operation counts.

    Returns:
        Whether it was killed; False if it ended before.
    """
    hearing, bell = os.pipe()
    child = os.fork()
    if child == 0:
        sys.addaudithook(_Watch(str(folder), number, leash, counts, bell))
        work()
        os._exit(0)
    os.close(bell)
    os.read(hearing, 1)  # until the bell rings, or the child has ended and with it the bell
    os.close(hearing)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


class _Watch:
    def __init__(self, folder: str, number: int, leash: int, counts: Callable[[str, tuple], bool], bell: int):
        self.folder, self.left, self.leash, self.counts, self.bell = folder, number, leash, counts, bell

    def __call__(self, event: str, args: tuple) -> None:
        if event not in OPERATIONS or not str(args[0]).startswith(self.folder):
            return
        if self.left > 0:
            self.left -= self.counts(event, args)
            if self.left > 0:
                return
            os.write(self.bell, b"!")
        elif self.leash > 0:
            self.leash -= 1
        if self.leash == 0:
            while True:
                signal.pause()
