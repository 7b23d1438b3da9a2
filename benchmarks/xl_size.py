"""Stable Diffusion XL's real shapes, random weights: a picture and a gradient, `python benchmarks/xl_size.py`.

It shows that UNet, both text encoders, VAE and a PromptNet of that size fit together, and what they take. The latents
are small, 32 x 32, so seconds say little about 1024 x 1024 pixels; the weights' memory is that of any picture.
"""

import argparse
import json
import time

import measuring
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from random_models import PROMPT_LENGTH, SCHEDULER, TOKENIZER, fill
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from profusion_pipeline import ProFusionXLPipeline, PromptNet, SubjectEmbedding
from profusion_pipeline.method.text_encoders import tokenize_prompts
from profusion_pipeline.method.xl_conditions import whole_picture
from profusion_pipeline.training.losses import promptnet_loss

CELLS, VISION = 32, 1280  # side of the latents; width of OpenCLIP ViT-H's states
TEXT = dict(vocab_size=49408, max_position_embeddings=PROMPT_LENGTH, bos_token_id=49406, eos_token_id=49407)

# xl: Stable Diffusion XL base 1.0. tiny: the same classes, for tests.
SIZES = {
    "xl": {
        "unet": dict(block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
                     transformer_layers_per_block=(1, 2, 10), addition_time_embed_dim=256, sample_size=128,
                     projection_class_embeddings_input_dim=2816),
        "vae": dict(block_out_channels=(128, 256, 512, 512), sample_size=1024),
        "first": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
        "second": dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
                       projection_dim=1280),
    },
    "tiny": {
        "unet": dict(block_out_channels=(8, 16, 16), attention_head_dim=(2, 4, 4), cross_attention_dim=48,
                     transformer_layers_per_block=(1, 1, 2), addition_time_embed_dim=4, sample_size=32,
                     projection_class_embeddings_input_dim=44, norm_num_groups=4),
        "vae": dict(block_out_channels=(8, 8, 8, 8), sample_size=128, norm_num_groups=4),
        "first": dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
        "second": dict(hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                       projection_dim=20),
    },
}  # fmt: skip


def build_pipeline(size: str, *, dtype: torch.dtype, device: str) -> ProFusionXLPipeline:
    """A pipeline of one of SIZES without a vision tower; its weights depend on torch's seed."""
    of = SIZES[size]
    with init_empty_weights():
        unet = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            **of["unet"],
        )
        blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
        models = {
            "unet": unet,
            "vae": AutoencoderKL(**blocks, layers_per_block=2, latent_channels=4, scaling_factor=0.13025, **of["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, **of["first"])),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, **of["second"])),
            "promptnet": PromptNet.from_unet(unet, image_embed_dim=VISION, region_kernel_size=CELLS // 8),
        }
    for model in models.values():
        fill(model, dtype=dtype, device=device)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=PROMPT_LENGTH)
    both = dict(tokenizer=tokenizer, tokenizer_2=tokenizer)
    pipe = ProFusionXLPipeline(**models, **both, scheduler=DDIMScheduler(**SCHEDULER), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(size: str, dtype: torch.dtype, device: str) -> dict:
    """Parameters, seconds and memory of a step of drawing, and of a gradient for PromptNet's last layer."""
    torch.manual_seed(0)
    pipe = build_pipeline(size, dtype=dtype, device=device)
    named = {name: one for name, one in pipe.components.items() if isinstance(one, torch.nn.Module)}
    found = {"parameters_millions": {name: round(one.num_parameters() / 1e6, 1) for name, one in named.items()}}
    found["weights_gib"] = measuring.peak_resident()
    latents = torch.randn(1, 4, CELLS, CELLS, dtype=dtype, device=device)
    states = torch.randn(1, 257, VISION, dtype=dtype, device=device)
    subject = SubjectEmbedding(latents, states, torch.ones(1).double())
    started = time.perf_counter()
    side = CELLS * pipe.vae_scale_factor
    pipe("a photo of S* as an astronaut", subject=subject, num_inference_steps=1, num_fusion_steps=0, height=side,
         width=side, output_type="pt")  # fmt: skip
    found |= {"picture_seconds": time.perf_counter() - started, "picture_gib": measuring.peak_resident()}

    for model in named.values():
        model.requires_grad_(False)
    pipe.promptnet.region_prompt_output.requires_grad_(True)
    pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train()
    words = dict(placeholder="S*", num_subject_tokens=1)
    ids, positions = tokenize_prompts([pipe.tokenizer, pipe.tokenizer_2], ["a photo of S*"], **words)
    started = time.perf_counter()
    loss = promptnet_loss(
        pipe.unet,
        [pipe.text_encoder, pipe.text_encoder_2],
        pipe.promptnet,
        latents=latents,
        reference_latents=latents,
        image_states=states,
        noise=torch.randn_like(latents),
        timesteps=torch.tensor([500], device=device),
        alphas_cumprod=pipe.scheduler.alphas_cumprod.to(latents),
        input_ids=ids.to(device),
        positions=positions.to(device),
        prediction_type="epsilon",
        sizes=whole_picture(side, side).to(device),
    ).loss
    loss.backward()
    gradient = pipe.promptnet.region_prompt_output.weight.grad
    if not (torch.isfinite(gradient).all() and gradient.any()):
        raise RuntimeError("The gradient of PromptNet's last layer is not finite, or is 0.")
    found |= {"learning_seconds": time.perf_counter() - started, "learning_gib": measuring.peak_resident()}
    on_device = measuring.peak_on_device(device)
    return found | ({} if on_device is None else {"peak_on_gpu_gib": on_device})


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="xl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    size, device = (vars(parser.parse_args())[name] for name in ("size", "device"))
    found = measure(size, torch.bfloat16, device)
    print(json.dumps(measuring.machine(device) | {"size": size, "dtype": "bfloat16"} | found))


if __name__ == "__main__":
    main()
