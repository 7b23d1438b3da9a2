"""What the page shows, as HTML that holds its pictures itself: nothing of it lies in a file on the server."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..common.made_with import save_options
from ..common.picture_grid import PictureGrid, png_bytes
from ..method.concept_file import Concept
from ..notebook.explain import data_image
from .studio import Customised, Drawn, Step


def image(picture: Image.Image, side: int | None = None, *, kind: str = "png", **options: Any) -> str:
    """A picture.

    Args:
        picture: RGB.
        side: As large as it is shown, in pixels; None for its own size.
        kind: "png", or "jpeg" for what is soon replaced.
        **options: With which a PNG is saved, such as those of `made_with.save_options`.

    Returns:
        An `img` tag.

    Example:
        >>> image(Image.new("RGB", (8, 8)), 64)[:33]
        '<img width="64" style="image-rend'
    """
    data = png_bytes(picture, **options) if kind == "png" else _jpeg_bytes(picture)
    shown = "" if side is None else f' width="{side}"'
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img{shown} style="image-rendering:pixelated;border-radius:6px" src="{source}">'


def _jpeg_bytes(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=80)
    return file.getvalue()


def gallery(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    details: Sequence[str],
    records: Sequence[Mapping[str, Any] | None],
) -> str:
    """Pictures beside one another, each with its settings under it.

    Args:
        pictures: RGB.
        captions: A line for each.
        details: What is told when somebody asks for it.
        records: What the file of each says of how it was made, as `made_with.record_of` gives it, and beside it that a
            model drew it.

    Returns:
        HTML.

    Example:
        >>> gallery([Image.new("RGB", (8, 8))], ["<me>"], ["seed 1"], [None]).count("&lt;me&gt;")
        1
    """
    figures = []
    for picture, caption, detail, record in zip(pictures, captions, details, records, strict=True):
        options = save_options(".png", record, mark=True)
        side = max(picture.width, 192) if picture.width <= 192 else min(picture.width, 384)
        figures.append(
            f'<figure style="margin:0;max-width:{side}px">{image(picture, side, **options)}'
            f"<figcaption>{html.escape(caption)}<details><summary>settings</summary><small>{html.escape(detail)}"
            "</small></details></figcaption></figure>"
        )
    return f'<div class="gallery" style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div>'


def progress(done: float, total: float, text: str, preview: Image.Image | None = None) -> str:
    """A bar with words, and what the pictures look like so far.

    Args:
        done: Of `total`.
        total: All of it.
        text: Beside the bar.
        preview: A picture, or None.

    Returns:
        HTML.

    Example:
        >>> progress(1, 4, "step 1 of 4")
        '<div><progress value="1" max="4" style="width:60%"></progress> step 1 of 4</div>'
    """
    shown = "" if preview is None else f"<br>{image(preview, kind='jpeg')}"
    bar = f'<progress value="{done:g}" max="{total:g}" style="width:60%"></progress>'
    return f"<div>{bar} {html.escape(text)}{shown}</div>"


def loss_curve(losses: Sequence[float]) -> str:
    """The loss of each step as a grey line, and the mean of a tenth of them as a dark one.

    Args:
        losses: One for each step.

    Returns:
        SVG.

    Example:
        >>> loss_curve([0.5, 0.25]).count("<polyline")
        2
    """
    window = max(1, len(losses) // 10)
    means = [sum(losses[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(losses))]
    top = max(losses, default=1.0) or 1.0

    def line(values: Sequence[float], colour: str) -> str:
        step = 400 / max(1, len(values) - 1)
        points = " ".join(f"{i * step:.1f},{95 - 90 * value / top:.1f}" for i, value in enumerate(values))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    return (
        '<svg viewBox="0 0 400 100" width="400" height="100" role="img" aria-label="loss of each step">'
        f"{line(losses, '#bbb')}{line(means, '#2563eb')}</svg><br><small>loss, 0 to {top:.2f}</small>"
    )


def download(content: bytes, name: str, text: str) -> str:
    """A link that saves a file which the page itself holds.

    Args:
        content: Of the file.
        name: Under which it is saved.
        text: Of the link.

    Returns:
        HTML.

    Example:
        >>> download(b"", "a.safetensors", "Save it")[-11:]
        'Save it</a>'
    """
    data = base64.b64encode(content).decode()
    source = f"data:application/octet-stream;base64,{data}"
    return f'<a class="download" download="{html.escape(name)}" href="{source}">{html.escape(text)}</a>'


def show_drawing(one: Step | Drawn) -> tuple[str, str]:
    """What the tab Draw shows: bar with preview, and pictures.

    Args:
        one: What the studio says.

    Returns:
        HTML of both.

    Example:
        >>> show_drawing(Step(1, 2, "step 1 of 2"))[1]
        ''
    """
    if isinstance(one, Step):
        return progress(one.done, one.total, one.text, one.preview), ""
    said = "Stopped: these are unfinished." if one.stopped else ""
    return said, gallery(one.pictures, one.prompts, one.settings, one.records)


def show_customising(one: Step | Customised) -> tuple[str, str, str, str, Concept | None]:
    """What the tab Customise shows: bar with preview, curve, pictures before and after, and a link to the file.

    Args:
        one: What the studio says.

    Returns:
        HTML of the four, and the concept once it is there.

    Example:
        >>> show_customising(Step(1, 2, "learning"))[1:]
        ('', '', '', None)
    """
    if isinstance(one, Step):
        curve = loss_curve(one.losses) if one.losses else ""
        return progress(one.done, one.total, one.text, one.preview), curve, "", "", None
    link = download(one.concept.to_bytes(), "concept.safetensors", "Save the concept's file")
    pictures = data_image(one.grid._repr_png_())
    concept = one.concept
    learnt = f"Learnt: {concept.steps} steps, loss {concept.loss:.4f}, {concept.num_bytes / 1e6:.2f} MB."
    return f"{learnt} S* is this concept now, and Draw draws it.", loss_curve(one.losses), pictures, link, one.concept


def show_comparison(one: Step | PictureGrid) -> tuple[str, str]:
    """What the tab Compare shows: bar, and grid.

    Args:
        one: What the studio says.

    Returns:
        HTML of both.

    Example:
        >>> show_comparison(Step(1, 2, "picture 1 of 2"))[1]
        ''
    """
    if isinstance(one, Step):
        return progress(one.done, one.total, one.text), ""
    return "", data_image(one._repr_png_())
