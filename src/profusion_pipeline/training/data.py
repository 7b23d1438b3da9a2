"""What sample number n of a training run is: its picture, its reference, its timestep and its noise.

Sample number n is the n-th sample that the whole run learns from, whatever batch, process or restart it falls into.
Everything about it is drawn from generators keyed by (seed, n), so a run that is interrupted and resumed, split into
accumulation steps or spread over processes sees the same samples. `batches.py` turns the choices into tensors.
"""

import functools
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..common.picture_walk import find_pictures, say_left_out
from ..method.quoting import quote
from ..method.whole_files import shown_path
from .metadata import MetadataRow, is_outside, read_metadata
from .workers import read_loader

logger = logging.getLogger(__name__)

METADATA_FILE = "metadata.jsonl"
ORDER, CHOICE, NOISE, CAPTION = range(4)  # which generator of a seed


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a data set and who may be whose reference.

    Args:
        files: All picture files.
        targets: The pictures to learn, as indices into `files`.
        references: For each target the pictures of the same person that may be its reference, as indices into `files`.
        captions: What each target shows besides the person, in a text with the placeholder; empty where there is none.
            Nothing at all means that no target has one.

    Example:
        >>> PictureFolder((Path("a.png"), Path("b.png")), (0, 1), ((1,), (0,))).references[0]
        (1,)
    """

    files: tuple[Path, ...]
    targets: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]
    captions: tuple[str, ...] = ()


def read_picture_folder(
    folder: str | Path,
    *,
    reference: str = "same",
    placeholder: str | None = None,
    allow_outside_files: bool = False,
) -> PictureFolder:
    """List the pictures of a folder in the layout of Hugging Face's `imagefolder`.

    With a `metadata.jsonl` in the folder, its lines are the pictures to learn: `{"file_name": "a/1.png", "ref_img":
    ["a/2.png"], "text": "a photo of S*, smiling"}`, names relative to the folder, `ref_img` one name or a list, other
    keys ignored. Without, all pictures at every depth are, in the order of their paths; hidden files and folders, and
    what systems put beside pictures, are left out, and a warning in the log says how many files were.

    Args:
        folder: The data set.
        reference: "same" (a picture is its own reference) or "other" (one of its `ref_img`).
        placeholder: What stands for the person in captions (`text`); None leaves captions out.
        allow_outside_files: Whether pictures may lie outside the folder: named so in `metadata.jsonl`, or links.

    Returns:
        The table of files, targets, references and captions. No picture is opened.

    Raises:
        ValueError: No such folder, no pictures in it, a line of metadata that is broken or names a file that isn't
            there or is outside, `reference="other"` and a picture without `ref_img`, or a caption without the
            placeholder.

    Example:
        >>> read_picture_folder("portraits", reference="other")  # doctest: +SKIP
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`data` must be a folder of pictures that exists, got {shown_path(folder)}.")
    metadata, left_out = folder / METADATA_FILE, ""
    if metadata.is_file():
        rows = read_metadata(metadata, allow_outside_files=allow_outside_files)
    elif reference == "other":
        raise ValueError(
            f"`reference` is 'other', so {shown_path(metadata)} must exist and name other pictures of each "
            "person (ref_img)."
        )
    else:
        paths, others = find_pictures(folder)
        rows = {path.relative_to(folder).as_posix(): MetadataRow() for path in paths}
        outside = [] if allow_outside_files else [name for name in rows if is_outside(folder, name)]
        if outside:
            raise ValueError(
                f"`data` must hold its pictures itself, {shown_path(outside[0])} is a link out of "
                f"{shown_path(folder)}: allow_outside_files=True allows it."
            )
        left_out = say_left_out(others, folder)
    if not rows:
        raise ValueError(
            f"`data` must hold at least one picture (.png, .jpg, .webp or what else Pillow reads), found none in "
            f"{shown_path(folder)}. {left_out}".rstrip()
        )
    if left_out:
        logger.warning(left_out)
    if reference == "same":
        references = {name: (name,) for name in rows}
    else:
        references = {name: row.others for name, row in rows.items()}
        for name, others in references.items():
            if not others:
                raise ValueError(
                    f"`reference` is 'other', so {quote(name)} must have a ref_img in {shown_path(metadata)}."
                )
    names = dict.fromkeys([*rows, *(other for others in references.values() for other in others)])
    index = {name: i for i, name in enumerate(names)}
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{shown_path(metadata)} must name files of its folder, {quote(name)} is not there.")
    captions = ()
    if placeholder is not None:
        captions = tuple(checked_caption(row.text, placeholder, str(folder / name)) for name, row in rows.items())
    return PictureFolder(
        files=tuple(folder / name for name in names),
        targets=tuple(index[name] for name in rows),
        references=tuple(tuple(index[other] for other in others) for others in references.values()),
        captions=captions,
    )


