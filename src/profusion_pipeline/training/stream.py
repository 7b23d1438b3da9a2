"""Pictures of a data set that is read as it comes, by Hugging Face's `datasets`: tar shards, parquet files, the Hub.

The order is drawn anew in every epoch: first that of the shards, then samples are read, shuffled and handed out in
blocks. A block is taken whole, so where it begins (`datasets` can go back there) and how many samples were taken since
say exactly where the stream is. The sliding shuffle buffer of `datasets` itself is lost when a stream is resumed.

Every process of a training reads the whole stream in the same order, and takes its share of every batch: so several
learn from the same pictures in the same steps as one does, which shards of their own could not give. Reading is paid by
each; pictures are decoded only by the process that takes them.
"""

import re
import tarfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ..method.quoting import brief, quote
from ..method.reference_images import load_reference_image
from ..method.whole_files import shown_path
from .data import CHOICE, ORDER, Sample, checked_caption
from .metadata import is_outside

if TYPE_CHECKING:
    from datasets import IterableDataset

# The ways in which files, archives and the Hub say that they can't be read.
READ_ERRORS = (OSError, ValueError, EOFError, SyntaxError, tarfile.TarError, zlib.error)


# Where a sample may have its caption: a column of parquet files or of metadata.jsonl, a file of WebDataset. The first
# that is there counts; of `json` it is the value of "text".
CAPTION_COLUMNS = ("text", "txt", "json")


def open_picture_stream(data: str, *, captions: bool = True) -> "IterableDataset":
    """Open a data set of pictures; only what tells of its columns is read.

    Args:
        data: Folder or Hub id of a data set with one picture per sample, in any format that `datasets` streams: shards
            of WebDataset (.tar), parquet files, plain pictures. Its split `train` is taken.
        captions: Whether columns that may hold captions are kept: `text`, `txt`, `json`.

    Returns:
        The stream, with the column `image`, or the only one that holds pictures, still encoded, with the columns of
        captions, and with `__key__` and `__url__` where WebDataset gives them.

    Raises:
        ValueError: `datasets` can't open it, or it isn't plain which column holds the pictures.

    Example:
        >>> stream = open_picture_stream("folder-of-tar-files")  # doctest: +SKIP
    """
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    try:
        dataset = load_dataset(data, split="train", streaming=True)
    except READ_ERRORS as error:
        raise ValueError(
            f"`data` must be a data set that the datasets library can stream, can't open {quote(data)}: {brief(error)}."
        ) from error
    columns = dataset.features or {}
    pictures = [name for name, feature in columns.items() if isinstance(feature, ImageFeature)]
    pictures = ["image"] if "image" in pictures else pictures
    if len(pictures) != 1:
        raise ValueError(
            f"`data` must have one column of pictures, or one that is called 'image'; {quote(data)} has "
            f"{pictures} among {list(columns)}."
        )
    others = (*(CAPTION_COLUMNS if captions else ()), "__key__", "__url__")
    dataset = dataset.select_columns([*pictures, *(name for name in others if name in columns)])
    return dataset.cast_column(*pictures, ImageFeature(decode=False))


class BlockStart(NamedTuple):
    """A point to which a [`PictureStream`] can go back.

    Args:
        first: Samples before it, over all epochs.
        epoch: How often the data set was gone through before.
        state: What `datasets` needs to go there; None for the beginning of the epoch.
    """

    first: int
    epoch: int
    state: dict[str, Any] | None


