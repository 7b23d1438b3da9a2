"""On a photograph: NASA's portrait of Eileen Collins (public domain), in scikit-image's wheel."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from profusion_pipeline.method.faces import Face, check_detector, crop_face, detector_name, face_square, find_faces

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


# YuNet, whose weights are not here: what OpenCV's class is given, and what is made of what it answers


EYES, MOUTH = ((201.0, 102.0), (246.0, 103.0)), (225.0, 152.0)  # read off the photo


@pytest.fixture
def yunet(monkeypatch, tmp_path):
    """A file, and in place of OpenCV's class one that answers as YuNet does; `made` is what it was given."""
    cv2 = pytest.importorskip("cv2")
    file, made = tmp_path / "yunet.onnx", []
    file.write_bytes(b"weights")

    class Detector:
        found: list = []

        @classmethod
        def create(cls, model, config, input_size):
            assert Path(model).read_bytes() == b"weights" and config == ""
            made.append([input_size])
            return cls()

        def detect(self, picture):
            assert picture.dtype == np.uint8 and picture.shape == (*made[-1][0][::-1], 3)
            made[-1].append(picture)
            scale = picture.shape[0] / 512
            rows = [[value * scale for value in row] + [0.9] for row in self.found]
            return 1, np.float32(rows) if rows and picture.shape[0] > 32 else None

    monkeypatch.setattr(cv2, "FaceDetectorYN", Detector)
    (x0, y0), (x1, y1) = EYES
    corners = (MOUTH[0] - 16, MOUTH[1], MOUTH[0] + 16, MOUTH[1])
    Detector.found = [[180, 64, 80, 116, x0, y0, x1, y1, 224, 128, *corners]]
    return str(file), made, Detector


def test_yunet_finds_eyes_and_mouth(yunet):
    file, made, _ = yunet
    (face,) = find_faces(ASTRONAUT, file)
    assert (face.left, face.top, face.side) == pytest.approx((162, 64, 116), abs=1e-3)
    assert np.ravel(face.eyes) == pytest.approx(np.ravel(EYES), abs=1e-3)
    assert face.mouth == pytest.approx(MOUTH, abs=1e-3)
    size, picture = made[-1]
    assert size == (480, 480)
    small = ASTRONAUT.resize(size, Image.Resampling.BOX)
    assert np.array_equal(picture[..., ::-1], np.asarray(small))  # blue first
    assert crop_face(ASTRONAUT, detector=file).width == round(face_square(face).side)


def test_yunet_among_several_and_none(yunet):
    file, _, detector = yunet
    first = detector.found[0]
    half, tiny = ([*first[:2], first[2] * part, first[3] * part, *first[4:]] for part in (0.6, 0.4))
    detector.found = [tiny, half, first]
    assert [round(face.side) for face in find_faces(ASTRONAUT, file)] == [116, 70]
    detector.found, said = [], []
    assert crop_face(ASTRONAUT, said.append, file).size == ASTRONAUT.size
    assert said == ["No face was found in the photo, so its middle is taken."]


def ffhq(eyes, mouth):
    """The square as the lines of `download_ffhq.py`, of the data set FFHQ, compute it."""
    eye_to_eye, middle = np.subtract(*eyes[::-1]), np.mean(eyes, axis=0)
    eye_to_mouth = np.subtract(mouth, middle)
    x = eye_to_eye - np.flipud(eye_to_mouth) * [-1, 1]
    x /= np.hypot(*x)
    x *= max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    return middle + eye_to_mouth * 0.1, 2 * np.hypot(*x), np.degrees(np.arctan2(x[1], x[0]))


@pytest.mark.parametrize(
    "eyes, mouth", [(EYES, MOUTH), (((100.0, 90), (112, 95)), (90.0, 140)), (EYES[::-1], (224, 52))]
)
def test_with_a_mouth_the_square_is_that_of_ffhq(eyes, mouth):
    """Upright, half turned away, and upside down."""
    ours, (middle, side, degrees) = face_square(Face(0, 0, 9, eyes, mouth)), ffhq(eyes, mouth)
    assert ours.middle == pytest.approx(middle) and ours.side == pytest.approx(side)
    assert (ours.degrees - degrees) % 360 == pytest.approx(0, abs=1e-6)


def test_yunet_in_the_call(pipe, yunet):
    file, _, _ = yunet
    by_call, by_hand = pipe.encode_subject(ASTRONAUT, crop_face=file), crop_face(ASTRONAUT, detector=file)
    assert by_call.latents.equal(pipe.encode_subject(by_hand).latents)
    assert not by_call.latents.equal(pipe.encode_subject(ASTRONAUT).latents)
    assert [detector_name(one) for one in (None, "auto", file)] == [None, "auto", "yunet"]


def test_what_is_no_yunet(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "face.onnx"
    file.write_bytes(b"no network")
    with pytest.raises(
        ValueError, match="`crop_face` must be an ONNX file of YuNet, such as .*; OpenCV can't run '.*face"
    ):
        check_detector(file)
    with pytest.raises(
        ValueError, match="`crop_face` must be 'auto' or an ONNX file of YuNet that exists, got '.*gone"
    ):
        check_detector(str(tmp_path / "gone.onnx"))
    with pytest.raises(TypeError, match="`crop_face` must be 'auto' or the path of a YuNet file, got 3"):
        check_detector(3)
    monkeypatch.delattr(cv2, "FaceDetectorYN")
    with pytest.raises(ImportError, match="This is OpenCV 4"):
        check_detector(file)
