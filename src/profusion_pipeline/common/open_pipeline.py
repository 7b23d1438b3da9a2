"""A pipeline from a folder, the Hub or the word "demo", in one dtype and on one device."""

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import is_accelerate_available

from ..method import checks
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.pipeline_profusion_xl import ProFusionXLPipeline

DEMO = "demo"  # the word that names the bundled model wherever a model is named
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "model"


def pipeline_source(model: str | Path, *, demo: Path = DEMO_FOLDER) -> str:
    """Where the pipeline lies that is meant: a folder or Hub id is its own answer, "demo" is the bundled model.

    Args:
        model: Folder, Hub id, or "demo".
        demo: What "demo" stands for: a folder in the layout of `save_pretrained`.

    Returns:
        Folder or Hub id.

    Raises:
        FileNotFoundError: The demo model is meant and `demo` holds no pipeline.

    Example:
        >>> pipeline_source("me/profusion-sd2")
        'me/profusion-sd2'
    """
    if str(model) != DEMO:
        return str(model)
    if not (demo / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The demo model is not in {demo}: `make train-demo` trains it, an installed release has it."
        )
    return str(demo)


def load_pipeline(
    source: str | Path, *, dtype: torch.dtype, device: str | torch.device, **components: Any
) -> ProFusionPipeline:
    """`from_pretrained` of the class that fits, in one dtype, then moved to `device`, with or without accelerate.

    Args:
        source: Folder, Hub id, or "demo".
        dtype: Of all weights.
        device: Where the pipeline is put.
        **components: What takes the place of components at `source`, by name.

    Returns:
        The pipeline; a `ProFusionXLPipeline` where `source` is Stable Diffusion XL.

    Raises:
        OSError: There is no pipeline at `source`.

    Example:
        >>> load_pipeline("profusion-sd2", dtype=torch.float16, device="cuda")  # doctest: +SKIP
    """
    # accelerate is no core dependency; without it diffusers can't load in the way that saves memory, and says so.
    saves_memory = is_accelerate_available()
    found = pipeline_source(source)
    fitting = pipeline_class(found)
    return fitting.from_pretrained(found, dtype=dtype, low_cpu_mem_usage=saves_memory, **components).to(device)


def pipeline_class(source: str) -> type[ProFusionPipeline]:
    """The class for what lies at a source: a base of Stable Diffusion XL has its own.

    Args:
        source: Folder or Hub id.

    Returns:
        `ProFusionPipeline` or `ProFusionXLPipeline`.

    Raises:
        OSError: There is no pipeline there.

    Example:
        >>> pipeline_class(str(DEMO_FOLDER)).__name__
        'ProFusionPipeline'
    """
    checks.check_place("model", source)
    name = ProFusionPipeline.load_config(source)["_class_name"]
    return ProFusionXLPipeline if "XL" in name else ProFusionPipeline
