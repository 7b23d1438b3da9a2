"""What a step costs with and without the fusion stage, side by side in one process: `python benchmarks/step_costs.py`.

The rows are counted, not declared. "The authors' rows" is their step at m = 1 with our models: two passes, each with
PromptNet, three texts one by one, and three UNet rows, because their code encodes ∅ and C anew every time and also
predicts C while mixing, where nothing reads it.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import measuring
import torch
from full_size import DEVICE, DTYPE, DTYPES, PROMPT
from random_models import SIZES, build_pipeline

from profusion_pipeline import ProFusionPipeline, demo_portraits
from profusion_pipeline.method.subject_prompt import encode_subject_prompts, tokenize_subject_prompts

COUNTED = ("UNet rows", "UNet calls", "PromptNet rows", "texts")
# What the pipeline is called with.
VARIANTS = {
    "guidance on S* alone": {"class_guidance_scale": 0.0, "num_fusion_steps": 0},
    "Mixed (m = 0)": {"num_fusion_steps": 0},
    "Fusion Sampling, m = 1": {"num_fusion_steps": 1},
    "Fusion Sampling, m = 2": {"num_fusion_steps": 2},
}
AUTHORS = "the authors' rows, m = 1"


@contextmanager
def count_calls(pipe: ProFusionPipeline) -> Iterator[Counter]:
    """Counts inside the block what the models are asked for, by the names in COUNTED."""
    counts = Counter()

    def count(rows: str, calls: str):
        def hook(_, arguments):
            counts[rows] += len(arguments[0])
            counts[calls] += 1

        return hook

    hooks = [
        pipe.unet.register_forward_pre_hook(count("UNet rows", "UNet calls")),
        pipe.promptnet.register_forward_pre_hook(count("PromptNet rows", "PromptNet calls")),
        pipe.text_encoder.register_forward_pre_hook(count("texts", "text calls")),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


class Steps:
    """Steps of every variant with one pipeline and one subject."""

    def __init__(self, pipe: ProFusionPipeline):
        self.pipe, self.subject = pipe, pipe.encode_subject(demo_portraits()[0])
        # On a CPU the process's own time, of all its threads: it is the same whatever else the machine does.
        self.clock = time.process_time if pipe.device.type == "cpu" else time.perf_counter

    def of_the_pipeline(self, settings: dict, steps: int) -> list[tuple[float, Counter]]:
        """Seconds and counts of each step but the first, which also encodes the texts of the call."""
        ends, pipe = [], self.pipe
        with count_calls(pipe) as counts:

            def note(_, index, timestep, tensors):  # comes after a look at the latents, so the device is done
                ends.append((self.clock(), Counter(counts)))
                return tensors

            pipe(
                PROMPT,
                subject=self.subject,
                num_inference_steps=steps + 1,
                output_type="latent",
                generator=torch.Generator().manual_seed(0),
                callback_on_step_end=note,
                **settings,
            )
        return [(then[0] - now[0], then[1] - now[1]) for now, then in zip(ends[:-1], ends[1:], strict=True)]

    @torch.no_grad()
    def of_the_authors(self, steps: int) -> list[tuple[float, Counter]]:
        """Seconds and counts of each step."""
        pipe, latents, t = self.pipe, self.subject.latents, 500
        ids, positions = tokenize_subject_prompts(
            pipe.tokenizer, [PROMPT], placeholder=pipe.config.placeholder, num_subject_tokens=1
        )
        ids, positions = ids.to(latents.device), positions.to(latents.device)
        results = []
        for _ in range(steps):
            with count_calls(pipe) as counts:
                began = self.clock()
                for _ in range(2):  # mixing, and the step
                    words = pipe.promptnet(latents, t, self.subject.image_states, latents).prompt_embeds
                    states = [pipe.text_encoder(ids).last_hidden_state for _ in range(2)]
                    states.append(encode_subject_prompts(pipe.text_encoder, ids, positions, words))
                    output = pipe.unet(latents.repeat(3, 1, 1, 1), t, encoder_hidden_states=torch.cat(states)).sample
                assert output.isfinite().all()  # waits for the device, as the pipeline does
                results.append((self.clock() - began, counts))
        return results


def measure(pipe: ProFusionPipeline, *, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and counts per step of every variant, medians over all steps; variants take turns."""
    run = Steps(pipe)
    run.of_the_authors(1)  # warm up
    samples = {name: [] for name in (*VARIANTS, AUTHORS)}
    for _ in range(rounds):
        for name, settings in VARIANTS.items():
            samples[name] += run.of_the_pipeline(settings, steps)
        samples[AUTHORS] += run.of_the_authors(steps)
    results = {}
    for name, pairs in samples.items():
        seconds = [second for second, _ in pairs]
        (counts,) = {tuple(counts[key] for key in COUNTED) for _, counts in pairs}  # the same at every step
        results[name] = {
            **dict(zip(COUNTED, counts, strict=True)),
            "seconds": statistics.median(seconds),
            "least": min(seconds),
            "most": max(seconds),
        }
    return results


def make_table(results: dict) -> str:
    """The figures as Markdown."""
    base = results["variants"]["Fusion Sampling, m = 1"]["seconds"]
    rows = [
        [name, *(figures[key] for key in COUNTED)]
        + [f"{figures['seconds']:.3f} ({figures['least']:.3f}-{figures['most']:.3f})"]
        + [f"{figures['seconds'] / base:.2f}"]
        for name, figures in results["variants"].items()
    ]
    heads = ["a step of", *COUNTED, "s / step, median (range)", "relative"]
    return f"{measuring.headline(results, 'variants')}\n\n{measuring.table(heads, rows)}"


def main(
    *,
    size: str = "medium",
    device: str = DEVICE,
    dtype: str = DTYPE,
    steps: int = 4,
    rounds: int = 3,
    folder: Path = measuring.RESULTS,
) -> dict:
    """Measures, prints and saves the figures."""
    torch.manual_seed(0)
    pipe = build_pipeline(size, dtype=DTYPES[dtype], device=device)
    variants = measure(pipe, steps=steps, rounds=rounds)
    results = {**measuring.machine(device), "size": size, "dtype": dtype, "variants": variants}
    measuring.save_results(f"step_costs_{size}_{device}", results, folder)
    print(make_table(results))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=DEVICE)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPE)
    parser.add_argument("--steps", type=int, default=4, help="that are timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    main(**vars(parser.parse_args()))
    for mark, name in (("step costs", "step_costs_medium_cpu"), ("step costs, cuda", "step_costs_sd2_cuda")):
        shown = measuring.load_results(name)
        measuring.write_table(mark, make_table(shown) if shown else "not measured")
