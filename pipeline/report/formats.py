"""Numbers as people read them: three or four significant digits, thousands separators, units."""

from __future__ import annotations

import math

MISSING = "–"


def significant(value: float | None, digits: int = 4) -> str:
    """``0.03470``, ``12.35``, ``1,235``; very small values as ``1.2e-07``."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 0.99996 has 0
    if exponent < -4:
        return f"{value:.{max(digits - 3, 0)}e}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def distinct(value: float | None, limit: float) -> tuple[str, str]:
    """A value and its limit with six digits, or more where those would look the same."""
    if value is None or not math.isfinite(value):
        return significant(value), f"{limit:,.6g}"
    texts = ((f"{value:,.{digits}g}", f"{limit:,.{digits}g}") for digits in (6, 9, 12, 17))
    return next(pair for pair in texts if value == limit or pair[0] != pair[1])


def count(value: int | None) -> str:
    """``22,713,216``."""
    return MISSING if value is None else f"{value:,}"


def size(value_bytes: float) -> str:
    """``90.9 MB``, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if abs(value_bytes) < 999.5:
            return (
                f"{value_bytes:.0f} B" if unit == "B" else f"{significant(value_bytes, 3)} {unit}"
            )
        value_bytes /= 1000
    return f"{significant(value_bytes, 3)} GB"


def milliseconds(value_ms: float) -> str:
    """``7.54 ms``."""
    return f"{significant(value_ms, 3)} ms"


def ratio(after: float, before: float) -> str:
    """``0.521×``; missing where there was nothing before."""
    return f"{significant(after / before, 3)}×" if before else MISSING


def times(value: float | None) -> str:
    """``1.64×``."""
    return MISSING if value is None else f"{significant(value, 3)}×"


def short_count(value: float) -> str:
    """``22.7 M``."""
    for unit in ("", " k", " M"):
        if abs(value) < 999.5:
            return f"{value:.0f}" if not unit else f"{significant(value, 3)}{unit}"
        value /= 1000
    return f"{significant(value, 3)} G"
