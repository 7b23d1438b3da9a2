"""What a visitor asks for: the values of the page's widgets, as whom, which prompts and how."""

from collections.abc import Callable, Sequence

import torch

from ..common.open_pipeline import DEMO
from ..customization.captioning import describe_photo
from ..customization.config import CustomizeConfig
from ..demo import DEMO_CAPTIONS
from ..method.concept_file import Concept
from ..method.faces import crop_face as cut_face
from .studio import Settings, Studio, Who
from .uploads import read_concept, read_photos

PORTRAIT, PHOTOS, CONCEPT = "A portrait of the demo", "My photos", "A concept"  # answers to "Who is S*?"


def read_inputs(
    studio: Studio,
    source: str,
    portrait: str,
    photos: Sequence[str] | None,
    webcam: str | None,
    crop_face: bool,
    class_noun: str,
    prompts: str,
    position: float,
    by_hand: bool,
    guidance_scale: float,
    class_guidance_scale: float,
    num_fusion_steps: int,
    fusion_guidance_scale: float,
    fusion_subject_scale: float,
    num_inference_steps: int,
    seed: int | None,
    side: int | None,
    learnt: Concept | None,
    *,
    warn: Callable[[str], None] | None = None,
) -> tuple[Who, str, Settings]:
    """What the widgets of the left column say.

    Args:
        studio: Whose limits and portraits they are.
        source: Which answer to "Who is S*?" counts.
        portrait: The number of one, from 1.
        photos: Uploaded files.
        webcam: File of a webcam's picture.
        crop_face: Whether photos are cut to their face.
        class_noun: What the person is.
        prompts: One a line.
        position: Of the slider.
        by_hand: Whether the next two scales count in its place.
        guidance_scale: ω_1.
        class_guidance_scale: ω_2.
        num_fusion_steps: m.
        fusion_guidance_scale: ω_f.
        fusion_subject_scale: γ.
        num_inference_steps: Denoising steps.
        seed: -1, or None, for any.
        side: Of the pictures; 0, or None, for the model's own.
        learnt: The visitor's concept.
        warn: As of `crop_face` in `method/faces.py`.

    Returns:
        Whom, which prompts, and how.

    Raises:
        ImportError: A face is to be found, and OpenCV 4 isn't installed.
        ValueError: A photo or concept is asked for that is not there or can't be read.

    Example:
        >>> read_inputs(studio, *values)  # doctest: +SKIP
    """
    who = {"class_noun": class_noun.strip() or studio.class_noun}
    if source == CONCEPT:
        if learnt is None:
            read_concept(None, studio.limits)  # says so
        who["concept"] = learnt
    elif source == PHOTOS:
        who["photos"] = read_photos([*(photos or ()), *([webcam] if webcam else ())], studio.limits)
        if crop_face:
            who["faces"] = [cut_face(photo, warn) for photo in who["photos"]]
    else:
        who |= {"photos": [studio.portraits[int(portrait) - 1]], "source": f"{DEMO}:{int(portrait)}"}
    scales = {"guidance_scale": guidance_scale, "class_guidance_scale": class_guidance_scale} if by_hand else {}
    scales |= {"fusion_guidance_scale": fusion_guidance_scale, "fusion_subject_scale": fusion_subject_scale}
    whole = {"num_fusion_steps": int(num_fusion_steps), "num_inference_steps": int(num_inference_steps)}
    seed = None if seed is None or seed < 0 else seed
    settings = Settings(position=position, scales=scales, seed=seed, side=side or None, **whole)
    return Who(**who), prompts, settings


def suggest_caption(who: Who, device: torch.device | str = "cpu") -> str:
    """What is in the first photo beside the person, as a captioning model sees it; of the demo's portraits it is known.

    Args:
        who: Whose photo.
        device: Where the model computes.

    Returns:
        A caption, to be read and mended before anything is learnt with it.

    Raises:
        ValueError: There is no photo.
        OSError: The captioning model is neither here nor to be had.

    Example:
        >>> from profusion_pipeline.demo import demo_portraits
        >>> suggest_caption(Who(photos=demo_portraits()[1:2], source="demo:2"))
        'wearing an orange hoodie, on a pink background, smiling'
    """
    if not who.photos:
        raise ValueError("A caption is of a photo: choose a portrait or upload one.")
    if who.source.startswith(f"{DEMO}:"):
        return DEMO_CAPTIONS[int(who.source.split(":")[1]) - 1]
    return describe_photo(who.photos[0], CustomizeConfig.captioner, device=device)


def read_axes(*given: tuple[str, str]) -> dict[str, list[float]]:
    """Axes of a grid as typed.

    Args:
        *given: Name and values of each, the values with commas between them; one without values is left out.

    Returns:
        Name -> values.

    Raises:
        ValueError: Something is no number, an axis comes twice, or there is none.

    Example:
        >>> read_axes(("guidance_scale", "2.5, 5"), ("num_fusion_steps", "0, 1"))
        {'guidance_scale': [2.5, 5.0], 'num_fusion_steps': [0, 1]}
    """
    axes = {}
    for name, text in given:
        if not text.strip():
            continue
        try:
            axes[name] = [(int if name == "num_fusion_steps" else float)(one) for one in text.split(",")]
        except ValueError:
            raise ValueError(f"`{name}` must have numbers with commas between them, got {text[:40]!r}.") from None
    if not axes or len(axes) < sum(bool(text.strip()) for _, text in given):
        raise ValueError("A comparison needs one setting, or two different ones, with values.")
    return axes