def checked_caption(caption: object, placeholder: str, name: str) -> str:
    """A caption as the data has it, if it can be learnt from.

    Args:
        caption: A text, or None.
        placeholder: What stands for the person.
        name: The picture's, for the error.

    Returns:
        The caption without space around it; empty if there is none.

    Raises:
        ValueError: It is no text, or doesn't hold the placeholder exactly once; the sentence names the picture.

    Example:
        >>> checked_caption(" a photo of S*, smiling\\n", "S*", "a.png")
        'a photo of S*, smiling'
    """
    # Half a character can be written in JSON, and no tokenizer reads it.
    text = caption.strip("\ufeff \t\r\n") if isinstance(caption, str) else "" if caption is None else caption
    is_whole = isinstance(text, str) and not any("\ud800" <= sign <= "\udfff" for sign in text)
    if not is_whole or (text.strip() and text.count(placeholder) != 1):
        said = repr(caption)
        raise ValueError(
            f"The caption of {quote(name)} must be a text that holds {placeholder!r} exactly once, for the person "
            f"(captions=False leaves captions out), got {said if len(said) <= 100 else said[:97] + '...'}."
        )
    return text.strip()


class Sample(NamedTuple):
    """The pictures of a sample, not opened yet.

    Args:
        target: Opens the picture to learn.
        reference: Opens the reference photo; None if the target is its own reference.
        flip: Whether both are mirrored.
        caption: Of the picture to learn; empty if it has none.
    """

    target: Callable[[], Image.Image]
    reference: Callable[[], Image.Image] | None
    flip: bool
    caption: str = ""


class SampleChoice(NamedTuple):
    """Which pictures of a folder a sample is made of.

    Args:
        target: The picture to learn, an index into `PictureFolder.files`.
        reference: The reference photo, likewise.
        flip: Whether both are mirrored.
        caption: Of the picture to learn; empty if it has none.
    """

    target: int
    reference: int
    flip: bool
    caption: str = ""


def choose_sample(number: int, pictures: PictureFolder, *, seed: int, horizontal_flip: bool = False) -> SampleChoice:
    """The pictures of sample `number`: every epoch goes through all targets once, in an order of its own.

    Args:
        number: Sample number, from 0, counted over the whole run.
        pictures: The data set.
        seed: Of the run.
        horizontal_flip: Mirror every second sample, at random.

    Returns:
        Target, reference, flip and caption.

    Example:
        >>> pictures = PictureFolder((Path("a.png"), Path("b.png")), (0, 1), ((0,), (1,)))
        >>> sorted(choose_sample(n, pictures, seed=0).target for n in (0, 1))
        [0, 1]
    """
    epoch, turn = divmod(number, len(pictures.targets))
    row = _epoch_order(len(pictures.targets), seed, epoch)[turn]
    candidates = pictures.references[row]
    caption = pictures.captions[row] if pictures.captions else ""
    if len(candidates) == 1 and not horizontal_flip:  # nothing to draw: a generator would cost more than all the rest
        return SampleChoice(pictures.targets[row], candidates[0], flip=False, caption=caption)
    generator = np.random.default_rng((seed, CHOICE, number))
    return SampleChoice(
        target=pictures.targets[row],
        reference=candidates[generator.integers(len(candidates))],
        flip=horizontal_flip and bool(generator.integers(2)),
        caption=caption,
    )


