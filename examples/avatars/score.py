"""Score the demo model on people and prompts that it has never seen: `python examples/avatars/score.py`.

Two numbers for a generated picture, both read back by the attribute classifier (`attributes.py`):

    identity   share of the person's attributes (hair, colours, eyes, facial hair) that agree with the reference
    prompt     share of what the prompt asks for (clothes, glasses, hat, expression, place, style) that is there

Attributes that the asked style or hat hides are not counted. Beside them stand the cosine similarities of the mini CLIP
between picture and prompt, and between picture and reference. Every mean has a 95 % bootstrap interval over people.
"""

import argparse
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from attributes import HIDDEN, VALUES, AttributeReader, labels
from diffusers import StableDiffusionPipeline
from pictures import FIRST_SEED, pictures, portraits
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from tqdm import tqdm
from train_autoencoder import psnr
from world import (
    COLOURS,
    CONTROL_VALUES,
    IDENTITY_VALUES,
    PLACE_WORDS,
    SCENES,
    STYLE_WORDS,
    Portrait,
    Renderer,
    caption,
    sample_portrait,
    with_article,
)

from profusion_pipeline import ProFusionPipeline, load_demo_pipeline
from profusion_pipeline.demo import DEMO_SETTINGS, FOLDER
from profusion_pipeline.evaluation.metrics import Estimate, bootstrap_interval

SCORER = Path(__file__).with_name("scorer")
PROJECT = Path(__file__).parent.parent.parent
# Where `--update` puts the table, between the two marks.
DOCUMENTS = (PROJECT / "docs" / "demo_model.md", FOLDER / "model" / "README.md")
MARKS = "<!-- scores -->", "<!-- /scores -->"
DESCRIBED = ("hair", "hair_colour", "skin", "eye_colour", "facial_hair")  # of an identity, what captions can say
# The systems that are compared on control prompts: one base model, one S*, three ways of guiding.
SYSTEMS = {
    "plain guidance on S*": {"class_guidance_scale": 0.0, "num_fusion_steps": 0},
    "Mixed (m = 0)": {"num_fusion_steps": 0},
    "Fusion Sampling (m = 1)": {"num_fusion_steps": 1},
}


@dataclass(frozen=True)
class Scored:
    """One row of the table: the scores of each picture, and which person it belongs to."""

    name: str
    scores: dict[str, np.ndarray]  # one value a picture; nan where nothing could be read
    person: np.ndarray

    def interval(self, score: str) -> Estimate:
        """Mean and 95 % bootstrap interval over people."""
        return bootstrap_interval(self.scores[score], self.person)


class MiniCLIP:
    """Similarities by the demo model's own two towers and the projections they were trained with."""

    def __init__(self, pipe: ProFusionPipeline):
        self.pipe, self.projections = pipe, load_file(FOLDER / "clip_projections.safetensors")

    @torch.no_grad()
    def images(self, images: np.ndarray) -> torch.Tensor:
        pixels = self.pipe.feature_extractor([Image.fromarray(image) for image in images], return_tensors="pt")
        states = self.pipe.image_encoder(pixels.pixel_values.to(self.pipe.device)).pooler_output.float().cpu()
        return normalize(states @ self.projections["visual_projection"].float().T)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        ids = self.pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = self.pipe.text_encoder(ids.to(self.pipe.device)).last_hidden_state.float().cpu()
        ends = (ids == self.pipe.tokenizer.eos_token_id).int().argmax(1)
        return normalize(states[torch.arange(len(ids)), ends] @ self.projections["text_projection"].float().T)


def agreement(reader: AttributeReader, images: np.ndarray, wanted: list[Portrait], names: list[set[str]]) -> np.ndarray:
    """Share of the attributes `names[i]` that picture i shows as `wanted[i]` has them; nan where none can be seen."""
    right = reader.read(images) == labels(wanted)
    shown = labels(wanted) != HIDDEN
    asked = torch.tensor([[name in chosen for name in VALUES] for chosen in names]) & shown
    return ((right & asked).sum(1) / asked.sum(1)).numpy()  # 0 / 0 = nan


