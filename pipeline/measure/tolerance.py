"""How far single numbers may be off: |candidate − reference| ≤ atol + rtol·|reference|.

On the command line ``1e-4`` is for every output, ``NAME:1e-4`` for one; what is said of one output
counts there alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress_onnx.graph_passes.errors import RequestError


@dataclass(frozen=True)
class Tolerance:
    """Absolute and relative, of each element."""

    atol: float = 0.0
    rtol: float = 0.0


def parse_tolerances(
    atol: Sequence[str], rtol: Sequence[str], outputs: Sequence[str]
) -> dict[str, Tolerance]:
    """A tolerance for each of ``outputs`` that one is given for.

    Raises:
        RequestError: a value is no finite number from 0 on, or an output does not exist.
    """
    found: dict[str, Tolerance] = {}
    for kind, texts in (("atol", atol), ("rtol", rtol)):
        # What names an output comes after what is for all.
        for text in sorted(texts, key=lambda text: ":" in text):
            name, colon, value = text.rpartition(":")
            if colon and name not in outputs:
                raise RequestError(
                    f"--{kind} {text}: there is no output {name!r}, only {', '.join(outputs)}"
                )
            number = _number(kind, text, value)
            for output in [name] if colon else outputs:
                found[output] = replace(found.get(output, Tolerance()), **{kind: number})
    return found


def _number(kind: str, text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise RequestError(f"--{kind} {text}: give a number such as 1e-4, or OUTPUT:1e-4")
    return number
