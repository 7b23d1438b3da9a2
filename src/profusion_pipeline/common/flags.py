"""Command line flags read off a function or a dataclass: names, types, defaults and help are written once, there.

A function is read from its source, not imported, which keeps `profusion generate --help` instant: importing the
pipeline's module would bring torch with it.
"""

import argparse
import ast
import dataclasses
import math
import re
import typing
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

KINDS = {"str": str, "float": float, "int": int, "bool": bool}  # of a union the first one found is taken
REQUIRED = dataclasses.MISSING


def option_of(name: str) -> str:
    """A parameter's name as it is typed.

    Args:
        name: Of a parameter or setting.

    Returns:
        The flag.

    Example:
        >>> option_of("init_image")
        '--init-image'
    """
    return f"--{name.replace('_', '-')}"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One parameter that can be typed.

    Args:
        name: The parameter's name; the flag is `--name` with dashes.
        kind: `str`, `float`, `int` or `bool`.
        many: "never": it takes one value; "always": a list of values; "too": either.
        default: The parameter's own default, or `REQUIRED`.
        help: What it means.
        choices: The allowed values, None for any.

    Example:
        >>> Flag("num_steps", int, "never", default=50, help="Denoising steps.").option
        '--num-steps'
    """

    name: str
    kind: type
    many: Literal["never", "always", "too"]
    default: Any
    help: str
    choices: tuple[str, ...] | None = None

    @property
    def option(self) -> str:
        """The flag as it is typed."""
        return option_of(self.name)


def flags_of_function(path: Path, qualname: str) -> list[Flag]:
    """The flags of the function `qualname` in the Python file at `path`, in the order of its signature.

    A parameter is a flag if its annotation allows `str`, `float`, `int` or `bool` or a list of these; tensors,
    generators and callbacks can't be typed and are left out. Help comes from the docstring's `Args`.

    Args:
        path: A Python source file.
        qualname: Dotted name inside the file, e.g. `"ProFusionPipeline.__call__"`.

    Returns:
        One flag for each such parameter.

    Raises:
        KeyError: The file defines no such name.

    Example:
        >>> [flag.name for flag in flags_of_function(Path(__file__), "flags_of_function")]
        ['qualname']
    """
    function = ast.parse(path.read_text(encoding="utf-8"))
    for part in qualname.split("."):
        definitions = [node for node in function.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        function = {node.name: node for node in definitions}[part]
    helps = argument_help(ast.get_docstring(function) or "")
    return [
        Flag(name, kind, many, default, helps[name])
        for name, annotation, default in _parameters(function.args)
        for kind, many in _kind_in_source(annotation)
    ]


def flags_of_dataclass(config: type) -> list[Flag]:
    """The flags of a dataclass whose fields carry `help` and `choices` in their metadata.

    Args:
        config: A dataclass with fields of type str, float, int, bool, one of these or None, or a tuple of these.

    Returns:
        One flag for each field.

    Example:
        >>> from profusion_pipeline import TrainingConfig
        >>> flags_of_dataclass(TrainingConfig)[0].option
        '--model'
    """
    return [
        Flag(
            field.name,
            next(member for member in typing.get_args(field.type) or [field.type] if member in KINDS.values()),
            _many(field.type),
            field.default,
            field.metadata["help"],
            field.metadata["choices"],
        )
        for field in dataclasses.fields(config)
    ]


def _many(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        return "always"
    return "too" if tuple in map(typing.get_origin, typing.get_args(annotation)) else "never"


def add_flags(parser: argparse.ArgumentParser, flags: list[Flag], *, required: Collection[str] = ()) -> None:
    """Teach `parser` these flags. One that is not given leaves nothing behind, so that the callee's default holds.

    Args:
        parser: Made with `argument_default=argparse.SUPPRESS`.
        flags: What to add.
        required: Names that must be given although the function has a default for them.

    Example:
        >>> parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
        >>> add_flags(parser, [Flag("eta", float, "never", default=0.0, help="Noise of DDIM.")])
        >>> parser.parse_args(["--eta", "0.5"]).eta, vars(parser.parse_args([]))
        (0.5, {})
    """
    for flag in flags:
        must = flag.default is REQUIRED or flag.name in required
        default = "" if must or flag.default in (None, ()) else f" (default: {flag.default})"
        help = f"{flag.help}{default}".replace("%", "%%")
        if flag.kind is bool:
            parser.add_argument(flag.option, action=argparse.BooleanOptionalAction, help=help)
        else:
            metavar = None if flag.choices else flag.kind.__name__.upper()
            nargs = None if flag.many == "never" else "+"
            parser.add_argument(
                flag.option,
                type=TYPES[flag.kind],
                nargs=nargs,
                choices=flag.choices,
                metavar=metavar,
                required=must,
                help=help,
            )


def whole_number(text: str) -> int:
    """What argparse makes of a whole number that was typed.

    Args:
        text: The word.

    Returns:
        A number of 64 bits.

    Raises:
        ArgumentTypeError: It is none.

    Example:
        >>> whole_number("50")
        50
    """
    try:
        number = int(text) if len(text) <= 20 else 2**63  # longer than any; and Python reads no more than 4300 digits
    except ValueError:
        number = None
    if number is None or not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2**63, got {_short(text)}")
    return number


def seed(text: str) -> int:
    """What argparse makes of a seed that was typed.

    Args:
        text: The word.

    Returns:
        A number that all random generators take, 0 to 2**63 - 1.

    Raises:
        ArgumentTypeError: It is none.

    Example:
        >>> seed("7")
        7
    """
    number = whole_number(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {number}")
    return number


def finite_number(text: str) -> float:
    """What argparse makes of a number that was typed.

    Args:
        text: The word.

    Returns:
        The number.

    Raises:
        ArgumentTypeError: It is none, infinite or nan.

    Example:
        >>> finite_number("2e-5")
        2e-05
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {_short(text)}")
    return number


