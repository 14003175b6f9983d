"""Durations as people write them: ``90s``, ``10min``, ``1h``."""

from __future__ import annotations

import re

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>s|min|h)")


def parse_duration(text: str) -> float:
    """Seconds.

    Raises:
        ValueError: ``text`` is no duration above zero.
    """
    match = _TEXT.fullmatch(text.strip())
    seconds = float(match["number"]) * _SECONDS[match["unit"]] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is no duration: write 90s, 10min or 1h")
    return seconds
