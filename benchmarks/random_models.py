"""A ProFusionPipeline of any size with random weights: what it draws means nothing, what it costs is real."""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

import profusion_pipeline.demo
from profusion_pipeline import ProFusionPipeline, PromptNet

# Every prompt is padded to one length, so it makes no difference to the cost whose tokenizer it is.
TOKENIZER = Path(profusion_pipeline.demo.__file__).parent / "model" / "tokenizer"
PROMPT_LENGTH = 77
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")

# sd2: Stable Diffusion 2 base at 512 pixels, with OpenCLIP ViT-H's towers.
# medium: a UNet of a sixth of that, at 256 pixels, for comparisons on a CPU.
# tiny: the same classes, for tests.
SIZES = {
    "sd2": {
        "unet": dict(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
        ),
        "vae": dict(sample_size=512, block_out_channels=(128, 256, 512, 512)),
        "text": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
        "vision": dict(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        ),
    },
    "medium": {
        "unet": dict(
            sample_size=32,
            block_out_channels=(128, 256, 512, 512),
            attention_head_dim=(2, 4, 8, 8),
            cross_attention_dim=256,
        ),
        "vae": dict(sample_size=256, block_out_channels=(64, 128, 256, 256)),
        "text": dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=4),
        "vision": dict(
            hidden_size=640,
            intermediate_size=2560,
            num_hidden_layers=12,
            num_attention_heads=10,
            image_size=224,
            patch_size=14,
        ),
    },
    "tiny": {
        "unet": dict(
            sample_size=16,
            block_out_channels=(8, 16, 16, 16),
            attention_head_dim=(2, 4, 4, 4),
            cross_attention_dim=32,
            norm_num_groups=4,
        ),
        "vae": dict(sample_size=128, block_out_channels=(8, 8, 16, 16), norm_num_groups=4),
        "text": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4),
        "vision": dict(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        ),
    },
}


def unet_config(size: str) -> dict:
    """Of a UNet2DConditionModel."""
    return {"down_block_types": DOWN, "up_block_types": UP, "use_linear_projection": True, **SIZES[size]["unet"]}


def vae_config(size: str) -> dict:
    """Of an AutoencoderKL."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return {**blocks, "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215, **SIZES[size]["vae"]}


def text_config(size: str) -> dict:
    """Of a CLIPTextModel."""
    return {"vocab_size": 49408, "max_position_embeddings": PROMPT_LENGTH, "hidden_act": "gelu", **SIZES[size]["text"]}


def vision_config(size: str) -> dict:
    """Of a CLIPVisionModel."""
    return {"hidden_act": "gelu", **SIZES[size]["vision"]}


def build_pipeline(size: str, *, dtype: torch.dtype, device: str) -> ProFusionPipeline:
    """A pipeline of one of SIZES without progress bar; its weights depend on torch's seed."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**unet_config(size))
        models = {
            "unet": unet,
            "vae": AutoencoderKL(**vae_config(size)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_config(size))),
            "image_encoder": CLIPVisionModel(CLIPVisionConfig(**vision_config(size))),
            "promptnet": PromptNet.from_unet(unet, image_embed_dim=vision_config(size)["hidden_size"]),
        }
    for model in models.values():
        fill(model, dtype=dtype, device=device)
    view = vision_config(size)["image_size"]
    pipe = ProFusionPipeline(
        **models,
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=PROMPT_LENGTH),
        scheduler=DDIMScheduler(**SCHEDULER),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": view}, crop_size={"height": view, "width": view}, resample=3
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fill(model: nn.Module, *, dtype: torch.dtype, device: str) -> None:
    """Give a model without memory its memory, and random weights under which activations keep their size."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            module.register_parameter(name, nn.Parameter(draw_(values, name)))
    model.to(device).eval()  # what is no parameter


def draw_(values: torch.Tensor, name: str) -> torch.Tensor:
    """Matrices and kernels uniform with variance 1 / fan-in, scales of norms 1, biases 0; in place."""
    if values.ndim < 2:
        return values.fill_(float(name.endswith("weight")))
    bound = (3 / values[0].numel()) ** 0.5
    return values.uniform_(-bound, bound)
