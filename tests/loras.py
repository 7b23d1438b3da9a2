"""LoRAs of tiny models as diffusers' example scripts save them, and the same in kohya's format."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tiny import make_components
from tiny_xl import make_xl_components

PLACES = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}
FILE = "pytorch_lora_weights.safetensors"


def write_lora(folder: Path, seed: int = 0, *, rank: int = 2, parts=("unet", "text_encoder"), places=PLACES, **config):
    """As `train_dreambooth_lora.py` ends: adapters of PEFT on the models, then `save_lora_weights`."""
    from peft import LoraConfig, get_peft_model_state_dict

    layers = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in parts:
            model = make_components()[part]
            model.requires_grad_(False)
            model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=places[part], **config))
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:  # starts as zeros and would be learnt now
                    torch.nn.init.normal_(parameter, std=0.5)
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
    StableDiffusionPipeline.save_lora_weights(folder, **layers)
    return folder / FILE


def write_kohya(folder: Path, source: Path) -> Path:
    """The same numbers under the names of kohya's scripts, each layer with its alpha."""
    tensors = {}
    for name, tensor in load_file(source).items():
        layer, factor = name.split(".lora_")
        part, layer = layer.split(".", 1)
        layer = layer.removesuffix(".lora_linear_layer")
        start = (
            "lora_unet_" if part == "unet" else "lora_te_" + ("" if layer.startswith("text_model") else "text_model_")
        )
        key = start + layer.replace(".", "_")
        down = factor in ("A.weight", "down.weight")
        tensors[f"{key}.lora_{'down' if down else 'up'}.weight"] = tensor
        if down:
            tensors[f"{key}.alpha"] = torch.tensor(float(len(tensor)))
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def make_xl_lora(seed: int = 5) -> dict[str, torch.Tensor]:
    """A LoRA of UNet and both text encoders, as diffusers' pipeline of Stable Diffusion XL saves it."""
    import peft

    donor, state = make_xl_components(with_promptnet=False), {}
    for name, targets in (("unet", ["to_k", "to_q"]), ("text_encoder", ["q_proj"]), ("text_encoder_2", ["v_proj"])):
        model = donor[name]
        model.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in peft.get_peft_model_state_dict(model).items():
            state[f"{name}.{key}"] = torch.randn(tensor.shape, generator=generator) * 0.3
    return state
