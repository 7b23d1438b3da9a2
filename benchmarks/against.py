"""A picture by each recipe, by the authors' rows and by rivals on the same base: `python benchmarks/against.py`.

All take turns in one process, round by round, so that what else the machine does meets all alike. Rows and calls
are counted, not declared. The IP-Adapter has random weights of its usual shapes: its pictures mean nothing, its cost is
real. Runs on CUDA where there is one; that has not been tried.
"""

import argparse
import copy
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import measuring
import torch
from diffusers import StableDiffusionPipeline
from full_size import DEVICE, DTYPE, DTYPES, PROMPT
from matplotlib.figure import Figure
from random_models import SIZES, build_pipeline
from step_costs import COUNTED, Steps, count_calls
from torch.profiler import ProfilerActivity, profile

from profusion_pipeline import ProFusionPipeline, load_demo_pipeline
from profusion_pipeline.method.recipes import RECIPES

AUTHORS, IP_TOKENS = "the authors' rows", 4
STEPS = {"paper": 50, **{name: recipe.get("num_inference_steps", 50) for name, recipe in RECIPES.items()}}
HEADS = ["way", "steps", *COUNTED, "s / picture", "against plain, equal steps", "operators", "kernels", "peak, GiB"]


def with_ip_adapter(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The same on a copy of the UNet with an IP-Adapter of random weights."""
    unet, width = copy.deepcopy(pipe.unet), pipe.unet.config.cross_attention_dim
    shapes = [dict(unet.named_modules())[name.removesuffix(".processor")] for name in unet.attn_processors]
    attended = [module for name, module in zip(unet.attn_processors, shapes, strict=True) if "attn2" in name]
    projections = {
        f"{2 * number + 1}.to_{part}_ip.weight": torch.randn_like(getattr(module, f"to_{part}").weight) / width**0.5
        for number, module in enumerate(attended)
        for part in "kv"
    }
    like = next(unet.parameters())
    projection = {
        "proj.weight": like.new_zeros(IP_TOKENS * width, width),
        "proj.bias": like.new_ones(IP_TOKENS * width),
    }
    projection |= {"norm.weight": like.new_ones(width), "norm.bias": like.new_zeros(width)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": projections}])
    other = StableDiffusionPipeline(**pipe.components | {"unet": unet}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def ways(pipe: ProFusionPipeline, most_steps: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> steps, and what draws a picture."""
    run = Steps(pipe)
    parts = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    plain = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    adapted, width = with_ip_adapter(plain), pipe.unet.config.cross_attention_dim
    photo = torch.zeros(2, 1, width, device=pipe.device, dtype=pipe.unet.dtype)
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    size = {"height": pipe.unet.config.sample_size * pipe.vae_scale_factor}
    size["width"] = size["height"]

    def authors(steps: int) -> None:
        run.of_the_authors(steps)
        with torch.no_grad():
            pipe.vae.decode(run.subject.latents)

    def of_sd(rival: StableDiffusionPipeline, steps: int, **more) -> None:
        rival(PROMPT.replace("S*", "a person"), num_inference_steps=steps, generator=seeded(), **size, **more)

    found = {}
    for name, steps in STEPS.items():
        steps = min(steps, most_steps)
        settings = dict(recipe=name, num_inference_steps=steps, subject=run.subject)
        found[name] = steps, lambda settings=settings: pipe(PROMPT, generator=seeded(), **settings)
        found[f"Stable Diffusion ({name})"] = steps, lambda steps=steps: of_sd(plain, steps)
        found[f"IP-Adapter ({name})"] = (
            steps,
            lambda steps=steps: of_sd(adapted, steps, ip_adapter_image_embeds=[photo]),
        )
    steps = min(STEPS["paper"], most_steps)
    found[AUTHORS] = steps, lambda: authors(steps)
    return found


def count_operators(draw: Callable[[], object], device: str) -> dict[str, int | None]:
    """Operators of torch that a call runs, and kernels that it launches on a GPU."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")) as profiler:
        draw()
    # As they were recorded: torch's own tables of fifty steps take minutes.
    names = [event.name() for event in profiler.profiler.kineto_results.events()]
    launches = sum(name in ("cudaLaunchKernel", "cuLaunchKernel") for name in names)
    operators = sum(name.startswith("aten::") for name in names)
    return {"operators": operators, "kernels": launches if device == "cuda" else None}


def measure(pipe: ProFusionPipeline, *, rounds: int, most_steps: int = 50) -> dict[str, dict]:
    """Figures of each way; seconds are medians over the rounds."""
    device, drawing = pipe.device.type, ways(pipe, most_steps)
    clock = time.process_time if device == "cpu" else time.perf_counter
    figures = {}
    for name, (steps, draw) in drawing.items():  # which also warms up
        with count_calls(pipe) as counts:
            if name.startswith("IP-Adapter"):
                counts["UNet rows"], counts["UNet calls"] = 2 * steps, steps  # its UNet is a copy
            draw()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        figures[name] = {"steps": steps, **{key: counts[key] for key in COUNTED}, **count_operators(draw, device)}
        figures[name]["gib"] = measuring.peak_on_device(device)
    seconds = {name: [] for name in drawing}
    for _ in range(rounds):
        for name, (_, draw) in drawing.items():
            began = clock()
            draw()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - began)
    for name, found in seconds.items():
        figures[name] |= {"seconds": statistics.median(found), "least": min(found), "most": max(found)}
    return figures


def make_rows(figures: dict[str, dict]) -> list[list[str]]:
    """Cells under HEADS."""
    plain = {one["steps"]: one["seconds"] for name, one in figures.items() if name.startswith("Stable Diffusion")}
    rows = []
    for name, one in figures.items():
        seconds = f"{one['seconds']:.3f} ({one['least']:.3f}-{one['most']:.3f})"
        rest = ["-" if one[key] is None else str(one[key]) for key in ("operators", "kernels")]
        peak = "-" if one["gib"] is None else f"{one['gib']:.2f}"
        counts = [str(one[key]) for key in COUNTED]
        rows.append(
            [name, str(one["steps"]), *counts, seconds, f"{one['seconds'] / plain[one['steps']]:.2f}", *rest, peak]
        )
    return rows


def plot(figures: dict[str, dict], path: Path) -> None:
    """Seconds of every way, the fastest first."""
    order = sorted(figures, key=lambda name: -figures[name]["seconds"])
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.subplots()
    colours = ["C0" if name in RECIPES else "C3" if name == AUTHORS else "0.6" for name in order]
    axes.barh(order, [figures[name]["seconds"] for name in order], color=colours)
    axes.set_xlabel("seconds for a picture")
    figure.savefig(path, dpi=120)


def main(
    *,
    size: str = "demo",
    device: str = DEVICE,
    dtype: str = DTYPE,
    rounds: int = 5,
    most_steps: int = 50,
    folder: Path = measuring.RESULTS,
) -> dict:
    """Measures, prints and saves the figures: JSON, CSV and a plot."""
    torch.manual_seed(0)
    if size == "demo":
        pipe = load_demo_pipeline(dtype=DTYPES[dtype], device=device)
    else:
        pipe = build_pipeline(size, dtype=DTYPES[dtype], device=device)
    pipe.set_progress_bar_config(disable=True)
    figures = measure(pipe, rounds=rounds, most_steps=most_steps)
    results = {**measuring.machine(device), "size": size, "dtype": dtype, "rounds": rounds, "ways": figures}
    name = f"against_{size}_{device}"
    measuring.save_results(name, results, folder)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADS, *make_rows(figures)])
    plot(figures, folder / f"{name}.png")
    print(make_table(results))
    return results


def make_table(results: dict) -> str:
    """The figures as Markdown."""
    return f"{measuring.headline(results, 'ways')}\n\n{measuring.table(HEADS, make_rows(results['ways']))}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["demo", *SIZES], default="demo")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=DEVICE)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPE)
    parser.add_argument("--rounds", type=int, default=5)
    words = vars(parser.parse_args())
    main(**words)
    for mark, name in (("against", "against_demo_cpu"), ("against, cuda", "against_sd2_cuda")):
        shown = measuring.load_results(name)
        measuring.write_table(mark, make_table(shown) if shown else "not measured")
