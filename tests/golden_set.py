"""The numbers recorded from the authors' code, and what the parity tests need to read and compare them.

Two sets hold the same recording: the compact one in `tests/goldens` (see `make_compact.py` there), and the full one,
in the folder that the environment variable PROFUSION_GOLDENS names.
"""

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from goldens.make_compact import unpack

COMPACT = Path(__file__).parent / "goldens"
FULL = Path(os.environ.get("PROFUSION_GOLDENS", Path(__file__).parents[1].parent / "shared" / "goldens"))


class GoldenSet:
    """A folder in the form of the full recording."""

    def __init__(self, folder: Path, token_ids: list[int] | None = None):
        self.folder = folder
        self.layout = folder / "original_layout"
        self._token_ids = token_ids

    @cached_property
    def facts(self) -> dict:
        return json.loads((self.folder / "golden.json").read_text("utf-8"))

    def tensors(self, name: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """The tensors of one file whose names begin with `prefix`, which is cut off."""
        file = load_file(self.folder / f"{name}.safetensors")
        return {key.removeprefix(prefix): tensor for key, tensor in file.items() if key.startswith(prefix)}

    def original_ids(self, ids: list[int]) -> list[int]:
        """Ids of this set's tokenizer -> ids of the authors'."""
        return [self._token_ids[i] for i in ids] if self._token_ids else list(ids)


def open_golden_set(which: str, scratch: Path) -> GoldenSet:
    """ "compact" (unpacked into `scratch`) or "full" (skips where it is not)."""
    if which == "full":
        if not (FULL / "golden.json").is_file():
            pytest.skip(f"NOT COMPARED with the full recording: no golden.json in PROFUSION_GOLDENS ({FULL}).")
        return GoldenSet(FULL)
    files = {}
    for key, tensor in unpack(np.load(COMPACT / "tensors.npz")).items():
        file, _, name = key.partition(":")
        files.setdefault(file, {})[name] = tensor
    for small in COMPACT.rglob("*.*"):
        if small.suffix in (".json", ".txt"):
            copy = scratch / small.relative_to(COMPACT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(small.read_bytes())
    for file, tensors in files.items():
        save = save_file if file.endswith(".safetensors") else torch.save
        save(tensors, scratch / file)
    return GoldenSet(scratch, json.loads((COMPACT / "token_ids.json").read_text("utf-8")))


def relative_deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual - expected| / max |expected|."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_close_relative(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Fails with the worst element if max |actual - expected| / max |expected| is above the tolerance, or NaN."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).detach().double()
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, recorded {list(expected.shape)}"
    deviation = relative_deviation(actual, expected)
    if not deviation <= tolerance:
        worst = np.unravel_index(int((actual - expected).abs().nan_to_num(torch.inf).argmax()), expected.shape or (1,))
        place = tuple(int(i) for i in worst)[: expected.ndim]
        pytest.fail(
            f"{what}: {deviation:.3g} of the largest value, allowed {tolerance:g}; worst at {list(place)}: "
            f"{actual[place].item():.7g}, recorded {expected[place].item():.7g}"
        )
