"""What a contestant is: it learns about a model once, then compresses it to any share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress_onnx.graph_passes.factorization import Decomposition
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.sequential import Repaired
from studies.peers.laboratory import Laboratory, Ranks

Compressor = Callable[[float], Compressed]
"""Compresses to a share of the parameters."""


@dataclass(frozen=True)
class Contestant:
    """A method in the table.

    Attributes:
        name: of the row.
        ours: whether it is one of this tool's own methods.
        source: where it was published; what it is, for our own.
        activations: whether it needs the activation statistics that calibration collects.
        learn: everything that does not depend on the share.
    """

    name: str
    ours: bool
    source: str
    activations: bool
    learn: Callable[[Laboratory], Compressor]


def compressor(
    laboratory: Laboratory,
    decompositions: Mapping[str, Decomposition],
    allocate: Callable[[float], Ranks],
) -> Compressor:
    """Decomposed weights, put together at the ranks that ``allocate`` gives for a share."""
    basis = laboratory.weights_alone.basis(laboratory.base)

    def compress(share: float) -> Compressed:
        ranks = allocate(share)
        factorizations = {
            key: decompositions[key].factorize(rank)
            for key, rank in ranks.items()
            if rank is not None
        }
        return Compressed(basis, laboratory.plan(share, ranks), Repaired(factorizations))

    return compress
