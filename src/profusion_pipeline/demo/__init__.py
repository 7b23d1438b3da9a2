"""The bundled demo model, 64-pixel avatars that this project trained from nothing, and portraits to try it on."""

import re
from pathlib import Path

import torch
from PIL import Image

from ..common.open_pipeline import DEMO, DEMO_FOLDER, load_pipeline, pipeline_source
from ..customization.customize import ProFusionPipeline
from ..method.quoting import quote
from ..method.reference_images import Reference, load_reference_image

FOLDER = Path(__file__).parent

# Settings for the demo model: the best of eight tried on twelve validation people. The call's own defaults are for SD2.
DEMO_SETTINGS = {
    "class_noun": "a person",
    "guidance_scale": 5.0,
    "class_guidance_scale": 2.5,
    "fusion_guidance_scale": 2.5,
    "fusion_subject_scale": 0.8,
}

# Settings for customising it: the words that its PromptNet was trained with, and the portrait as it is, because nobody
# in its world is ever moved or turned (docs/customize.md). To this belongs a `caption`.
DEMO_CUSTOMIZE = {"class_noun": "a person", "prompt": "a portrait of S*", "pool_size": 1, "learning_rate": 1e-3}
# What a portrait of `demo_portraits` shows beside the person, in their order: their captions.
DEMO_CAPTIONS = (
    "wearing black overalls, in a city, neutral",
    "wearing an orange hoodie, on a pink background, smiling",
    "wearing a black t-shirt, at the beach, smiling",
    "wearing a purple collared sweater, on a blue background, surprised",
)
# Settings for drawing with what was customised: "What S* carries" in docs/study.md. Less guidance towards S* than for a
# photo alone, because it has grown stronger, and no fusion stage.
DEMO_CONCEPT_SETTINGS = {"guidance_scale": 2.5, "class_guidance_scale": 5.0, "num_fusion_steps": 0}


def load_demo_pipeline(
    *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", folder: Path = DEMO_FOLDER
) -> ProFusionPipeline:
    """The bundled model as a pipeline like any other: 64 x 64 pixels, a vocabulary of its own, no download.

    Args:
        dtype: Of all weights. They are stored in float16; on a CPU float32 is faster.
        device: Where the pipeline is put.
        folder: Another folder in the layout of `save_pretrained`, for whoever trains the demo model anew.

    Returns:
        The pipeline, ready to be called.

    Raises:
        FileNotFoundError: `folder` holds no pipeline.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> pipe("a portrait of S*, wearing a blue top hat", image=demo_portraits()[0], class_noun="a person").images
        [<PIL.Image.Image image mode=RGB size=64x64...>]
    """
    return load_pipeline(pipeline_source(DEMO, demo=Path(folder)), dtype=dtype, device=device)


def demo_portraits() -> list[Image.Image]:
    """The bundled reference portraits: avatars that the demo model has not seen in training.

    Returns:
        RGB pictures of 64 x 64 pixels, in the order of their file names.

    Example:
        >>> from profusion_pipeline import demo_portraits
        >>> demo_portraits()[0].size
        (64, 64)
    """
    return [load_reference_image(path) for path in sorted((FOLDER / "portraits").glob("*.png"))]


def load_photo(source: Reference, name: str = "image") -> Image.Image:
    """A photo from wherever it is, or a bundled portrait by its word.

    Args:
        source: As `load_reference_image` takes it; or "demo" for the first bundled portrait, "demo:2" for the second.
        name: What errors call it.

    Returns:
        An RGB picture.

    Raises:
        TypeError: As of `load_reference_image`.
        ValueError: As of `load_reference_image`, or there is no portrait of that number.

    Example:
        >>> load_photo("demo:3").size
        (64, 64)
    """
    word = re.fullmatch(rf"{DEMO}(?::(\d{{1,9}}))?", source) if isinstance(source, str) else None
    if word is None:
        return load_reference_image(source, name)
    portraits, number = demo_portraits(), int(word[1] or 1)
    if not 1 <= number <= len(portraits):
        raise ValueError(f"`{name}` must be one of the portraits demo:1 to demo:{len(portraits)}, got {quote(source)}.")
    return portraits[number - 1]
