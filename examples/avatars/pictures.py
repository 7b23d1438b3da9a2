"""Pictures of the avatar world as arrays, rendered once and kept on disk."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from loop import processes
from world import Portrait, Renderer, sample_portrait

from profusion_pipeline.common.files import whole_file

# Portraits of a split are those of the seeds FIRST_SEED[split], FIRST_SEED[split] + 1, ...
FIRST_SEED = {"train": 0, "validation": 10_000_000, "test": 20_000_000}


def portraits(split: str, count: int) -> list[Portrait]:
    """The first `count` portraits of a split."""
    return [sample_portrait(FIRST_SEED[split] + index, split) for index in range(count)]


def render_range(split: str, first: int, last: int) -> np.ndarray:
    render = Renderer()
    return np.stack([render(sample_portrait(FIRST_SEED[split] + index, split)) for index in range(first, last)])


def pictures(split: str, count: int, folder: Path) -> np.ndarray:
    """The pictures of `portraits(split, count)`, `[count, 64, 64, 3]` uint8, mapped from a file made when missing."""

    def render_all() -> np.ndarray:
        bounds = [*range(0, count, 2000), count]
        with ProcessPoolExecutor() as pool:
            return np.concatenate(list(pool.map(render_range, repeat(split), bounds[:-1], bounds[1:])))

    return stored(folder / f"{split}_{count}.npy", render_all)


def stored(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a file, mapped; made by the first process that finds the file missing."""
    with processes().main_process_first():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, make())
    return np.load(path, mmap_mode="r")


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """`[B, H, W, 3]` uint8 -> `[B, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """`[B, 3, H, W]` in [-1, 1] -> `[B, H, W, 3]` uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
