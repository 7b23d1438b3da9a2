"""Tiny real components of Stable Diffusion XL: two text encoders, a UNet that reads sizes; seeded."""

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from profusion_pipeline.method.modeling_promptnet import PromptNet
from tiny import PICTURE_SIDE, TEXT_WIDTH, make_components, make_scheduler, make_tokenizer, make_unet

SECOND_WIDTH, PROJECTION = 16, 20


def make_text_encoder(cls, tokenizer, width: int, **overrides):
    settings = dict(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(CLIPTextConfig(**settings | overrides)).eval()


def make_xl_components(seed: int = 0, with_promptnet: bool = True, **overrides) -> dict:
    """All components of a ProFusionXLPipeline, by name; `overrides` puts others in their place."""
    tokenizer, tokenizer_2 = make_tokenizer(), make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token  # as XL's first, whose second pads with "!"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = make_unet(
            cross_attention_dim=TEXT_WIDTH + SECOND_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + PROJECTION,
            transformer_layers_per_block=(1, 2),
        ).eval()
        vae = AutoencoderKL(
            sample_size=PICTURE_SIDE,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=4,
            force_upcast=True,
            scaling_factor=0.13025,
        ).eval()
        text_encoder = make_text_encoder(CLIPTextModel, tokenizer, TEXT_WIDTH)
        text_encoder_2 = make_text_encoder(CLIPTextModelWithProjection, tokenizer_2, SECOND_WIDTH)
        promptnet = PromptNet.from_unet(unet, image_embed_dim=24, region_proj_channel=8).eval()
    photos = make_components(seed)
    components = dict(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=make_scheduler(),
        promptnet=promptnet if with_promptnet else None,
        image_encoder=photos["image_encoder"],
        feature_extractor=photos["feature_extractor"],
        controlnet=None,
    )
    assert overrides.keys() <= components.keys()
    return components | overrides
