"""A pipeline from a folder or the Hub, in one dtype and on one device, with or without accelerate."""

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import is_accelerate_available

from ..method.pipeline_profusion import ProFusionPipeline


def load_pipeline(
    source: str | Path, *, dtype: torch.dtype, device: str | torch.device, **components: Any
) -> ProFusionPipeline:
    """`ProFusionPipeline.from_pretrained` in one dtype, then moved to `device`, with or without accelerate.

    Args:
        source: Folder or Hub id.
        dtype: Of all weights.
        device: Where the pipeline is put.
        **components: What takes the place of components at `source`, by name.

    Returns:
        The pipeline.

    Raises:
        OSError: There is no pipeline at `source`.

    Example:
        >>> load_pipeline("profusion-sd2", dtype=torch.float16, device="cuda")  # doctest: +SKIP
    """
    # accelerate is no core dependency; without it diffusers can't load in the way that saves memory, and says so.
    saves_memory = is_accelerate_available()
    pipe = ProFusionPipeline.from_pretrained(source, dtype=dtype, low_cpu_mem_usage=saves_memory, **components)
    return pipe.to(device)