@functools.lru_cache(maxsize=4)
def _epoch_order(num_targets: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(num_targets)


class NoiseDraws(NamedTuple):
    """What is random about samples besides their pictures.

    Args:
        timesteps: t, uniform over all timesteps [B], int64.
        noise: Standard normal, to be added to the latents. [B, C, h, w]
        posterior_noise: Standard normal, to draw the latents from the VAE's posterior. [B, C, h, w]
    """

    timesteps: torch.Tensor
    noise: torch.Tensor
    posterior_noise: torch.Tensor


def draw_noise(
    numbers: Sequence[int], *, seed: int, num_timesteps: int, latent_shape: tuple[int, int, int]
) -> NoiseDraws:
    """Timesteps and noises of samples, each from its own generator.

    Args:
        numbers: Sample numbers.
        seed: Of the run.
        num_timesteps: Timesteps are drawn from 0..num_timesteps-1.
        latent_shape: (C, h, w).

    Returns:
        The draws, on the CPU.

    Example:
        >>> draw_noise([7], seed=0, num_timesteps=1000, latent_shape=(4, 8, 8)).noise.shape
        torch.Size([1, 4, 8, 8])
    """
    timesteps = np.empty(len(numbers), dtype=np.int64)
    noises = np.empty((2, len(numbers), *latent_shape), dtype=np.float32)
    for i, number in enumerate(numbers):
        generator = np.random.default_rng((seed, NOISE, number))
        timesteps[i] = generator.integers(num_timesteps)
        for noise in noises:
            generator.standard_normal(out=noise[i], dtype=np.float32)
    return NoiseDraws(torch.from_numpy(timesteps), *torch.from_numpy(noises))


def load_batches(
    make: Callable[[Sequence[int]], Any],
    numbers: Iterator[Sequence[int]],
    *,
    ahead: bool = False,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """What a function makes of the numbers of each batch.

    Args:
        make: Sample numbers -> tensors, on the CPU.
        numbers: Sample numbers of each batch.
        ahead: Whether another process makes two batches ahead of need.
        pin_memory: Whether the tensors are put where a GPU copies them from without anybody waiting.

    Yields:
        One result for each.

    Example:
        >>> list(load_batches(torch.tensor, [[0, 1], [2]]))
        [tensor([0, 1]), tensor([2])]
    """
    loader = DataLoader(
        _Made(make),
        sampler=numbers,
        batch_size=None,
        num_workers=1 if ahead else 0,
        worker_init_fn=leave_signals_to_the_main_process,
        pin_memory=pin_memory,
    )
    yield from read_loader(loader)


class _Made(Dataset):
    def __init__(self, make: Callable[[Sequence[int]], Any]):
        self.make = make

    def __getitem__(self, numbers: Sequence[int]) -> Any:
        return self.make(numbers)


def leave_signals_to_the_main_process(worker: int) -> None:
    """What a `DataLoader` calls in its workers: SIGTERM and Ctrl-C, which launchers send to all, don't end them.

    They go on until the main process has taken its last step and ends them, or has died.

    Args:
        worker: Its index.

    Example:
        >>> loader = DataLoader([1, 2, 3], worker_init_fn=leave_signals_to_the_main_process)
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def batch_numbers(
    first_step: int, *, batch_size: int, accumulation: int = 1, process: int = 0, num_processes: int = 1
) -> Iterator[range]:
    """The sample numbers of one process's batches from a step on, without end.

    A step learns from `accumulation * num_processes * batch_size` consecutive samples; each process takes its share of
    every forward pass.

    Args:
        first_step: Optimiser step to begin with, from 0.
        batch_size: Samples of one forward pass of one process.
        accumulation: Forward passes per step.
        process: Index of this process.
        num_processes: How many there are.

    Yields:
        `batch_size` numbers per forward pass.

    Example:
        >>> numbers = batch_numbers(1, batch_size=2, accumulation=2)
        >>> next(numbers), next(numbers)
        (range(4, 6), range(6, 8))
    """
    width = batch_size * num_processes
    start = first_step * accumulation * width + process * batch_size
    while True:
        yield range(start, start + batch_size)
        start += width
