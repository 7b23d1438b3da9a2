"""What the tests of customising share: a photo, a tiny pipeline, quick settings, and everything that may not change."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.customization.customize import customize
from profusion_pipeline.method.concept_file import Concept
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from tiny import make_components

# Large steps, so that a few of them can be told from none.
QUICK = CustomizeConfig(class_noun="man", steps=3, pool_size=3, batch_size=2, learning_rate=0.02)
PROMPTS = ["a photo of S*", "S* on the beach"]


def photo(side: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def tiny_pipeline(**overrides) -> ProFusionPipeline:
    pipe = ProFusionPipeline(**make_components(**overrides))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def learn() -> dict[str, Concept]:
    """Concepts made for the tiny pipeline of seed 0: two in lora mode, one in full mode."""
    ada = customize(tiny_pipeline(), photo(), QUICK)
    bob = customize(tiny_pipeline(), photo(24), QUICK, class_noun="dog", seed=1, rank=2)
    return {"ada": ada, "bob": bob, "full": customize(tiny_pipeline(), photo(), QUICK, mode="full", learning_rate=0.01)}


def sample(pipe: ProFusionPipeline, prompt=PROMPTS, **settings) -> torch.Tensor:
    """Latents from noise that is always the same, all of them by the concept if there is one."""
    given = dict(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="latent")
    given |= dict(base_guidance=False)
    return pipe(prompt, **given | settings).images


def everything(pipe: ProFusionPipeline) -> dict:
    """What customising must leave as it was: the models' layers, weights, and how they are set."""
    state = {}
    for component in ("vae", "text_encoder", "text_encoder_2", "unet", "promptnet", "image_encoder"):
        if not hasattr(pipe, component):
            continue
        model = getattr(pipe, component)
        state |= {f"{component}.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
        state |= {f"{component}.{name} learns": p.requires_grad for name, p in model.named_parameters()}
        state |= {f"{component}.{name} grad": p.grad for name, p in model.named_parameters()}
        state[f"{component} layers"] = [(name, type(layer)) for name, layer in model.named_modules()]
        state[f"{component} training"] = [layer.training for layer in model.modules()]
        if component in ("unet", "promptnet"):
            state[f"{component} checkpointing"] = model.is_gradient_checkpointing
        state[f"{component} device"] = model.device
    return state


def assert_same(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        assert same, name


def merged(pipe: ProFusionPipeline, concept, scale: float = 1.0) -> ProFusionPipeline:
    """The same pipeline with the concept's changes added to its weights by hand."""
    with torch.no_grad():
        for component in ("unet", "promptnet"):
            weights, changes = dict(getattr(pipe, component).named_parameters()), concept.changes_of(component)
            for name, change in changes.items():
                if name.endswith("lora_A.weight"):
                    layer = name.removesuffix(".lora_A.weight")
                    delta = changes[f"{layer}.lora_B.weight"].float() @ change.float()
                    weights[f"{layer}.weight"] += scale * delta
                elif not name.endswith("lora_B.weight"):
                    weights[name] += scale * change.float()
    return pipe


def write_photo(folder: Path) -> Path:
    photo().save(folder / "me.png")
    return folder / "me.png"
