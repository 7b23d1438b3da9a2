"""Errors of a `DataLoader`'s worker processes, as they were raised there."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

CAUGHT = re.compile(r"Caught (\w+) in .+?\.\nOriginal Traceback \(most recent call last\):\n(.*)", re.DOTALL)


def read_loader(loader: Iterable) -> Iterator[Any]:
    """What a `DataLoader` gives; an error in one of its workers is raised as without workers.

    torch raises one of the same class whose text is the worker's whole traceback; that one stays as the cause.

    Args:
        loader: A `DataLoader`.

    Yields:
        Its batches.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> list(read_loader(DataLoader([1, 2, 3], batch_size=2)))
        [tensor([1, 2]), tensor([3])]
    """
    try:
        yield from loader
    except Exception as error:
        if caught := CAUGHT.match(str(error)):
            raise _original(type(error), *caught.groups()) from error
        raise


def _original(kind: type[Exception], name: str, traceback: str) -> Exception:
    # The last thing in a traceback that is not indented is the error, `module.Name: text`; a text may have lines.
    start = [match.start() for match in re.finditer(rf"^(?:\w+\.)*{name}(?=:|$)", traceback, re.MULTILINE)][-1:]
    text = traceback[start[0] :].partition(": ")[2].strip() if start else ""
    if kind.__name__ != name:  # torch can't make one of this class from a text alone, and makes a RuntimeError
        text = f"{name}: {text}"
    return kind(text)
