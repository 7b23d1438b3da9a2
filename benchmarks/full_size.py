"""Seconds and memory of a picture at the size of Stable Diffusion 2: `python benchmarks/full_size.py`.

Weights are random. Every mode runs in a process of its own. The figures go to `results/` and into the tables of this
folder's README. On a GPU that is all modes at 50 steps; on a CPU, to see that it runs at all:

    python benchmarks/full_size.py --device cpu --steps 2 --runs 1 --warm-up-steps 0
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measuring
import torch
from random_models import SIZES, build_pipeline

from profusion_pipeline import ProFusionPipeline, demo_portraits

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICE, DTYPE = ("cuda", "float16") if torch.cuda.is_available() else ("cpu", "float32")
PROMPT = "a photo of S* as an astronaut"


def as_it_is(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    """PyTorch's own attention, everything on the device, nothing compiled."""


def channels_last(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    for model in (pipe.unet, pipe.promptnet, pipe.vae):
        model.to(memory_format=torch.channels_last)


def compiled(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.unet.compile(backend=backend, fullgraph=True)
    pipe.promptnet.compile(backend=backend, fullgraph=True)
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend=backend, fullgraph=True)


def compiled_blocks(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    """Only the transformer blocks, one graph for all of a kind: a fraction of the time to compile."""
    pipe.unet.compile_repeated_blocks(backend=backend, fullgraph=True)
    pipe.promptnet.compile_repeated_blocks(backend=backend, fullgraph=True)


def compiled_channels_last(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    channels_last(pipe, device, backend)
    compiled(pipe, device, backend)


def xformers(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.enable_xformers_memory_efficient_attention()


def float8_storage(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    for model in (pipe.unet, pipe.promptnet):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)


def model_offload(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.enable_model_cpu_offload(device=device)


def group_offload(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.enable_group_offload(
        onload_device=torch.device(device), offload_type="leaf_level", use_stream=device == "cuda"
    )


def sequential_offload(pipe: ProFusionPipeline, device: str, backend: str) -> None:
    pipe.enable_sequential_cpu_offload(device=device)


@dataclass(frozen=True)
class Mode:
    """A way to draw the same picture.

    Args:
        prepare: What is done to the pipeline before.
        num_fusion_steps: m.
        dtype: Of all weights, if not the run's.
        starts_on: Where the weights are before `prepare`, if not on the run's device.
        most_steps: Of a picture, where a step takes seconds.
    """

    prepare: Callable[[ProFusionPipeline, str, str], None] = as_it_is
    num_fusion_steps: int = 1
    dtype: str | None = None
    starts_on: str | None = None
    most_steps: int | None = None


MODES = {
    "m = 0": Mode(num_fusion_steps=0),
    "m = 1": Mode(),
    "m = 2": Mode(num_fusion_steps=2),
    "m = 1, bfloat16": Mode(dtype="bfloat16"),
    "m = 1, xFormers": Mode(xformers),
    "m = 1, channels last": Mode(channels_last),
    "m = 1, blocks compiled": Mode(compiled_blocks),
    "m = 1, compiled": Mode(compiled),
    "m = 1, compiled, channels last": Mode(compiled_channels_last),
    "m = 1, float8 storage": Mode(float8_storage),
    "m = 1, model off-load": Mode(model_offload, starts_on="cpu"),
    "m = 1, group off-load": Mode(group_offload, starts_on="cpu"),
    "m = 1, sequential off-load, 10 steps": Mode(sequential_offload, starts_on="cpu", most_steps=10),
}
CPU_MODES = ("m = 0", "m = 1")
COLUMNS = {
    "s / picture": ("seconds_per_picture", 2),
    "s / step": ("seconds_per_step", 3),
    "steps / s": ("steps_per_second", 2),
    "first call, s": ("seconds_of_first_call", 1),
    "peak on the GPU, GiB": ("gib_on_device", 2),
    "peak resident, GiB": ("gib_resident", 2),
}


def measure(
    name: str, *, size: str, device: str, dtype: str, steps: int, runs: int, warm_up_steps: int, backend: str
) -> dict[str, float | None]:
    """One mode in this process. Seconds are medians over runs and steps, memory is the peak of a picture in GiB."""
    mode = MODES[name]
    torch.manual_seed(0)
    began = time.perf_counter()
    pipe = build_pipeline(size, dtype=DTYPES[mode.dtype or dtype], device=mode.starts_on or device)
    mode.prepare(pipe, device, backend)
    results = {"seconds_to_build": time.perf_counter() - began}

    def draw(num_steps: int) -> tuple[float, list[float]]:
        """Seconds of the whole call and of each step but the first."""
        ends = []

        def note(_, index, timestep, tensors):  # comes after a look at the latents, so the device is done
            ends.append(time.perf_counter())
            return tensors

        began = time.perf_counter()
        pipe(
            PROMPT,
            image=demo_portraits()[0],
            num_inference_steps=num_steps,
            num_fusion_steps=mode.num_fusion_steps,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=note,
        )
        return time.perf_counter() - began, [then - now for now, then in zip(ends[:-1], ends[1:], strict=True)]

    if warm_up_steps:
        results["seconds_of_first_call"] = draw(warm_up_steps)[0]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pictures, its_steps = zip(*[draw(min(steps, mode.most_steps or steps)) for _ in range(runs)], strict=True)
    seconds_per_step = statistics.median(second for seconds in its_steps for second in seconds)
    return {
        **results,
        "seconds_per_picture": statistics.median(pictures),
        "seconds_per_step": seconds_per_step,
        "steps_per_second": 1 / seconds_per_step,
        "gib_on_device": measuring.peak_on_device(device),
        "gib_resident": measuring.peak_resident(),
    }


def main(
    *,
    size: str = "sd2",
    device: str = DEVICE,
    dtype: str = DTYPE,
    steps: int = 50,
    runs: int = 3,
    warm_up_steps: int = 2,
    modes: list[str] | None = None,
    backend: str = "inductor",
    folder: Path = measuring.RESULTS,
) -> dict:
    """Measures modes one after another, prints and saves the figures."""
    names = modes or (MODES if device == "cuda" else CPU_MODES)
    flags = dict(
        size=size, device=device, dtype=dtype, steps=steps, runs=runs, warm_up_steps=warm_up_steps, backend=backend
    )
    figures = measuring.run_modes("full_size.py", names, **flags)
    results = {**measuring.machine(device), "size": size, "dtype": dtype, "steps": steps, "modes": figures}
    measuring.save_results(f"full_size_{size}_{device}", results, folder)
    return results


def write_tables() -> None:
    """The tables of the README, from the figures in `results/`."""
    for device in ("cuda", "cpu"):
        results = measuring.load_results(f"full_size_sd2_{device}")
        names = MODES if device == "cuda" else CPU_MODES
        columns = {head: column for head, column in COLUMNS.items() if device == "cuda" or "GPU" not in head}
        measuring.write_table(f"full size, {device}", measuring.mode_table(columns, names, results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="sd2")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=DEVICE)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPE)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3, help="pictures that are timed")
    parser.add_argument("--warm-up-steps", type=int, default=2, help="of the picture before them; 0 for none")
    parser.add_argument("--modes", nargs="+", choices=MODES, metavar="MODE", help="some of: " + "; ".join(MODES))
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--mode", choices=MODES, metavar="MODE", help="measure one, here, and print it as JSON")
    arguments = vars(parser.parse_args())
    alone = arguments.pop("mode")
    if alone:
        arguments.pop("modes")
        print(json.dumps(measure(alone, **arguments)))
    else:
        main(**arguments)
        write_tables()
