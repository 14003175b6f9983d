"""Mixed samples: what comes from the other sample, and what never does."""

from __future__ import annotations

import numpy as np

from compress_onnx.pipeline.recover.mixing import mixed
from compress_onnx.pipeline.runtime.samples import Samples


def batch_of(inputs, mask=None, size=64):
    return next(iter(Samples(inputs, mask).batches(size)))


def test_a_span_of_real_positions_comes_from_another_sample():
    lengths = np.array([9, 7, 5, 3, 2, 1])
    mask = (np.arange(10) < lengths[:, None]).astype(np.int64)
    ids = (np.arange(6)[:, None] * 100 + np.arange(10)) * mask
    batch = batch_of({"ids": ids, "types": ids + 1, "mask": mask}, "mask")
    changed = 0
    for seed in range(20):
        new = mixed(batch, "mask", np.random.default_rng(seed)).feeds
        old = batch.feeds
        assert np.array_equal(new["mask"], old["mask"])
        moved = new["ids"] != old["ids"]
        assert not moved[:, 0].any()
        for row, count in zip(moved, lengths, strict=True):
            assert not row[count - 1 :].any()
            at = np.flatnonzero(row)
            assert not len(at) or len(at) == at[-1] - at[0] + 1
        # Numbers stay at their positions: only the sample is another.
        assert np.array_equal(new["ids"][moved] % 100, np.nonzero(moved)[1])
        changed += int(moved.sum())
    assert changed > 20


def test_images_are_weighted_means_of_two():
    images = np.stack([np.full((1, 4, 4), value, np.float32) for value in (0, 1, 2, 4, 8, 16)])
    new = mixed(batch_of({"x": images}), None, np.random.default_rng(0)).feeds["x"]
    assert new.dtype == np.float32
    assert np.ptp(new, axis=(1, 2, 3)).max() == 0
    assert new.min() >= 0
    assert new.max() <= 16
    assert not np.array_equal(new, images)


def test_one_number_a_sample_and_a_floating_mask_stay():
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    numbers = np.array([3, 5])
    new = mixed(batch_of({"n": numbers, "m": mask}, "m"), "m", np.random.default_rng(0)).feeds
    assert sorted(new["n"]) == [3, 5]
    assert np.array_equal(np.sort(new["m"].sum(axis=1)), [3, 4])


def test_what_is_mixed_is_left_alone():
    ids = np.arange(40).reshape(4, 10)
    batch = batch_of({"ids": ids})
    before = batch.feeds["ids"].copy()
    mixed(batch, None, np.random.default_rng(0))
    assert np.array_equal(batch.feeds["ids"], before)
