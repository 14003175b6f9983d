"""Progress of long steps, shown by whoever asked for them.

A step reports how much of a known total is done; the command line draws bars, a library user sees
nothing unless he passes something of his own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Update = Callable[[int], None]


class Progress(Protocol):
    """Shows steps."""

    def step(self, description: str, total: int | None = None) -> AbstractContextManager[Update]:
        """Begin a step; the yielded function takes how much of ``total`` is done."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Update]:  # noqa: ARG002
        """Yield a function that does nothing."""
        yield lambda _done: None


class Calls:
    """Tells a callback: the step, how much of it is done, and of how much (None: not known).

    Args:
        callback: called at the beginning of a step with 0, and whenever more is done.
    """

    def __init__(self, callback: Callable[[str, int, int | None], None]) -> None:
        self._callback = callback

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Update]:
        """Yield a function that passes on how much is done."""
        self._callback(description, 0, total)
        yield lambda done: self._callback(description, done, total)
