"""Train the autoencoder: 64 x 64 pictures <-> latents of 8 x 8 x 32, the factor 8 of Stable Diffusion."""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from loop import Schedule, draw_generator, fit, processes
from pictures import pictures, to_pixels, to_tensor
from torch import nn

CHANNELS, LATENT_CHANNELS = (16, 32, 64, 96), 32
KL_WEIGHT = 2e-5
# Eyes and mouth: rows and columns of the picture where an error counts twice, for that is where people look.
FACE, FACE_WEIGHT = np.s_[..., 20:48, 16:48], 2.0


def new_autoencoder(channels: tuple[int, ...] = CHANNELS, latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


class Reconstruction(nn.Module):
    """Absolute + squared error of picture and picture gradient, with a touch of KL."""

    def __init__(self, vae: AutoencoderKL, images: np.ndarray, batch_size: int, seed: int = 0):
        super().__init__()
        self.vae, self.images, self.batch_size, self.seed = vae, images, batch_size, seed

    def forward(self, draw: int) -> torch.Tensor:
        generator = draw_generator(self.seed, draw)
        rows = torch.randint(len(self.images), (self.batch_size,), generator=generator).sort().values
        device = self.vae.device
        target = to_tensor(self.images[rows.numpy()]).to(device)
        posterior = self.vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        error = self.vae.decode(posterior.mean + posterior.std * noise).sample.float() - target
        weight = torch.ones(target.shape[-2:], device=device)
        weight[FACE] = FACE_WEIGHT
        slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return (weight * (0.5 * error.abs() + error**2)).mean() + 0.25 * slopes + KL_WEIGHT * kl


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Make every latent channel of mean 0 and deviation 1 by rewriting quant_conv and post_quant_conv, exactly.

    The latent means m and log variances of quant_conv become (m - mu) / sd and log variance - 2 log sd; post_quant_conv
    undoes it. So `scaling_factor` can stay one number, 1.
    """
    latents = vae.encode(images).latent_dist.mean
    mu, sd = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mu)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= sd[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mu) / sd
    quant.bias[channels:] -= 2 * sd.log()
    post.bias += post.weight[:, :, 0, 0] @ mu
    post.weight *= sd[None, :, None, None]


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Peak signal-to-noise ratio of every reconstruction in dB, after rounding to 8 bits."""
    values = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        latents = vae.encode(to_tensor(batch).to(vae.device)).latent_dist.mean
        difference = to_pixels(vae.decode(latents).sample).astype(np.float64) - batch
        values.append(10 * np.log10(255**2 / (difference**2).mean((1, 2, 3))))
    return np.concatenate(values)


def main(work: Path, count: int = 30_000, steps: int = 4600, batch_size: int = 16, rate: float = 2e-3) -> Path:
    """Train, normalise the latents, save to `work/vae`; print the PSNR on validation people."""
    torch.manual_seed(0)
    images, held_out = pictures("train", count, work / "data"), pictures("validation", 500, work / "data")
    vae = new_autoencoder()
    schedule = Schedule(steps=steps, learning_rate=rate, ema_decay=0.998, tail=0.3)
    fit(Reconstruction(vae, images, batch_size), schedule, work / "autoencoder")
    fold_normalisation(vae, to_tensor(images[:2000]).to(vae.device))
    if not processes().is_main_process:
        return work / "vae"
    vae.save_pretrained(work / "vae")
    values = psnr(vae, held_out)
    print(f"PSNR {values.mean():.2f} dB (median {np.median(values):.2f}) on {len(values)} validation pictures")
    return work / "vae"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--steps", type=int, default=4600, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a step and process")
    main(**vars(parser.parse_args()))
