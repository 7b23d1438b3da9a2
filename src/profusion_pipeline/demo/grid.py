"""The demo grid: a few people, each under the same prompts, with plain guidance on S* and with Fusion Sampling."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from ..common.picture_grid import FONT_SIZE, GAP, GREY, INK, MARGIN, PAPER, header_height, place_row, write_header
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.subject_embedding import SubjectEmbedding
from . import DEMO_SETTINGS

PROMPTS = (
    "a portrait of S*, wearing a red hoodie",
    "a portrait of S*, wearing sunglasses",
    "a portrait of S*, wearing a blue top hat",
    "a portrait of S*, at the beach",
    "a portrait of S*, in space",
    "a portrait of S*, sticking tongue out",
    "a pencil sketch of S*",
    "a neon picture of S*",
)

# The two rows of each person: what is written beside them, and what the call is told.
METHODS = {
    "guidance\non S* alone": {**DEMO_SETTINGS, "class_guidance_scale": 0.0, "num_fusion_steps": 0},
    "Fusion\nSampling": DEMO_SETTINGS,
}

# Pixels
CELL = 128  # a generated picture
REFERENCE = 2 * CELL  # a portrait, centred beside its two rows
PERSON = 2 * CELL + GAP  # a person's rows
LABEL = 108  # column of the methods' names
PERSON_GAP = 22


def render_demo_grid(
    pipe: ProFusionPipeline,
    portraits: Sequence[Image.Image],
    *,
    prompts: Sequence[str] = PROMPTS,
    seed: int = 0,
    num_inference_steps: int = 25,
    progress: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Sample every person under every prompt, both ways, and lay the pictures out with their prompts.

    Each column starts from the same noise in all rows, so what differs in it is the person and the method.

    Args:
        pipe: The demo pipeline (or any other whose prompts read "a person" for S*).
        portraits: One reference picture of each person.
        prompts: Each with the placeholder; one column each.
        seed: Of the first column's noise; column i takes `seed + i`.
        num_inference_steps: Denoising steps of each picture.
        progress: Called after every denoising step of a batch with the number of steps done and the number in all.

    Returns:
        An RGB picture.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> from profusion_pipeline.demo.grid import render_demo_grid
        >>> render_demo_grid(load_demo_pipeline(), demo_portraits()[:1], num_inference_steps=2).mode
        'RGB'
    """
    done, total = 0, len(portraits) * len(METHODS) * num_inference_steps

    def count(pipe, step, timestep, tensors):
        nonlocal done
        done += 1
        if progress:
            progress(done, total)
        return tensors

    def sample(subject: SubjectEmbedding, settings: dict) -> list[Image.Image]:
        return pipe(
            list(prompts),
            subject=subject,
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
            callback_on_step_end=count,
            **settings,
        ).images

    people = []
    for portrait in portraits:
        subject = pipe.encode_subject(portrait)
        people.append((portrait, [sample(subject, settings) for settings in METHODS.values()]))
    return draw_grid(people, prompts, list(METHODS))


def draw_grid(
    people: Sequence[tuple[Image.Image, Sequence[Sequence[Image.Image]]]],
    prompts: Sequence[str],
    methods: Sequence[str],
) -> Image.Image:
    """Lay out portraits and pictures: a column for each prompt; two rows, one for each method, beside each portrait.

    Args:
        people: For each person the portrait and, for each method, one picture per prompt.
        prompts: Written above the columns.
        methods: Written beside the rows; the last one is the method of this project, in full ink.

    Returns:
        An RGB picture on white.

    Example:
        >>> face = Image.new("RGB", (64, 64))
        >>> draw_grid([(face, [[face], [face]])], ["S* smiling"], ["plain", "fusion"]).height
        336
    """
    left = MARGIN + REFERENCE + LABEL
    top = MARGIN + header_height(prompts, CELL)
    width = left + len(prompts) * (CELL + GAP) - GAP + MARGIN
    height = top + len(people) * (PERSON + PERSON_GAP) - PERSON_GAP + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    font = ImageFont.load_default(FONT_SIZE)
    place = (MARGIN + REFERENCE / 2, top - GAP)
    ImageDraw.Draw(page).text(place, "one reference", GREY, anchor="md", font=font)
    write_header(page, prompts, left, top, CELL)
    for portrait, rows in people:
        page.paste(portrait.resize((REFERENCE, REFERENCE), Image.Resampling.NEAREST), (MARGIN, top + GAP // 2))
        for row, (method, pictures) in enumerate(zip(methods, rows, strict=True)):
            ink = INK if row == len(rows) - 1 else GREY
            place_row(page, pictures, method, left, top + row * (CELL + GAP), CELL, ink)
        top += PERSON + PERSON_GAP
    return page
