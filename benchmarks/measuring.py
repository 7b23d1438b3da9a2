"""What the benchmarks share: fresh processes, memory and device names, results as JSON and as tables of the README."""

import importlib.metadata
import json
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
GIB = 2**30


def machine(device: str) -> dict[str, str | int]:
    """What figures are worth nothing without: the device's name, the threads on a CPU, the libraries' versions."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    if device == "cuda":
        return {"device": torch.cuda.get_device_name(), **versions}
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    named = re.search(r"^model name\s*: (.*)$", lines, re.MULTILINE)
    return {"device": named[1] if named else platform.machine(), "threads": torch.get_num_threads(), **versions}


def peak_resident() -> float:
    """The most memory that this process has had so far, mapped files included, in GiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where the other way begins with the peak of the process that started this one
        return int(re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)[1]) * 1024 / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def peak_on_device(device: str) -> float | None:
    """The most memory that tensors on the GPU have had so far in this process, in GiB; nothing of a CPU."""
    return torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None


def run_alone(script: str, *arguments: object) -> dict:
    """The JSON that a script of this folder prints last, run in a process of its own so that peaks don't mix.

    Raises:
        RuntimeError: It failed; with the last line of its complaint.
    """
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"{script} ended with {done.returncode} and said: {complaint[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_modes(script: str, modes: Iterable[str], **flags: object) -> dict[str, dict]:
    """`script --mode MODE --flag value ...` for one mode after another, each alone; printed as they come.

    Returns:
        The figures by mode. Of one that fails, for want of memory or of a library, `{"failed": why}`.
    """
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    results = {}
    for mode in modes:
        try:
            results[mode] = run_alone(script, "--mode", mode, *words)
        except RuntimeError as error:
            results[mode] = {"failed": str(error)}
        print(f"{mode}: {results[mode]}", flush=True)
    return results


def save_results(name: str, results: dict, folder: Path = RESULTS) -> None:
    """Write the figures of one benchmark on one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def load_results(name: str, folder: Path = RESULTS) -> dict | None:
    """Figures of a benchmark, or nothing where it hasn't been run."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown. What is None was not measured."""
    cells = [["not measured" if cell is None else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells))


def mode_table(columns: dict[str, tuple[str, int]], modes: Iterable[str], results: dict | None) -> str:
    """Figures of modes as Markdown, with the machine's name above.

    Args:
        columns: Head -> the figure's name and how many digits it gets behind the point.
        modes: The rows; those that were not measured are among them.
        results: With the figures of each mode under "modes"; nothing where no such machine was at hand.
    """
    rows = []
    for mode in modes:
        figures = results["modes"].get(mode, {}) if results else {}
        if "failed" in figures:
            rows.append([mode, f"failed: {figures['failed']}", *[""] * (len(columns) - 1)])
        else:
            cells = [(figures.get(name), digits) for name, digits in columns.values()]
            rows.append([mode, *(None if figure is None else f"{figure:.{digits}f}" for figure, digits in cells)])
    drawn = table(["mode", *columns], rows)
    return f"{headline(results, 'modes')}\n\n{drawn}" if results else drawn


def headline(results: dict, figures: str) -> str:
    """The device and all settings of a run: whatever is not the device or under `figures`."""
    settings = ", ".join(f"{name} {value}" for name, value in results.items() if name not in (figures, "device"))
    return f"{results['device']} ({settings})"


def write_table(mark: str, text: str, file: Path = FOLDER / "README.md") -> None:
    """Put a text between `<!-- mark -->` and `<!-- /mark -->`."""
    before, begin, rest = file.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->\n")
    file.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")
