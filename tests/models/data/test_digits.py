"""scikit-learn's digits, and how they are split."""

from __future__ import annotations

import numpy as np

from models.data.digits import digit_images


def test_digits_are_scaled_stratified_and_split_without_overlap():
    (train, train_labels), (held_out, labels) = (digit_images(s) for s in ("train", "validation"))
    assert len(labels) >= 500
    assert len(train) + len(held_out) == 1797
    assert train.dtype == np.float32
    assert held_out.shape[1:] == (1, 8, 8)
    assert (train.min(), train.max()) == (-1.0, 1.0)
    shares = np.bincount(labels) / (np.bincount(labels) + np.bincount(train_labels))
    np.testing.assert_allclose(shares, 0.3, atol=0.01)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}
