"""By which names and which hash the weights of a base are known, whatever adapters are in it."""

import hashlib
import math
import re
from typing import Any

import numpy as np
from torch import nn

_IP_ADAPTER = re.compile(r"^encoder_hid_proj\.image_projection_layers\.|\.to_[kv]_ip\.")
SAMPLED = 2**16  # entries of a weight that count for the hash, at most


def base_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a model by the names they have without adapters.

    Args:
        model: With or without adapters of PEFT, compiled or not.

    Returns:
        Name -> parameter, without those of adapters and of IP-Adapters.

    Example:
        >>> list(base_weights(nn.Linear(2, 2)))
        ['weight', 'bias']
    """
    return {
        name.replace(".base_layer.", ".").replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name and not _IP_ADAPTER.search(name)
    }


def base_hash(
    unet: nn.Module,
    text_encoder: nn.Module | None,
    promptnet: nn.Module | None,
    text_encoder_2: nn.Module | None = None,
) -> str:
    """A hash of the weights that a concept depends on, the same for copies in float32, float16 and bfloat16.

    It is taken over the signs of the weights, which no rounding changes; of large tensors 65,536 evenly spread entries
    count. The table of token embeddings is left out, because textual inversion adds rows to it.

    Args:
        unet: Of the pipeline; or another model, alone.
        text_encoder: Of the pipeline.
        promptnet: Of the pipeline, if it has one.
        text_encoder_2: Of the pipeline, if it has one.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: The weights are not in memory, as under sequential off-loading.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> len(base_hash(pipe.unet, pipe.text_encoder, pipe.promptnet))
        64
    """
    digest = hashlib.sha256()
    for model in (unet, text_encoder, promptnet, text_encoder_2):
        if model is None:
            continue
        # transformers 4 nests what 5 doesn't
        weights = {name.removeprefix("text_model."): weight for name, weight in base_weights(model).items()}
        for name in sorted(name for name in weights if not name.endswith("token_embedding.weight")):
            weight = weights[name].detach()
            if weight.is_meta:
                raise ValueError(
                    f"The weights of {type(model).__name__} are not in memory: load, unload and make concepts before "
                    "`enable_sequential_cpu_offload`."
                )
            signs = weight.flatten()[:: math.ceil(weight.numel() / SAMPLED)].signbit()
            digest.update(f"{tuple(weight.shape)}".encode() + np.packbits(signs.cpu().numpy()).tobytes())
    return digest.hexdigest()


def pipeline_hash(pipe: Any) -> str:
    """[`base_hash`] of a pipeline's models.

    Args:
        pipe: With one text encoder or two.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: As there.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> len(pipeline_hash(load_demo_pipeline()))
        64
    """
    return base_hash(pipe.unet, pipe.text_encoder, pipe.promptnet, getattr(pipe, "text_encoder_2", None))
