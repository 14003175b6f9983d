"""Rank allocators by name; an allocator is added by naming it in :data:`ALLOCATORS`."""

from __future__ import annotations

from collections.abc import Mapping

from compress_onnx.graph_passes.allocation.base import Allocator, Candidate, Damage, round_rank
from compress_onnx.graph_passes.allocation.least_damage import least_damage
from compress_onnx.graph_passes.allocation.uniform import uniform
from compress_onnx.graph_passes.errors import RequestError

__all__ = ["ALLOCATORS", "Allocator", "Candidate", "Damage", "get_allocator", "round_rank"]

ALLOCATORS: Mapping[str, Allocator] = {
    "uniform": Allocator(uniform, "none"),
    "energy": Allocator(least_damage, "energy"),
    "sensitivity": Allocator(least_damage, "sensitivity"),
    "gauss-newton": Allocator(least_damage, "gauss-newton"),
}


def get_allocator(name: str) -> Allocator:
    """Look an allocator up.

    Raises:
        RequestError: there is none of that name.
    """
    if name not in ALLOCATORS:
        raise RequestError(f"unknown allocation {name!r}: choose one of {', '.join(ALLOCATORS)}")
    return ALLOCATORS[name]
