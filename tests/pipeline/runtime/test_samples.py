"""Samples are cut into batches without losing a row or a real position."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.runtime.samples import Samples


def padded_samples(lengths, width, left=False):
    ids = np.zeros((len(lengths), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        columns = slice(width - length, width) if left else slice(0, length)
        ids[row, columns] = 100 * row + np.arange(1, length + 1)
        mask[row, columns] = 1
    labels = np.arange(len(lengths))
    pixels = np.arange(len(lengths) * 3.0).reshape(-1, 1, 3)
    return Samples({"ids": ids, "mask": mask, "pixels": pixels}, "mask", labels)


def masked_sums(ids, mask):
    return (ids * mask).sum(axis=1)


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=20),
    size=st.integers(1, 8),
    positions=st.integers(1, 30),
)
def test_batches_of_few_positions_hold_every_sample_once(lengths, size, positions):
    samples = padded_samples(lengths, width=9)
    batches = list(samples.batches(size, positions=positions))
    assert sorted(np.concatenate([batch.index for batch in batches])) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.index) <= size
        assert len(batch.index) == 1 or batch.mask.size <= positions


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=20),
    size=st.integers(1, 8),
    left=st.booleans(),
    multiple=st.integers(1, 5),
)
def test_trimmed_batches_hold_every_sample_once_and_lose_no_real_position(
    lengths, size, left, multiple
):
    samples = padded_samples(lengths, width=9, left=left)
    batches = list(samples.batches(size, multiple=multiple))
    assert sorted(np.concatenate([batch.index for batch in batches])) == list(range(len(lengths)))
    expected = masked_sums(samples.inputs["ids"], samples.inputs["mask"])
    for batch in batches:
        longest = max(1, *(lengths[row] for row in batch.index))
        wide = min(9, multiple * math.ceil(longest / multiple))
        assert batch.feeds["ids"].shape == batch.mask.shape == (len(batch.index), wide)
        np.testing.assert_array_equal(batch.mask, batch.feeds["mask"].astype(bool))
        np.testing.assert_array_equal(
            masked_sums(batch.feeds["ids"], batch.mask), expected[batch.index]
        )
        np.testing.assert_array_equal(batch.labels, batch.index)
        np.testing.assert_array_equal(batch.feeds["pixels"], samples.inputs["pixels"][batch.index])


def test_samples_of_like_length_share_a_batch():
    batches = list(padded_samples([1, 6, 2, 5], width=6).batches(2))
    assert [batch.feeds["ids"].shape[1] for batch in batches] == [6, 2]


def test_without_a_mask_the_order_stays_and_nothing_is_trimmed():
    samples = Samples({"x": np.arange(10.0).reshape(5, 2)})
    batches = list(samples.batches(2))
    assert [batch.index.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(batch.mask is None and batch.labels is None for batch in batches)
    np.testing.assert_array_equal(
        np.concatenate([batch.feeds["x"] for batch in batches]), samples.inputs["x"]
    )


@pytest.mark.parametrize("left", [False, True])
def test_labels_of_positions_are_trimmed_with_them(left):
    samples = padded_samples([2, 5], width=9, left=left)
    labelled = Samples(samples.inputs, "mask", labels=samples.inputs["ids"])
    for batch in labelled.batches(2):
        assert batch.labels.shape == (2, 5)
        np.testing.assert_array_equal(batch.labels, batch.feeds["ids"])


def test_take_and_select_keep_rows_together():
    samples = padded_samples([1, 2, 3], width=3)
    assert len(samples.take(2)) == 2
    assert len(samples.take(100)) == 3
    chosen = samples.select(np.array([2, 0]))
    np.testing.assert_array_equal(chosen.labels, [2, 0])
    np.testing.assert_array_equal(chosen.inputs["mask"].sum(axis=1), [3, 1])


@pytest.mark.parametrize(
    ("inputs", "mask", "labels", "message"),
    [
        ({}, None, None, "no input array"),
        ({"x": np.zeros((0, 2))}, None, None, "no samples"),
        ({"x": np.float32(1.0)}, None, None, "no samples"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, None, None, "differ in their number"),
        ({"x": np.zeros(2)}, None, np.zeros(3), "differ in their number"),
        ({"x": np.zeros(2)}, None, np.int64(1), "differ in their number"),
        ({"x": np.zeros(2)}, "mask", None, "padding mask 'mask' is not among"),
        ({"x": np.zeros(2)}, "x", None, r"has shape \(2,\)"),
        ({"x": np.array(["a"])}, None, None, "not numbers"),
        ({"x": np.array([np.nan])}, None, None, "NaN or infinite"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(inputs, mask, labels, message):
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    with pytest.raises(DataError, match=message):
        Samples(arrays, mask, None if labels is None else np.asarray(labels))
