"""Sample pictures in a card: what a model or a concept draws, as small files, and a table between two marks."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image

from ..common.files import write_whole
from ..method.card import plain
from ..method.pipeline_profusion import ProFusionPipeline

CARD, FOLDER = "README.md", "samples"
START, END = "<!-- samples -->", "<!-- /samples -->"
SIDES = (256, 512)  # pixels of a sample's longer side: smaller pictures are enlarged, larger ones made smaller


class Sample(NamedTuple):
    """A picture for a card.

    Args:
        prompt: What it was drawn from.
        picture: RGB.
        settings: With which it was drawn, in words.
    """

    prompt: str
    picture: Image.Image
    settings: str = ""


def draw_samples(pipe: ProFusionPipeline, prompts: Sequence[str], *, seed: int = 0, **call: Any) -> list[Sample]:
    """Let a pipeline draw what its card will show, each prompt once.

    Args:
        pipe: The pipeline.
        prompts: With the placeholder.
        seed: Of the first picture, one more for each further one.
        **call: Whom, and how, as the pipeline's call takes it.

    Returns:
        One for each prompt.

    Raises:
        ValueError: The pipeline refuses something.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> draw_samples(pipe, ["a portrait of S*"], image=demo_portraits()[0], num_inference_steps=2)[0].settings
        'seed 0, num_inference_steps 2'
    """
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    pictures = pipe(list(prompts), generator=generators, **call).images
    pairs = [f"{name} {value}" for name, value in call.items() if isinstance(value, str | int | float)]
    settings = [", ".join([f"seed {seed + number}", *pairs]) for number in range(len(prompts))]
    return [Sample(*one) for one in zip(prompts, pictures, settings, strict=True)]


def sample_files(samples: Sequence[Sample]) -> dict[str, bytes]:
    """The files of sample pictures in a repository.

    Args:
        samples: What to show.

    Returns:
        Path -> a JPEG file of 256 to 512 pixels.

    Example:
        >>> list(sample_files([Sample("S*", Image.new("RGB", (64, 64)))]))
        ['samples/1.jpg']
    """
    return {_path(number): _small_jpeg(sample.picture) for number, sample in enumerate(samples, start=1)}


def with_samples(text: str, samples: Sequence[Sample]) -> str:
    """A card that shows samples: between its two marks, or at its end if it has none. The rest stays as it was written.

    Args:
        text: The card.
        samples: What to show.

    Returns:
        The card.

    Example:
        >>> print(with_samples("# Mine", [Sample("S* at the beach", None, "seed 0")]))
        # Mine
        <BLANKLINE>
        <!-- samples -->
        ## Samples
        <BLANKLINE>
        | picture | prompt | drawn with |
        |---|---|---|
        | ![S\\* at the beach](samples/1.jpg) | S\\* at the beach | seed 0 |
        <!-- /samples -->
        <BLANKLINE>
    """
    rows = [
        f"| ![{plain(one.prompt)}]({_path(number)}) | {plain(one.prompt)} | {plain(one.settings)} |"
        for number, one in enumerate(samples, start=1)
    ]
    section = "\n".join([START, "## Samples\n", "| picture | prompt | drawn with |\n|---|---|---|", *rows, END])
    marked = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if marked.search(text):
        return marked.sub(lambda _: section, text)
    return f"{text.rstrip()}\n\n{section}\n"


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Show samples in the card of a repository in a folder.

    Args:
        folder: With a card in it.
        samples: What to show.

    Raises:
        OSError: The folder can't be written to, or has no card.

    Example:
        >>> write_samples(Path("mine"), samples)  # doctest: +SKIP
    """
    text = (folder / CARD).read_text(encoding="utf-8")
    (folder / FOLDER).mkdir(exist_ok=True)
    for path, content in sample_files(samples).items():
        (folder / path).write_bytes(content)
    write_whole(folder / CARD, with_samples(text, samples))


def push_samples(repo_id: str, samples: Sequence[Sample], *, revision: str | None = None) -> str:
    """Show samples in the card of a repository on the Hub, as a commit of its own.

    Args:
        repo_id: An existing repository.
        samples: What to show.
        revision: Branch or pull request; the main branch if None.

    Returns:
        Address of the commit.

    Raises:
        OSError: The Hub refuses.

    Example:
        >>> push_samples("me/profusion-sd2", samples)  # doctest: +SKIP
    """
    try:
        text = Path(hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
    except EntryNotFoundError:  # of somebody who took the card away
        text = ""
    files = sample_files(samples) | {CARD: with_samples(text, samples).encode()}
    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]
    return HfApi().create_commit(repo_id, operations, commit_message="Sample pictures", revision=revision).commit_url


def _path(number: int) -> str:
    return f"{FOLDER}/{number}.jpg"


def _small_jpeg(picture: Image.Image) -> bytes:
    longest, file = max(picture.size), io.BytesIO()
    scale = min(max(longest, SIDES[0]), SIDES[1]) / longest
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS  # small ones are looked at by the pixel
    picture.convert("RGB").resize(size, how).save(file, "jpeg", quality=90, subsampling=0)
    return file.getvalue()