def reference_portrait(seed: int, split: str) -> Portrait:
    """Somebody as in a passport photo: no hat, no glasses, no style; clothes, place and expression at random."""
    portrait = sample_portrait(FIRST_SEED[split] + seed, split)
    return Portrait(portrait.identity, replace(portrait.control, hat="none", glasses="none", style="none"))


def control_prompts(rng: random.Random) -> list[tuple[str, dict[str, str]]]:
    """Eight prompts about S*, and what each asks for: clothes, glasses, hat, place, colour, expression, two styles."""
    said = {
        name: [value for value in values if value not in ("none", "neutral")] for name, values in CONTROL_VALUES.items()
    }
    pick = {name: rng.choice(values) for name, values in said.items()}
    place, colour = rng.choice(SCENES), rng.choice(list(COLOURS))
    hat = pick["hat"] if pick["hat"] == "crown" else f"{pick['hat_colour']} {pick['hat']}"
    hat_asked = {"hat": pick["hat"]} | ({} if pick["hat"] == "crown" else {"hat_colour": pick["hat_colour"]})
    expression = "sticking tongue out" if pick["expression"] == "tongue out" else pick["expression"]
    other = rng.choice([style for style in STYLE_WORDS if style not in ("none", pick["style"])])
    garment = f"{pick['clothes_colour']} {pick['clothes']}"
    return [
        (f"a portrait of S*, wearing {with_article(garment)}", {n: pick[n] for n in ("clothes", "clothes_colour")}),
        (f"a portrait of S*, wearing {pick['glasses']}", {"glasses": pick["glasses"]}),
        (f"a portrait of S*, wearing {with_article(hat)}", hat_asked),
        (f"a portrait of S*, {PLACE_WORDS[place]}", {"background": place}),
        (f"a portrait of S*, on {with_article(colour)} background", {"background": colour}),
        (f"a portrait of S*, {expression}", {"expression": pick["expression"]}),
        (f"{STYLE_WORDS[pick['style']][0]} S*", {"style": pick["style"]}),
        (f"{STYLE_WORDS[other][0]} S*", {"style": other}),
    ]


