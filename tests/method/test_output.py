import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline.method.output import ProFusionOutput


def made_of(count: int, side: int = 64, flagged: int = 0) -> ProFusionOutput:
    images = [Image.new("RGB", (side, side), (10 * number, 0, 0)) for number in range(count)]
    return ProFusionOutput(images=images, nsfw_content_detected=[number < flagged for number in range(count)])


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (made_of(1), "ProFusionOutput(1 image of 64 x 64)"),
        (made_of(100), "ProFusionOutput(100 images of 64 x 64)"),
        (made_of(3, flagged=1), "ProFusionOutput(3 images of 64 x 64, 1 withheld by the safety checker)"),
        (ProFusionOutput(torch.zeros(2, 4, 8, 8), None), "ProFusionOutput(images: Tensor [2, 4, 8, 8])"),
        (ProFusionOutput(np.zeros((2, 8, 8, 3)), None), "ProFusionOutput(images: ndarray [2, 8, 8, 3])"),
    ],
)
def test_a_notebook_shows_a_line(output, line):
    assert repr(output) == line


@pytest.mark.parametrize(("count", "size"), [(1, (192, 192)), (2, (384, 192)), (6, (768, 384))])
def test_a_notebook_shows_the_pictures(count, size):
    with Image.open(io.BytesIO(made_of(count)._repr_png_())) as shown:
        assert shown.size == size
        assert [shown.getpixel((192 * number + 5, 5))[0] for number in range(min(count, 4))] == [0, 10, 20, 30][:count]


def test_large_pictures_stay_as_they_are():
    with Image.open(io.BytesIO(made_of(2, side=512)._repr_png_())) as shown:
        assert shown.size == (1024, 512)


def test_tensors_are_not_shown():
    assert ProFusionOutput(torch.zeros(2, 4, 8, 8), None)._repr_png_() is None


def test_it_is_what_a_call_returns(pipe):
    output = pipe("a photo of S*", image=Image.new("RGB", (16, 16)), num_inference_steps=1)
    assert isinstance(output, ProFusionOutput)
    assert output["images"] == output[0] == output.images
    assert pickle.loads(pickle.dumps(output)).images[0].tobytes() == output.images[0].tobytes()
