"""Train the demo model's PromptNet: the library's own trainer, on pictures alone, one of each person."""

import argparse
from pathlib import Path

from loop import processes
from pictures import pictures
from PIL import Image
from tqdm import tqdm

from profusion_pipeline import TrainingConfig
from profusion_pipeline.training.trainer import train_promptnet


def write_pictures(folder: Path, images) -> None:
    """An image folder as `profusion train` reads it; it appears whole or not at all."""
    temporary = folder.with_name(folder.name + ".tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(tqdm(images, desc="writing pictures")):
        Image.fromarray(image).save(temporary / f"{index:06d}.png", compress_level=1)
    temporary.rename(folder)


def main(
    work: Path,
    count: int = 40_000,
    steps: int = 9000,
    batch_size: int = 32,
    rate: float = 8e-4,
    workers: int = 0,
) -> Path:
    """Train on `work/{vae, text_encoder, tokenizer, unet, scheduler, image_encoder, feature_extractor}`."""
    folder = work / f"portraits_{count}"
    images = pictures("train", count, work / "data")
    with processes().main_process_first():
        if not folder.exists():
            write_pictures(folder, images)
    config = TrainingConfig(
        model=str(work),
        data=str(folder),
        output=str(work / "promptnet_training"),
        prompt="a portrait of S*",
        region_proj_channel=64,
        max_steps=steps,
        batch_size=batch_size,
        learning_rate=rate,
        lr_scheduler="cosine",
        warmup_steps=min(100, steps // 10),
        adam_beta2=0.99,
        ema_decay=0.999,
        mixed_precision="bf16",
        num_workers=workers,
        checkpoint_every=300,
        resume=True,
    )
    return train_promptnet(config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--steps", type=int, default=9000, help="optimizer steps")
    parser.add_argument("--count", type=int, default=40_000, help="pictures, one of each person")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a step and process")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures ahead")
    main(**vars(parser.parse_args()))
