"""Fidelity of embeddings: does the candidate put the samples in the same places?

Outputs are pooled to one vector a sample and scaled to unit length. Then:

* ``cosine``, ``cosine_p5``: mean and 5th percentile of each sample's cosine to its original, and
  the 95 % interval of the mean over samples like these (``cosine_low``, ``cosine_high``);
* ``neighbour_overlap``: the mean share of a sample's k nearest neighbours that stay the same;
* ``spearman``: the rank correlation of all pair similarities.

The last two do not change under a rotation of the space, which retrieval cannot see either.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, sem, spearmanr

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.measure.metrics.base import Outputs
from compress_onnx.pipeline.measure.metrics.pooled import PooledPairs, Vectors
from compress_onnx.pipeline.recipe import EmbeddingMetric
from compress_onnx.pipeline.runtime.samples import Batch

FIGURES = (
    "cosine",
    "cosine_p5",
    "neighbour_overlap",
    "spearman",
    "cosine_low",
    "cosine_high",
)
_ROWS_AT_A_TIME = 1024
# 8 million pairs; more cost gigabytes and change nothing in the third decimal.
_SPEARMAN_SAMPLES = 4096


class EmbeddingFidelity:
    """Accumulates the pooled embeddings of both models, ``[samples, D]`` each."""

    def __init__(self, spec: EmbeddingMetric) -> None:
        self._neighbours = spec.neighbours
        self._pairs = PooledPairs(spec.output, spec.pooling)
        self._cosines: Vectors = np.empty(0)

    def update(self, batch: Batch, reference: Outputs, candidate: Outputs) -> None:
        """Pool one batch.

        Raises:
            RequestError: the output does not fit the pooling.
            ModelFileError: the models' outputs differ in shape.
        """
        self._pairs.add(batch, reference, candidate)

    def result(self) -> dict[str, float]:
        """The figures of the module's docstring.

        Raises:
            DataError: so few samples that every other one is a neighbour.
        """
        k, count = self._neighbours, len(self._pairs)
        if count < k + 2:
            raise DataError(
                f"{count} samples are too few to compare {k} neighbours each: give at least "
                f"{k + 2} samples, or ask for fewer neighbours"
            )
        pairs = self._pairs.unit()
        if pairs is None:
            return dict.fromkeys(FIGURES, math.nan)
        reference, candidate = pairs
        cosines = self._cosines = _cosines(reference, candidate)
        mean, margin = float(cosines.mean()), _margin(cosines)
        figures = (
            mean,
            float(np.percentile(cosines, 5)),
            _neighbour_overlap(reference, candidate, k),
            _spearman(reference, candidate),
            mean - margin,
            min(1.0, mean + margin),
        )
        return dict(zip(FIGURES, figures, strict=True))

    def per_sample(self) -> dict[str, Array]:
        """Cosines to the original."""
        return {"cosine": self._cosines}


def _cosines(reference: Vectors, candidate: Vectors) -> Vectors:
    # Equal vectors have cosine 1 exactly, whatever rounding does to their product.
    equal = (reference == candidate).all(axis=1)
    products = np.sum(reference * candidate, axis=1)
    return np.where(equal, 1.0, np.clip(products, -1.0, 1.0))


def _margin(values: Vectors) -> float:
    """Half of the 95 % interval of the mean, by the central limit theorem."""
    return float(norm.ppf(0.975) * sem(values))


def _neighbour_overlap(reference: Vectors, candidate: Vectors, k: int) -> float:
    before, after = _nearest(reference, k), _nearest(candidate, k)
    return float((before[:, :, None] == after[:, None, :]).any(axis=2).mean())


def _nearest(vectors: Vectors, k: int) -> NDArray[np.intp]:
    """``[samples, k]`` the positions of each sample's most similar others."""
    nearest = []
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        similarities = vectors[start : start + _ROWS_AT_A_TIME] @ vectors.T
        rows = np.arange(len(similarities))
        similarities[rows, start + rows] = -np.inf
        nearest.append(np.argpartition(-similarities, k - 1, axis=1)[:, :k])
    return np.concatenate(nearest)


def _spearman(reference: Vectors, candidate: Vectors) -> float:
    before, after = _pair_similarities(reference), _pair_similarities(candidate)
    if np.array_equal(before, after):
        return 1.0
    if np.ptp(before) == 0.0 or np.ptp(after) == 0.0:
        return 0.0  # all pairs alike: no order is left that could agree
    return float(spearmanr(before, after).statistic)


def _pair_similarities(vectors: Vectors) -> Vectors:
    if len(vectors) > _SPEARMAN_SAMPLES:
        vectors = vectors[np.linspace(0, len(vectors) - 1, _SPEARMAN_SAMPLES).astype(int)]
    return (vectors @ vectors.T)[np.triu_indices(len(vectors), k=1)]