class PictureStream:
    """The samples of a stream, epoch after epoch, in an order that depends on the seed alone.

    Args:
        dataset: From [`open_picture_stream`].
        seed: Of the run.
        shuffle_buffer: Samples of a block; they are kept in memory as encoded files.
        horizontal_flip: Mirror every second sample, at random.
        placeholder: What stands for the person in captions; None leaves captions out.
        folder: The data set, if files of this machine that samples name must lie in it; None lets them lie anywhere.

    Example:
        >>> stream = PictureStream(open_picture_stream("shards"), seed=0, shuffle_buffer=1000)  # doctest: +SKIP
        >>> sample, *_ = next(stream.samples([range(0, 8)]))  # doctest: +SKIP
        >>> sample.target().size  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: "IterableDataset",
        *,
        seed: int,
        shuffle_buffer: int,
        horizontal_flip: bool = False,
        placeholder: str | None = None,
        folder: str | Path | None = None,
    ):
        self.dataset, self.seed, self.folder = dataset, seed, folder
        self.shuffle_buffer, self.horizontal_flip, self.placeholder = shuffle_buffer, horizontal_flip, placeholder
        self.column = next(name for name in dataset.features if not name.startswith("__"))
        self.caption_columns = tuple(name for name in CAPTION_COLUMNS if placeholder and name in dataset.features)
        self._starts = deque([BlockStart(0, 0, None)])
        self._taken = 0

    def samples(self, numbers: Iterable[Sequence[int]]) -> Iterator[list[Sample]]:
        """Samples in batches, from the beginning or from where [`go_to`] went.

        Args:
            numbers: Sample numbers of each batch, ascending: n is the n-th sample of the stream, over all epochs.
                What lies between them, because other processes take it, is read and passed over.

        Yields:
            One batch for each.

        Raises:
            ValueError: The stream can't be read on, or is empty, or a caption doesn't hold the placeholder.
        """
        examples = enumerate(self._shuffled(), start=self._taken)
        for batch in numbers:
            yield [self._sample(n, next(example for i, example in examples if i == n)) for n in batch]

    def bookmark(self, taken: int) -> dict[str, Any]:
        """Where the stream is, ready for JSON. Samples taken for batches read ahead don't matter.

        Args:
            taken: Samples that were learnt from, by all processes; not fewer than at the last call.

        Returns:
            What [`go_to`] takes.
        """
        while len(self._starts) > 1 and self._starts[1].first <= taken:
            self._starts.popleft()
        return dict(taken=taken, **self._starts[0]._asdict())

    def go_to(self, bookmark: dict[str, Any]) -> None:
        """Go on from a bookmark; the shards, the seed and `shuffle_buffer` must be those of the stream that was there.

        Args:
            bookmark: From [`bookmark`].
        """
        self._taken = bookmark["taken"]
        self._starts = deque([BlockStart(bookmark["first"], bookmark["epoch"], bookmark["state"])])

    def _shuffled(self) -> Iterator[dict]:
        first, epoch, state = self._starts[0]
        skip = self._taken - first
        while True:
            examples = self._one_epoch(epoch, state)
            empty = state is None
            while block := list(islice(examples, self.shuffle_buffer)):
                empty = False
                order = np.random.default_rng((self.seed, ORDER, first)).permutation(len(block))
                yield from (block[i] for i in order[skip:])
                first, skip = first + len(block), max(0, skip - len(block))
                self._starts.append(BlockStart(first, epoch, self.dataset.state_dict()))
            if empty:
                raise ValueError("`data` must hold at least one picture, the stream is empty.")
            epoch, state = epoch + 1, None

    def _one_epoch(self, epoch: int, state: dict | None) -> Iterator[dict]:
        # `datasets` draws the order of the shards from this number, unless it is 0.
        self.dataset.set_epoch(int(np.random.default_rng((self.seed, ORDER, epoch)).integers(1, 2**62)))
        self.dataset.load_state_dict(state)
        last = "its beginning"
        try:
            for example in self.dataset:
                last = self._name(example)
                yield example
        except READ_ERRORS as error:
            raise ValueError(
                f"`data` must be readable to its end, can't read on after {last}: {brief(error)}."
            ) from error

    def _sample(self, number: int, example: dict) -> Sample:
        return Sample(
            target=partial(open_encoded_picture, example[self.column], name=self._name(example), folder=self.folder),
            reference=None,
            flip=self.horizontal_flip and bool(np.random.default_rng((self.seed, CHOICE, number)).integers(2)),
            caption=self._caption(example),
        )

    def _caption(self, example: dict) -> str:
        if not self.caption_columns:
            return ""
        said = example[self.caption_columns[0]]
        if isinstance(said, dict):
            said = said.get("text")
        return checked_caption(said, self.placeholder, self._name(example))

    def _name(self, example: dict) -> str:
        if "__key__" in example:
            return f"sample {quote(example['__key__'])} of {quote(example['__url__'])}"
        return f"picture {quote((example[self.column] or {}).get('path'))}"


def file_of_url(url: str) -> str | None:
    """The file of this machine that a path or URL, as `datasets` and fsspec read them, leads to in the end.

    Args:
        url: Such as `portraits/a.png`, `file:///portraits/a.png` or `zip://a.png::portraits.zip`.

    Returns:
        Its path; None if it leads elsewhere.

    Example:
        >>> file_of_url("zip://a.png::file://portraits.zip"), file_of_url("hf://datasets/me/portraits/a.png")
        ('portraits.zip', None)
    """
    last = url.rpartition("::")[2]
    local = re.fullmatch(r"(?:file|local):(?://)?(.*)", last, re.IGNORECASE | re.DOTALL)
    return local[1] if local else None if "://" in last else last


def open_encoded_picture(encoded: dict[str, Any] | None, *, name: str, folder: str | Path | None = None) -> Image.Image:
    """Decode what `datasets` calls an image that is not decoded yet.

    Args:
        encoded: `bytes` of a picture file, or the `path` of one; None where a sample has none.
        name: What errors call it.
        folder: Where a `path` on this machine must lie; None lets it lie anywhere.

    Returns:
        A picture of mode "RGB", upright.

    Raises:
        ValueError: It is missing, not whole, outside, or has more than 300 million pixels.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (4, 6)).save(file, "png")
        >>> open_encoded_picture({"bytes": file.getvalue(), "path": None}, name="sample 'a'").size
        (4, 6)
    """
    from datasets import Image as ImageFeature

    if encoded is None:
        raise ValueError(f"`data` must have a picture in every sample, {name} has none.")
    path, content = encoded.get("path"), encoded.get("bytes")
    here = None if content is not None or path is None else file_of_url(path)
    if here is not None and folder is not None and is_outside(Path(folder), Path(here).absolute()):
        raise ValueError(
            f"`data` must hold its pictures itself, {name} lies outside of {shown_path(folder)}: "
            "allow_outside_files=True allows it, if you trust this data set with all your files."
        )
    try:
        if content is None:  # a whole path, because `~` would be read as somebody's home
            whole = here is not None and "::" not in path
            content = Path(here).absolute() if whole else ImageFeature().decode_example(encoded)
        return load_reference_image(content, "image")
    except READ_ERRORS as error:
        raise ValueError(f"`data` must hold whole pictures, {name} is not one: {brief(error)}.") from error
