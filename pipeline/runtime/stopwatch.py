"""Seconds by step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds by step; a step that runs again adds up."""

    timings_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Time the body as ``step``."""
        start = time.perf_counter()
        yield
        elapsed_s = self.timings_s.get(step, 0.0) + time.perf_counter() - start
        self.timings_s[step] = round(elapsed_s, 3)
