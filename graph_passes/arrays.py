"""The array types of the project, by what they hold; shapes are in the docstrings that use them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
"""Numbers of any type, such as a weight in its own."""


class Stored(Protocol):
    """An array, or what :func:`numpy.asarray` reads one from."""

    @property
    def nbytes(self) -> int:
        """Of the array."""
        ...

    def __array__(self) -> NDArray[Any]:
        """The array."""
        ...


Floats = NDArray[np.floating]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Indices = NDArray[np.intp]
"""Places in another array."""
Bools = NDArray[np.bool_]
