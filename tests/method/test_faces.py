"""On a photograph: NASA's portrait of Eileen Collins (public domain), in scikit-image's wheel."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from profusion_pipeline.method.faces import Face, crop_face, face_square, find_faces

ASTRONAUT = Image.fromarray(data.astronaut())


@pytest.fixture(scope="module")
def face():
    (found,) = find_faces(ASTRONAUT)
    return found


def test_a_face_is_found_and_its_eyes(face):
    assert (face.left, face.top, face.side) == pytest.approx((177, 66, 95), abs=8)
    (x0, y0), (x1, y1) = face.eyes  # read off the photo
    assert (x0, y0, x1, y1) == pytest.approx((201, 102, 246, 103), abs=5)


@pytest.mark.parametrize("degrees", [-12, 0, 12])
def test_it_is_cut_as_the_pictures_of_ffhq(degrees, face):
    """Found again in what was cut out, the eyes are level, a quarter of the side apart, above the middle."""
    middle = ((face.eyes[0][0] + face.eyes[1][0]) / 2, face.eyes[0][1])
    cut = crop_face(ASTRONAUT.rotate(degrees, Image.Resampling.BICUBIC, center=middle))
    assert cut.mode == "RGB" and cut.width == cut.height
    (again,) = find_faces(cut)
    (x0, y0), (x1, y1) = (np.array(eye) / cut.width for eye in again.eyes)
    assert abs(y1 - y0) < 0.03
    assert x1 - x0 == pytest.approx(0.25, abs=0.03)
    assert (x0 + x1) / 2 == pytest.approx(0.5, abs=0.03)
    assert (y0 + y1) / 2 == pytest.approx(0.475, abs=0.04)  # 0.5 - 0.25 x 0.105


def test_the_square_is_that_of_the_formula():
    """Turned with the face, and larger with it."""
    assert face_square(Face(0, 0, 9, ((0, 0), (0, 10)))) == (pytest.approx((-1.05, 5)), 40, 90)
    assert face_square(Face(0, 0, 9, ((0, 0), (3, 4))))[1:] == (20, pytest.approx(53.13, abs=0.01))


def test_what_lies_beyond_the_edge_is_reflected():
    """The same square, whether the picture goes on there or not."""
    whole = crop_face(ASTRONAUT)
    part = crop_face(ASTRONAUT.crop((150, 20, 300, 240)))
    assert abs(whole.width - part.width) <= 8
    assert np.asarray(part).std(axis=(0, 1)).min() > 20 and np.asarray(part)[:, 0].max() > 0


def test_a_large_photo_keeps_its_resolution():
    large = ASTRONAUT.resize((2048, 2048), Image.Resampling.BICUBIC)
    assert crop_face(large).width == pytest.approx(4 * crop_face(ASTRONAUT).width, rel=0.06)


def two_people() -> Image.Image:
    both = Image.new("RGB", (900, 512))
    both.paste(ASTRONAUT.crop((100, 0, 400, 300)).resize((400, 400)), (0, 0))
    both.paste(ASTRONAUT.crop((100, 0, 400, 300)), (500, 0))
    return both


@pytest.mark.parametrize(
    "image, message",
    [
        (Image.new("RGB", (300, 200), "orange"), "No face was found in the photo, so its middle is taken"),
        (two_people(), "2 faces were found in the photo, the largest is taken"),
        (ASTRONAUT.resize((256, 256)), "The face is 5. pixels wide, fewer than 64"),
    ],
)
def test_what_is_worth_a_warning(image, message, caplog):
    said = []
    cut = crop_face(image, warn=said.append)
    assert len(said) == 1 and re.search(message, said[0])
    assert cut.size == image.size or cut.width == cut.height
    crop_face(image)
    assert said[0] in caplog.text


def test_the_larger_of_two_is_taken():
    left = crop_face(two_people(), warn=lambda text: None)
    assert left.width == pytest.approx(crop_face(ASTRONAUT).width * 400 / 300, rel=0.08)


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="Faces are found by OpenCV 4: `pip install 'opencv-python-headless<5'`.$"):
        crop_face(ASTRONAUT)
    monkeypatch.setitem(sys.modules, "cv2", type(sys)("cv2"))
    sys.modules["cv2"].__version__ = "5.0.0"
    with pytest.raises(ImportError, match="This is OpenCV 5.0.0"):
        crop_face(ASTRONAUT)


def test_in_the_call_and_in_a_subject(pipe):
    cut, quick = crop_face(ASTRONAUT), dict(num_inference_steps=1, output_type="latent")
    assert pipe.encode_subject(ASTRONAUT, crop_face="auto").latents.equal(pipe.encode_subject(cut).latents)
    by_call, by_hand = (
        pipe("S*", image=image, crop_face=crop, generator=torch.Generator().manual_seed(0), **quick).images
        for image, crop in ((ASTRONAUT, "auto"), (cut, None))
    )
    assert by_call.equal(by_hand)
    for draw in (pipe.encode_subject, lambda image, **given: pipe("S*", image=image, **given)):
        with pytest.raises(ValueError, match="`crop_face` must be .*auto.*, got 'always'"):
            draw(ASTRONAUT, crop_face="always")
