"""Tiny real components: the classes of Stable Diffusion 2, a few thousand parameters, seeded, built in a blink."""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from profusion_pipeline.method.modeling_promptnet import PromptNet

# Long words first: merges apply in order, and "on" would break up "person".
WORDS = "portrait smiling person style photo beach woman blue the and man dog hat red of in on a".split()
TEXT_WIDTH = 32
LATENT_SIDE = 8
PICTURE_SIDE = 16  # the autoencoder halves the picture


def make_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer of 26 letters, ten digits and some signs, with a few whole words as merges; 77 places."""
    signs = [chr(i) for i in range(33, 127)]
    vocabulary = signs + [sign + "</w>" for sign in signs]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    vocabulary = list(dict.fromkeys(vocabulary)) + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        merges_file.write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
        Path(folder, "tokenizer_config.json").write_text(
            json.dumps({"model_max_length": 77, "pad_token": "!", "tokenizer_class": "CLIPTokenizer"})
        )
        return CLIPTokenizer.from_pretrained(folder)


def make_unet(**overrides) -> UNet2DConditionModel:
    """Two blocks, 8 x 8 latents of four channels; draws from torch's global generator."""
    settings = dict(
        sample_size=LATENT_SIDE,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    return UNet2DConditionModel(**settings | overrides)


def make_controlnet(unet: UNet2DConditionModel, seed: int = 0, **overrides) -> ControlNetModel:
    """Of that UNet's kind, with something to say: a new one's last layers are zeros."""
    made_with = dict(conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False)
    made_with |= {name: overrides.pop(name) for name in made_with.keys() & overrides.keys()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(unet, **made_with)
        controlnet.register_to_config(**overrides)
        for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            torch.nn.init.normal_(layer.weight, std=0.1)
        torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.1)
    return controlnet.eval()


def make_scheduler(**overrides) -> DDIMScheduler:
    """DDIM with the noise schedule of Stable Diffusion 2."""
    settings = dict(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return DDIMScheduler(**settings | overrides)


def make_components(seed: int = 0, **overrides) -> dict:
    """All components of a ProFusionPipeline, by name; `overrides` puts others in their place.

    The parameters depend on `seed` alone. torch's global generator is left as it was.
    """
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = make_unet()
        vae = AutoencoderKL(
            sample_size=PICTURE_SIDE,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        image_encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=24,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            )
        )
        promptnet = PromptNet.from_unet(unet, image_embed_dim=24, region_proj_channel=8)
    components = dict(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=make_scheduler(),
        promptnet=promptnet.eval(),
        image_encoder=image_encoder.eval(),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, resample=3
        ),
        safety_checker=None,
        controlnet=None,
    )
    unknown = set(overrides) - set(components)
    if unknown:
        raise TypeError(f"There is no component {sorted(unknown)}.")
    return components | overrides
