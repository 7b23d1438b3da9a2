"""A photo -> the square around its face, as the pictures of FFHQ were cut, which the authors' PromptNet learnt from.

    e = the way from the left eye to the right one      m = the way from the eyes to the mouth
    middle of the square: the eyes' middle + m / 10     side: 4 |e|, turned so that e is level

Faces and eyes are found by the cascades that come with OpenCV 4 (Viola & Jones 2001): upright faces that look ahead.
"""

import math
import os
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import numpy as np
from diffusers.utils import logging
from PIL import Image

from . import reference_images

logger = logging.get_logger(__name__)

AUTO = "auto"
SEARCHED_SIDE = 1024  # pixels of the longer side in which faces are searched
SMALLEST = 64  # pixels of a face, below which PromptNet's picture of it is mostly made up
EYES_SIDE = 200  # pixels of the face in which eyes are searched
MOST_TILT = 25  # degrees; what stands more askew are no two eyes of an upright face
# Where eyes are in the cascade's square around a face, if none are found: as on faces where they are.
EYE_HEIGHT, EYE_DISTANCE = 0.38, 0.46
EYES_TO_MOUTH = 1.05  # in distances of the eyes


class Face(NamedTuple):
    """Where a face is, in pixels of the picture.

    Args:
        left: Of the square around it.
        top: Of that square.
        side: Of that square.
        eyes: (x, y) of the eye that is left in the picture, and of the other; guessed from the square if not found.
    """

    left: float
    top: float
    side: float
    eyes: tuple[tuple[float, float], tuple[float, float]]


def find_faces(picture: Image.Image) -> list[Face]:
    """The faces in a picture, the largest first.

    Args:
        picture: RGB.

    Returns:
        Those that are at least half as large as the largest: smaller ones stand in the background.

    Raises:
        ImportError: OpenCV 4 isn't installed.

    Example:
        >>> find_faces(Image.new("RGB", (200, 200)))
        []
    """
    cv2 = _opencv()
    scale = min(1.0, SEARCHED_SIDE / max(picture.size))
    size = [max(1, round(side * scale)) for side in picture.size]
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX))  # [H, W]
    found = _cascade(cv2, "frontalface_default").detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5)
    squares = sorted(([float(value) / scale for value in square[:3]] for square in found), key=lambda one: -one[2])
    return [Face(*one, _find_eyes(cv2, picture, *one)) for one in squares if one[2] >= squares[0][2] / 2]


def crop_face(image: reference_images.Reference, warn: Callable[[str], None] | None = None) -> Image.Image:
    """The square around the face, as FFHQ's pictures were cut: upright, the eyes level and a quarter of its side apart.

    What lies beyond the picture's edge is filled with its reflection.

    Args:
        image: A photo, as [`load_reference_image`] takes it.
        warn: Is called with a sentence if there is no face (then the photo comes back as it is), if there are several
            (the largest is taken), or if it is smaller than 64 pixels. None writes it to the log.

    Returns:
        An RGB picture, square and of the photo's own resolution.

    Raises:
        ImportError: OpenCV 4 isn't installed.
        TypeError: As of [`load_reference_image`].
        ValueError: As of [`load_reference_image`].

    Source: Karras et al. 2019, "A Style-Based Generator Architecture for GANs" (arXiv 1812.04948), appendix A; there
    the places of eyes and mouth come from 68 landmarks.

    Example:
        >>> said = []
        >>> crop_face(Image.new("RGB", (200, 100)), warn=said.append).size, len(said)
        ((200, 100), 1)
    """
    picture = reference_images.load_reference_image(image)
    square = find_square(picture, warn)
    return picture if square is None else cut_square(picture, square)


class Square(NamedTuple):
    """A square in a picture.

    Args:
        middle: Its (x, y) in pixels.
        side: In pixels.
        degrees: By which it is turned, clockwise.
    """

    middle: tuple[float, float]
    side: float
    degrees: float


def find_square(picture: Image.Image, warn: Callable[[str], None] | None = None) -> Square | None:
    """Where [`crop_face`] cuts, for what is to be cut out of a photo's mask, too.

    Args:
        picture: RGB.
        warn: As of [`crop_face`].

    Returns:
        The square around the largest face, or None where there is none.

    Raises:
        ImportError: OpenCV 4 isn't installed.

    Example:
        >>> find_square(Image.new("RGB", (200, 100)), warn=lambda text: None) is None
        True
    """
    warn, faces = warn or logger.warning, find_faces(picture)
    if not faces:
        warn("No face was found in the photo, so its middle is taken; found are upright faces that look ahead.")
        return None
    if len(faces) > 1:
        warn(f"{len(faces)} faces were found in the photo, the largest is taken: crop the photo to choose another one.")
    if faces[0].side < SMALLEST:
        warn(f"The face is {round(faces[0].side)} pixels wide, fewer than {SMALLEST}: its details will be made up.")
    return face_square(faces[0])


