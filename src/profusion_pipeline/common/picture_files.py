"""Where a command's pictures go: names decided and checked before any work, files that appear whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .files import whole_files


def output_paths(out: str | Path, count: int, *, force: bool = False) -> list[Path]:
    """The files that `count` pictures will be written to, checked while nothing has been computed yet.

    Args:
        out: The file for a single picture; several get `-1`, `-2`, ... before the extension. The extension says the
            format and must be one that Pillow writes.
        count: How many pictures there will be.
        force: Whether existing files may be replaced.

    Returns:
        `count` paths.

    Raises:
        ValueError: The extension names no picture format.
        FileNotFoundError: The folder is not there.
        FileExistsError: One of the files is there and `force` is False.

    Example:
        >>> [path.name for path in output_paths("me.png", 2)]
        ['me-1.png', 'me-2.png']
    """
    out = Path(out)
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out must end in the extension of a picture format, e.g. .png, got {str(out)!r}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out must lie in an existing folder, {str(out.parent)!r} is not one.")
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(1, count + 1)]
    for path in paths:
        if path.is_dir():
            raise FileExistsError(f"--out must name a file, {str(path)!r} is a folder.")
        if path.exists() and not force:
            raise FileExistsError(f"{str(path)!r} exists already; --force replaces it.")
    return paths


def write_pictures(pictures: Sequence[Image.Image], paths: Sequence[Path]) -> None:
    """Write each picture under a temporary name and move all of them into place once the last is whole.

    Args:
        pictures: What to write.
        paths: As many files, in folders that exist; the extensions say the formats.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_pictures([Image.new("RGB", (8, 8))], [folder / "black.png"])
        >>> [path.name for path in folder.iterdir()]
        ['black.png']
    """
    with whole_files(paths) as new:
        for picture, path in zip(pictures, new, strict=True):
            picture.save(path)
