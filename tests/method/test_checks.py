"""What a call meets is in the tests of the pipeline; here is what checks give back, and errors of their own."""

import numpy as np
import pytest
import torch

from profusion_pipeline.method import checks


def test_numbers():
    for value in (0, 0.0, 7, 1e-9, np.float64(3), np.float32(0.5), np.int64(2)):
        number = checks.check_number("scale", value)
        assert number == value and type(number) is float
    checks.check_number("scale", 2.0, at_least=2)
    with pytest.raises(ValueError, match="`scale` must be a finite number of at least 2, got 1"):
        checks.check_number("scale", 1, at_least=2)
    with pytest.raises(TypeError, match="`scale` must be a number, got True"):
        checks.check_number("scale", True)
    for value in (1, np.int64(1), np.uint8(1)):
        assert type(checks.check_count("steps", value, at_least=1)) is int


def test_long_values_are_cut():
    for value in ("x" * 10**6, torch.zeros(10**4), list(range(10**5))):
        with pytest.raises(TypeError) as raised:
            checks.check_number("scale", value)
        assert len(str(raised.value)) < 200


def test_ranges_are_said_as_they_are():
    for limits, said in (
        (dict(at_least=-float("inf")), "a finite number, got inf"),
        (dict(at_least=-float("inf"), at_most=2), "a finite number of at most 2, got inf"),
        (dict(at_most=2), "a finite number of 0 to 2, got inf"),
    ):
        with pytest.raises(ValueError, match=said):
            checks.check_number("scale", float("inf"), **limits)
    with pytest.raises(ValueError, match="`steps` must be at most 9, got 10"):
        checks.check_count("steps", 10, at_least=0, at_most=9)


def test_flags():
    assert checks.check_flag("long_prompts", np.True_) is True
    for value in ("no", 1, None):
        with pytest.raises(TypeError, match="`long_prompts` must be True or False, got"):
            checks.check_flag("long_prompts", value)


def test_characters():
    checks.check_characters("prompt", "S* à la plage \U0001f3d6")
    with pytest.raises(ValueError, match=r"`prompt` must be a text without lone surrogates, got 'S\* \\udcff'[.]"):
        checks.check_characters("prompt", "S* \udcff")


def test_weights():
    assert checks.check_weights(None, 4) == [0.25] * 4
    assert checks.check_weights((1, 0.0), 2) == [1, 0.0]


def test_the_largest_eta_is_named():
    checks.check_fusion_eta(2**0.5, [-1.0])
    checks.check_fusion_eta(9.0, [])
    with pytest.raises(ValueError, match="`fusion_eta` must be at most 1.4142 with this schedule, got 2.0"):
        checks.check_fusion_eta(2.0, [0.5, 1 - 2.0**2])


def test_scales_have_an_end():
    assert checks.check_scale("scale", np.float32(10_000)) == 10_000
    assert checks.check_scale("scale", -10_000, signed=True) == -10_000
    for value in (1e38, np.float64(10_001), 10**30):
        with pytest.raises(ValueError, match="`scale` must be at most 10000, whatever its sign, got "):
            checks.check_scale("scale", value)
    with pytest.raises(ValueError, match="`scale` must be at most 10000, whatever its sign, got -1e"):
        checks.check_scale("scale", -1e38, signed=True)
    with pytest.raises(ValueError, match="`scale` must be a finite number of at least 0, got -1"):
        checks.check_scale("scale", -1)


def test_places(tmp_path):
    (tmp_path / "a").mkdir()
    for place in (tmp_path, str(tmp_path / "a"), "demo", "me/profusion-sd2", "me/sd_2.1"):
        assert checks.check_place("model", place) == str(place)
    for place in ("", "a" * 300, "me/" + "a" * 300, "a\0b", "a/b/c", "~/model", tmp_path / "b"):
        with pytest.raises(
            FileNotFoundError, match="`model` must be a folder or file that exists, or the Hub id"
        ) as no:
            checks.check_place("model", place)
        assert len(str(no.value)) < 250
    for place in (None, 3, b"a", ["a"]):
        with pytest.raises(TypeError, match="`model` must be a folder or a Hub id, got"):
            checks.check_place("model", place)
