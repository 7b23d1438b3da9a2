import json
from pathlib import Path

import pytest

from profusion_pipeline.app.balance import FROM_CONCEPT, FROM_PHOTO, Balance, balance

FRONTIERS = Path(__file__).parents[2] / "docs" / "frontiers"
KINDS = pytest.mark.parametrize(
    ("learnt", "points", "measured"), [(False, FROM_PHOTO, "promptnet"), (True, FROM_CONCEPT, "sampling")]
)


@KINDS
def test_the_slider_moves_along_what_was_measured(learnt, points, measured):
    grid = json.loads((FRONTIERS / f"{measured}.json").read_text(encoding="utf-8"))["grid"]
    assert all(list(point) in grid for point in points)
    assert [balance(number / (len(points) - 1), learnt=learnt) for number in range(len(points))] == list(points)


@KINDS
def test_from_the_prompt_to_the_person(learnt, points, measured):
    shares = [one.guidance_scale / one.class_guidance_scale for one in points]
    assert shares == sorted(shares)


def test_between_two_points_lies_their_middle():
    assert balance(0.25, learnt=True) == Balance(2.2, 5.0)


@pytest.mark.parametrize(("position", "error"), [(-0.1, ValueError), (1.01, ValueError), ("half", TypeError)])
def test_places_beyond_the_ends(position, error):
    with pytest.raises(error, match="`position` must be a"):
        balance(position)
