"""Retrieval by topic: does the candidate still find the samples that belong together?

Every sample is a query and all others are its documents, ranked by the cosine of the pooled
embeddings. Relevant are the R documents that have the query's label. With k = ``top_k``:

    nDCG@k   = Σ 1/log₂(p + 1) over the relevant positions p ≤ k, over the same sum with all
               relevant documents in front
    recall@k = the relevant documents at positions p ≤ k, over R

Both add up what each relevant document's position is worth. Documents of equal similarity share
their positions and get the mean worth of them, which is what all orders of them give on average
(McSherry & Najork 2008, "Computing information retrieval performance measures efficiently in the
presence of tied scores"); so the order of the samples says nothing. A sample that is alone with its
label has nothing to find: it is a document, and no query.

The drop is the mean difference over the queries, reference less candidate. Its 95 % interval is a
percentile bootstrap over queries, which keeps the pairs; the documents are taken as given.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.measure.mean_interval import mean_interval
from compress_onnx.pipeline.measure.metrics.base import Outputs
from compress_onnx.pipeline.measure.metrics.pooled import PooledPairs, Vectors
from compress_onnx.pipeline.recipe import RetrievalMetric
from compress_onnx.pipeline.runtime.samples import Batch

SCORES = ("ndcg", "recall")
FIGURES = tuple(
    f"{score}{kind}"
    for score in SCORES
    for kind in ("", "_reference", "_drop", "_drop_low", "_drop_high")
)
_QUERIES_AT_A_TIME = 256
# Products of the same vectors differ in the last bits by where they stand; outputs are float32.
_DECIMALS = 12


class Retrieval:
    """Accumulates the pooled embeddings ``[samples, D]`` of both models, and the labels."""

    def __init__(self, spec: RetrievalMetric) -> None:
        self._spec = spec
        self._pairs = PooledPairs(spec.output, spec.pooling)
        self._topics: list[Array] = []
        self._scores: Vectors = np.empty((len(SCORES), 0))

    def update(self, batch: Batch, reference: Outputs, candidate: Outputs) -> None:
        """Pool one batch.

        Raises:
            DataError: no labels, or labels that are not one topic a sample.
            RequestError: the output does not fit the pooling.
            ModelFileError: the models' outputs differ in shape.
        """
        self._topics.append(_topics_of(batch.labels))
        self._pairs.add(batch, reference, candidate)

    def result(self) -> dict[str, float]:
        """The figures of the module's docstring.

        Raises:
            DataError: no two samples have the same label.
        """
        labels = np.concatenate(self._topics) if self._topics else np.empty(0, int)
        _, topics, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        queries = np.flatnonzero(sizes[topics] > 1)
        if not len(queries):
            raise DataError(
                "retrieval needs samples that share a label, and no two of them do: give more "
                "samples of each topic"
            )
        pairs = self._pairs.unit()
        if pairs is None:
            return dict.fromkeys(FIGURES, math.nan)
        before, after = (_scores(vectors, topics, queries, self._spec.top_k) for vectors in pairs)
        self._scores = after
        figures = [
            f for ours, theirs in zip(before, after, strict=True) for f in _paired(ours, theirs)
        ]
        return dict(zip(FIGURES, figures, strict=True))

    def per_sample(self) -> dict[str, Array]:
        """NDCG and recall of each query."""
        return dict(zip(SCORES, self._scores, strict=True))


def _topics_of(labels: Array | None) -> Array:
    """The labels ``[B]``, one topic a sample.

    Raises:
        DataError: there are none, or they are something else.
    """
    if labels is None:
        raise DataError(
            "retrieval needs labels and the samples have none: give each sample its topic, or "
            "choose a metric that compares with the original model"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise DataError(
            f"labels must be one topic a sample, a whole number or a text, found {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return labels


def _scores(
    vectors: Vectors, topics: NDArray[np.intp], queries: NDArray[np.intp], top_k: int
) -> Vectors:
    """Each query's nDCG and recall, ``[2, queries]``.

    Args:
        vectors: ``[samples, D]`` of unit length.
        topics: ``[samples]``, a number for each label.
        queries: positions of the samples that are asked for.
        top_k: how many documents count.
    """
    positions = np.arange(1, len(vectors) + 1)
    worth = np.stack([1 / np.log2(positions + 1), np.ones(len(vectors))])  # [2, samples]
    worth[:, top_k:] = 0.0
    summed = np.pad(np.cumsum(worth, axis=1), ((0, 0), (1, 0)))  # of the first 0, 1, ... positions
    found = []
    for start in range(0, len(queries), _QUERIES_AT_A_TIME):
        rows = queries[start : start + _QUERIES_AT_A_TIME]
        itself = np.arange(len(rows)), rows
        similar = np.round(vectors[rows] @ vectors.T, _DECIMALS)  # [Q, samples]
        similar[itself] = -np.inf
        relevant = topics[rows, None] == topics
        relevant[itself] = False
        first, last = (rankdata(-similar, method, axis=1).astype(int) for method in ("min", "max"))
        shared = (summed[:, last] - summed[:, first - 1]) / (last - first + 1)  # [2, Q, samples]
        count = relevant.sum(axis=1)
        best = np.stack([summed[0, count], count])  # [2, Q]
        found.append(np.sum(shared, axis=2, where=relevant) / best)
    return np.concatenate(found, axis=1)


def _paired(ours: Vectors, theirs: Vectors) -> tuple[float, float, float, float, float]:
    """The candidate's mean, the reference's, and their difference with its 95 % interval."""
    # Sorted, so that nothing depends on the order of the samples.
    differences = np.sort(ours - theirs)
    low, high = mean_interval(differences)
    return float(theirs.mean()), float(ours.mean()), float(differences.mean()), low, high
