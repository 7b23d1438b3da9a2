"""Text files as people's programs write them: with or without a byte order mark, with either end of line."""

import codecs
from pathlib import Path

from ..method.whole_files import shown_path

MARKS = {  # the longer ones first: UTF-16's is how UTF-32's begins
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_lines(file: str | Path) -> list[str]:
    r"""The lines of a text file.

    A line ends at \n or \r\n and nowhere else: U+2028, U+2029 and U+0085 stand inside lines, as JSON Lines has it.

    Args:
        file: In UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Returns:
        The lines, without their ends and without byte order marks.

    Raises:
        ValueError: It is in another encoding.
        OSError: It can't be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "prompts.txt")
        >>> _ = file.write_bytes("S* at sea\r\nS* on the moon\r\n".encode("utf-8-sig"))
        >>> read_lines(file)
        ['S* at sea', 'S* on the moon']
    """
    content = Path(file).read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = content[error.start : error.start + 1].hex()
        raise ValueError(
            f"{shown_path(file)} must be text in UTF-8, got the byte 0x{found} in line {line}: save it in UTF-8."
        ) from error
    # Files that were put together, each with a mark of its own, have it before lines in the middle too.
    lines = [line.removesuffix("\r").removeprefix("\ufeff") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
