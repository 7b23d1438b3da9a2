from pathlib import Path

import numpy as np
import pytest
import torch

from profusion_pipeline.method.quoting import brief, quote


@pytest.mark.parametrize("value", [3, 0.5, None, "S*", "a 'quoted' word", [1, 2], {"a": 1}, b"abc"])
def test_short_values_are_shown_as_they_are(value):
    assert quote(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        "\ud800" * 500,
        "\n" * 1000,
        b"\xff" * 10**6,
        Path("y" * 5000),
        10**5000,
        list(range(10**5)),
        {str(i): "z" * 500 for i in range(500)},
        torch.zeros(300, 300),
        np.zeros((300, 300)),
        [["deep" * 100] * 50] * 50,
    ],
    ids=lambda value: type(value).__name__,
)
def test_long_ones_are_cut_to_one_line(value):
    assert len(quote(value)) <= 125 and "\n" not in quote(value)


def test_a_path_is_its_text_and_a_long_text_says_its_length():
    assert quote(Path("a/b.png")) == "'a/b.png'"
    assert quote("x" * 1000).endswith("' (1000 characters)") and quote(b"x" * 1000).endswith("' (1000 bytes)")


def test_what_others_say_is_one_line():
    assert brief(ValueError("two\n  lines")) == "two lines"
    assert brief(AssertionError()) == "AssertionError"
    assert len(brief("x" * 1000)) == 180
