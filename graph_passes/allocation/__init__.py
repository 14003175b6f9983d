"""How is a budget shared out among weights?

Rules by name; an allocator is added by naming it in :data:`AllocatorName` and :data:`ALLOCATORS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from compress_onnx.graph_passes.allocation.base import (
    Allocator,
    Candidate,
    Damage,
    NeuronCandidate,
    round_rank,
)
from compress_onnx.graph_passes.allocation.least_damage import least_damage, multiplier
from compress_onnx.graph_passes.allocation.uniform import uniform
from compress_onnx.graph_passes.errors import RequestError

__all__ = [
    "ALLOCATORS",
    "Allocator",
    "AllocatorName",
    "Candidate",
    "Damage",
    "NeuronCandidate",
    "get_allocator",
    "multiplier",
    "round_rank",
]

AllocatorName = Literal["uniform", "energy", "sensitivity", "gauss-newton"]

ALLOCATORS: Mapping[AllocatorName, Allocator] = {
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
    for known, allocator in ALLOCATORS.items():
        if known == name:
            return allocator
    raise RequestError(f"unknown allocation {name!r}: choose one of {', '.join(ALLOCATORS)}")
