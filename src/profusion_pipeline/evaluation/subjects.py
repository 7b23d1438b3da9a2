"""Whom pictures are drawn of, and under which prompts: the folder of a study."""

import hashlib
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..common.picture_walk import NO_PICTURE, find_pictures, is_hidden, say_left_out
from ..common.text_files import read_lines
from ..method.quoting import quote
from ..method.reference_images import load_reference_image
from ..method.whole_files import shown_path

logger = logging.getLogger(__name__)

CAPTION_FILE = "caption.txt"


@dataclass(frozen=True, eq=False)
class Subject:
    """Somebody, and what is asked of pictures of them.

    Args:
        name: Unlike that of any other subject.
        photos: RGB pictures of them. Systems see the first one; likeness is the mean over all.
        prompts: Texts with the placeholder.
        caption: What the first photo shows besides them, such as "wearing a green hoodie, at the beach".

    Raises:
        ValueError: The name, the caption or a prompt is not one line of text.

    Example:
        >>> Subject("ada", (Image.new("RGB", (64, 64)),), ("a photo of S*",)).name
        'ada'
    """

    name: str
    photos: tuple[Image.Image, ...]
    prompts: tuple[str, ...]
    caption: str = ""

    def __post_init__(self):
        for what, text in (
            ("name", self.name),
            ("caption", self.caption),
            *(("prompt", prompt) for prompt in self.prompts),
        ):
            # Control characters, line separators, half characters: no line of a table holds them.
            if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text.replace("\t", " ")):
                raise ValueError(f"The {what} of a subject must be one line of plain text, got {ascii(text[:60])}.")

    def digest(self) -> str:
        """A hash of all that is in it: rows of two subjects belong together only if theirs are the same.

        Returns:
            16 hexadecimal digits.
        """
        said = (self.caption,) if self.caption else ()  # rows may be older than captions
        hashed = hashlib.sha256(repr((self.name, self.prompts, *said)).encode())
        for photo in self.photos:
            hashed.update(repr(photo.size).encode() + photo.tobytes())
        return hashed.hexdigest()[:16]


class Picture(NamedTuple):
    """One picture, and what it was drawn for.

    Args:
        image: As a system drew it.
        subject: Of whom.
        prompt: Under which prompt, with the placeholder.
        seed: With which seed.
    """

    image: Image.Image
    subject: Subject
    prompt: str
    seed: int


def read_subjects(folder: str | Path, prompts: Sequence[str]) -> list[Subject]:
    """A subject for each sub-folder, named like it, with its pictures in the order of their names.

    Its `caption.txt`, where there is one, says in one line what the first picture shows besides the subject.

    Hidden files and folders, and what systems put beside pictures, are left out; a warning in the log says how many
    files were.

    Args:
        folder: With a sub-folder for each subject.
        prompts: What is asked of each.

    Returns:
        The subjects, in the order of their names.

    Raises:
        ValueError: There is no sub-folder, one has no picture, or a picture or caption can't be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "ada").mkdir()
        >>> Image.new("RGB", (64, 64)).save(folder / "ada" / "portrait.png")
        >>> [subject.name for subject in read_subjects(folder, ["a photo of S*"])]
        ['ada']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must hold a sub-folder for each subject, {shown_path(folder)} is no folder.")
    subjects, left_out = [], defaultdict(list)
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)):
        files, others = find_pictures(place, deep=False)
        caption = _read_caption(place / CAPTION_FILE)
        if caption:
            others[NO_PICTURE].remove(".txt")
        for why, names in others.items():
            left_out[why] += names
        if not files:
            raise ValueError(
                f"The subject {quote(place.name)} has no picture: {shown_path(place)} must hold at least one. "
                f"{say_left_out(others, place)}".rstrip()
            )
        photos = tuple(load_reference_image(file, name=f"{place.name}/{file.name}") for file in files)
        subjects.append(Subject(place.name, photos, tuple(prompts), caption))
    if not subjects:
        raise ValueError(f"`folder` must hold a sub-folder for each subject, {shown_path(folder)} has none.")
    if any(left_out.values()):
        logger.warning(say_left_out(left_out, folder))
    return subjects


def _read_caption(file: Path) -> str:
    lines = [line.strip() for line in read_lines(file) if line.strip()] if file.is_file() else [""]
    if len(lines) != 1:
        raise ValueError(f"The caption of a subject must be one line, {str(file)!r} has {len(lines)}.")
    return lines[0]


def check_captions(subjects: Sequence[Subject]) -> None:
    """Refuse to learn with captions where they are missing.

    Args:
        subjects: All of a study.

    Raises:
        ValueError: A subject has no caption.

    Example:
        >>> check_captions([Subject("ada", (), (), "wearing a green hoodie")])
    """
    without = [subject.name for subject in subjects if not subject.caption]
    if without:
        raise ValueError(
            f"With `captions` each subject must have a {CAPTION_FILE} beside its pictures, {len(without)} of "
            f"{len(subjects)} have none, {quote(without[0])} the first."
        )


def read_prompts(file: str | Path) -> list[str]:
    """The prompts in a file: one a line, without empty lines and those that begin with `#`.

    Args:
        file: In UTF-8, or in UTF-16 with a byte order mark; a line ends at \\n or \\r\\n.

    Returns:
        The prompts.

    Raises:
        ValueError: There is no such file, it is in another encoding or has no such line ends, there is no prompt in
            it, or one stands there twice.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "prompts.txt")
        >>> _ = file.write_text("# where\\nS* at the beach\\n")
        >>> read_prompts(file)
        ['S* at the beach']
    """
    if not Path(file).is_file():
        raise ValueError(f"The file of prompts must exist, {shown_path(file)} does not.")
    lines = [line.strip() for line in read_lines(file)]
    if any("\r" in line for line in lines):
        raise ValueError(
            f"The file of prompts must end its lines in \\n or \\r\\n, {shown_path(file)} does in \\r alone."
        )
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"The file of prompts must hold at least one, {shown_path(file)} has none.")
    twice = sorted({prompt for prompt in prompts if prompts.count(prompt) > 1})
    if twice:
        raise ValueError(
            f"The file of prompts must hold each once, {shown_path(file)} has several of {quote(twice[0])}."
        )
    return prompts
