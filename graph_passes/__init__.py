"""Graph passes that rewrite linear layers of ONNX models into low-rank factor chains.

Data flows one way::

    CanonicalizePass -> find_sites -> (statistics) -> make_plan -> LowRankPass -> CleanupPass

in Python::

    model = ir.load("model.onnx")
    CanonicalizePass()(model)
    plan = make_plan(find_sites(model), CompressionSpec(params=0.5))
    Sequential(LowRankPass(plan), CleanupPass())(model)

The rooms, each of which imports none above it::

    rewriting                             how does a graph change?
    planning                              what becomes of each weight?
    allocation, factorization, sites      how much, by which factors, of which layers?
    errors, arrays                        what everybody uses

Nothing here imports ONNX Runtime or torch, so that it can be used wherever ``onnx_ir`` can. The
names below are loaded when they are first asked for, so that ``factorization``, which is pure
numerics, comes without ``onnx``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress_onnx.graph_passes.errors import (
        CompressOnnxError,
        DataError,
        MissingDependencyError,
        ModelFileError,
        NotDifferentiableError,
        NothingToCompressError,
        OutputError,
        ProviderError,
        RequestError,
    )
    from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec, read_plan
    from compress_onnx.graph_passes.planning.planner import make_plan
    from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
    from compress_onnx.graph_passes.rewriting.canonicalize import CanonicalizePass
    from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
    from compress_onnx.graph_passes.rewriting.join_siblings import (
        JoinSiblingsPass,
        PartSiblingsPass,
    )
    from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
    from compress_onnx.graph_passes.sites.find import find_sites

__all__ = [
    "CanonicalizePass",
    "CleanupPass",
    "CompressOnnxError",
    "CompressionPlan",
    "CompressionSpec",
    "DataError",
    "JoinSiblingsPass",
    "LowRankPass",
    "MethodSpec",
    "MissingDependencyError",
    "ModelFileError",
    "NotDifferentiableError",
    "NothingToCompressError",
    "OutputError",
    "PartSiblingsPass",
    "ProviderError",
    "RequestError",
    "Selection",
    "find_sites",
    "make_plan",
    "read_plan",
]

_HOMES = {
    "CompressionPlan": "planning.plan",
    "MethodSpec": "planning.plan",
    "read_plan": "planning.plan",
    "make_plan": "planning.planner",
    "CompressionSpec": "planning.request",
    "Selection": "planning.request",
    "CanonicalizePass": "rewriting.canonicalize",
    "CleanupPass": "rewriting.cleanup",
    "JoinSiblingsPass": "rewriting.join_siblings",
    "PartSiblingsPass": "rewriting.join_siblings",
    "LowRankPass": "rewriting.low_rank",
    "find_sites": "sites.find",
}


def __getattr__(name: str) -> object:
    """Load a name of ``__all__`` from the module that has it (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
