"""A pipeline from a folder or the Hub, in one dtype and on one device, under any diffusers that is supported."""

from pathlib import Path

import torch
from diffusers.utils import is_accelerate_available
from diffusers.utils.import_utils import compare_versions

from .pipeline_profusion import ProFusionPipeline


def load_pipeline(source: str | Path, *, dtype: torch.dtype, device: str | torch.device) -> ProFusionPipeline:
    """`ProFusionPipeline.from_pretrained` with every weight in `dtype` from the start, then moved to `device`.

    Without a dtype diffusers loads its own models in float32 but those of transformers as they are stored.

    Args:
        source: Folder or Hub id.
        dtype: Of all weights.
        device: Where the pipeline is put.

    Returns:
        The pipeline.

    Raises:
        OSError: There is no pipeline at `source`.

    Example:
        >>> load_pipeline("profusion-sd2", dtype=torch.float16, device="cuda")  # doctest: +SKIP
    """
    keyword = "dtype" if compare_versions("diffusers", ">=", "0.40") else "torch_dtype"  # its name before 0.40
    # accelerate is no core dependency; without it diffusers can't load in the way that saves memory, and says so.
    pipe = ProFusionPipeline.from_pretrained(source, **{keyword: dtype}, low_cpu_mem_usage=is_accelerate_available())
    return pipe.to(device)
