import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline.demo.grid import CELL, METHODS, draw_grid, render_demo_grid

PORTRAITS = [Image.new("RGB", (16, 16), color) for color in ("orange", "navy")]
PROMPTS = ["a photo of S*", "S* on a beach", "S* in a red hat"]


def crops(grid: Image.Image, people: int, prompts: int) -> list[Image.Image]:
    """The cells of a grid, found from its right and lower edge: row by row, upwards and leftwards from the last."""
    from profusion_pipeline.common.picture_grid import GAP, MARGIN
    from profusion_pipeline.demo.grid import PERSON, PERSON_GAP

    cells = []
    for person in range(people):
        for row in range(len(METHODS)):
            for column in range(prompts):
                x = grid.width - MARGIN - CELL - (prompts - 1 - column) * (CELL + GAP)
                top = grid.height - MARGIN - PERSON - (people - 1 - person) * (PERSON + PERSON_GAP)
                y = top + row * (CELL + GAP)
                cells.append(grid.crop((x, y, x + CELL, y + CELL)))
    return cells


def test_every_picture_is_in_its_place():
    colors = iter(range(10, 250, 10))
    people = [
        (portrait, [[Image.new("RGB", (64, 64), (next(colors), 0, 0)) for _ in PROMPTS] for _ in METHODS])
        for portrait in PORTRAITS
    ]
    cells = crops(draw_grid(people, PROMPTS, list(METHODS)), len(PORTRAITS), len(PROMPTS))
    expected = [picture.getpixel((0, 0)) for _, rows in people for row in rows for picture in row]
    assert [cell.getcolors() for cell in cells] == [[(CELL * CELL, color)] for color in expected]


def test_pixels_stay_sharp():
    """Enlarged without blur: the cell holds the picture's own colours and no other."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    grid = draw_grid([(noise, [[noise], [noise]])], ["S*"], list(METHODS))
    cell = np.asarray(crops(grid, 1, 1)[0])
    assert np.array_equal(cell[::2, ::2], np.asarray(noise))
    assert np.array_equal(cell[1::2, 1::2], np.asarray(noise))


def test_a_row_for_each_method():
    with pytest.raises(ValueError, match="zip"):
        draw_grid([(PORTRAITS[0], [[PORTRAITS[0]]])], ["S*"], list(METHODS))


def test_cells_are_what_the_pipeline_gives(pipe):
    """Each cell equals a call for that person, prompt and method alone, with the column's own seed."""
    calls = []
    grid = render_demo_grid(
        pipe,
        PORTRAITS,
        prompts=PROMPTS,
        seed=3,
        num_inference_steps=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i, 8) for i in range(1, 9)]
    cells = iter(crops(grid, len(PORTRAITS), len(PROMPTS)))
    for portrait in PORTRAITS:
        for settings in METHODS.values():
            for i, prompt in enumerate(PROMPTS):
                generator = torch.Generator().manual_seed(3 + i)
                alone = pipe(prompt, image=portrait, num_inference_steps=2, generator=generator, **settings).images[0]
                cell = np.asarray(next(cells).resize(alone.size, Image.Resampling.NEAREST), dtype=int)
                assert np.abs(cell - np.asarray(alone)).max() <= 1  # a batch may round otherwise


def test_the_two_methods_differ(pipe):
    grid = render_demo_grid(pipe, PORTRAITS[:1], prompts=PROMPTS[:1], num_inference_steps=2)
    plain, fusion = crops(grid, 1, 1)
    assert plain.tobytes() != fusion.tobytes()
