"""Factors of every rank up to a limit, out of one decomposition.

The subspaces of :mod:`~graph_passes.factorization.projection` are nested, so the factors of rank r
are the first r columns of ``down`` and the first r rows of ``up``. What is kept are these and the
spectrum; the metric, which is larger than the weight, can go.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.base import Factorization, Term
from compress_onnx.graph_passes.factorization.storage import Storage


@dataclass(eq=False)
class NestedFactors:
    """A :class:`~graph_passes.factorization.base.Decomposition` cut at the rank ``limit``.

    Attributes:
        down: ``[K, limit]`` in float32 at least, or the file that holds it.
        up: ``[limit, N]`` likewise.
        tail: ``[q + 1]`` squared error at each rank, relative to rank 0, also beyond the limit.
        energy: the squared error at rank 0.
        dtype: of the weight, which the factors are rounded to.
        mean: ``[K]`` μ of the site's inputs; None where the method corrects no bias.
        image: ``[N]`` μ·W.
    """

    down: Array | Path
    up: Array | Path
    limit: int
    tail: Float64
    energy: float
    dtype: np.dtype[np.generic]
    mean: Float64 | None = None
    image: Float64 | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that both factors take in memory."""
        return sum(0 if isinstance(factor, Path) else factor.nbytes for factor in self._both)

    @property
    def _both(self) -> tuple[Array | Path, Array | Path]:
        return self.down, self.up

    @property
    def parts(self) -> tuple[NestedFactors, ...]:
        """The decomposition of each matrix: of the only one."""
        return (self,)

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """Factors of ``rank``, which is at most the limit, as ``storage`` keeps them.

        Raises:
            ValueError: ``rank`` is beyond the limit.
            RequestError: ``storage`` cannot hold them.
        """
        if rank > self.limit:
            raise ValueError(f"factors are kept up to rank {self.limit}, not {rank}")
        down = _read(self.down)[:, :rank].astype(np.float64)
        up = _read(self.up)[:rank].astype(np.float64)
        term = Term.rounded(down, up, self.dtype, storage)
        return Factorization((term,), self._bias(term))

    def nested(self, limit: int) -> NestedFactors:
        """Itself: it holds what it holds.

        Raises:
            ValueError: ``limit`` is beyond its own.
        """
        if limit > self.limit:
            raise ValueError(f"factors are kept up to rank {self.limit}, not {limit}")
        return self

    def move_to(self, stem: Path) -> None:
        """Keep both factors in files beside ``stem`` from now on."""
        paths = stem.with_suffix(".down.npy"), stem.with_suffix(".up.npy")
        for factor, path in zip(self._both, paths, strict=True):
            np.save(path, _read(factor), allow_pickle=False)
        self.down, self.up = paths

    def _bias(self, term: Term) -> Float64 | None:
        """``[N]`` μ·(W − down·up), with the factors as the graph computes them."""
        if self.mean is None or self.image is None:
            return None
        hidden = self.mean @ term.down.astype(np.float64)  # [r]
        bias: Float64 = self.image - hidden @ term.up.astype(np.float64)
        return bias


def _read(factor: Array | Path) -> Array:
    """The numbers; those in a file are mapped, so that only what is sliced is read."""
    if not isinstance(factor, Path):
        return factor
    mapped: Array = np.load(factor, mmap_mode="r", allow_pickle=False)
    return mapped
