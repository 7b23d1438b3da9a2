"""What a call returns: pictures, which a notebook shows, in a line that says how many there are."""

import io
import math

from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import make_image_grid
from PIL import Image

SHOWN_SIDE = 192  # pixels of smaller pictures in a notebook
SHOWN_COLUMNS = 4


class ProFusionOutput(StableDiffusionPipelineOutput):
    """diffusers' own output of Stable Diffusion, with eyes for notebooks.

    Attributes:
        images: PIL pictures, or an array or tensor of them, as `output_type` says.
        nsfw_content_detected: What the safety checker says of each picture, or None.

    Example:
        >>> ProFusionOutput(images=[Image.new("RGB", (64, 64))] * 8, nsfw_content_detected=None)
        ProFusionOutput(8 images of 64 x 64)
    """

    def __repr__(self) -> str:
        pictures = self._pictures()
        if not pictures:
            return f"ProFusionOutput(images: {type(self.images).__name__} {list(getattr(self.images, 'shape', []))})"
        width, height = pictures[0].size
        flagged = sum(self.nsfw_content_detected or [])
        remark = f", {flagged} withheld by the safety checker" if flagged else ""
        return f"ProFusionOutput({len(pictures)} image{'s' * (len(pictures) > 1)} of {width} x {height}{remark})"

    def _pictures(self) -> list[Image.Image]:
        is_list = isinstance(self.images, list) and all(isinstance(one, Image.Image) for one in self.images)
        return self.images if is_list else []

    def _repr_png_(self) -> bytes | None:
        pictures = self._pictures()
        if not pictures:
            return None
        factor = max(1, round(SHOWN_SIDE / max(pictures[0].size)))
        columns = min(SHOWN_COLUMNS, len(pictures))
        rows = math.ceil(len(pictures) / columns)
        blank = Image.new("RGB", pictures[0].size, "white")
        filled = [*pictures, *[blank] * (rows * columns - len(pictures))]
        grid = make_image_grid(filled, rows=rows, cols=columns)
        file = io.BytesIO()
        grid.resize([factor * side for side in grid.size], Image.Resampling.NEAREST).save(file, "png")
        return file.getvalue()