def score_base(pipe: ProFusionPipeline, reader, people: list[Portrait], scale: float, steps: int, batch: int) -> Scored:
    """Caption -> picture by the base model alone, sampled with diffusers' own Stable Diffusion pipeline."""
    shared = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    base = StableDiffusionPipeline(**shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    base.set_progress_bar_config(disable=True)
    texts = [caption(portrait, random.Random(row)) for row, portrait in enumerate(people)]
    images = []
    for first in tqdm(range(0, len(people), batch), desc="base model"):
        generators = [torch.Generator().manual_seed(row) for row in range(first, min(first + batch, len(people)))]
        images.append(
            base(
                texts[first : first + batch],
                num_inference_steps=steps,
                guidance_scale=scale,
                generator=generators,
                output_type="np",
            ).images
        )
    images = (np.concatenate(images) * 255).round().astype(np.uint8)
    scores = {
        "identity": agreement(reader, images, people, [set(DESCRIBED)] * len(people)),
        "prompt": agreement(reader, images, people, [set(CONTROL_VALUES)] * len(people)),
    }
    return Scored("base model, caption -> picture", scores, np.arange(len(people)))


def score_prompts(
    pipe: ProFusionPipeline,
    reader: AttributeReader,
    name: str,
    people: list[Portrait],
    prompts: list[list[tuple[str, dict[str, str]]]],
    **settings,
) -> Scored:
    """Every person under their prompts, those of one person in one batch. `settings` go to the pipeline's call."""
    render, clip = Renderer(), MiniCLIP(pipe)
    columns = {"identity": [], "prompt": [], "CLIP text": [], "CLIP image": []}
    for index, (portrait, asked) in enumerate(zip(tqdm(people, desc=name), prompts, strict=True)):
        photo = render(portrait)
        texts = [text for text, _ in asked]
        images = pipe(
            texts,
            [Image.fromarray(photo)] * len(texts),
            generator=[torch.Generator().manual_seed(1000 * index + row) for row in range(len(texts))],
            output_type="np",
            **settings,
        ).images
        images = (images * 255).round().astype(np.uint8)
        wanted = [Portrait(portrait.identity, replace(portrait.control, **values)) for _, values in asked]
        columns["identity"].append(agreement(reader, images, wanted, [set(IDENTITY_VALUES)] * len(texts)))
        columns["prompt"].append(agreement(reader, images, wanted, [set(values) for _, values in asked]))
        features = clip.images(images)
        classes = clip.texts([text.replace("S*", settings["class_noun"]) for text in texts])
        columns["CLIP text"].append((features * classes).sum(1).numpy())
        columns["CLIP image"].append((features @ clip.images(photo[None]).T)[:, 0].numpy())
    person = np.repeat(np.arange(len(people)), [len(asked) for asked in prompts])
    return Scored(name, {column: np.concatenate(values) for column, values in columns.items()}, person)


def table(rows: list[Scored]) -> str:
    """The rows in Markdown: mean (95 % interval)."""
    names = ("identity", "prompt", "CLIP text", "CLIP image")
    lines = ["| | pictures | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for row in rows:
        cells = []
        for name in names:
            known = name in row.scores and np.isfinite(row.scores[name]).any()
            cells.append("{:.3f} ({:.3f}-{:.3f})".format(*row.interval(name)) if known else "")
        lines.append(f"| {row.name} | {len(row.person)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update_documents(text: str, documents: tuple[Path, ...] = DOCUMENTS) -> None:
    """Put the text between the marks of every document."""
    for document in documents:
        before, _, rest = document.read_text().partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        document.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main(
    model: Path = FOLDER / "model",
    people: int = 38,
    captions: int = 304,
    steps: int = 50,
    scale: float = 5.0,
    batch: int = 64,
    split: str = "test",
    settings: str = "{}",
    work: Path = Path("outputs/avatars"),
    update: bool = False,
) -> list[Scored]:
    """Print the table of the demo model and return its rows."""
    pipe = load_demo_pipeline(folder=model)
    pipe.set_progress_bar_config(disable=True)
    reader = AttributeReader.from_pretrained(SCORER / "reader", torch_dtype=torch.float32).eval()
    chosen = {**DEMO_SETTINGS, "num_inference_steps": steps, **json.loads(settings)}
    held_out = portraits(split, captions)
    truth = pictures(split, captions, work / "data")
    values = psnr(pipe.vae, truth)
    rows = [score_base(pipe, reader, held_out, scale, steps, batch)]
    references = [reference_portrait(seed, split) for seed in range(people)]
    eight = [[("a portrait of S*", {})] * 8] * people
    rows.append(
        score_prompts(
            pipe,
            reader,
            'PromptNet, "a portrait of S*"',
            references,
            eight,
            **{**chosen, **SYSTEMS["plain guidance on S*"]},
        )
    )
    rng = random.Random(0)
    prompts = [control_prompts(rng) for _ in references]
    for name, system in SYSTEMS.items():
        rows.append(score_prompts(pipe, reader, name, references, prompts, **{**chosen, **system}))
    text = f"{table(rows)}\n\nAutoencoder: {values.mean():.2f} dB PSNR (mean of {len(values)} test pictures)."
    print(text)
    if update:
        update_documents(text)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a ProFusion folder")
    parser.add_argument("--people", type=int, default=38, help="reference portraits; eight pictures each and system")
    parser.add_argument("--captions", type=int, default=304, help="captions for the base model and the autoencoder")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--scale", type=float, default=5.0, help="guidance scale of the base model")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="held-out people to take")
    parser.add_argument("--settings", default="{}", help="JSON of settings for the pipeline's call")
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for rendered pictures")
    parser.add_argument("--update", action="store_true", help="put the table into README, docs and model card")
    main(**vars(parser.parse_args()))
