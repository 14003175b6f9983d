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
