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
        by_input: ``[K]`` the diagonal of W G Wᵀ.
        by_output: ``[N]`` that of G.
    """

    weight: Float64
    by_input: Float64
    by_output: Float64

    @classmethod
    def of(cls, weight: Array, moment: Float64 | None = None) -> Reader:
        """With G = ``moment`` [N, N]; None weighs all outputs alike."""
        exact = weight.astype(np.float64)
        if moment is None:
            return cls(exact, np.einsum("kn,kn->k", exact, exact), np.ones(exact.shape[1]))
        return cls(exact, np.einsum("kn,kn->k", exact @ moment, exact), moment.diagonal())

    @classmethod
    def relative(cls, weight: Array, inputs: InputRange) -> Reader:
        """What is lost is then relative to the layer's own output."""
        plain = cls.of(weight)
        signal = float(inputs.power @ plain.by_input)
        unit = 1 / signal if signal > 0 else 1.0
        return cls(plain.weight, unit * plain.by_input, unit * plain.by_output)


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
    inputs: InputRange,
    readers: Sequence[Reader],
    divisor: Float64 | None = None,
    limit: int = LIMIT,
) -> float:
    """The module's formulas, for inputs divided by ``divisor`` [K]; None leaves them."""
    if divisor is None:
        divisor = np.ones(len(inputs.power))
    step = float(inputs.divided(divisor).scale().scale)
    small = float(np.sum(inputs.power / divisor**2))
    damage = 0.0
    for reader in readers:
        steps = np.abs(divisor[:, None] * reader.weight).max(axis=0) / limit  # [N]
        damage += step**2 * float(divisor**2 @ reader.by_input)
        damage += float(steps**2 @ reader.by_output) * small
    return damage / 12


def _unit(divisor: Float64) -> Float64:
    """With a geometric mean of 1, so that weights keep their size."""
    unit: Float64 = divisor / np.exp(np.log(divisor).mean())
    return unit
