"""What a contestant is: it learns about a model once, then compresses it to any share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress_onnx.graph_passes.factorization import Decomposition, Factorization
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.evidence.calibrate import Calibration
from studies.peers.laboratory import Laboratory, Ranks


@dataclass(frozen=True)
class Outcome:
    """A compressed model, as :func:`pipeline.compress.subject.write_compressed` takes it.

    Attributes:
        plan: what each weight becomes.
        factorizations: by weight key; None where the plan's own method makes them.
        calibration: what that method needs.
    """

    plan: CompressionPlan
    factorizations: Mapping[str, Factorization] | None = None
    calibration: Calibration | None = None


Compressor = Callable[[float], Outcome]
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

    def compress(share: float) -> Outcome:
        ranks = allocate(share)
        factorizations = {
            key: decompositions[key].factorize(rank)
            for key, rank in ranks.items()
            if rank is not None
        }
        return Outcome(laboratory.plan(share, ranks), factorizations)

    return compress