def _short(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")


TYPES = {str: str, float: finite_number, int: whole_number}


def given_flags(args: argparse.Namespace, flags: Iterable[Flag]) -> dict[str, Any]:
    """The values of those flags that were given, as the function or dataclass takes them.

    Args:
        args: What the parser made of the command line.
        flags: The flags that it was taught.

    Returns:
        Name -> value; a lone value where either one or a list may stand.

    Example:
        >>> given_flags(argparse.Namespace(eta=0.5, force=True), [Flag("eta", float, "never", default=0.0, help="")])
        {'eta': 0.5}
    """
    given = {flag: getattr(args, flag.name) for flag in flags if flag.name in args}
    return {flag.name: v[0] if flag.many == "too" and len(v) == 1 else v for flag, v in given.items()}


def argument_help(docstring: str) -> dict[str, str]:
    """The entries of the `Args:` section of a Google style docstring, each on one line.

    Args:
        docstring: Without the indentation of the code around it, as `ast.get_docstring` and `inspect.getdoc` give it.

    Returns:
        Parameter name -> text. Names that share an entry share its text.

    Example:
        >>> argument_help("Add.\\n\\nArgs:\\n    x, y: Sides, in\\n        cm.\\n    z (`int`): Height.")
        {'x': 'Sides, in cm.', 'y': 'Sides, in cm.', 'z': 'Height.'}
    """
    section = re.search(r"^Args:\n((?:[ ]+\S.*\n?|[ ]*\n)+)", docstring, re.MULTILINE)
    if not section:
        return {}
    indent = re.match(r" +", section[1])[0]
    entries = re.split(rf"^{indent}(?=\S)", section[1], flags=re.MULTILINE)[1:]
    helps, shared = {}, []
    for entry in entries:
        names, text = re.match(r"((?:\*{0,2}\w+(?: *\(.*?\))?(?:,\s+|(?=:)))+)(?::\s)?(.*)", entry, re.DOTALL).groups()
        shared += re.findall(r"(\w+)(?: *\(.*?\))?(?:,|$)", names)
        if text:  # a line of names alone goes on in the next one
            helps |= dict.fromkeys(shared, " ".join(text.split()))
            shared = []
    return helps


def _parameters(args: ast.arguments) -> Iterator[tuple[str, ast.expr | None, Any]]:
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    for arg, default in zip([*positional, *args.kwonlyargs], [*defaults, *args.kw_defaults], strict=True):
        yield arg.arg, arg.annotation, REQUIRED if default is None else ast.literal_eval(default)


def _kind_in_source(annotation: ast.expr | None) -> list[tuple[type, str]]:
    """Kind and many of an annotation like `int | list[int] | None`; nothing if none of its members can be typed."""
    members = ast.unparse(annotation).split(" | ") if annotation else []
    found = []
    for name, kind in KINDS.items():
        one, several = name in members, f"list[{name}]" in members
        if one or several:
            found.append((kind, "never" if not several else "too" if one else "always"))
    return found[:1]
