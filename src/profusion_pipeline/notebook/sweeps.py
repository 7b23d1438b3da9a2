"""One labelled grid of a call's settings, or of several systems, from equal noise."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils.logging import tqdm
from PIL import Image

from ..common.picture_grid import PictureGrid
from ..customization.subject_pool import Photo
from ..evaluation.systems.baselines import get_system
from ..evaluation.systems.system import Sampling
from ..method.checks import MOST, check_count
from ..method.guidance_scales import Guidance
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.quoting import quote
from ..method.subject_embedding import SubjectEmbedding
from ..method.subject_prompt import find_placeholder

# What may differ within one call; for every other setting that differs there is a call of its own.
OF_A_PICTURE = ("prompt", "image", "subject", "concept", "class_noun", "class_prompt", "negative_prompt", "seed")
OURS = ("generator", "num_images_per_prompt", "output_type", "return_dict", "callback_on_step_end_tensor_inputs")
BAR = "{l_bar}{bar}| {n:.1f}/{total} pictures [{elapsed}<{remaining}]"


def sweep(
    pipe: ProFusionPipeline,
    prompt: str | list[str],
    *,
    seed: int | list[int] = 0,
    at_once: int = 8,
    progress: Callable[[float, int], None] | None = None,
    **call: Any,
) -> PictureGrid:
    """Draw every combination of some settings from the same noise, and lay the pictures out with their settings.

    An argument that is a list, a range or an array with one dimension is an axis of the grid. The last axis runs
    across, the others, combined, run down.

    Args:
        pipe: The pipeline; it is left as it was.
        prompt: With the placeholder; a list makes an axis.
        seed: Of each picture's noise; a list makes an axis.
        at_once: How many pictures are drawn in one call, at most.
        progress: Called with the pictures done so far and their number in all, in place of a bar.
        **call: Arguments of the pipeline's call. `image=[a, b]` is an axis of two people, `image=[[a, b]]` one person
            from two sides.

    Returns:
        The grid; `grid.image` is the picture and `grid.pictures` holds the single ones.

    Raises:
        TypeError: The call has no such argument, or it is one that this function gives itself.
        ValueError: An axis is empty, a setting is out of its range, or the call refuses something.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> settings = dict(image=demo_portraits()[0], num_inference_steps=2)
        >>> grid = sweep(
        ...     load_demo_pipeline(), "a portrait of S*", guidance_scale=[3, 5, 7], num_fusion_steps=[0, 1], **settings
        ... )
        >>> grid.columns
        ['num_fusion_steps 0', 'num_fusion_steps 1']
    """
    at_once = check_count("at_once", at_once, at_least=1)
    _check_call(call)
    given = {name: _spread(value) for name, value in {"prompt": prompt, **call, "seed": seed}.items()}
    axes = {name: value for name, value in given.items() if isinstance(value, list)}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"`{name}` must hold at least one value, got an empty list.")
    places = list(itertools.product(*(range(len(values)) for values in axes.values())))
    cells = [given | {name: axes[name][at] for name, at in zip(axes, place, strict=True)} for place in places]
    for cell in cells:
        _check_cell(pipe, cell)
    drawn = dict(zip(places, _draw(pipe, cells, places, list(axes), at_once, progress), strict=True))
    labels = [[_label(name, value, i) for i, value in enumerate(values)] for name, values in axes.items()]
    *down, across = labels or [[""]]
    columns = len(across)
    pictures = list(drawn.values())
    return PictureGrid(
        [pictures[start : start + columns] for start in range(0, len(pictures), columns)],
        ["\n".join(texts) for texts in itertools.product(*down)],
        across,
        cell=128 if max(pictures[0].size) <= 128 else 192,
    )


def _spread(value: Any) -> Any:
    """Numbers in a row as a list; anything else as it is: an array of more dimensions is a picture."""
    if isinstance(value, range):
        return list(value)
    return value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value


def _check_call(call: dict[str, Any]) -> None:
    for name in call:
        if name in OURS:
            raise TypeError(f"`{name}` can't be given to a sweep, which gives it itself: `seed` says the noise.")


def _check_cell(pipe: ProFusionPipeline, cell: dict[str, Any]) -> None:
    """What can be checked of every cell before the first is drawn."""
    scales = {field.name for field in fields(Guidance)}
    Guidance.from_call(type(pipe).__call__, **{name: cell[name] for name in cell.keys() & scales})
    check_count("seed", cell["seed"], at_least=0, at_most=2**64 - 1)
    if not isinstance(cell["prompt"], str):
        raise TypeError(f"`prompt` must be a text or a list of texts, got {quote(cell['prompt'])}.")
    placeholder = pipe.config.placeholder
    find_placeholder(cell["prompt"].replace(pipe.config.placeholder_alias or placeholder, placeholder), placeholder)
    if "num_inference_steps" in cell:
        check_count("num_inference_steps", cell["num_inference_steps"], at_least=1, at_most=MOST)


def _draw(
    pipe: ProFusionPipeline,
    cells: list[dict[str, Any]],
    places: list[tuple[int, ...]],
    axes: list[str],
    at_once: int,
    progress: Callable[[float, int], None] | None,
) -> list[Image.Image]:
    """The picture of each cell; those that differ only in what may differ within a call are drawn together."""
    calls = {}
    for number, place in enumerate(places):
        apart = tuple(at for name, at in zip(axes, place, strict=True) if name not in OF_A_PICTURE)
        calls.setdefault(apart, []).append(number)
    batches = [numbers[i : i + at_once] for numbers in calls.values() for i in range(0, len(numbers), at_once)]
    pictures = [None] * len(cells)
    with _one_bar(pipe, len(cells), progress) as advance:
        for numbers in batches:
            call = dict(cells[numbers[0]])
            theirs = call.pop("callback_on_step_end", None)
            for name in (*OF_A_PICTURE, "seed"):
                if name in axes or name in ("prompt", "seed"):
                    call[name] = [cells[number][name] for number in numbers]
            generator = [torch.Generator().manual_seed(int(one)) for one in call.pop("seed")]
            call["callback_on_step_end"] = _counting(advance, theirs)
            seen = sorted({"latents", *getattr(theirs, "tensor_inputs", ())})
            images = pipe(**call, generator=generator, callback_on_step_end_tensor_inputs=seen).images
            for number, picture in zip(numbers, images, strict=True):
                pictures[number] = picture
    return pictures


def _counting(advance: Callable[[float], None], theirs: Callable | None) -> Callable:
    def count(pipe: ProFusionPipeline, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        changed = theirs(pipe, index, timestep, tensors) if theirs else None
        advance(len(tensors["latents"]) / pipe.num_timesteps)
        return changed or tensors

    return count


@contextmanager
def _one_bar(
    pipe: ProFusionPipeline, total: int, progress: Callable[[float, int], None] | None
) -> Iterator[Callable[[float], None]]:
    """One bar over all calls in place of one for each; none where the pipeline's are switched off."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    hidden = progress is not None or before.get("disable", False)
    pipe.set_progress_bar_config(**before | {"disable": True})
    done = 0.0
    try:
        with tqdm(total=total, bar_format=BAR, disable=hidden) as bar:

            def advance(share: float) -> None:
                nonlocal done
                done = min(total, done + share)
                bar.update(share)
                if progress is not None:
                    progress(done, total)

            yield advance
    finally:
        pipe.set_progress_bar_config(**before)


