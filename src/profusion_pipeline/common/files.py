"""Files and folders that appear whole or not at all, for all but the method, which has its own part of this."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..method.whole_files import scratch_folder as scratch_folder
from ..method.whole_files import whole_file as whole_file
from ..method.whole_files import whole_folder as whole_folder
from ..method.whole_files import writing as writing


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a small file, whole or not at all.

    Args:
        path: Where it shall be; an older file there is replaced.
        content: What it holds; text is written as UTF-8.

    Raises:
        OSError: It could not be written.

    Example:
        >>> write_whole("a.txt", "whole")
        >>> Path("a.txt").read_text()
        'whole'
    """
    with whole_file(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Paths to write several files to, which are moved into their places once the last one is whole.

    Args:
        paths: Where the files shall be, in folders that exist; older files there are replaced.

    Yields:
        Where to write, one for each.

    Raises:
        OSError: One could not be written; those that are there are as they were.

    Example:
        >>> with whole_files([Path("a.txt"), Path("b.txt")]) as (a, b):
        ...     _ = a.write_text("one"), b.write_text("two")
        >>> sorted(path.name for path in Path(".").iterdir())
        ['a.txt', 'b.txt']
    """
    with ExitStack() as stack:
        scratch = {folder: stack.enter_context(scratch_folder(folder)) for folder in {path.parent for path in paths}}
        new = [scratch[path.parent] / path.name for path in paths]
        yield new
        for one, path in zip(new, paths, strict=True):
            os.replace(one, path)
