"""Converting the authors' layout at the size of Stable Diffusion 2: `python benchmarks/convert_full_size.py`.

Makes one with random weights under the old names in a temporary folder (5 GB in float16, 10 GB in float32, and 9 GB for
what comes out), converts it, loads the result and compares weights. Each of the three in a process of its own.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import measuring
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from full_size import DTYPES
from random_models import SCHEDULER, SIZES, TOKENIZER, draw_, text_config, unet_config, vae_config, vision_config
from torch import nn
from transformers import CLIPConfig, CLIPModel

from profusion_pipeline import ProFusionPipeline, PromptNet, convert_checkpoint

DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.bin", "pytorch_model.bin"
OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def make_layout(folder: Path, *, size: str, dtype: torch.dtype) -> None:
    """A checkpoint as the authors' code wrote it, with random weights."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**unet_config(size))
        vae = AutoencoderKL(**vae_config(size))
        promptnet = PromptNet.from_unet(unet, image_embed_dim=vision_config(size)["hidden_size"])
        text = text_config(size) | {"num_hidden_layers": text_config(size)["num_hidden_layers"] + 1}
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config(size), projection_dim=64))

    def write(part: str, file: str, shapes: dict[str, torch.Size], config: dict) -> None:
        (folder / part).mkdir(parents=True)
        weights = {name: draw_(torch.empty(shape, dtype=dtype), name) for name, shape in shapes.items()}
        torch.save(weights, folder / part / file)
        (folder / part / "config.json").write_text(json.dumps(config))

    write("unet", DIFFUSERS_WEIGHTS, shapes_of(unet), {"_class_name": "UNet2DConditionModel", **unet_config(size)})
    old_names = {old_name(name): shape for name, shape in shapes_of(vae).items()}
    write("vae", DIFFUSERS_WEIGHTS, old_names, {"_class_name": "AutoencoderKL", **vae_config(size)})
    config = {
        **unet_config(size),
        "_class_name": "PromptNetModel",
        "prompt_channel": promptnet.config.text_embed_dim,
        "region_kernel_size": promptnet.config.region_kernel_size,
        "region_proj_channel": promptnet.config.region_proj_channel,
        "res_block_out_channels": promptnet.config.block_out_channels,
        "with_noise": True,
        "use_clip_vision_embeds": True,
        "use_res": True,
    }
    write("promptnet", DIFFUSERS_WEIGHTS, shapes_of(promptnet) | residual_heads(promptnet), config)
    write("openclip", TRANSFORMERS_WEIGHTS, shapes_of(clip), clip.config.to_dict())
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, **SCHEDULER}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPromptNetPipeline"}))


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Of every weight, by name."""
    return {name: weight.shape for name, weight in model.state_dict().items()}


def old_name(name: str) -> str:
    """What diffusers of early 2023 called a weight of the autoencoder."""
    for new, old in OLD_ATTENTION_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def residual_heads(promptnet: PromptNet) -> dict[str, tuple[int, ...]]:
    """Weights that the authors' PromptNet has for every skip connection and the mid block, though nothing uses them."""
    widths, layers = promptnet.config.block_out_channels, promptnet.config.layers_per_block
    skips = [widths[0], *(width for width in widths for _ in range(layers + 1))][:-1]  # the last block halves nothing
    shapes = {}
    for first, second, width in [
        *((f"residual_projections.{i}", f"residual_projections_2.{i}", width) for i, width in enumerate(skips)),
        ("mid_residual_projection", "mid_residual_projection_2", widths[-1]),
    ]:
        shapes[f"{first}.weight"] = shapes[f"{second}.weight"] = (width, width, 1, 1)
        shapes[f"{first}.bias"] = (width,)
    return shapes


def convert(source: Path, target: Path) -> dict[str, float]:
    """Seconds and peak of the conversion alone."""
    began = time.perf_counter()
    convert_checkpoint(source, target)
    return {"seconds": time.perf_counter() - began, "gib_resident": measuring.peak_resident()}


def load(source: Path, target: Path) -> dict[str, float]:
    """Seconds and peak of loading the result, and how many of its weights are, to the bit, those of the source."""
    began = time.perf_counter()
    pipe = ProFusionPipeline.from_pretrained(target)
    results = {"seconds": time.perf_counter() - began, "gib_resident": measuring.peak_resident()}
    equal = 0
    for part in ("unet", "promptnet"):
        theirs = torch.load(source / part / DIFFUSERS_WEIGHTS, weights_only=True, mmap=True)
        ours = getattr(pipe, part).state_dict()
        different = [name for name in ours if not torch.equal(ours[name], theirs[name].float())]
        if different:
            raise AssertionError(f"{part} has other weights than its source: {different[:3]} ...")
        equal += len(ours)
    return {**results, "equal_weights": equal}


def main(*, size: str = "sd2", dtypes: list[str] | None = None, folder: Path = measuring.RESULTS) -> dict[str, dict]:
    """Runs the three for each dtype; prints and saves the figures."""
    results = {**measuring.machine("cpu"), "size": size, "conversions": {}}
    for dtype in dtypes or ["float16", "float32"]:
        with tempfile.TemporaryDirectory() as scratch:
            source, target = Path(scratch, "source"), Path(scratch, "target")
            alone = ("--size", size, "--dtypes", dtype, "--source", source, "--target", target, "--phase")
            phases = {phase: measuring.run_alone("convert_full_size.py", *alone, phase) for phase in PHASES}
            sizes = {f"gib_of_{path.name}": folder_size(path) for path in (source, target)}
        results["conversions"][dtype] = phases | sizes
        print(f"{dtype}: {results['conversions'][dtype]}", flush=True)
    measuring.save_results(f"convert_{size}", results, folder)
    return results


def folder_size(folder: Path) -> float:
    """Of all files in it, in GiB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / measuring.GIB


def make_table(results: dict) -> str:
    """The figures as Markdown."""
    heads = [
        "source",
        "source, GiB",
        "target, GiB",
        "converting, s",
        "peak resident, GiB",
        "loading, s",
        "peak resident, GiB",
    ]
    rows = []
    for dtype, figures in results["conversions"].items():
        phases = [figures[phase][key] for phase in ("convert", "load") for key in ("seconds", "gib_resident")]
        numbers = [figures["gib_of_source"], figures["gib_of_target"], *phases]
        rows.append([dtype, *(f"{number:.1f}" for number in numbers)])
    return f"{measuring.headline(results, 'conversions')}\n\n{measuring.table(heads, rows)}"


PHASES = ("make", "convert", "load")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="sd2")
    parser.add_argument("--dtypes", nargs="+", choices=("float16", "float32"), help="of the source; both if not given")
    parser.add_argument("--phase", choices=PHASES, help="do this alone, here, and print it as JSON")
    parser.add_argument("--source", type=Path, help="with --phase: the checkpoint")
    parser.add_argument("--target", type=Path, help="with --phase: what it becomes")
    given = parser.parse_args()
    if given.phase == "make":
        make_layout(given.source, size=given.size, dtype=DTYPES[given.dtypes[0]])
        print(json.dumps({}))
    elif given.phase:
        print(json.dumps({"convert": convert, "load": load}[given.phase](given.source, given.target)))
    else:
        main(size=given.size, dtypes=given.dtypes)
        shown = measuring.load_results("convert_sd2")
        measuring.write_table("convert", make_table(shown) if shown else "not measured")
