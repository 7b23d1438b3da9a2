"""What a command is given beside the reference: pictures whose layout is taken over, and ControlNets that read some.

By the name that each has in the call, a list of sources, where they lie, and then of sources with what was read there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..method import checks
from ..method.mask_picture import load_mask
from ..method.reference_images import load_reference_image
from .flags import option_of

PICTURES = ("init_image", "mask_image", "control_image")
NAMES = (*PICTURES, "controlnet")

Sources = Mapping[str, Sequence[str]]
Read = Mapping[str, Sequence[tuple[str, Any]]]


def read_pictures(sources: Sources, load: Any = load_reference_image) -> dict[str, list[tuple[str, Image.Image]]]:
    """Read the pictures, before any model is loaded.

    Args:
        sources: Files, or what else `load` reads.
        load: What reads them, other than masks: from a source and the name that errors have for it.

    Returns:
        By the names in `PICTURES` that have a source: each source and its picture; masks are grey.

    Raises:
        ValueError: One can't be read, or there are ControlNets without pictures or pictures without ControlNets.

    Example:
        >>> Image.new("RGB", (8, 8)).save("a.png")
        >>> read_pictures({"init_image": ["a.png"], "mask_image": []})["init_image"][0][1].size
        (8, 8)
    """
    if bool(sources.get("controlnet")) != bool(sources.get("control_image")):
        raise ValueError("--controlnet and --control-image must be given together: one reads the other.")
    return {
        name: [
            (source, (load_mask if name == "mask_image" else load)(source, option_of(name))) for source in sources[name]
        ]
        for name in PICTURES
        if sources.get(name)
    }


def load_controlnets(
    sources: Sequence[str], *, dtype: torch.dtype, device: str | torch.device
) -> list[torch.nn.Module]:
    """diffusers' own ControlNets.

    Args:
        sources: Folders or Hub ids.
        dtype: Of their weights.
        device: Where they are put.

    Returns:
        One for each source.

    Raises:
        OSError: There is none at a source.

    Example:
        >>> load_controlnets([], dtype=torch.float32, device="cpu")
        []
    """
    from diffusers import ControlNetModel

    for source in sources:
        checks.check_place("controlnet", source)
    return [ControlNetModel.from_pretrained(source).to(device, dtype) for source in sources]


def arguments(pictures: Read) -> dict[str, Any]:
    """What the call is given: one picture, or a list of them.

    Args:
        pictures: Of `read_pictures`.

    Returns:
        Arguments of the call.

    Example:
        >>> arguments({"init_image": [("a.png", 1)], "mask_image": [("b.png", 2), ("c.png", 3)]})
        {'init_image': 1, 'mask_image': [2, 3]}
    """
    given = {name: [picture for _, picture in each] for name, each in pictures.items()}
    return {name: each[0] if len(each) == 1 else each for name, each in given.items()}


def of_prompt(read: Read, number: int) -> dict[str, list[tuple[str, Any]]]:
    """What one prompt of a call was drawn with.

    Args:
        read: Pictures and ControlNets. Of several pictures each prompt has one, but of several ControlNets all.
        number: Of the prompt, from 0.

    Returns:
        The same, for that prompt alone.

    Example:
        >>> of_prompt({"init_image": [("a.png", 1), ("b.png", 2)]}, 1)
        {'init_image': [('b.png', 2)]}
    """
    whole = {"controlnet"} | ({"control_image"} if len(read.get("controlnet", ())) > 1 else set())
    return {
        name: list(each) if name in whole or len(each) == 1 else [each[number]] for name, each in read.items() if each
    }
