"""A photo -> the square around its face, as the pictures of FFHQ were cut, which the authors' PromptNet learnt from.

    e = the way from the left eye to the right one      m = the way from the eyes to the mouth
    middle of the square: the eyes' middle + m / 10     side: the larger of 4 |e| and 3.6 |m|
    turned so that the sum of e and of m, turned by a right angle, is level

Faces and eyes are found by the cascades that come with OpenCV 4 (Viola & Jones 2001): upright faces that look ahead;
or, where its file is given, by YuNet (Wu et al. 2023), a small network that finds turned ones too, and their mouths.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

import numpy as np
from diffusers.utils import logging
from PIL import Image

from . import quoting, reference_images

logger = logging.get_logger(__name__)

AUTO, YUNET = "auto", "yunet"  # the cascades; what is written down of a file of YuNet, whose path says too much
SEARCHED_SIDE = 1024  # pixels of the longer side in which faces are searched
YUNET_SIDE = 480  # the same for YuNet, which learnt faces of 10 to 300 pixels: those that fill a photo must be found
SMALLEST = 64  # pixels of a face, below which PromptNet's picture of it is mostly made up
EYES_SIDE = 200  # pixels of the face in which eyes are searched
MOST_TILT = 25  # degrees; what stands more askew are no two eyes of an upright face
# Where eyes are in the cascade's square around a face, if none are found: as on faces where they are.
EYE_HEIGHT, EYE_DISTANCE = 0.38, 0.46
EYES_TO_MOUTH = 1.05  # in distances of the eyes, where the mouth is not found


class Face(NamedTuple):
    """Where a face is, in pixels of the picture.

    Args:
        left: Of the square around it.
        top: Of that square.
        side: Of that square.
        eyes: (x, y) of the eye that is left in the picture, and of the other; guessed from the square if not found.
        mouth: (x, y) of its middle; None if it wasn't searched.
    """

    left: float
    top: float
    side: float
    eyes: tuple[tuple[float, float], tuple[float, float]]
    mouth: tuple[float, float] | None = None


def check_detector(detector: str, name: str = "crop_face") -> None:
    """Before any work: what is to find faces is there.

    Args:
        detector: "auto", or the path of an ONNX file of YuNet.
        name: What errors call it.

    Raises:
        ImportError: OpenCV isn't installed, or has no such detector.
        TypeError: It is no text.
        ValueError: There is no such file, or OpenCV can't read it.

    Example:
        >>> check_detector("auto")
    """
    if not isinstance(detector, str | os.PathLike):
        raise TypeError(f"`{name}` must be 'auto' or the path of a YuNet file, got {quoting.quote(detector)}.")
    if detector == AUTO:
        _opencv("CascadeClassifier")
    elif not os.path.isfile(detector):
        raise ValueError(
            f"`{name}` must be 'auto' or an ONNX file of YuNet that exists, got {quoting.quote(detector)}."
        )
    else:
        with _reading(detector, name):
            _yunet(detector, (32, 32)).detect(np.zeros((32, 32, 3), np.uint8))


def detector_name(detector: str | None) -> str | None:
    """What concepts and pictures say of how photos were cut.

    Args:
        detector: As of [`check_detector`], or None.

    Returns:
        "auto", "yunet" for a file, or None.

    Example:
        >>> detector_name("models/face_detection_yunet_2023mar.onnx")
        'yunet'
    """
    return detector if detector in (None, AUTO) else YUNET


def find_faces(picture: Image.Image, detector: str = AUTO) -> list[Face]:
    """The faces in a picture, the largest first.

    Args:
        picture: RGB.
        detector: As of [`crop_face`].

    Returns:
        Those that are at least half as large as the largest: smaller ones stand in the background.

    Raises:
        ImportError: As of [`crop_face`].
        ValueError: As of [`crop_face`].

    Example:
        >>> find_faces(Image.new("RGB", (200, 200)))
        []
    """
    if detector == AUTO:
        return _found_by_cascades(picture)
    check_detector(detector, "detector")
    with _reading(detector, "detector"):
        return _found_by_yunet(picture, detector)


def crop_face(
    image: reference_images.Reference, warn: Callable[[str], None] | None = None, detector: str = AUTO
) -> Image.Image:
    """The square around the face, as FFHQ's pictures were cut: upright, the eyes level and a quarter of its side apart.

    What lies beyond the picture's edge is filled with its reflection.

    Args:
        image: A photo, as [`load_reference_image`] takes it.
        warn: Is called with a sentence if there is no face (then the photo comes back as it is), if there are several
            (the largest is taken), or if it is smaller than 64 pixels. None writes it to the log.
        detector: "auto" takes the cascades of OpenCV 4; the path of an ONNX file takes YuNet.

    Returns:
        An RGB picture, square and of the photo's own resolution.

    Raises:
        ImportError: OpenCV isn't installed, or has no such detector.
        TypeError: As of [`load_reference_image`].
        ValueError: As of [`load_reference_image`]; or `detector` is no file of YuNet.

    Source: Karras et al. 2019, "A Style-Based Generator Architecture for GANs" (arXiv 1812.04948), appendix A; there
    the places of eyes and mouth come from 68 landmarks. Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector"
    (doi 10.1007/s11633-023-1423-y).

    Example:
        >>> said = []
        >>> crop_face(Image.new("RGB", (200, 100)), warn=said.append).size, len(said)
        ((200, 100), 1)
    """
    picture = reference_images.load_reference_image(image)
    square = find_square(picture, warn, detector)
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


def find_square(picture: Image.Image, warn: Callable[[str], None] | None = None, detector: str = AUTO) -> Square | None:
    """Where [`crop_face`] cuts, for what is to be cut out of a photo's mask, too.

    Args:
        picture: RGB.
        warn: As of [`crop_face`].
        detector: As of [`crop_face`].

    Returns:
        The square around the largest face, or None where there is none.

    Raises:
        ImportError: As of [`crop_face`].
        ValueError: As of [`crop_face`].

    Example:
        >>> find_square(Image.new("RGB", (200, 100)), warn=lambda text: None) is None
        True
    """
    warn, faces = warn or logger.warning, find_faces(picture, detector)
    if not faces:
        limits = "; found are upright faces that look ahead" if detector == AUTO else ""
        warn(f"No face was found in the photo, so its middle is taken{limits}.")
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
    across, down = x1 - x0, y1 - y0  # e
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    if face.mouth is None:  # at a right angle to e
        to_mouth = (-EYES_TO_MOUTH * down, EYES_TO_MOUTH * across)
    else:
        to_mouth = (face.mouth[0] - x, face.mouth[1] - y)
    side = max(4 * math.hypot(across, down), 3.6 * math.hypot(*to_mouth))
    level = math.atan2(down - to_mouth[0], across + to_mouth[1])
    return Square((x + 0.1 * to_mouth[0], y + 0.1 * to_mouth[1]), side, math.degrees(level))


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
    if abs(degrees) > 0.5:  # less can't be told from what the detectors are wrong by, and turning blurs
        upright = upright.rotate(degrees, Image.Resampling.BICUBIC, center=centre)
    half = side / 2
    low = [round(value - half) for value in centre]
    return upright.crop((low[0], low[1], low[0] + round(side), low[1] + round(side)))


def _found_by_cascades(picture: Image.Image) -> list[Face]:
    cv2, (small, scale) = _opencv("CascadeClassifier"), _made_small(picture.convert("L"), SEARCHED_SIDE)
    found = _cascade(cv2, "frontalface_default").detectMultiScale(np.asarray(small), scaleFactor=1.1, minNeighbors=5)
    squares = sorted(([float(value) / scale for value in square[:3]] for square in found), key=lambda one: -one[2])
    return [Face(*one, _find_eyes(cv2, picture, *one)) for one in squares if one[2] >= squares[0][2] / 2]


def _found_by_yunet(picture: Image.Image, file: str) -> list[Face]:
    small, scale = _made_small(picture, YUNET_SIDE)
    _, found = _yunet(file, small.size).detect(np.ascontiguousarray(np.asarray(small)[..., ::-1]))  # BGR
    faces = []
    for numbers in () if found is None else found:
        # A box, then the person's right eye, which is left in the picture, the left one, nose, corners of the mouth.
        left, top, width, height, *points = (float(value) / scale for value in numbers[:14])
        side = max(width, height)
        right_eye, left_eye, _, *corners = zip(points[::2], points[1::2], strict=True)
        mouth = tuple(sum(ends) / 2 for ends in zip(*corners, strict=True))
        faces.append(Face(left + (width - side) / 2, top + (height - side) / 2, side, (right_eye, left_eye), mouth))
    faces.sort(key=lambda face: -face.side)
    return [face for face in faces if face.side >= faces[0].side / 2]


def _made_small(picture: Image.Image, longest: int) -> tuple[Image.Image, float]:
    """The picture, at most so many pixels long, and its size in parts of what it was."""
    scale = min(1.0, longest / max(picture.size))
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BOX), scale


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


def _opencv(detector: str):
    advice = "Faces are found by OpenCV 4: `pip install 'opencv-python-headless<5'`."
    try:
        cv2 = import_module("cv2")
    except ImportError as error:
        raise ImportError(advice) from error
    if not hasattr(cv2, detector):  # OpenCV 5 has no cascades
        raise ImportError(f"{advice} This is OpenCV {cv2.__version__}.")
    return cv2


def _cascade(cv2, name: str):
    return cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, f"haarcascade_{name}.xml"))


def _yunet(file: str, size: tuple[int, int]):
    return _opencv("FaceDetectorYN").FaceDetectorYN.create(os.fspath(file), "", size)


@contextmanager
def _reading(file: str, name: str) -> Iterator[None]:
    """What OpenCV says of a file that is no such network, in one sentence."""
    try:
        yield
    except _opencv("FaceDetectorYN").error as error:
        raise ValueError(
            f"`{name}` must be an ONNX file of YuNet, such as face_detection_yunet_2023mar.onnx; OpenCV can't run "
            f"{quoting.quote(file)}."
        ) from error
