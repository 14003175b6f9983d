"""New samples out of old ones, for a teacher to label: more data where no more can be had.

1. Integers with one number a position (token ids and what goes with them): a span of positions
   comes from another sample of the batch, the same span in all such inputs. The first and the last
   real position of both samples stay where they are, as do padding and the mask.
2. Floating-point inputs: a weighted mean with the same other sample.
3. All else stays: integers with one number a sample, and whatever has another shape.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.runtime.samples import Batch


def mixed(batch: Batch, mask_name: str | None, rng: np.random.Generator) -> Batch:
    """A batch of the same shapes, each sample mixed with another of the batch.

    Args:
        batch: what to mix; unchanged.
        mask_name: the input that is the padding mask.
        rng: partners, spans and weights.
    """
    count = len(batch.index)
    partner = rng.permutation(count)
    fractions = np.sort(rng.random((count, 2)), axis=1)
    feeds: dict[str, Array] = {}
    for name, array in batch.feeds.items():
        if name == mask_name or name in batch.constants:
            feeds[name] = array
        elif array.dtype.kind == "f":
            share = fractions[:, 0].reshape(-1, *(1,) * (array.ndim - 1))
            first = array.astype(np.float64)
            feeds[name] = (first + share * (first[partner] - first)).astype(array.dtype)
        elif array.ndim == 2 and array.dtype.kind in "iu":
            span = _spans(_real(batch, array), partner, fractions)
            feeds[name] = np.where(span, array[partner], array)
        else:
            feeds[name] = array
    return replace(batch, feeds=feeds, labels=None)


def _real(batch: Batch, array: Array) -> NDArray[np.bool_]:
    """``[B, T]``: real positions."""
    if batch.mask is not None and batch.mask.shape == array.shape:
        return batch.mask
    return np.ones(array.shape, np.bool_)


def _spans(
    real: NDArray[np.bool_], partner: NDArray[np.intp], fractions: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """``[B, T]``: the positions that come from the partner.

    Inside both samples' real positions, without the first and the last of either.
    """
    both = real & real[partner]
    inner = both & (np.cumsum(both, axis=1) > 1)
    inner &= np.cumsum(both[:, ::-1], axis=1)[:, ::-1] > 1
    rank = np.cumsum(inner, axis=1)
    length = inner.sum(axis=1)
    start, stop = (np.rint(fraction * length)[:, None] for fraction in fractions.T)
    return np.asarray(inner & (rank > start) & (rank <= stop))
