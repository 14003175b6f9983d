"""Statistics of a site's inputs: count, mean, mean magnitude and covariance.

With rows x of X [n, K]::

    mean        μ = E[x]                      [K]
    magnitude   E|x|                          [K]
    covariance  C = E[(x − μ)(x − μ)ᵀ]        [K, K]

They are gathered batch by batch (:mod:`graph_passes.factorization.moments`). Matrices may be at
rest (:mod:`graph_passes.factorization.symmetric`): whoever reads one gets it in float64, anew each
time, and lets it go after use.

Statistics of several sets are mixed so that each set counts by a share, whatever its size: with
shares a and 1 − a that is ::

    E[x xᵀ] = (1 − a) E₁[x xᵀ] + a E₂[x xᵀ]

as if the rows themselves had weights, so nothing but moments is needed. Shrinkage pulls a metric
towards the identity of the same trace, which stands for the weights alone::

    C ← (1 − a) C + a (tr C / K) I

Both keep a positive semidefinite C so.

A weight that is a stack of matrices has statistics for each of them (:data:`Known`).

Where gradients g [n, N] of the model's outputs at the site's own output are known as well, rows
are weighted with ‖g‖² and the gradients have a second moment of their own
(:class:`GradientStats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.factorization.symmetric import SecondMoment, ridged


def square_root(covariance: Float64) -> Float64:
    """``[K, K]`` S with ``SᵀS`` = covariance; negative eigenvalues are rounding, and count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: Float64 = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return root


def towards_identity(matrix: Float64, strength: float) -> Float64:
    """``(1 − strength) · matrix + strength · mean of its diagonal · I``; 0 leaves it as it is."""
    if not strength:
        return matrix
    mean = float(np.trace(matrix)) / len(matrix)
    return ridged((1 - strength) * matrix, strength * mean)


@dataclass(frozen=True)
class ActivationStats:
    """What calibration knows about the inputs of one site (or of several that share a weight).

    Attributes:
        count: rows seen.
        mean: ``[K]``.
        magnitude: ``[K]`` mean absolute value.
        centred: ``[K, K]`` the centred second moment, as it is kept.
        gradients: how much the model's outputs depend on the site; None where not differentiated.
    """

    count: int
    mean: Float64
    magnitude: Float64
    centred: Float64 | SecondMoment
    gradients: GradientStats | None = None

    @property
    def covariance(self) -> Float64:
        """``[K, K]`` the centred second moment."""
        return _matrix(self.centred)

    @property
    def at_rest(self) -> ActivationStats:
        """The same in little memory."""
        return replace(self, centred=_at_rest(self.centred))

    @property
    def second_moment(self) -> Float64:
        """``[K, K]`` ``E[x xᵀ]``, not centred."""
        return self.covariance + np.outer(self.mean, self.mean)

    def uncentred(self) -> ActivationStats:
        """The same with a mean of zero: the metric is the second moment, and no bias is owed."""
        return replace(self, mean=np.zeros_like(self.mean), centred=self.second_moment)

    def shrunk(self, strength: float) -> ActivationStats:
        """The same, pulled towards the identity by ``strength``, 1 being the identity."""
        if not strength:
            return self
        level = np.full_like(self.magnitude, np.mean(self.magnitude))
        return replace(
            self,
            magnitude=(1 - strength) * self.magnitude + strength * level,
            centred=towards_identity(self.covariance, strength),
            gradients=None if self.gradients is None else self.gradients.shrunk(strength),
        )

    @classmethod
    def mixed(
        cls, parts: Sequence[ActivationStats], shares: Sequence[float], samples: Sequence[int]
    ) -> ActivationStats:
        """The statistics, without gradients, of sets of ``samples`` that count by ``shares``."""
        if len(parts) == 1:
            return replace(parts[0], gradients=None)
        rows = [part.count / size for part, size in zip(parts, samples, strict=True)]
        return cls._mix(parts, [share * each for share, each in zip(shares, rows, strict=True)])

    @classmethod
    def merge(cls, parts: Iterable[ActivationStats]) -> ActivationStats:
        """The statistics of all rows of ``parts`` together."""
        parts = tuple(parts)
        if len(parts) == 1:
            return parts[0]
        gradients = [part.gradients for part in parts if part.gradients is not None]
        merged = cls._mix(parts, [part.count for part in parts])
        if len(gradients) < len(parts):
            return merged
        return replace(merged, gradients=GradientStats.merge(gradients))

    @classmethod
    def beside(cls, parts: Sequence[ActivationStats]) -> ActivationStats:
        """The statistics of sites that read one input, seen as one site with all their outputs."""
        gradients = [part.gradients for part in parts if part.gradients is not None]
        if len(gradients) < len(parts):
            return replace(parts[0], gradients=None)
        return replace(parts[0], gradients=GradientStats.beside(gradients).at_rest)

    @classmethod
    def _mix(cls, parts: Sequence[ActivationStats], weights: Sequence[float]) -> ActivationStats:
        total = sum(weights)
        share = [weight / total if total else 1 / len(parts) for weight in weights]
        mixed = list(zip(share, parts, strict=True))
        mean: Float64 = np.sum([w * part.mean for w, part in mixed], axis=0)
        covariance = np.zeros((len(mean),) * 2)
        for w, part in mixed:
            # Around the common mean a part varies by what its own lies off, too.
            offset = part.mean - mean
            covariance += w * (part.covariance + np.outer(offset, offset))
        return cls(
            sum(part.count for part in parts),
            mean,
            np.sum([w * part.magnitude for w, part in mixed], axis=0),
            covariance,
        )


