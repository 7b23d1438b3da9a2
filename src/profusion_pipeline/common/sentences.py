"""What is said of an error to somebody who didn't write the code."""

import re
import traceback
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def sentence_of(error: Exception) -> str:
    """One sentence: what this package says is said whole; of what a library says, the first line that says something.

    Args:
        error: That was raised.

    Returns:
        At most 500 characters, or 300 of a library's.

    Example:
        >>> try:
        ...     int("x")
        ... except ValueError as error:
        ...     sentence_of(error)
        "invalid literal for int() with base 10: 'x'"
    """
    lines = [line for line in (" ".join(line.split()) for line in str(error).splitlines()) if line]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        lines = lines[-1:]
    if len(lines) > 1 and re.match(r"\d{3} (Client|Server) Error\b", lines[0]):
        lines = lines[1:]  # what it means follows
    text = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    # Those speak for themselves.
    if not (text and isinstance(error, ValueError | TypeError | OSError | RuntimeError | ArithmeticError)):
        text = f"{type(error).__name__} {text}".rstrip()
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = Path(frame.f_code.co_filename).is_relative_to(PACKAGE)
    longest = 500 if ours else 300
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
