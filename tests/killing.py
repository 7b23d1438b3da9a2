"""Runs `profusion train` again and again and kills it at random moments. The tests start this as a process of its own.

Importing torch takes seconds, so this process does it once and forks a child for every run. It computes nothing itself:
no thread of torch is there to be lost in a fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import datasets  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import profusion_pipeline.trainer  # noqa: F401
from profusion_pipeline.cli import main as profusion


def start(words: list[str]) -> int:
    """A child that runs the command, in a process group that is its own."""
    child = os.fork()
    if child == 0:
        os._exit(profusion(words))
    return child


def measure(words: list[str], log: Path) -> tuple[float, float]:
    """Run to the end. Seconds until the first line of the log, and from there on."""
    begin = first = time.monotonic()
    child = start(words)
    while not os.waitpid(child, os.WNOHANG)[0]:
        first = time.monotonic() if not log.exists() else first
        time.sleep(0.002)
    return first - begin, time.monotonic() - first


def wait_for_saving(output: Path, child: int) -> None:
    """Until a checkpoint is being written, but not one that an earlier kill left; or until the child is done."""
    rests = set((output / "checkpoints").glob(".step-*.part"))
    is_done = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not set((output / "checkpoints").glob(".step-*.part")) - rests and not os.waitid(os.P_PID, child, is_done):
        time.sleep(0.0005)


def main(words: list[str], whole: str, killed: str, kills: int, seed: int) -> None:
    """Train undisturbed into the folder `whole`; into `killed` with that many kills, then to the end."""
    generator = random.Random(seed)
    setting_up, learning = measure([*words, "--output", whole], Path(whole, "log.jsonl"))
    lives = []
    for number in range(kills):
        child = start([*words, "--output", killed, "--resume"])
        # Half of the way at most is made before the last kill.
        time.sleep(generator.uniform(0.5 * setting_up, setting_up + 0.5 * learning / kills))
        if number % 2:
            wait_for_saving(Path(killed), child)
            time.sleep(generator.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        names = [path.name for path in Path(killed, "checkpoints").glob("*")]
        lives.append(
            dict(
                killed=os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
                whole=max((int(name[5:]) for name in names if name.startswith("step-")), default=0),
                saving=any(name.endswith(".part") for name in names),
            )
        )
    _, status = os.waitpid(start([*words, "--output", killed, "--resume"]), 0)
    print(json.dumps(dict(lives=lives, exit=os.waitstatus_to_exitcode(status))))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
