import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from profusion_pipeline.common.picture_grid import (
    FONT_SIZE,
    GAP,
    MARGIN,
    PictureGrid,
    header_height,
    place_row,
    png_bytes,
    wrapped,
    write_header,
)

FONT = ImageFont.load_default(FONT_SIZE)


def plain(number: int, size=(64, 64)) -> Image.Image:
    return Image.new("RGB", size, (number, 0, 0))


def test_every_picture_is_in_its_place():
    grid = PictureGrid([[plain(10), plain(20)], [plain(30), None]], ["first", "second"], ["left", "right"], cell=32)
    right, lower = grid.image.width - MARGIN, grid.image.height - MARGIN
    places = [(right - 64 - GAP, lower - 64 - GAP), (right - 32, lower - 64 - GAP), (right - 64 - GAP, lower - 32)]
    cells = [grid.image.crop((x, y, x + 32, y + 32)).getcolors() for x, y in places]
    assert cells == [[(32 * 32, (number, 0, 0))] for number in (10, 20, 30)]
    assert grid.image.getpixel((right - 1, lower - 1)) == (255, 255, 255)


def test_no_labels_take_no_room():
    assert PictureGrid([[plain(1)]], [""], ["S*"], cell=32).image.width == 32 + 2 * MARGIN


def test_pixels_stay_sharp_and_shapes_stay():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8))
    page = Image.new("RGB", (100, 80))
    place_row(page, [noise], "", 20, 10, 64)
    assert np.array_equal(np.asarray(page.crop((20, 10, 84, 42)))[::2, ::2], np.asarray(noise))


@pytest.mark.parametrize("text", ["a portrait of S*, wearing a green wizard hat", "one two three four five six seven"])
def test_captions_fit_their_column(text):
    lines = wrapped(text, FONT, 128).splitlines()
    assert " ".join(lines) == text
    assert len(lines) > 1
    assert all(FONT.getlength(line) <= 128 for line in lines)


def test_a_long_name_is_broken_after_a_sign():
    lines = wrapped("class_guidance_scale 2.5", FONT, 128).splitlines()
    assert lines == ["class_guidance_", "scale 2.5"]
    assert wrapped("num_fusion_steps 0", FONT, 400) == "num_fusion_steps 0"


def test_a_phrase_begins_a_line():
    assert wrapped("a, b", FONT, 128) == "a,\nb"


def test_the_header_has_room_for_its_longest_text():
    assert header_height(["a", "a, b, c"], 128) - header_height(["a"], 128) == 2 * round(1.3 * FONT_SIZE)
    page = Image.new("RGB", (300, 60), "white")
    write_header(page, ["a, b"], 10, 59, 128)
    ink = np.argwhere(np.asarray(page)[..., 0] < 128)
    assert ink[:, 0].min() >= 59 - header_height(["a, b"], 128) and ink[:, 0].max() < 59


def test_it_is_short_in_words_and_whole_as_a_picture():
    grid = PictureGrid([[plain(1)] * 50], ["x" * 400], [f"column {number}" for number in range(50)])
    assert len(repr(grid)) <= 300
    with Image.open(io.BytesIO(grid._repr_png_())) as shown:
        assert shown.size == grid.image.size
    assert png_bytes(plain(1)).startswith(b"\x89PNG")


def test_save(tmp_path):
    grid = PictureGrid([[plain(1)]], [""], ["S*"])
    grid.save(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as saved:
        assert saved.tobytes() == grid.image.tobytes()


@pytest.mark.parametrize(
    ("pictures", "rows", "columns"),
    [([], [], []), ([[]], ["a"], []), ([[plain(1)]], ["a", "b"], ["c"]), ([[plain(1)], []], ["a", "b"], ["c"])],
)
def test_labels_that_do_not_fit(pictures, rows, columns):
    with pytest.raises(ValueError, match="A grid must have a picture for each of"):
        PictureGrid(pictures, rows, columns)