def _label(name: str, value: Any, number: int) -> str:
    if name == "prompt":
        return value
    if value is None or isinstance(value, str | Integral):
        return f"{name} {value}"
    if isinstance(value, Real):
        return f"{name} {value:g}"
    return f"{name} {number + 1}"


def compare(
    pipe: ProFusionPipeline,
    photo: Photo,
    prompt: str | list[str],
    systems: Sequence[str] = ("Stable Diffusion", "PromptNet", "ProFusion"),
    *,
    class_noun: str = "person",
    demo: bool = False,
    weights: str | Path | None = None,
    seed: int = 0,
    num_inference_steps: int = 25,
    **learning: Any,
) -> PictureGrid:
    """Several systems side by side: each learns the photo in its own way, and draws the prompts from equal noise.

    Args:
        pipe: The pipeline that all systems share; it is left as it was.
        photo: Of the subject.
        prompt: With the placeholder; a list makes columns.
        systems: Names in the table of `evaluation/systems/baselines.py`, such as "Textual Inversion" and "DreamBooth
            LoRA"; one row each.
        class_noun: What the subject is.
        demo: Whether with the settings for the demo model rather than those for Stable Diffusion 2.
        weights: The folder of pre-trained rivals; most systems need none.
        seed: Of the noise, the same in every row.
        num_inference_steps: Denoising steps of each picture.
        **learning: Fields of `CustomizeConfig` for the systems that learn, such as `steps`.

    Returns:
        The grid; the first column is the photo.

    Raises:
        ValueError: There is no such system, or a setting is out of its range.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> compare(
        ...     load_demo_pipeline(),
        ...     demo_portraits()[0],
        ...     "a portrait of S*, in space",
        ...     ["PromptNet"],
        ...     demo=True,
        ...     num_inference_steps=2,
        ... )
        PictureGrid(1 x 1: 'PromptNet' | 'a portrait of S*, in space')
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for one in prompts:
        find_placeholder(one, pipe.config.placeholder)
    found = [get_system(name, demo=demo, weights=None if weights is None else Path(weights)) for name in systems]
    configs = [one.config(class_noun=class_noun, **learning if one.learns else {}) for one in found]
    sampling = Sampling(num_inference_steps=num_inference_steps)
    rows = []
    with _one_bar(pipe, len(found), None) as advance:
        for system, config in zip(found, configs, strict=True):
            learnt = system.learn(pipe, photo, config)
            generators = [torch.Generator().manual_seed(seed) for _ in prompts]
            with system.drawing(pipe, photo, learnt, config) as draw:
                rows.append(draw(prompts, generators, sampling))
            advance(1.0)
    return PictureGrid(rows, [system.name for system in found], prompts)


def blend(ada: SubjectEmbedding, bob: SubjectEmbedding, share: float) -> SubjectEmbedding:
    """Somebody between two people, `ada.blend(bob, share)`; a list of them makes an axis of [`sweep`].

    Args:
        ada: As from `pipe.encode_subject`.
        bob: The other.
        share: Of `bob`, 0 to 1.

    Returns:
        A new subject.

    Raises:
        TypeError: As of `SubjectEmbedding.blend`.
        ValueError: As of `SubjectEmbedding.blend`.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> ada, bob = (pipe.encode_subject(photo) for photo in demo_portraits()[:2])
        >>> between = [blend(ada, bob, share) for share in (0.0, 0.5, 1.0)]
        >>> sweep(pipe, "a portrait of S*", subject=between, num_inference_steps=2).columns
        ['subject 1', 'subject 2', 'subject 3']
    """
    return ada.blend(bob, share)
