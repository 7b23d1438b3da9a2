"""What visitors upload: read within limits, spoken of by its name and never by its place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..common.sentences import sentence_of
from ..method.concept_file import Concept
from ..method.picture_file import open_picture
from ..method.reference_images import load_reference_image

PLACE = re.compile(r"(?<![\w.*])(?:[A-Za-z]:)?[\\/](?:[^\\/'\"\n]+[\\/])+")  # of a file, up to its name


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one visitor may ask for at a time.

    Args:
        upload_bytes: Of one file.
        pixels: Of one photo.
        photos: Of one person.
        prompts: Of one drawing.
        inference_steps: Of one drawing.
        fusion_steps: m, of one drawing.
        learning_steps: Of customising.
        cells: Of one grid.
        side: Of a picture, in pixels.

    Example:
        >>> Limits(prompts=2).prompts
        2
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    photos: int = 4
    prompts: int = 8
    inference_steps: int = 100
    fusion_steps: int = 4
    learning_steps: int = 1000
    cells: int = 25
    side: int = 1024


def read_photos(files: Sequence[str | Path], limits: Limits) -> list[Image.Image]:
    """Photos of one person.

    Args:
        files: As uploaded.
        limits: That hold.

    Returns:
        RGB pictures.

    Raises:
        ValueError: There is none, there are too many, or one is too large or no picture.

    Example:
        >>> Image.new("RGB", (64, 64)).save("ada.png")
        >>> read_photos(["ada.png"], Limits())
        [<PIL.Image.Image image mode=RGB size=64x64...>]
    """
    if not files:
        raise ValueError("There is no photo yet: upload one, or choose another answer to who it shall be.")
    if len(files) > limits.photos:
        raise ValueError(f"There may be at most {limits.photos} photos of a person, got {len(files)}.")
    return [_read_photo(Path(file), limits) for file in files]


def _read_photo(file: Path, limits: Limits) -> Image.Image:
    _check_bytes(file, limits)
    with open_picture(file, "photo") as opened:  # its header alone
        width, height = opened.size
        if width * height > limits.pixels:
            raise ValueError(
                f"A photo may have at most {limits.pixels // 10**6} million pixels, got {width} x {height}."
            )
    return load_reference_image(file, name="photo")


def read_concept(file: str | Path | None, limits: Limits) -> Concept:
    """A concept's file.

    Args:
        file: As uploaded.
        limits: That hold.

    Returns:
        The concept.

    Raises:
        ValueError: There is none, or it is too large or holds none.

    Example:
        >>> read_concept("ada/concept.safetensors", Limits())  # doctest: +SKIP
    """
    if file is None:
        raise ValueError("There is no concept yet: upload one, or make one under Customise.")
    _check_bytes(Path(file), limits)
    return Concept.from_pretrained(file)


def _check_bytes(file: Path, limits: Limits) -> None:
    size = file.stat().st_size
    if size > limits.upload_bytes:
        raise ValueError(f"A file may have at most {limits.upload_bytes // 2**20} MB, got {size / 2**20:.1f} MB.")


def public_sentence(error: Exception) -> str:
    """What a visitor is told of an error: the package's sentence, with names of files and not their places.

    Args:
        error: That was raised.

    Returns:
        One sentence.

    Example:
        >>> try:
        ...     raise ValueError("no picture: '/var/uploads/7/me.png'")
        ... except ValueError as error:
        ...     public_sentence(error)
        "no picture: 'me.png'"
    """
    return PLACE.sub("", sentence_of(error))
