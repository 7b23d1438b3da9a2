"""What errors repeat of what a user gave: enough to know it again, never a whole photo or a page of text."""

import os
import reprlib
from typing import Any

LONGEST = 90  # characters of one quotation, so that a sentence with two of them stays under 200


def quote(value: Any) -> str:
    """A value as an error shows it.

    Args:
        value: Anything; a path is shown as the text that it is.

    Returns:
        Its `repr` in one line of at most 90 characters, cut in the middle if it is longer.

    Example:
        >>> quote("x" * 1000)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' (1000 characters)"
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    text = " ".join(_SHORT.repr(value).split())
    if isinstance(value, str | bytes | bytearray) and len(value) > 2 * LONGEST:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{text} ({len(value)} {unit})"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def entry(name: str, number: int, count: int) -> str:
    """What an error calls one of several things that were given under one name.

    Args:
        name: Of them all.
        number: Of the one, from 0 on.
        count: How many there are.

    Returns:
        The name with its number behind it; of a single one, the name.

    Example:
        >>> entry("image", 1, 3), entry("image", 0, 1)
        ('image[1]', 'image')
    """
    return name if count == 1 else f"{name}[{number}]"


def brief(text: Any) -> str:
    """What another library says, without what it repeats at length.

    Args:
        text: Its error, or a text.

    Returns:
        One line of at most 180 characters without a full stop, the name of the error if it says nothing.

    Example:
        >>> brief(ValueError("no such file:\\n" + "x" * 1000))[:20]
        'no such file: xxxxxx'
    """
    line = " ".join(str(text).split()).removesuffix(".") or type(text).__name__
    return line if len(line) <= 2 * LONGEST else f"{line[: 2 * LONGEST - 3]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = 68
_SHORT.maxother = LONGEST
_SHORT.maxlevel = 2
