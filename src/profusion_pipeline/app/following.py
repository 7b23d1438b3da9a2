"""Work that says how far it is, followed from outside: a callback turned into a generator."""

from collections.abc import Callable, Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any


def following(work: Callable[[Callable[[Any], None]], None], stop: Event) -> Iterator[Any]:
    """Do some work in a thread of its own, and yield what it says as it says it.

    Args:
        work: Called with the function by which it says something.
        stop: Set when whoever follows goes away, so that the work can end early. The end of it is waited for.

    Yields:
        Whatever the work says.

    Raises:
        Exception: Whatever the work raises.

    Example:
        >>> list(following(lambda say: [say(number) for number in range(3)], Event()))
        [0, 1, 2]
    """
    said, end = Queue(), object()

    def run() -> None:
        try:
            work(said.put)
            said.put((end, None))
        except BaseException as error:
            said.put((end, error))

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            one = said.get()
            if isinstance(one, tuple) and one and one[0] is end:
                if one[1] is not None:
                    raise one[1]
                return
            yield one
    finally:
        stop.set()
        thread.join()
