"""How much memory a call takes in each mode: `python benchmarks/memory.py` measures them and writes docs/memory.md.

Every mode runs in a process of its own. On a CPU that is the resident size, before the call (the weights, and what
Python and its libraries take) and at its peak; on a GPU it is what torch has allocated there.
"""

import argparse
import atexit
import ctypes
import gc
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measuring
import torch
from diffusers.hooks import apply_group_offloading
from full_size import channels_last, float8_storage, group_offload, model_offload, sequential_offload, xformers
from random_models import SIZES, build_pipeline

from profusion_pipeline import ProFusionPipeline, demo_portraits, load_demo_pipeline

REPORT = measuring.FOLDER.parent / "docs" / "memory.md"
MODELS = ("vae", "text_encoder", "unet", "promptnet", "image_encoder")


def as_it_is(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    """Everything on the device, attention as torch has it."""


def attention_slicing(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.enable_attention_slicing("max")


def vae_slicing(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.vae.enable_slicing()


def vae_tiling(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size //= 2  # else a picture of the trained size is one tile
    pipe.vae.tile_sample_min_size //= 2


def fused_qkv(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.fuse_qkv_projections()
    pipe.promptnet.fuse_qkv_projections()


def disk_offload(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    """Leaf by leaf. Each model has a folder of its own: diffusers names the files after layers, not after models."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)  # it is read until this process ends
    for name in MODELS:
        apply_group_offloading(
            getattr(pipe, name),
            onload_device=torch.device(device),
            offload_type="leaf_level",
            offload_to_disk_path=f"{folder}/{name}",
        )


@dataclass(frozen=True)
class Mode:
    """A way to draw pictures.

    Args:
        prepare: What is done to the pipeline before.
        dtype: Of all weights.
        num_pictures: In one call.
        starts_on: Where the weights are before `prepare`, if not on the device.
        needs_gpu: Whether it says nothing about a CPU, where there is nowhere else to go.
    """

    prepare: Callable[[ProFusionPipeline, str, str], None] = as_it_is
    dtype: torch.dtype = torch.float32
    num_pictures: int = 1
    starts_on: str | None = None
    needs_gpu: bool = False


MODES = {
    "float32": Mode(),
    "bfloat16": Mode(dtype=torch.bfloat16),
    "float16": Mode(dtype=torch.float16),
    "bfloat16, UNet and PromptNet stored in float8": Mode(float8_storage, dtype=torch.bfloat16),
    "float32, attention slicing": Mode(attention_slicing),
    "float32, fused QKV": Mode(fused_qkv),
    "float32, channels last": Mode(channels_last),
    "float32, xFormers": Mode(xformers, needs_gpu=True),
    "float32, VAE tiling": Mode(vae_tiling),
    "float32, 4 pictures": Mode(num_pictures=4),
    "float32, 4 pictures, VAE slicing": Mode(vae_slicing, num_pictures=4),
    "float32, group off-load to disk": Mode(disk_offload, starts_on="cpu"),
    "float32, group off-load": Mode(group_offload, starts_on="cpu", needs_gpu=True),
    "float32, model off-load": Mode(model_offload, starts_on="cpu", needs_gpu=True),
    "float32, sequential off-load": Mode(sequential_offload, starts_on="cpu", needs_gpu=True),
}


def build(size: str, dtype: torch.dtype, device: str) -> ProFusionPipeline:
    """The bundled demo model, or one of random weights."""
    if size == "demo":
        pipe = load_demo_pipeline(dtype=dtype, device=device)
        pipe.set_progress_bar_config(disable=True)
        return pipe
    return build_pipeline(size, dtype=dtype, device=device)


def resident(key: str) -> float:
    """VmRSS, what this process has now, or VmHWM, the most it has had, in GiB. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / measuring.GIB for line in lines if line.startswith(f"{key}:"))


def measure(name: str, *, size: str, device: str, steps: int) -> dict[str, float]:
    """One mode in this process: GiB before the call and at its peak."""
    mode = MODES[name]
    torch.manual_seed(0)
    pipe = build(size, mode.dtype, mode.starts_on or device)
    mode.prepare(pipe, device, "inductor")
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / measuring.GIB
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what building freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
    pipe(
        "a portrait of S*, at the beach",
        image=demo_portraits()[0],
        class_noun="a person",
        num_inference_steps=steps,
        num_images_per_prompt=mode.num_pictures,
        generator=torch.Generator().manual_seed(0),
    )
    peak = measuring.peak_on_device(device) if device == "cuda" else resident("VmHWM")
    return {"gib_before": before, "gib_peak": peak}


def make_table(results: dict) -> str:
    """The figures of one size on one machine as Markdown."""
    facts = ", ".join(f"{key} {value}" for key, value in results.items() if key not in ("modes", "device", "size"))
    place = "allocated on the GPU" if results["on"] == "cuda" else "resident"
    rows = []
    for name, figures in results["modes"].items():
        if "failed" in figures:
            rows.append([name, f"failed: {figures['failed']}", ""])
        else:
            rows.append([name, f"{figures['gib_before']:.3f}", f"{figures['gib_peak']:.3f}"])
    heads = ["mode", f"{place} before the call, GiB", "at its peak, GiB"]
    return f"{results['device']} ({facts})\n\n{measuring.table(heads, rows)}"


def main(*, size: str, device: str, steps: int, modes: list[str] | None, folder: Path, report: Path = REPORT) -> dict:
    """Measures modes one after another, prints and saves the figures, and puts the table into the report."""
    names = modes or [name for name, mode in MODES.items() if device == "cuda" or not mode.needs_gpu]
    figures = measuring.run_modes("memory.py", names, size=size, device=device, steps=steps)
    results = {**measuring.machine(device), "size": size, "on": device, "steps": steps, "modes": figures}
    measuring.save_results(f"memory_{size}_{device}", results, folder)
    measuring.write_table(f"memory, {size}, {device}", make_table(results), report)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("demo", *SIZES), default="demo", help="the demo model, or random weights")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--modes", nargs="+", choices=MODES, metavar="MODE", help="some of: " + "; ".join(MODES))
    parser.add_argument("--folder", type=Path, default=measuring.FOLDER / "results", help="where figures are kept")
    parser.add_argument("--mode", choices=MODES, metavar="MODE", help="measure one, here, and print it as JSON")
    arguments = vars(parser.parse_args())
    alone = arguments.pop("mode")
    if alone:
        kept = {key: arguments[key] for key in ("size", "device", "steps")}
        print(json.dumps(measure(alone, **kept)))
    else:
        main(**arguments)
