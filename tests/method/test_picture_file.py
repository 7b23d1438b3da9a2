import base64
import io
import threading
import urllib.parse
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from profusion_pipeline.method import picture_file
from profusion_pipeline.method.picture_file import open_picture, picture_suffixes
from profusion_pipeline.method.reference_images import load_reference_image


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


@pytest.fixture
def encoded(photo) -> bytes:
    file = io.BytesIO()
    photo.save(file, "png")
    return file.getvalue()


class OnlyRead:
    """As `requests`' raw answers: no seek, no tell."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


def pixels(source) -> list:
    return np.asarray(load_reference_image(source)).tolist()


def test_every_way_to_name_a_file_gives_the_same_picture(photo, encoded, tmp_path, monkeypatch):
    name = "ada #1 50% ä?.png"
    (tmp_path / name).write_bytes(encoded)
    (tmp_path / "~odd.png").write_bytes(encoded)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    written = io.BytesIO()
    photo.save(written, "png")  # and not rewound
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", encoded)
    quoted = urllib.parse.quote(str(tmp_path / name))
    with open(name, "rb") as file, zipfile.ZipFile("a.zip") as archive, archive.open("a.png") as member:
        for source in (
            *(tmp_path / name, str(tmp_path / name), f"~/{name}", Path("~") / name, "~odd.png"),
            *(f"file://{quoted}", f"file://localhost{quoted}", f"file:{quoted}", (tmp_path / name).as_uri()),
            *(encoded, bytearray(encoded), memoryview(encoded)),
            *(file, file, written, member, OnlyRead(encoded)),
        ):
            assert pixels(source) == np.asarray(photo).tolist(), source


@pytest.mark.parametrize("url", ["https://example.org/a.png", "HTTP://a.b/c", "hf://datasets/a/b.png", "s3://a/b.png"])
@pytest.mark.parametrize("as_type", [str, Path])
def test_a_url_is_not_fetched(url, as_type):
    with pytest.raises(
        ValueError, match=r"`image` must be a file on this machine, got the URL '.*': download it first"
    ):
        load_reference_image(as_type(url))


def test_a_file_url_of_another_machine():
    with pytest.raises(ValueError, match=r"must be a file on this machine, got the URL 'file://server/a.png'"):
        load_reference_image("file://server/a.png")


@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "webp", "bmp", "tiff", "avif"])
def test_base64_is_told_from_a_path_and_not_repeated(format):
    file = io.BytesIO()
    Image.effect_noise((200, 200), 60).convert("RGB").save(file, format)
    text = base64.b64encode(file.getvalue()).decode()
    for source in (text, text.encode(), f"data:image/{format};base64,{text}"):
        with pytest.raises(ValueError, match=r"a picture written as text \(\d+ characters\): give its bytes") as error:
            load_reference_image(source)
        assert len(str(error.value)) < 250
    assert pixels(base64.b64decode(text)) == pixels(file)


@pytest.mark.parametrize(
    "source, sentence",
    [
        (b"", "must be the file of a picture, got an empty one"),
        (b"no picture", "must be an image file that Pillow can read, this bytes is not one"),
        (b"\0\0\0\x1cftypheic" + b"\0" * 40, "is a HEIC picture, .* `pip install pillow-heif`"),
        ("x" * 5000 + ".png", r"must be a file that exists, got 'xxx.*' \(5004 characters\)"),
        ("nul\0l.png", "must be a file that exists, got "),
        ("", "must be a file that exists, got ''"),
        ("\ud800.png", r"must be a file that exists, got '\\ud800.png'"),
        ("/", "must be a file that exists, got the folder '/'"),
    ],
)
def test_what_is_no_file_of_a_picture(source, sentence, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)  # as where it is not installed
    with pytest.raises(ValueError, match=f"`image` {sentence}") as error:
        load_reference_image(source)
    assert len(str(error.value)) < 300


def test_a_file_that_may_not_be_read(tmp_path, encoded, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(ValueError, match=r"must be a file that can be read, '.*a.png' is not one: .*Permission denied"):
        load_reference_image(tmp_path / "a.png")


def test_open_files_that_give_no_bytes(tmp_path, encoded):
    (tmp_path / "a.png").write_bytes(encoded)
    with open(tmp_path / "a.png", encoding="latin-1") as text, pytest.raises(TypeError, match="opened with 'rb'.*str"):
        load_reference_image(text)
    with (
        open(tmp_path / "a.png", encoding="utf-8") as no_text,
        pytest.raises(ValueError, match="open in binary mode, got one that can't be read: .*codec"),
    ):
        load_reference_image(no_text)
    with pytest.raises(ValueError, match="open in binary mode, got one that can't be read: .*closed"):
        load_reference_image(text)


def test_heic_is_read_where_pillow_heif_is_installed(photo, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(photo.resize((64, 64))).save(tmp_path / "a.heic")
    assert load_reference_image(tmp_path / "a.heic").size == (64, 64)
    assert ".heic" in picture_suffixes()


def test_suffixes_are_of_formats_that_open(tmp_path):
    assert {
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".webp",
        ".gif",
        ".avif",
        ".bmp",
        ".tif",
        ".tiff",
        ".mpo",
    } <= picture_suffixes()
    assert not picture_suffixes() & {".pdf", ".mpg", ".h5", ".hdf", ".eps", ".wmf", ".txt", ".json", ".svg", ""}


def test_pillows_limit_is_lifted_and_comes_back(encoded, monkeypatch):
    """Several threads may read at a time; the last one puts back what was there."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # the picture has 54
    inside, leave = threading.Barrier(3), threading.Event()

    def read():
        with open_picture(encoded, "image"):
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    assert Image.MAX_IMAGE_PIXELS == picture_file.MAX_PIXELS
    leave.set()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("of_limit", [0.9, 0.4], ids=["warned", "refused"])  # by Pillow: beyond its limit, and twice it
def test_decompression_bomb(encoded, photo, monkeypatch, of_limit):
    monkeypatch.setattr(picture_file, "MAX_PIXELS", int(54 * of_limit))
    for source in (encoded, photo, np.asarray(photo)):
        with pytest.raises(
            ValueError, match=r"`image` must have at most \d+ million pixels \(scale it down first\), got"
        ):
            load_reference_image(source)
