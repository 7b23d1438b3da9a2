"""LoRAs of tiny models as diffusers' example scripts save them, and the same in kohya's format."""

import re
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


def make_xl_lora(seed: int = 5, in_texts: tuple[str, ...] = (), **config) -> dict[str, torch.Tensor]:
    """A LoRA of UNet and both text encoders, as diffusers' pipeline of Stable Diffusion XL saves it."""
    import peft

    donor, state = make_xl_components(with_promptnet=False), {}
    places = {"unet": ["to_k", "to_q"], "text_encoder": ["q_proj", *in_texts], "text_encoder_2": ["v_proj", *in_texts]}
    for name, targets in places.items():
        model = donor[name]
        model.add_adapter(peft.LoraConfig(r=2, target_modules=targets, **config))
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in peft.get_peft_model_state_dict(model).items():
            state[f"{name}.{key}"] = torch.randn(tensor.shape, generator=generator) * 0.3
    return state


def xl_as_kohya(state: dict[str, torch.Tensor], layers_per_block: int) -> dict[str, torch.Tensor]:
    """The same numbers as kohya's scripts write them for XL: the UNet's blocks are numbered as in the original code."""
    starts, tensors = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}, {}

    def original(match: re.Match) -> str:
        place, block, layer = match.group(1), int(match.group(2)), int(match.group(3))
        number = block * (layers_per_block + 1) + layer
        return f"input_blocks_{number + 1}_1" if place == "down" else f"output_blocks_{number}_1"

    for name, tensor in state.items():
        part, layer, factor, _ = re.fullmatch(r"([a-z_0-9]+)\.(.+)\.lora_([AB])\.(weight)", name).groups()
        if part != "unet" and not layer.startswith("text_model"):
            layer = f"text_model.{layer}"
        key = re.sub(r"(down|up)_blocks_(\d)_attentions_(\d)", original, layer.replace(".", "_"))
        key = starts[part] + key.replace("mid_block_attentions_0", "middle_block_1")
        tensors[f"{key}.lora_{'down' if factor == 'A' else 'up'}.weight"] = tensor
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    return tensors
