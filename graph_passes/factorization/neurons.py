"""Which neurons of a feed-forward network are worth keeping, and what takes over for the others.

With h the hidden value (mean μ, covariance C) and S the k neurons that stay, the others are
predicted from them, and the prediction folds into the down layer W [H, N]::

    h ≈ μ + Pᵀ (h_S − μ_S)      P = C_SS⁻¹ C_S:       [k, H]
    W' = P W                    b' = b + μᵀW − μ_Sᵀ W'

which is a low-rank factorization of W whose first factor selects columns, so that it goes through
an elementwise function: no node is added. With G the moment of the gradients at the output, the
model's outputs change by ``tr(G Wᵀ (C − C_:S P) W)`` to second order.

Neurons go in order of what they cost. With Q = C⁻¹ and V = W·G^½ as folded so far, neuron j costs
``‖V_j‖² / Q_jj``, exactly (optimal brain surgeon, Hassibi and Stork 1992). A block R of them goes
at once, ::

    V_A ← V_A − Q_AR Q_RR⁻¹ V_R        Q_AA ← Q_AA − Q_AR Q_RR⁻¹ Q_RA

and costs ``tr(V_Rᵀ Q_RR⁻¹ V_R)``. Later costs add up, because what is left is always the best
prediction: the sets that stay are nested, and one elimination answers for every k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from compress_onnx.graph_passes.arrays import Array, Float64, Indices
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.gauss_newton import damped_half
from compress_onnx.graph_passes.factorization.symmetric import ridged

INPUT_DAMPING = 1e-3
"""What is added to C before it is inverted, in its mean eigenvalues."""

_OUTPUT_DAMPING = 0.02
_BLOCKS = 48
"""One of so many of the neurons that are left goes at once."""


@dataclass(frozen=True)
class Folded:
    """A down layer for the neurons that stay.

    Attributes:
        kept: ``[k]`` the neurons that stay, rising.
        weight: ``[k, N]`` W'.
        bias: ``[N]`` what is added to the bias.
    """

    kept: Indices
    weight: Float64
    bias: Float64

    def dense(self, neurons: int) -> Float64:
        """``[H, N]`` the same for all neurons, zero for those that went."""
        weight = np.zeros((neurons, self.weight.shape[1]))
        weight[self.kept] = self.weight
        return weight


@dataclass(frozen=True)
class NeuronOrder:
    """The neurons of one network, those first that stay longest.

    Attributes:
        order: ``[H]``.
        damage: ``[H + 1]`` squared change of the outputs with so many neurons left.
    """

    order: Indices
    damage: Float64

    @property
    def energy(self) -> float:
        """The damage with no neuron left."""
        return float(self.damage[0])

    def kept(self, neurons: int) -> Indices:
        """``[k]`` those that stay, rising."""
        return np.sort(self.order[:neurons])


def order_neurons(weight: Array, stats: ActivationStats) -> NeuronOrder:
    """Order the neurons of the down layer ``weight`` [H, N], whose inputs ``stats`` are of.

    Where there are gradients, damage is that of the model's outputs, else of the layer's own.

    Raises:
        ValueError: the statistics are of another shape.
    """
    inputs = seen_inputs(stats)
    if len(inputs.mean) != len(weight):
        raise ValueError(f"statistics of {len(inputs.mean)} inputs do not fit {weight.shape}")
    folded = weight.astype(np.float64)
    if stats.gradients is not None:
        folded = folded @ damped_half(stats.gradients.moment, _OUTPUT_DAMPING)
    precision = _inverse(damped(inputs.covariance, INPUT_DAMPING))
    return _eliminate(folded, precision)


def _eliminate(folded: Float64, precision: Float64) -> NeuronOrder:
    """Take blocks of neurons out until none is left (the module's formulas)."""
    alive = np.arange(len(folded))
    gone: list[Indices] = []  # later ones first
    counts, damages = [len(folded)], [0.0]
    while len(alive):
        costs = np.einsum("hn,hn->h", folded, folded) / precision.diagonal()
        block = max(1, len(alive) // _BLOCKS)
        ranked = np.argsort(costs, kind="stable")
        removed, left = ranked[:block], np.sort(ranked[block:])
        solved = linalg.solve(
            precision[np.ix_(removed, removed)],
            np.hstack([precision[np.ix_(removed, left)], folded[removed]]),
            assume_a="pos",
        )  # [R, A + N]
        across, v = solved[:, : len(left)], solved[:, len(left) :]
        damages.append(damages[-1] + float(np.sum(folded[removed] * v)))
        gone.insert(0, alive[removed[::-1]])
        cross = precision[np.ix_(left, removed)]  # [A, R]
        folded = folded[left] - cross @ v
        precision = precision[np.ix_(left, left)] - cross @ across
        alive = alive[left]
        counts.append(len(alive))
    damage = np.interp(np.arange(counts[0] + 1), counts[::-1], damages[::-1])
    return NeuronOrder(np.concatenate(gone), damage)


def fold(weight: Array, stats: ActivationStats, kept: Indices) -> Folded:
    """The down layer ``weight`` [H, N] for the neurons ``kept`` [k] alone.

    Args:
        weight: W.
        stats: of its inputs.
        kept: the neurons that stay, rising.
    """
    inputs, exact = seen_inputs(stats), weight.astype(np.float64)
    covariance = inputs.covariance
    among = damped(covariance[np.ix_(kept, kept)], INPUT_DAMPING)
    ridge = among[0, 0] - covariance[kept[0], kept[0]]
    target = covariance[kept] @ exact + ridge * exact[kept]
    new: Float64 = linalg.solve(among, target, assume_a="pos")
    return Folded(kept, new, inputs.mean @ exact - inputs.mean[kept] @ new)


def seen_inputs(stats: ActivationStats) -> ActivationStats:
    """Those whose rows count by their gradients, where there are any."""
    return stats if stats.gradients is None else stats.gradients.inputs


def damped(covariance: Float64, damping: float) -> Float64:
    """``covariance + damping · mean eigenvalue``; the identity where it is zero."""
    mean = float(np.trace(covariance)) / len(covariance)
    return ridged(covariance, damping * mean if mean > 0 else 1.0)


def _inverse(matrix: Float64) -> Float64:
    inverse: Float64 = linalg.inv(matrix, assume_a="pos", overwrite_a=True)
    return np.asarray((inverse + inverse.T) / 2)
