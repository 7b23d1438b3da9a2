"""Settings: fields of a dataclass that carry their help sentence and their range, and the check that holds them to it.

What is imported here needs the standard library alone, so that `--help` needs no torch.
"""

import dataclasses
import math
import numbers
import types
import typing
from typing import Any

from ..method.checks import check_count, check_number
from ..method.quoting import quote

LARGEST_COUNT = 10**9  # where a field has no maximum; more is a slip of the keys that would never end


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    resumable: bool = False,
) -> Any:
    """One field of a configuration, with its help sentence and its range.

    Args:
        default: The value when none is given; without it the field must be given.
        help: One sentence for a person: meaning, unit, effect.
        minimum: Least allowed value.
        maximum: Greatest allowed value; a billion of whole numbers if None.
        choices: The allowed values.
        resumable: Whether a run that goes on from a checkpoint may have another value than the run that wrote it,
            because the weights it ends with do not depend on this field or plainly should.

    Returns:
        A `dataclasses.field` whose metadata holds these.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Example:
        ...     steps: int = setting(10, help="Number of steps.", minimum=1)
        >>> dataclasses.fields(Example)[0].metadata["help"]
        'Number of steps.'
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "resumable": resumable}
    return dataclasses.field(default=default, metadata=metadata)


def check_settings(config: Any) -> None:
    """Hold every field of a dataclass made of `setting`s to its annotated type, its range and its choices.

    Args:
        config: An instance of a dataclass whose fields are `setting`s of type str, int, float, bool, `tuple[str, ...]`
            or one of these or None. An int is accepted where a float is asked for; numbers of numpy become
            Python's.

    Raises:
        TypeError: A value is not of the annotated type.
        ValueError: A number is outside its range or not finite, or a word is not among the choices.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Example:
        ...     steps: int = setting(10, help="Number of steps.", minimum=1)
        >>> check_settings(Example(0))
        Traceback (most recent call last):
        ValueError: `steps` must be at least 1, got 0.
    """
    for field in dataclasses.fields(config):
        value, about = getattr(config, field.name), field.metadata
        if not _is_of_type(value, field.type):
            expected = getattr(field.type, "__name__", None) if isinstance(field.type, type) else str(field.type)
            raise TypeError(f"`{field.name}` must be {expected}, got {quote(value)} ({type(value).__name__}).")
        if value is None:
            continue
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            object.__setattr__(config, field.name, _in_range(field, value))
        if about["choices"] is not None and value not in about["choices"]:
            raise ValueError(f"`{field.name}` must be one of {', '.join(about['choices'])}, got {quote(value)}.")


def _in_range(field: dataclasses.Field, number: numbers.Real) -> int | float:
    limits = {"at_least": field.metadata["minimum"], "at_most": field.metadata["maximum"]}
    usual = {"at_least": -math.inf, "at_most": LARGEST_COUNT if isinstance(number, numbers.Integral) else math.inf}
    limits = usual | {name: limit for name, limit in limits.items() if limit is not None}
    check = check_count if isinstance(number, numbers.Integral) else check_number
    return check(field.name, number, **limits)


def _is_of_type(value: Any, annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType):
        return any(_is_of_type(value, member) for member in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:  # tuple[str, ...]
        return isinstance(value, tuple) and all(isinstance(item, typing.get_args(annotation)[0]) for item in value)
    if annotation is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, annotation)
