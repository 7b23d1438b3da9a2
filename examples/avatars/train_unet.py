"""Train the text-to-image UNet on the latents of the autoencoder and the captions of the avatar world."""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from loop import Schedule, draw_generator, fit, processes
from pictures import pictures, portraits, stored, to_tensor
from torch import nn
from train_clip import tokenize
from transformers import CLIPTextModel, CLIPTokenizer
from world import Portrait, caption

SNR_GAMMA = 5.0
# How much of a caption is left out, drawn for each picture; 1.0 leaves "a portrait of a person".
CAPTION_DROPS = (0.0, 0.0, 0.1, 0.1, 0.3, 0.6, 1.0)
NO_CAPTION = 0.1


def new_unet(latent_channels: int, text_width: int, channels: tuple[int, ...] = (96, 176)) -> UNet2DConditionModel:
    """Two levels of 8 x 8 and 4 x 4 cells; the pooled text also joins the time embedding, as a scale and a shift."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=tuple(width // 16 for width in channels),  # the number of heads: diffusers' misnomer
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def new_scheduler() -> DDIMScheduler:
    """The noise levels of Stable Diffusion 2, v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, images: np.ndarray, path: Path) -> np.ndarray:
    """Means and deviations of the latents, `[count, 2, C, 8, 8]` float16, kept in a file."""

    def encode(batch: np.ndarray) -> np.ndarray:
        posterior = vae.encode(to_tensor(batch).to(vae.device)).latent_dist
        return torch.stack([posterior.mean, posterior.std], 1).half().cpu().numpy()

    batches = (images[first : first + 100] for first in range(0, len(images), 100))
    return stored(path, lambda: np.concatenate([encode(batch) for batch in batches]))


class Denoising(nn.Module):
    """Mean squared error of v, weighted by min-SNR-5; the text encoder is frozen."""

    def __init__(self, unet, text_encoder, tokenizer, latents, people: list[Portrait], batch_size: int, seed: int = 3):
        super().__init__()
        self.unet, self.text_encoder, self.tokenizer = unet, text_encoder.requires_grad_(False), tokenizer
        self.latents, self.people, self.batch_size, self.seed = latents, people, batch_size, seed
        self.scheduler = new_scheduler()

    def caption(self, row: int, rng: random.Random) -> str:
        return "" if rng.random() < NO_CAPTION else caption(self.people[row], rng, drop=rng.choice(CAPTION_DROPS))

    def forward(self, draw: int) -> torch.Tensor:
        generator, rng, device = draw_generator(self.seed, draw), random.Random(draw), self.unet.device
        rows = torch.randint(len(self.people), (self.batch_size,), generator=generator).sort().values
        mean, deviation = torch.from_numpy(self.latents[rows.numpy()]).to(device).float().unbind(1)
        noise = torch.randn((2, *mean.shape), generator=generator).to(device)
        timesteps = torch.randint(1000, (self.batch_size,), generator=generator).to(device)
        clean = mean + deviation * noise[0]
        noisy = self.scheduler.add_noise(clean, noise[1], timesteps)
        target = self.scheduler.get_velocity(clean, noise[1], timesteps)
        ids = tokenize(self.tokenizer, [self.caption(row, rng) for row in rows.tolist()]).to(device)
        with torch.no_grad():
            text = self.text_encoder(ids).last_hidden_state
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=text).sample.float()
        snr = compute_snr(self.scheduler, timesteps)
        weight = snr.clamp(max=SNR_GAMMA) / (snr + 1)
        return (weight * ((predicted - target) ** 2).mean((1, 2, 3))).mean()


def main(work: Path, count: int = 40_000, steps: int = 3600, batch_size: int = 32, rate: float = 1.4e-3) -> Path:
    """Train, save to `work/unet` and `work/scheduler`."""
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    text_encoder = CLIPTextModel.from_pretrained(work / "text_encoder").eval()
    latents = encode_pictures(vae, pictures("train", count, work / "data"), work / f"latents_{count}.npy")
    unet = new_unet(vae.config.latent_channels, text_encoder.config.hidden_size)
    objective = Denoising(
        unet,
        text_encoder,
        CLIPTokenizer.from_pretrained(work / "tokenizer"),
        latents,
        portraits("train", count),
        batch_size,
    )
    fit(objective, Schedule(steps=steps, learning_rate=rate), work / "unet_training")
    if processes().is_main_process:
        unet.save_pretrained(work / "unet")
        new_scheduler().save_pretrained(work / "scheduler")
    return work / "unet"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--steps", type=int, default=3600, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a step and process")
    main(**vars(parser.parse_args()))
