"""What the tests of the compared systems share: pre-trained rivals at tiny size, quick settings, pictures as arrays."""

from pathlib import Path

import numpy as np
import torch
from transformers import CLIPImageProcessor

from concepts import photo, tiny_pipeline
from profusion_pipeline.evaluation.systems.pretraining import pretraining_e4t
from profusion_pipeline.evaluation.systems.system import Sampling
from profusion_pipeline.training.batches import CachedPictures, Encoders, Preprocessing
from profusion_pipeline.training.data import read_picture_folder
from tiny import make_components
from training import write_portraits

# Large steps, so that a few of them can be told from none; the class noun has an article, which some systems keep.
QUICK = dict(class_noun="a man", prompt="a photo of S*", steps=2, batch_size=2, pool_size=2, learning_rate=0.05)
PROMPTS = ["a photo of S*", "S* on the beach"]
SHORT = Sampling(num_inference_steps=2)


def listening_pipeline():
    """A tiny pipeline whose UNet listens to the text, as a trained one does."""
    pipe = tiny_pipeline()
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "attn2" in name or "conv_out" in name:
                parameter.mul_(4)
    return pipe


def cached_portraits(folder: Path, pipe) -> CachedPictures:
    pictures = read_picture_folder(str(write_portraits(folder)), reference="same")
    processor = CLIPImageProcessor.from_dict(pipe.feature_extractor.to_dict())
    return CachedPictures(pictures, Preprocessing(16, processor), Encoders(pipe.vae, pipe.image_encoder), seed=0)


def write_rivals(folder: Path) -> Path:
    """Untrained, but of the right shapes: two PromptNets of other seeds, E4T's encoder and offsets."""
    for seed, name in ((1, "plain"), (2, "l2")):
        make_components(seed)["promptnet"].save_pretrained(folder / name)
    pipe, pictures = tiny_pipeline(), folder / "pictures"
    pictures.mkdir()
    source = cached_portraits(pictures, pipe)
    with pretraining_e4t(pipe, source, class_noun="a man", rank=2, region_proj_channel=8) as objective:
        objective.save_pretrained(folder / "e4t")
    return folder


def pictures(system, pipe, learnt, config, sampling=SHORT, prompts=PROMPTS) -> np.ndarray:
    """Drawn from noise that is always the same. [P, H, W, 3]"""
    with system.drawing(pipe, photo(), learnt, config) as draw:
        images = draw(prompts, [torch.Generator().manual_seed(i) for i in range(len(prompts))], sampling)
    return np.stack([np.asarray(image) for image in images])
