import argparse
import dataclasses
import importlib.util
import inspect

import pytest

from profusion_pipeline.common.flags import (
    REQUIRED,
    Flag,
    add_flags,
    argument_help,
    finite_number,
    flags_of_dataclass,
    flags_of_function,
    given_flags,
    seed,
    whole_number,
)

SOURCE = '''
from collections.abc import Callable

class Oven:
    def bake(
        self,
        dough: str | list[str],
        degrees: float = 180.0,
        minutes: int | None = None,
        *,
        fan: bool = True,
        tray: object = None,
        weights: list[float] | None = None,
        on_done: Callable[[int, str], float] | None = None,
        label="none",
    ) -> None:
        """Bake it.

        Args:
            dough (`str` or `list[str]`):
                What to bake; 100 % flour.
            degrees (`float`, *optional*, defaults to 180.0): How hot,
                in Celsius (not: Kelvin).

                Not more than 250.
            minutes: How long.
            fan: With the fan.
            weights: Grams.

        Returns:
            Nothing: it is eaten.
        """
'''


@pytest.fixture
def oven(tmp_path):
    path = tmp_path / "oven.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def parser():
    return argparse.ArgumentParser(prog="bake", argument_default=argparse.SUPPRESS)


def test_flags_of_function(oven):
    spec = importlib.util.spec_from_file_location("oven", oven)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parameters = inspect.signature(module.Oven.bake).parameters

    flags = {flag.name: flag for flag in flags_of_function(oven, "Oven.bake")}

    assert list(flags) == ["dough", "degrees", "minutes", "fan", "weights"]
    assert [flag.kind for flag in flags.values()] == [str, float, int, bool, float]
    assert [flag.many for flag in flags.values()] == ["too", "never", "never", "never", "always"]
    for name, flag in flags.items():
        empty = parameters[name].default is inspect.Parameter.empty
        assert flag.default == (REQUIRED if empty else parameters[name].default)
    assert flags["dough"].help == "What to bake; 100 % flour."
    assert flags["degrees"].help == "How hot, in Celsius (not: Kelvin). Not more than 250."


def test_a_name_that_is_not_defined(oven):
    with pytest.raises(KeyError, match="fry"):
        flags_of_function(oven, "Oven.fry")


def test_flags_of_dataclass():
    def about(help, choices=None):
        return {"help": help, "choices": choices}

    @dataclasses.dataclass
    class Bread:
        flour: str = dataclasses.field(metadata=about("Which.", ("rye", "wheat")))
        salt: float | None = dataclasses.field(default=None, metadata=about("Grams."))
        seeds: tuple[str, ...] = dataclasses.field(default=(), metadata=about("On top."))

    assert flags_of_dataclass(Bread) == [
        Flag("flour", str, "never", REQUIRED, "Which.", ("rye", "wheat")),
        Flag("salt", float, "never", None, "Grams."),
        Flag("seeds", str, "always", (), "On top."),
    ]


def test_parsing(oven, parser):
    add_flags(parser, flags_of_function(oven, "Oven.bake"))
    words = ["--dough", "rye", "wheat", "--degrees", "220", "--minutes", "40", "--no-fan", "--weights", "1", "2.5"]
    args = vars(parser.parse_args(words))
    assert args == {"dough": ["rye", "wheat"], "degrees": 220.0, "minutes": 40, "fan": False, "weights": [1.0, 2.5]}


def test_given(oven, parser):
    flags = flags_of_function(oven, "Oven.bake")
    add_flags(parser, flags)
    one = parser.parse_args(["--dough", "rye", "--weights", "1"])
    assert given_flags(one, flags) == {"dough": "rye", "weights": [1.0]}
    assert given_flags(parser.parse_args(["--dough", "rye", "wheat"]), flags) == {"dough": ["rye", "wheat"]}
    assert given_flags(one, flags[:1]) == {"dough": "rye"}


def test_a_flag_that_is_not_given_leaves_nothing(oven, parser):
    add_flags(parser, flags_of_function(oven, "Oven.bake"))
    assert vars(parser.parse_args(["--dough", "rye"])) == {"dough": ["rye"]}


@pytest.mark.parametrize("default, required, must", [(REQUIRED, (), True), (1, {"d"}, True), (1, (), False)])
def test_required(parser, capsys, default, required, must):
    add_flags(parser, [Flag("d", int, "never", default, "")], required=required)
    if not must:
        assert vars(parser.parse_args([])) == {}
        return
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([])
    assert "the following arguments are required: --d" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag, words, error",
    [
        (Flag("flour", str, "never", REQUIRED, "", ("rye", "wheat")), ["--flour", "oat"], "invalid choice: 'oat'"),
        (Flag("minutes", int, "never", 1, ""), ["--minutes", "1.5"], "must be a whole number below 2**63, got '1.5'"),
        (Flag("grams", float, "always", (), ""), ["--grams", "1", "x"], "must be a finite number, got 'x'"),
    ],
)
def test_refused_words(parser, capsys, flag, words, error):
    add_flags(parser, [flag])
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(words)
    assert error in capsys.readouterr().err


def test_help_shows_text_and_default(oven, parser):
    add_flags(parser, flags_of_function(oven, "Oven.bake"))
    text = " ".join(parser.format_help().split())
    assert "--dough STR [STR ...] What to bake; 100 % flour." in text
    assert "--degrees FLOAT How hot, in Celsius (not: Kelvin). Not more than 250. (default: 180.0)" in text
    assert "How long. --fan" in text  # no default where there is none
    assert "--no-fan" in text


def test_names_that_share_an_entry():
    doc = "Bake.\n\nArgs:\n    a (`int`), *b: One\n        text (c, d: e).\n    f, g (`list[int]`),\n    h: Another.\n"
    assert argument_help(doc) == {name: "One text (c, d: e)." for name in "ab"} | {name: "Another." for name in "fgh"}


def test_argument_help_without_arguments():
    assert argument_help("Just a sentence.\n\nReturns:\n    Nothing.") == {}


@pytest.mark.parametrize("read, text", [(whole_number, "1.0"), (whole_number, str(-(2**63) - 1)), (seed, "-1")])
def test_whole_numbers(read, text):
    assert (whole_number("-9"), whole_number(str(2**63 - 1)), seed("0")) == (-9, 2**63 - 1, 0)
    with pytest.raises(argparse.ArgumentTypeError, match="must be (a whole number below 2|at least 0)"):
        read(text)


def test_finite_numbers():
    assert finite_number("2e-5") == 2e-5
    with pytest.raises(argparse.ArgumentTypeError, match="must be a finite number, got 'x{57}[.]{3}'"):
        finite_number("x" * 1000)
