"""Work followed from outside: it says how far it is, and ends early when whoever asked for it says so."""

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


class Turns:
    """Whose work may be stopped: one event for each visitor whose call runs.

    Example:
        >>> turns = Turns()
        >>> mine = turns.begin("me")
        >>> turns.stop("me"), turns.stop("somebody else"), mine.is_set()
        (True, False, True)
    """

    def __init__(self):
        self._running: dict[str, Event] = {}

    def begin(self, visitor: str) -> Event:
        """A visitor's work begins.

        Args:
            visitor: Who.

        Returns:
            What is set when it shall stop.
        """
        return self._running.setdefault(visitor, Event())

    def end(self, visitor: str) -> None:
        """A visitor's work is done.

        Args:
            visitor: Who.
        """
        self._running.pop(visitor, None)

    def stop(self, visitor: str) -> bool:
        """Stop a visitor's work.

        Args:
            visitor: Who.

        Returns:
            Whether there was any.
        """
        if visitor in self._running:
            self._running[visitor].set()
        return visitor in self._running