@dataclass(frozen=True)
class GradientStats:
    """What a unit of error at a site's output does to the model's outputs.

    With g the gradient, at the site's output y, of a random projection of the model's outputs, an
    error Δ of the weight changes the outputs by ``Σ (gᵀ Δᵀ x)²`` to second order. Its best cheap
    model is a Kronecker product: inputs weighted with ‖g‖², times the moment of the gradients.

    Attributes:
        inputs: statistics of the site's inputs, each row weighted with its ‖g‖².
        outer: ``[N, N]`` the sum of ``g gᵀ`` over all positions, a sample, as it is kept.
    """

    inputs: ActivationStats
    outer: Float64 | SecondMoment

    @property
    def moment(self) -> Float64:
        """``[N, N]`` the sum of ``g gᵀ`` over all positions, a sample."""
        return _matrix(self.outer)

    @property
    def at_rest(self) -> GradientStats:
        """The same in little memory."""
        return GradientStats(self.inputs.at_rest, _at_rest(self.outer))

    @property
    def outputs(self) -> int:
        """N."""
        return len(self.outer)

    @property
    def strength(self) -> float:
        """The squared norm of the gradients, a sample."""
        if isinstance(self.outer, SecondMoment):
            return self.outer.trace
        return float(np.trace(self.outer))

    def shrunk(self, strength: float) -> GradientStats:
        """The same, both sides pulled towards the identity by ``strength``."""
        return GradientStats(self.inputs.shrunk(strength), towards_identity(self.moment, strength))

    @classmethod
    def mixed(cls, parts: Sequence[GradientStats], shares: Sequence[float]) -> GradientStats:
        """The statistics of sets of samples that count by ``shares``."""
        if len(parts) == 1 and shares[0] == 1:
            return parts[0]
        scaled = list(zip(shares, parts, strict=True))
        inputs = ActivationStats._mix(
            [part.inputs for part in parts], [share * part.strength for share, part in scaled]
        )
        return cls(inputs, np.sum([share * part.moment for share, part in scaled], axis=0))

    @classmethod
    def merge(cls, parts: Sequence[GradientStats]) -> GradientStats:
        """The statistics of several sites that share one weight: their damages add up."""
        inputs = ActivationStats._mix(
            [part.inputs for part in parts], [part.strength for part in parts]
        )
        return cls(inputs, np.sum([part.moment for part in parts], axis=0))

    @classmethod
    def beside(cls, parts: Sequence[GradientStats]) -> GradientStats:
        """The statistics of several sites as one: what their errors do together is left out."""
        inputs = ActivationStats._mix(
            [part.inputs for part in parts], [part.strength for part in parts]
        )
        return cls(inputs, linalg.block_diag(*[part.moment for part in parts]))


def _matrix(kept: Float64 | SecondMoment) -> Float64:
    return kept.matrix() if isinstance(kept, SecondMoment) else kept


def _at_rest(kept: Float64 | SecondMoment) -> SecondMoment:
    return kept if isinstance(kept, SecondMoment) else SecondMoment.of(kept)


Known = Sequence[ActivationStats | None]
"""What is known about each matrix of a weight, in order; one entry for a plain matrix [K, N].

None where nothing is: calibration could not look, or no row reached that matrix of a stack.
"""
