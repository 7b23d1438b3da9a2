"""Make the whole demo model from nothing: `make train-demo`.

Each stage is a script beside this one, run in as many processes as there are cores (or GPUs). A stage that is done is
passed over, one that was interrupted goes on from its checkpoint, so run this again after a stop. In the end the
pipeline stands in `src/profusion_pipeline/demo/model`, a few portraits of test people beside it, and what `score.py`
needs in `scorer/`.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from attributes import AttributeReader
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from score import SCORER, reference_portrait
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModel
from world import Renderer

from profusion_pipeline import ProFusionPipeline, PromptNet
from profusion_pipeline.demo import FOLDER
from profusion_pipeline.method.repository import mend_components

# The words of each stage -> what it leaves behind when it is done.
STAGES = {
    "train_autoencoder": "vae",
    "train_clip": "feature_extractor",
    "attributes": "reader",
    "train_unet": "scheduler",
    "train_promptnet": "promptnet_training/promptnet",
    "train_promptnet --captions": "promptnet_captions/promptnet",
}
# Test people whose portraits are bundled: chosen to look different from each other, not for how well they come out.
PORTRAIT_SEEDS = (2, 11, 14, 28)


def run_stage(stage: str, work: Path, number_of_processes: int, batch_size: int | None) -> None:
    name, *flags = stage.split()
    script = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={number_of_processes}", str(script)]
    if batch_size and name.startswith("train_"):
        command += ["--batch-size", str(batch_size)]
    if flags:  # it goes on from what the stages before it made
        assemble(work, work / "before_captions", STAGES[name])
        command += [*flags, "--model", str(work / "before_captions")]
    subprocess.run(
        [*command, "--work", str(work)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": str(not torch.cuda.is_available())},
    )


def assemble(work: Path, target: Path, promptnet: str) -> None:
    """The trained parts as one pipeline folder, float16; `promptnet` is what a stage left behind."""
    text_encoder = CLIPTextModel.from_pretrained(work / "text_encoder")
    pipe = ProFusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=DDIMScheduler.from_pretrained(work / "scheduler"),
        promptnet=PromptNet.from_pretrained(work / promptnet),
        image_encoder=CLIPVisionModel.from_pretrained(work / "image_encoder"),
        feature_extractor=CLIPImageProcessor.from_pretrained(work / "feature_extractor"),
        safety_checker=None,
        requires_safety_checker=False,
    )
    # diffusers' own saving: the package is this folder's code, a copy of it here would grow old.
    DiffusionPipeline.save_pretrained(pipe.to(torch.float16), target)
    mend_components(target)


def forget_paths(folder: Path) -> None:
    """Take out of every config where on this machine its model was loaded from: diffusers writes that down."""
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")


def save_scorer(work: Path, target: Path) -> None:
    """What scores need beside the pipeline: the attribute reader and CLIP's two projections, float16."""
    AttributeReader.from_pretrained(work / "reader").half().save_pretrained(target / "reader")
    clip = CLIPModel.from_pretrained(work / "clip")
    projections = {name: getattr(clip, name).weight.half() for name in ("text_projection", "visual_projection")}
    save_file(projections, FOLDER / "clip_projections.safetensors")


def main(work: Path, processes: int, batch_size: int | None = None) -> None:
    for stage, product in STAGES.items():
        if not (work / product).exists():
            print(f"--- {stage}", flush=True)
            run_stage(stage, work, processes, batch_size)
    assemble(work, FOLDER / "model", product)
    save_scorer(work, SCORER)
    forget_paths(SCORER)
    (FOLDER / "portraits").mkdir(exist_ok=True)
    render = Renderer()
    for seed in PORTRAIT_SEEDS:
        Image.fromarray(render(reference_portrait(seed, "test"))).save(FOLDER / "portraits" / f"person_{seed:02d}.png")


if __name__ == "__main__":
    available = torch.cuda.device_count() or os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--processes", type=int, default=available, help="one a core or GPU")
    parser.add_argument("--batch-size", type=int, help="pictures a step and process; larger on a GPU")
    main(**vars(parser.parse_args()))
