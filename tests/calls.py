"""Calls of a tiny pipeline, what they make, what they need, and the work that they take."""

import numpy as np
import pytest
import torch
from diffusers.utils.import_utils import compare_versions
from PIL import Image

from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from tiny import make_components

PROMPT = "a photo of S* on the beach"

needs_group_offloading = pytest.mark.skipif(
    compare_versions("diffusers", "<", "0.41") and torch.accelerator.current_accelerator() is None,
    reason="before diffusers 0.41 group off-loading needs an accelerator, even from CPU to CPU",
)


def picture(seed=0, size=(20, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents_of(pipe, prompt=PROMPT, **settings):
    defaults = dict(num_inference_steps=3, output_type="latent", generator=seeded(), class_noun="person")
    return pipe(prompt, **defaults | settings).images


def build(**overrides):
    pipe = ProFusionPipeline(**make_components(**overrides))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def relative(tensor, expected):
    """The largest difference, by the largest value."""
    return ((tensor - expected).abs().max() / expected.abs().max()).item()


# What `relative` may be of float32 results from batches of other shapes: sums are taken in another order there.
CLOSE = 1e-5


def rounding(dtype: torch.dtype) -> float:
    """The relative error to expect of a result in `dtype`: 8 eps.

    On its way a number is rounded some hundred times by eps/2 at most. Such errors are independent and add up to about
    3 eps; a loss, being a square, has twice that.
    """
    return 8 * torch.finfo(dtype).eps


def freeze(pipe) -> None:
    """Weights that can't learn, as PEFT leaves them: torch multiplies by weights that can learn in another order."""
    for name in ("unet", "text_encoder", "promptnet"):
        getattr(pipe, name).requires_grad_(False)


def count_work(pipe):
    counts = dict(unet_calls=0, unet_rows=0, promptnet_calls=0, promptnet_rows=0, text_sequences=0)

    def count(calls, rows):
        def hook(module, args, kwargs):
            first = args[0] if args else next(iter(kwargs.values()))
            if calls:
                counts[calls] += 1
            counts[rows] += len(first)

        return hook

    pipe.unet.register_forward_pre_hook(count("unet_calls", "unet_rows"), with_kwargs=True)
    if pipe.promptnet is not None:
        pipe.promptnet.register_forward_pre_hook(count("promptnet_calls", "promptnet_rows"), with_kwargs=True)
    pipe.text_encoder.register_forward_pre_hook(count(None, "text_sequences"), with_kwargs=True)
    return counts
