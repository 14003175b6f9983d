"""Where padding is, in every layout that values have."""

from __future__ import annotations

import numpy as np
import pytest

from compress_onnx.pipeline.evidence.objective import change, signs
from compress_onnx.pipeline.measure.compare import OutputComparator
from compress_onnx.pipeline.runtime.padding import (
    by_position,
    real_positions,
    real_weights,
    repeated_positions,
    used_columns,
)
from compress_onnx.pipeline.runtime.samples import Batch

MASK = np.array([[1, 1, 0], [1, 0, 0]], bool)
"""``[B, T]`` = [2, 3]."""


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((2, 3, 5), True), ((6, 5), True), ((2, 5), False), ((2, 4, 3, 3), False), ((), False)],
)
def test_values_belong_to_positions_by_their_shape(shape, fits):
    value = np.zeros(shape)
    found = by_position(value, MASK)
    assert (found is not None) == fits
    if found is not None:
        assert found.shape[:2] == MASK.shape


@pytest.mark.parametrize("shape", [(2, 3, 5), (6, 5), (2, 3, 4, 5)])
def test_rows_of_padding_are_known_and_weigh_nothing(shape):
    value = np.zeros(shape)
    real = real_positions(value, MASK)
    assert real.shape == shape[:-1]
    assert real.sum() == 3 * np.prod(shape[:-1]) // 6
    np.testing.assert_array_equal(real_weights(value, MASK), real.astype(np.float32))


def test_what_no_mask_fits_weighs_one():
    assert real_positions(np.zeros((2, 5)), MASK) is None
    np.testing.assert_array_equal(real_weights(np.zeros((2, 5)), MASK), np.ones(2))
    np.testing.assert_array_equal(real_weights(np.zeros((2, 3, 5)), None), np.ones((2, 3)))


def test_columns_between_the_first_and_the_last_real_position_are_used():
    assert used_columns(np.array([[0, 0, 1, 0], [0, 1, 0, 0]], bool)) == slice(1, 3)
    assert used_columns(np.zeros((2, 4), bool)) == slice(0, 1)


@pytest.mark.parametrize(
    ("used", "width", "expected"),
    [
        (slice(0, 5), 9, slice(0, 8)),
        (slice(0, 8), 9, slice(0, 8)),
        (slice(0, 9), 9, slice(0, 9)),  # there are no more
        (slice(6, 9), 9, slice(1, 9)),  # padding is on the left
        (slice(3, 5), 20, slice(3, 11)),
    ],
)
def test_as_many_columns_more_as_make_a_multiple(used, width, expected):
    mask = np.zeros((2, width), bool)
    mask[:, used] = True
    assert used_columns(mask, 8) == expected


def test_real_positions_are_repeated_to_a_width():
    assert repeated_positions(MASK, 4).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert repeated_positions(np.zeros((1, 2), bool), 3).tolist() == [[0, 1, 0]]


def test_padding_of_flattened_outputs_is_not_compared():
    reference = np.ones((6, 4), np.float32)
    candidate = np.where(MASK.reshape(-1, 1), reference, np.float32(1e6))
    comparator = OutputComparator()
    comparator.update(reference, candidate, MASK)
    result = comparator.result("y")
    assert (result.elements, result.max_abs) == (12, 0.0)
    # The interval is over samples, of which there are two, not over rows.
    assert result.relative_l2_low == 0.0


def test_padding_of_flattened_outputs_is_neither_seeded_nor_counted():
    batch = Batch({}, np.arange(2), MASK, None)
    output = np.ones((6, 4), np.float32)
    drawn = signs(output, batch, "positions", np.random.default_rng(0))
    np.testing.assert_array_equal(np.any(drawn != 0, axis=1), MASK.reshape(-1))
    changed = np.where(MASK.reshape(-1, 1), output, np.float32(7))
    assert change(output, changed, batch, "positions") == 0.0
