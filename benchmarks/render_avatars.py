"""How many avatars a core draws in a second of its own time: `python benchmarks/render_avatars.py`."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "avatars"))

from world import Renderer, sample_portrait  # noqa: E402


def main(count: int = 3000, runs: int = 5) -> list[float]:
    """Pictures a second of CPU time in each of `runs` runs, styles included, in one thread; printed as they come."""
    render, rates = Renderer(), []
    for _ in range(runs):
        began = time.process_time()
        for seed in range(count):
            render(sample_portrait(seed))
        rates.append(count / (time.process_time() - began))
        print(f"{rates[-1]:.0f} pictures/s")
    print(f"median {sorted(rates)[runs // 2]:.0f} pictures/s of {count}, one thread")
    return rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="pictures in a run")
    parser.add_argument("--runs", type=int, default=5)
    main(**vars(parser.parse_args()))
