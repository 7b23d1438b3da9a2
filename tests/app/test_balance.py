import pytest

from profusion_pipeline.app.balance import FRONTIER, Balance, balance


def test_the_slider_passes_through_every_point():
    assert [balance(number / (len(FRONTIER) - 1)) for number in range(len(FRONTIER))] == list(FRONTIER)


def test_between_two_points_lies_their_middle():
    assert balance(0.125) == Balance(1.575, 5.0)


def test_from_the_prompt_to_the_person():
    shares = [one.guidance_scale / one.class_guidance_scale for one in FRONTIER]
    assert shares == sorted(shares)


@pytest.mark.parametrize(("position", "error"), [(-0.1, ValueError), (1.01, ValueError), ("half", TypeError)])
def test_places_beyond_the_ends(position, error):
    with pytest.raises(error, match="`position` must be a"):
        balance(position)
