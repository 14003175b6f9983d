"""Two-sided weighting: the least damage to the *model's* outputs, to second order.

With C the covariance of the site's inputs (rows weighted with ‖g‖²) and G the second moment of the
gradients g at its output (:class:`~graph_passes.factorization.activations.GradientStats`),
replacing W by B changes the model's outputs by about ``tr(G (W − B)ᵀ C (W − B))``. With a Cholesky
factor ``G = H Hᵀ`` that is the one-sided problem of
:mod:`~graph_passes.factorization.projection` for the weight ``W H``: with Q its optimal basis, ::

    down = (W H) Q        up = Qᵀ H⁻¹

Only G is inverted, so only G is damped: by ``damping`` times its mean eigenvalue, which keeps
directions in which the outputs hardly change from being given up altogether. The norms of each
column of ``down`` and row of ``up`` are balanced; left as they come out, the factors train badly
and round badly. The squared errors of different sites are in one unit, the squared change of the
model's outputs, which is what makes them fit to share a budget out by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options
from scipy import linalg

from graph_passes.factorization.activations import ActivationStats
from graph_passes.factorization.base import Array, Factorization, Float64, Metric, Term
from graph_passes.factorization.projection import Projection, project
from graph_passes.factorization.storage import Storage


@dataclass(frozen=True)
class TwoSidedWeight:
    """A weight taken apart in the metrics of its inputs and of its outputs.

    Attributes:
        weight: ``[K, N]`` what the bias correction is measured from.
        projection: of ``W·half``.
        half: ``[N, N]`` lower triangle H.
        mean: ``[K]`` of the inputs.
    """

    weight: Array
    projection: Projection
    half: Float64
    mean: Float64

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error at each rank, relative to rank 0."""
        return self.projection.tail

    @property
    def energy(self) -> float:
        """The squared change of the model's outputs without the site."""
        return self.projection.energy

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """``down = W·H·Q``, ``up = Qᵀ·H⁻¹`` at ``rank``, balanced."""
        basis = self.projection.basis(rank)
        up = linalg.solve_triangular(self.half, basis, lower=True, trans="T").T
        down, up = _balanced(self.projection.weight @ basis, up)
        term = Term.rounded(down, up, self.weight.dtype, storage)
        return Factorization((term,), self.mean @ (self.weight.astype(np.float64) - term.product()))


@options(frozen=True, config=ConfigDict(extra="forbid"))
class GaussNewton:
    """gauss-newton: the least error in the model's outputs, by its gradients; bias corrected.

    Attributes:
        damping: what is added to the moment of the gradients, in its mean eigenvalues.
    """

    metric: ClassVar[Metric] = "output"
    needs_activations: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    corrects_bias: ClassVar[bool] = True

    damping: Annotated[float, Field(gt=0, le=1)] = 0.02

    def decompose(self, weight: Array, stats: ActivationStats | None) -> TwoSidedWeight:
        """Decompose ``weight`` [K, N] in the metrics of ``stats``.

        Raises:
            ValueError: ``stats`` is None, has no gradients, or is about other shapes.
        """
        if stats is None or stats.gradients is None:
            raise ValueError("gauss-newton needs activation statistics with gradients")
        inputs, sizes = stats.gradients.inputs, (len(stats.mean), len(stats.gradients.moment))
        if weight.shape != sizes:
            raise ValueError(f"a site of shape {sizes} does not fit a weight {weight.shape}")
        half = damped_half(stats.gradients.moment, self.damping)
        projection = project(weight.astype(np.float64) @ half, inputs.root)
        return TwoSidedWeight(weight, projection, half, inputs.mean)


def damped_half(moment: Float64, damping: float) -> Float64:
    """``[N, N]`` the lower triangle H with ``H Hᵀ = moment + damping·mean eigenvalue``.

    A site that no output depends on has a moment of zero; every metric is right for it, so H = I.
    """
    size = len(moment)
    mean = float(np.trace(moment)) / size
    if mean <= 0:
        return np.eye(size)
    half: Float64 = linalg.cholesky(moment + damping * mean * np.eye(size), lower=True)
    return half


def _balanced(down: Float64, up: Float64) -> tuple[Float64, Float64]:
    ours, theirs = np.linalg.norm(down, axis=0), np.linalg.norm(up, axis=1)
    positive = (ours > 0) & (theirs > 0)
    scale = np.sqrt(np.divide(theirs, ours, out=np.ones_like(ours), where=positive))
    scale[~positive] = 1.0
    return down * scale, up / scale[:, None]
