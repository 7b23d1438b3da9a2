"""Who computes with a part of a pipeline and who changes it, so that calls in several threads never mix.

Pipelines may share models. A call only reads them, any number of calls at a time; loading a concept or customising
changes them, and a call that ran meanwhile would draw something in between. A scheduler counts the steps of one call,
so the call changes it, and no two calls can have the same one.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from . import checks

Call = TypeVar("Call", bound=Callable)
_LOCK = threading.Lock()
_USERS: WeakKeyDictionary[Any, list[tuple[int, bool]]] = WeakKeyDictionary()  # of a part: (thread, whether to change)


@contextmanager
def in_use(parts: Iterable[Any], *, to_change: bool, advice: str) -> Iterator[None]:
    """For the length of the block this thread computes with some parts, or changes them.

    Args:
        parts: Models or schedulers, which pipelines may share.
        to_change: Whether they are changed. A thread may compute with what it changes itself.
        advice: The end of an error's sentence: what to do.

    Yields:
        Nothing.

    Raises:
        RuntimeError: Somebody else changes one of them, or computes with one that is to be changed.

    Example:
        >>> from torch import nn
        >>> with in_use([nn.Linear(2, 2)], to_change=False, advice="wait until it is done"):
        ...     pass
    """
    parts, me = list(parts), threading.get_ident()
    with _LOCK:
        for part in parts:
            for thread, changes in _USERS.get(part, ()):
                if (to_change and changes) or (thread != me and (to_change or changes)):
                    raise RuntimeError(f"The {type(part).__name__} is in use by another call or thread: {advice}.")
        for part in parts:
            _USERS.setdefault(part, []).append((me, to_change))
    try:
        yield
    finally:
        with _LOCK:
            for part in parts:
                _USERS[part].remove((me, to_change))


def one_call_at_a_time(call: Call) -> Call:
    """A pipeline's call, refused while its scheduler is in another one or its models are being changed.

    Args:
        call: `__call__` of a pipeline.

    Returns:
        The same, with the same signature.

    Example:
        >>> one_call_at_a_time(len).__name__
        'len'
    """

    @functools.wraps(call)
    def guarded(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        checks.check_names(kwargs)
        models = (pipe.unet, pipe.promptnet, *(getattr(pipe, name) for _, name in pipe.TEXT_PARTS))
        models = [model for model in models if model is not None]
        with (
            in_use([pipe.scheduler], to_change=True, advice="give each a pipeline of its own with `pipe.clone()`"),
            in_use(models, to_change=False, advice="draw when its concept is loaded or learnt"),
        ):
            return call(pipe, *args, **kwargs)

    return cast(Call, guarded)
