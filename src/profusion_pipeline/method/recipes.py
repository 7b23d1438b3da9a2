"""Settings of a call that belong together, under one name: the paper's, the fastest and the best that were measured."""

import functools
from collections.abc import Mapping
from typing import Any, cast

from . import checks, shared_models

_SHARED = dict(guidance_scale=5.0, num_fusion_steps=0, guidance_rescale=0.5, subject_every=4)

# What each sets; all else is as the call has it. Measured with the demo model (docs/speed.md): for others a beginning.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},  # the defaults of the call
    "fast": dict(num_inference_steps=10, **_SHARED),
    "best": dict(num_inference_steps=25, **_SHARED),
}


def with_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call with those of its recipe filled in, and without the recipe's name.

    Args:
        given: Arguments by name; `recipe` may be among them. Those that are given go before the recipe's.

    Returns:
        What a call takes.

    Raises:
        ValueError: There is no such recipe.

    Example:
        >>> with_recipe({"recipe": "fast", "num_inference_steps": 12})["num_inference_steps"]
        12
    """
    given = dict(given)
    recipe = given.pop("recipe", None)
    if recipe is None:
        return given
    checks.check_choice("recipe", recipe, tuple(RECIPES))
    return RECIPES[recipe] | given


def takes_recipe(call: shared_models.Call) -> shared_models.Call:
    """A pipeline's call, with the settings of its recipe filled in.

    Args:
        call: `__call__` of a pipeline, with all settings as keywords.

    Returns:
        The same, with the same signature.

    Example:
        >>> takes_recipe(lambda pipe, **settings: settings["num_inference_steps"])(None, recipe="fast")
        10
    """

    @functools.wraps(call)
    def filled_in(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        return call(pipe, *args, **with_recipe(kwargs))

    return cast(shared_models.Call, filled_in)
