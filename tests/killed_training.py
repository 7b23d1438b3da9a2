"""Runs `profusion train` again and again and kills it at random moments. The tests start this as a process of its own.

Importing torch takes seconds, so this process does it once and forks a child for every run. It computes nothing itself:
no thread of torch is there to be lost in a fork.
"""

import json
import os
import random
import sys
from pathlib import Path

import datasets  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import profusion_pipeline.training.trainer  # noqa: F401
from killing import kill_at
from profusion_pipeline.cli import main as profusion


def is_log_line(event: str, args: tuple) -> bool:
    return event == "open" and str(args[0]).endswith("log.jsonl") and args[1] == "a"


def is_half_saved(event: str, args: tuple) -> bool:
    """A checkpoint is there that isn't whole yet."""
    return "/checkpoints/.profusion-" in str(args[0]) and os.path.isdir(args[0])


def is_any(event: str, args: tuple) -> bool:
    return True


# What counts, the highest number and the longest leash, of one life after another: nine steps, three savings, anything.
MOMENTS = [(is_log_line, 3, 3), (is_half_saved, 9, 0), (is_any, 30, 3)]


def run(words: list[str]) -> int:
    """In a child, to the end; its exit status."""
    child = os.fork()
    if child == 0:
        os._exit(profusion(words))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(words: list[str], whole: str, killed: str, kills: int, seed: int) -> None:
    """Train into the folder `killed` with that many kills, then to the end; and undisturbed into `whole`."""
    generator, lives = random.Random(seed), []
    for life in range(kills):
        counts, highest, longest = MOMENTS[life % len(MOMENTS)]
        died = kill_at(
            lambda: profusion([*words, "--output", killed, "--resume"]),
            Path(killed),
            number=generator.randint(1, highest),
            leash=generator.randint(0, longest),
            counts=counts,
        )
        names = [path.name for path in Path(killed, "checkpoints").glob("*")]
        lives.append(
            dict(
                killed=died,
                whole=max((int(name[5:]) for name in names if name.startswith("step-")), default=0),
                saving=any(name.startswith(".profusion-") for name in names),
            )
        )
    exits = [run([*words, "--output", killed, "--resume"]), run([*words, "--output", whole])]
    print(json.dumps(dict(lives=lives, exits=exits)))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
