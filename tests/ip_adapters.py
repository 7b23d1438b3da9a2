"""IP-Adapters of tiny models with random weights, as `load_ip_adapter` takes them, and towers that they read."""

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

IMAGE_WIDTH = 12


def make_tower() -> CLIPVisionModelWithProjection:
    """Reads what tiny PromptNets read, and has an embedding of pictures."""
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, patch_size=4, projection_dim=IMAGE_WIDTH)).eval()


def make_ip_adapter(unet, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """A state dict for a UNet."""
    generator, width = torch.Generator().manual_seed(seed), unet.config.cross_attention_dim
    layers, adapter = dict(unet.named_modules()), {}
    for number, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            layer = layers[name.removesuffix(".processor")]
            for part in "kv":
                shape = getattr(layer, f"to_{part}").weight.shape
                adapter[f"{number}.to_{part}_ip.weight"] = torch.randn(shape, generator=generator) / 4
    projection = {
        "proj.weight": torch.randn(4 * width, IMAGE_WIDTH, generator=generator),
        "proj.bias": torch.randn(4 * width, generator=generator),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": adapter}


def load_ip_adapter(pipe, **how) -> None:
    """As a user does, but from numbers in memory."""
    pipe.load_ip_adapter(make_ip_adapter(pipe.unet, **how), subfolder="", weight_name="ip_adapter.safetensors")