def face_square(face: Face) -> Square:
    """The square that is cut out around a face.

    Args:
        face: Where it is.

    Returns:
        The square.

    Example:
        >>> face_square(Face(0, 0, 100, ((30, 40), (70, 40))))
        Square(middle=(50.0, 44.2), side=160.0, degrees=0.0)
    """
    (x0, y0), (x1, y1) = face.eyes
    across, down = x1 - x0, y1 - y0
    distance = math.hypot(across, down)
    step = 0.1 * EYES_TO_MOUTH  # from the eyes towards the mouth, at a right angle to `across, down`
    middle = ((x0 + x1) / 2 - step * down, (y0 + y1) / 2 + step * across)
    return Square(middle, 4 * distance, math.degrees(math.atan2(down, across)))


def cut_square(picture: Image.Image, square: Square) -> Image.Image:
    """A square out of a picture, turned back upright.

    Args:
        picture: RGB; or a grey mask, which is dark beyond its edge, where a photo is reflected.
        square: Which.

    Returns:
        The part, in the picture's mode and resolution.

    Example:
        >>> cut_square(Image.new("L", (8, 8), 255), Square((0, 0), 8, 0)).getextrema()
        (0, 255)
    """
    middle, side, degrees = square
    reach = math.ceil(side * math.sqrt(0.5)) + 1  # of the square's corners, however it is turned
    left, top = round(middle[0]) - reach, round(middle[1]) - reach
    pads = [
        (max(0, -low), max(0, low + 2 * reach - length))
        for low, length in zip((top, left), (picture.height, picture.width), strict=True)
    ]
    box = (max(0, left), max(0, top), min(picture.width, left + 2 * reach), min(picture.height, top + 2 * reach))
    inside = np.asarray(picture.crop(box))  # [h, w, 3], of a mask [h, w]
    beyond = "constant" if picture.mode == "L" else "reflect"
    around = np.pad(inside, [*pads, (0, 0)][: inside.ndim], mode=beyond)  # [2 reach, 2 reach, ...]
    centre = (middle[0] - left, middle[1] - top)
    upright = Image.fromarray(around)
    if abs(degrees) > 0.5:  # less can't be told from what the cascades are wrong by, and turning blurs
        upright = upright.rotate(degrees, Image.Resampling.BICUBIC, center=centre)
    half = side / 2
    low = [round(value - half) for value in centre]
    return upright.crop((low[0], low[1], low[0] + round(side), low[1] + round(side)))


def _find_eyes(cv2, picture: Image.Image, left: float, top: float, side: float) -> tuple:
    """Two that are found in the upper part of a face, one in each half and fairly level; else where they would be."""
    scale = EYES_SIDE / side
    part = picture.crop((round(left), round(top), round(left + side), round(top + 0.6 * side))).convert("L")
    grey = np.asarray(part.resize((EYES_SIDE, round(0.6 * EYES_SIDE)), Image.Resampling.BICUBIC))
    least = (EYES_SIDE // 7, EYES_SIDE // 7)
    found = _cascade(cv2, "eye").detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=least)
    places = sorted((float(x + w / 2), float(y + h / 2)) for x, y, w, h in found)
    if len(places) == 2 and places[0][0] < EYES_SIDE / 2 < places[1][0]:
        (x0, y0), (x1, y1) = places
        if abs(math.degrees(math.atan2(y1 - y0, x1 - x0))) <= MOST_TILT:
            return tuple((left + x / scale, top + y / scale) for x, y in places)
    y = top + EYE_HEIGHT * side
    return tuple((left + (0.5 + sign * EYE_DISTANCE / 2) * side, y) for sign in (-1, 1))


def _opencv():
    advice = "Faces are found by OpenCV 4: `pip install 'opencv-python-headless<5'`."
    try:
        cv2 = import_module("cv2")
    except ImportError as error:
        raise ImportError(advice) from error
    if not hasattr(cv2, "CascadeClassifier"):  # OpenCV 5 has it no more
        raise ImportError(f"{advice} This is OpenCV {cv2.__version__}.")
    return cv2


def _cascade(cv2, name: str):
    return cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, f"haarcascade_{name}.xml"))
