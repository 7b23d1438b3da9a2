"""The files that pictures come in: what a user may name one by, which suffixes they have, how large they may be."""

import functools
import io
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageFile, UnidentifiedImageError

from . import quoting

MAX_PIXELS = 300_000_000  # phones make 200 million; more is a decompression bomb, or a map
URL = re.compile(r"[A-Za-z][\w+.-]+:/|data:")  # two letters or more: `C:/` is a path
# How pictures begin in base64: PNG, JPEG, GIF, WebP, BMP, TIFF, AVIF and HEIC
ENCODED = re.compile(r"\s*(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk|SUkq|TU0AK|AAAA\wGZ0eXB)[\w+/=\s-]{60,}$")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
NO_PICTURES = {"EPS", "MPEG"}  # Pillow knows these by name; it leaves reading them to Ghostscript, or to nobody


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The endings of file names that count as pictures: those of all formats that Pillow reads here.

    Returns:
        In lower case, with the dot. `.heic` is among them where pillow-heif is installed.

    Example:
        >>> {".jpg", ".jfif", ".webp"} <= picture_suffixes(), ".txt" in picture_suffixes()
        (True, False)
    """
    of_format = Image.registered_extensions()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    readable = Image.OPEN.keys() - stubs - NO_PICTURES | {"MPO"}  # the reader of JPEG tells whether it is one
    heif = HEIF_SUFFIXES if find_spec("pillow_heif") else ()
    return frozenset([*(suffix for suffix, name in of_format.items() if name in readable), *heif])


@contextmanager
def open_picture(source: Any, name: str) -> Iterator[Image.Image]:
    """Open a file of a picture; its pixels are still to be read.

    Args:
        source: A path (`~` is the home folder), a `file://` URL, the bytes of a file, or an open binary file.
        name: What errors call it.

    Yields:
        The picture, of any mode. Pillow's own limit on pixels, less than what phones make, is lifted meanwhile.

    Raises:
        TypeError: It is an open file that gives no bytes.
        ValueError: There is no such file, it is no picture, it is empty, or it has more than 300 million pixels; the
            text is a URL elsewhere, or a picture in base64.
        OSError: The file can't be read.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 6)).save(file, "png")
        >>> with open_picture(file, "image") as picture:
        ...     picture.size
        (4, 6)
    """
    with _open_bytes(source, name) as file, _our_limit():
        if file.seek(0, io.SEEK_END) == 0:
            raise ValueError(f"`{name}` must be the file of a picture, got an empty one.")
        file.seek(0)
        try:
            picture = _identify(file, name)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(name, quoting.brief(error)) from error
        except UnidentifiedImageError as error:
            raise ValueError(
                f"`{name}` must be an image file that Pillow can read, {_named(source)} is not one."
            ) from error
        except (OSError, SyntaxError, EOFError, struct.error) as error:  # what readers of formats say of a torn start
            raise ValueError(
                f"`{name}` must be a whole image, cannot read {_named(source)}: {quoting.brief(error)}."
            ) from error
        with picture:
            check_pixels(picture.size, name)
            yield picture


def check_pixels(size: tuple[int, int], name: str) -> None:
    """A picture may have no more pixels than fit into memory several times.

    Args:
        size: Its width and height.
        name: What errors call it.

    Raises:
        ValueError: It has more than 300 million.

    Example:
        >>> check_pixels((12000, 9000), "image")
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(name, f"{size[0]} x {size[1]}")


def _named(source: Any) -> str:
    return quoting.quote(source) if isinstance(source, str | os.PathLike) else f"this {type(source).__name__}"


def _too_large(name: str, given: str) -> ValueError:
    return ValueError(
        f"`{name}` must have at most {MAX_PIXELS // 10**6} million pixels (scale it down first), got {given}."
    )


def _written_as_text(name: str, length: int) -> ValueError:
    return ValueError(
        f"`{name}` must be a picture or the path of one, got a picture written as text ({length} characters): "
        "give its bytes, `base64.b64decode(text)` of what follows any comma."
    )


def _open_bytes(source: Any, name: str) -> BinaryIO:
    if isinstance(source, str | os.PathLike):
        return open(_find(os.fspath(source), name), "rb")
    if isinstance(source, bytes | bytearray | memoryview):
        source = bytes(source)
        if ENCODED.match(source[:200].decode("latin-1")):
            raise _written_as_text(name, len(source))
        return io.BytesIO(source)
    try:
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)  # a file that was just written stands at its end
        content = source.read()
    except ValueError as error:  # closed, or text that isn't in its encoding
        raise ValueError(
            f"`{name}` must be a file open in binary mode, got one that can't be read: {quoting.brief(error)}."
        ) from error
    if not isinstance(content, bytes):
        raise TypeError(
            f"`{name}` as an open file must give bytes (opened with 'rb'), got {type(content).__name__} from "
            f"{type(source).__name__}."
        )
    return io.BytesIO(content)


def _find(text: str, name: str) -> str:
    path = text
    if text.lower().startswith("file:/"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"`{name}` must be a file on this machine, got the URL {quoting.quote(text)}.")
        # What stands behind ? and # belongs to the name: nobody asks a file a question.
        path = unquote(text[len(parts.scheme) + 1 :].removeprefix(f"//{parts.netloc}"))
    elif not os.path.isfile(text):
        path = os.path.expanduser(text)
    if os.path.isfile(path):
        return path
    if ENCODED.match(text) or text.startswith("data:"):
        raise _written_as_text(name, len(text))
    if URL.match(text) and path is text:
        raise ValueError(
            f"`{name}` must be a file on this machine, got the URL {quoting.quote(text)}: download it first, for "
            "example with `diffusers.utils.load_image`."
        )
    is_folder = os.path.isdir(path)
    raise ValueError(
        f"`{name}` must be a file that exists, got {'the folder ' if is_folder else ''}{quoting.quote(text)}."
    )


def _identify(file: BinaryIO, name: str) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(12)
        if start[4:8] != b"ftyp" or start[8:12] not in HEIF_BRANDS:
            raise
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise ValueError(
            f"`{name}` is a HEIC picture, as iPhones take them, which Pillow reads with pillow-heif only: "
            "`pip install pillow-heif`, or save it as JPEG."
        ) from error
    file.seek(0)
    return Image.open(file)


class _OurLimit:
    """Pillow's guard is a number of its module: it is ours as long as anybody here reads a picture."""

    def __init__(self):
        self.lock, self.readers, self.theirs = threading.Lock(), 0, None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.readers == 0:
                self.theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
            self.readers += 1
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1
                if self.readers == 0:
                    Image.MAX_IMAGE_PIXELS = self.theirs


_our_limit = _OurLimit()
