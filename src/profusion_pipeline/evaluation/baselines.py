"""The systems that are compared, by name: ours and its rivals, all with the interface of `systems.py`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..demo import DEMO_SETTINGS
from .systems import ProFusion, StableDiffusion, System

# As published, for Stable Diffusion 2.
SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        StableDiffusion(name="Stable Diffusion"),
        ProFusion(name="PromptNet"),
        ProFusion(name="ProFusion", learning={"steps": 100}),
    )
}

_DEMO_CALL = {name: value for name, value in DEMO_SETTINGS.items() if name != "class_noun"}
# For the demo model: what differs.
_DEMO: Mapping[str, dict[str, Any]] = {
    "Stable Diffusion": {"guidance_scale": 5.0},
    "PromptNet": {"call": _DEMO_CALL},
    "ProFusion": {"call": _DEMO_CALL},
}
DEMO_SYSTEMS: Mapping[str, System] = {name: replace(system, **_DEMO[name]) for name, system in SYSTEMS.items()}


def get_system(name: str, *, demo: bool = False, weights: Path | None = None) -> System:
    """A system by its name.

    Args:
        name: One of `SYSTEMS`.
        demo: Whether with the settings for the demo model rather than those for Stable Diffusion 2.
        weights: The folder of pre-trained rivals; others don't read it.

    Returns:
        The system.

    Raises:
        ValueError: There is no such system.

    Example:
        >>> get_system("Stable Diffusion", demo=True).guidance_scale
        5.0
    """
    table = DEMO_SYSTEMS if demo else SYSTEMS
    if name not in table:
        raise ValueError(f"`name` of a system must be one of {', '.join(table)}, got {name!r}.")
    system = table[name]
    return replace(system, weights=weights) if hasattr(system, "weights") else system
