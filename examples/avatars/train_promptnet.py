"""Train the demo model's PromptNet with the library's own trainer: first on pictures alone, one of each person.

Then with `--captions`: each picture has a text that says all but who it is, and its reference is the picture itself or
another portrait of the person. `--model` is the folder whose PromptNet goes on learning:

    python examples/avatars/train_promptnet.py --captions --model src/profusion_pipeline/demo/model --work outputs/more
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from loop import processes
from pictures import FIRST_SEED, pictures, portraits
from PIL import Image
from tqdm import tqdm
from world import Portrait, Renderer, caption, sample_portrait

from profusion_pipeline import TrainingConfig
from profusion_pipeline.common.files import whole_folder
from profusion_pipeline.training.trainer import train_promptnet

OTHERS = 5_000_000  # the seeds of passport photos begin here
CAPTION_DROPOUT = 0.1
PLAIN_TEXT = "a portrait of S*"
# With --captions and without: people, optimizer steps, pictures a step and process, peak learning rate.
RECIPES = {
    False: dict(count=40_000, steps=9000, batch_size=32, rate=8e-4),
    True: dict(count=24_000, steps=6700, batch_size=64, rate=5e-4),
}
PLAIN_TEXTS = 0.3  # share of passport photos that have no other text


def write_pictures(folder: Path, images: Iterable[np.ndarray], rows: Sequence[dict] = ()) -> None:
    """An image folder as `profusion train` reads it, with its metadata; it appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as new:
        for index, image in enumerate(tqdm(images, desc="writing pictures")):
            Image.fromarray(image).save(new / f"{index:06d}.png", compress_level=1)
        if rows:
            (new / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def passport_photo(person: Portrait, seed: int) -> Portrait:
    """The same person in other clothes, elsewhere: no hat, no glasses, no style, as reference photos are."""
    other = sample_portrait(FIRST_SEED["train"] + OTHERS + seed, "train").control
    return Portrait(person.identity, replace(other, hat="none", glasses="none", style="none"))


def write_captioned_pictures(folder: Path, count: int) -> None:
    """The same folder with captions, two pictures of each person: any portrait, and a passport photo.

    The portrait's reference is the passport photo (two times of three) or itself. The passport photo's is itself, and
    its text is left at "a portrait of S*" for three people of ten, so that this prompt, alone, is still known.
    """
    render, people, rows = Renderer(), portraits("train", count), []
    photos = [passport_photo(person, index) for index, person in enumerate(people)]
    for index, (person, photo) in enumerate(zip(people, photos, strict=True)):
        rng, portrait_file, photo_file = random.Random(index), f"{2 * index:06d}.png", f"{2 * index + 1:06d}.png"
        portrait_text, photo_text = (caption(one, rng, subject="S*") for one in (person, photo))
        if rng.random() < PLAIN_TEXTS:
            photo_text = PLAIN_TEXT
        rows.append(
            {"file_name": portrait_file, "ref_img": [photo_file, photo_file, portrait_file], "text": portrait_text}
        )
        rows.append({"file_name": photo_file, "ref_img": [photo_file], "text": photo_text})
    pairs = (one for pair in zip(people, photos, strict=True) for one in pair)
    write_pictures(folder, (render(one) for one in pairs), rows)


def main(
    work: Path,
    model: Path | None = None,
    captions: bool = False,
    workers: int = 0,
    precision: str = "bf16",
    **given: float | None,
) -> Path:
    """Train on the model's (without one, work's) vae, text_encoder, tokenizer, unet, scheduler and vision tower.

    `given` goes before what `RECIPES` says.
    """
    recipe = RECIPES[captions] | {name: value for name, value in given.items() if value is not None}
    count, steps = recipe["count"], recipe["steps"]
    folder = work / f"{'captioned' if captions else 'portraits'}_{count}"
    images = None if captions else pictures("train", count, work / "data")
    with processes().main_process_first():
        if not folder.exists() and captions:
            write_captioned_pictures(folder, count)
        elif not folder.exists():
            write_pictures(folder, images)
    config = TrainingConfig(
        model=str(model or work),
        data=str(folder),
        output=str(work / ("promptnet_captions" if captions else "promptnet_training")),
        prompt=PLAIN_TEXT,
        reference="other" if captions else "same",
        caption_dropout=CAPTION_DROPOUT if captions else 0.0,
        region_proj_channel=64,
        max_steps=steps,
        batch_size=recipe["batch_size"],
        learning_rate=recipe["rate"],
        lr_scheduler="cosine",
        warmup_steps=min(100, steps // 10),
        adam_beta2=0.99,
        ema_decay=0.999,
        mixed_precision=precision,
        num_workers=workers,
        checkpoint_every=300,
        resume=True,
    )
    return train_promptnet(config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--model", type=Path, help="a ProFusion folder whose PromptNet is trained on")
    parser.add_argument("--captions", action="store_true", help="learn under captions of all but the person")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--count", type=int, help="people")
    parser.add_argument("--batch-size", type=int, help="pictures a step and process")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures ahead")
    parser.add_argument("--precision", default="bf16", choices=("no", "bf16"), help="no where the CPU lacks bf16")
    main(**vars(parser.parse_args()))
