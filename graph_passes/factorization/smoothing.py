"""Divide inputs by how far they reach, and multiply the weights: one scale then serves them all.

All inputs of a layer share one step s of their integers. One input that reaches far makes it coarse
for all others. For any d [K] > 0 ::

    x·W = (x / d)·(d ∘ W)

(SmoothQuant, Xiao et al. 2023). With G the moment of the gradients at the output, rounding to the
nearest changes the model's outputs by, to second order,

    inputs    s²/12 · Σ_k d_k² (W G Wᵀ)_kk                      s of the range of x / d
    weights   Σ_n t_n²/12 · G_nn · Σ_k E[x_k²] / d_k²           t_n = max_k |d_k W_kn| / limit

What inputs gain, weights lose. With r_k the reach of input k, d = r^α is tried for some α, and the
least damage decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.rounding import LIMIT, InputRange

EXPONENTS = 0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0
"""α; 0 leaves the inputs as they are."""

_LEAST_REACH = 1e-3
"""Of the furthest: inputs that hardly move must not drive their weights to zero."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads the inputs.

    Attributes:
        weight: ``[K, N]`` W.
        moment: ``[N, N]`` G; None weighs all outputs alike.
    """

    weight: Array
    moment: Float64 | None = None


@dataclass(frozen=True)
class Smoothed:
    """What the inputs of some layers are divided by.

    Attributes:
        divisor: ``[K]`` d.
        damage: what rounding inputs and weights then does to the outputs.
        damage_before: the same without.
    """

    divisor: Float64
    damage: float
    damage_before: float


def smooth(inputs: InputRange, readers: Sequence[Reader], limit: int = LIMIT) -> Smoothed:
    """Choose d for all layers that read the same inputs.

    Args:
        inputs: what was seen of them.
        readers: the layers.
        limit: the largest integer of a weight.
    """
    reach = np.maximum(inputs.magnitude, _LEAST_REACH * float(inputs.magnitude.max()))
    reach = np.where(reach > 0, reach, 1.0).astype(np.float64)
    divisors = [_unit(reach**alpha) for alpha in EXPONENTS]
    damages = [rounding_damage(inputs, readers, divisor, limit) for divisor in divisors]
    best = int(np.argmin(damages))
    return Smoothed(divisors[best], damages[best], damages[0])


def rounding_damage(
    inputs: InputRange, readers: Sequence[Reader], divisor: Float64, limit: int = LIMIT
) -> float:
    """The module's formulas, for inputs divided by ``divisor`` [K]."""
    step = float(inputs.divided(divisor).scale().scale)
    damage = 0.0
    for reader in readers:
        weight = divisor[:, None] * reader.weight.astype(np.float64)  # [K, N]
        outputs = np.eye(weight.shape[1]) if reader.moment is None else reader.moment
        by_input = np.einsum("kn,kn->", weight @ outputs, weight)
        steps = np.abs(weight).max(axis=0) / limit  # [N]
        by_weight = float(steps**2 @ outputs.diagonal()) * float(np.sum(inputs.power / divisor**2))
        damage += (step**2 * float(by_input) + by_weight) / 12
    return damage


def _unit(divisor: Float64) -> Float64:
    """With a geometric mean of 1, so that weights keep their size."""
    unit: Float64 = divisor / np.exp(np.log(divisor).mean())
    return unit
