"""Seconds and memory of customising to one photo: `python benchmarks/customize.py`.

On a GPU at the size of Stable Diffusion 2 with random weights, on a CPU with the demo model. Every mode runs in a
process of its own; the figures go to `results/` and into the tables of this folder's README.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import measuring
import torch
from full_size import DEVICE, DTYPES
from random_models import SIZES, build_pipeline

from profusion_pipeline import CustomizeConfig, demo_portraits, load_demo_pipeline
from profusion_pipeline.customization.customize import customizing

# Fields of CustomizeConfig; `dtype` is that of the weights that don't learn, `compiled` is about transformer blocks.
MODES = {
    "lora": {},
    "lora, without a CUDA graph": {"cuda_graph": False},
    "lora, float16": {"dtype": "float16"},
    "lora, gradient checkpointing": {"gradient_checkpointing": True},
    "lora, 8-bit AdamW": {"optimizer": "adamw8bit"},
    "lora, blocks compiled": {"compiled": True},
    "full": {"mode": "full"},
    "full, gradient checkpointing": {"mode": "full", "gradient_checkpointing": True},
    "full, 8-bit AdamW": {"mode": "full", "optimizer": "adamw8bit"},
}
CPU_MODES = ("lora", "lora, gradient checkpointing", "full", "full, gradient checkpointing")
COLUMNS = {
    "s in all": ("seconds", 1),
    "s before the first step": ("seconds_before", 1),
    "first step, s": ("seconds_of_first_step", 2),
    "s / step": ("seconds_per_step", 3),
    "peak on the GPU, GiB": ("gib_on_device", 2),
    "peak resident, GiB": ("gib_resident", 2),
    "concept, MB": ("megabytes", 2),
}


def measure(name: str, *, size: str, device: str, dtype: str, steps: int, backend: str) -> dict[str, float | None]:
    """One mode in this process. Seconds of steps are medians without the first; memory is the peak in GiB."""
    settings = {"dtype": dtype, "compiled": False, **MODES[name]}
    weights, compiled = DTYPES[settings.pop("dtype")], settings.pop("compiled")
    torch.manual_seed(0)
    if size == "demo":
        pipe = load_demo_pipeline(dtype=weights, device=device)
    else:
        pipe = build_pipeline(size, dtype=weights, device=device)
    if compiled:
        pipe.unet.compile_repeated_blocks(backend=backend)
        pipe.promptnet.compile_repeated_blocks(backend=backend)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with customizing(pipe, demo_portraits()[0], CustomizeConfig(steps=steps, **settings)) as run:
        before = time.perf_counter() - began
        seconds = [record.seconds for record in run.learn()]
        concept = run.concept()
    in_all = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "concept")
        concept.save_pretrained(folder)
        megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    return {
        "seconds": in_all,
        "seconds_before": before,
        "seconds_of_first_step": seconds[0],
        "seconds_per_step": statistics.median(seconds[1:]),
        "gib_on_device": measuring.peak_on_device(device),
        "gib_resident": measuring.peak_resident(),
        "megabytes": megabytes,
    }


def main(
    *,
    size: str = "sd2" if DEVICE == "cuda" else "demo",
    device: str = DEVICE,
    dtype: str = "bfloat16" if DEVICE == "cuda" else "float32",
    steps: int = 100,
    modes: list[str] | None = None,
    backend: str = "inductor",
    folder: Path = measuring.RESULTS,
) -> dict:
    """Measures modes one after another, prints and saves the figures."""
    names = modes or (MODES if device == "cuda" else CPU_MODES)
    flags = dict(size=size, device=device, dtype=dtype, steps=steps, backend=backend)
    figures = measuring.run_modes("customize.py", names, **flags)
    results = {**measuring.machine(device), "size": size, "dtype": dtype, "steps": steps, "modes": figures}
    measuring.save_results(f"customize_{size}_{device}", results, folder)
    return results


def write_tables() -> None:
    """The tables of the README, from the figures in `results/`."""
    for device, size, names in (("cuda", "sd2", MODES), ("cpu", "demo", CPU_MODES)):
        results = measuring.load_results(f"customize_{size}_{device}")
        columns = {head: column for head, column in COLUMNS.items() if device == "cuda" or "GPU" not in head}
        measuring.write_table(f"customize, {device}", measuring.mode_table(columns, names, results))


if __name__ == "__main__":
    defaults = main.__kwdefaults__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "demo"], default=defaults["size"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default=defaults["device"])
    parser.add_argument("--dtype", choices=DTYPES, default=defaults["dtype"], help="of weights that don't learn")
    parser.add_argument("--steps", type=int, default=defaults["steps"])
    parser.add_argument("--modes", nargs="+", choices=MODES, metavar="MODE", help="some of: " + "; ".join(MODES))
    parser.add_argument("--backend", default=defaults["backend"], help="of torch.compile")
    parser.add_argument("--mode", choices=MODES, metavar="MODE", help="measure one, here, and print it as JSON")
    arguments = vars(parser.parse_args())
    alone = arguments.pop("mode")
    if alone:
        arguments.pop("modes")
        print(json.dumps(measure(alone, **arguments)))
    else:
        main(**arguments)
        write_tables()
