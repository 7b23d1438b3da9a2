import dataclasses
import json
import types
import typing

import numpy as np
import pytest

from profusion_pipeline.common.settings import check_settings, setting
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.evaluation.config import EvaluationConfig
from profusion_pipeline.training.config import TrainingConfig

FIELDS = [field for kind in (TrainingConfig, CustomizeConfig, EvaluationConfig) for field in dataclasses.fields(kind)]


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = setting(10, help="A number.", minimum=2, maximum=12)
    rate: float = setting(0.5, help="A number.", minimum=0.0)
    side: int | None = setting(None, help="A number, or none.", minimum=1)
    gamma: float | None = setting(None, help="A number, or none.")
    word: str = setting("same", help="A word.", choices=("same", "other"))
    flag: bool = setting(False, help="Whether.")
    words: tuple[str, ...] = setting((), help="Words.")


def test_what_would_never_end_is_refused():
    for name in ("steps", "pool_size", "batch_size", "rank"):
        with pytest.raises(ValueError, match=f"`{name}` must be at most [0-9]+, got 1000000000000"):
            CustomizeConfig(**{name: 10**12})


def test_a_setting_carries_what_is_said_about_it():
    (field,) = (field for field in dataclasses.fields(Example) if field.name == "count")
    expected = dict(help="A number.", minimum=2, maximum=12, choices=None, resumable=False)
    assert field.default == 10 and dict(field.metadata) == expected


def test_a_setting_without_default_must_be_given():
    @dataclasses.dataclass(frozen=True)
    class Needy:
        count: int = setting(help="A number.")

    with pytest.raises(TypeError, match="count"):
        Needy()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": 2},
        {"count": 12},
        {"rate": 3},
        {"side": 1, "gamma": -2.5},
        {"word": "other"},
        {"words": ("a", "b")},
    ],
)
def test_what_fits_is_taken(values):
    check_settings(Example(**values))


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"count": 10.0}, r"`count` must be int, got 10.0 \(float\)"),
        ({"count": True}, r"`count` must be int, got True \(bool\)"),
        ({"rate": "fast"}, r"`rate` must be float, got 'fast' \(str\)"),
        ({"rate": True}, r"`rate` must be float, got True \(bool\)"),
        ({"side": 64.0}, r"`side` must be int \| None, got 64.0 \(float\)"),
        ({"word": None}, r"`word` must be str, got None \(NoneType\)"),
        ({"flag": 1}, r"`flag` must be bool, got 1 \(int\)"),
        ({"words": ["a"]}, r"`words` must be tuple\[str, \.\.\.\], got \['a'\] \(list\)"),
        ({"words": (1,)}, r"`words` must be tuple\[str, \.\.\.\], got \(1,\) \(tuple\)"),
    ],
)
def test_another_type_is_refused(values, sentence):
    with pytest.raises(TypeError, match=sentence):
        check_settings(Example(**values))


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"count": 1}, "`count` must be at least 2, got 1"),
        ({"count": 13}, "`count` must be at most 12, got 13"),
        ({"side": 10**400}, "`side` must be at most 1000000000, got a whole number of 1329 bits"),
        ({"side": 0}, "`side` must be at least 1, got 0"),
        ({"rate": float("nan")}, "`rate` must be a finite number of at least 0, got nan"),
        ({"gamma": float("inf")}, "`gamma` must be a finite number, got inf"),
        ({"word": "any"}, "`word` must be one of same, other, got 'any'"),
    ],
)
def test_another_value_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_settings(Example(**values))


@pytest.mark.parametrize(
    "values", [{"word": "x" * 5000}, {"words": ["x" * 5000]}, {"words": ["x"] * 5000}, {"count": 10**5000}]
)
def test_a_long_value_is_not_repeated_at_length(values):
    with pytest.raises((TypeError, ValueError), match="must be") as refused:
        check_settings(Example(**values))
    assert len(str(refused.value)) < 200


# --- All configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_has_one_help_sentence(field):
    text = field.metadata["help"]
    assert text[0].isupper() and text.endswith(".")
    assert len(text) < 250


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_type_can_be_a_flag(field):
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    assert set(kinds) <= {str, int, float, bool, types.NoneType, tuple[str, ...], tuple[int, ...]}


def test_numbers_of_numpy_become_pythons():
    example = Example(count=np.int64(3), rate=np.float32(0.5), side=np.uint8(7))
    check_settings(example)
    assert [type(value) for value in (example.count, example.rate, example.side)] == [int, float, int]
    assert json.dumps(dataclasses.asdict(example))
    with pytest.raises(TypeError, match=r"`flag` must be bool, got np.True_ \(bool\)"):
        check_settings(Example(flag=np.True_))
