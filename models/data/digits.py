"""scikit-learn's handwritten digits, split once and for all.

Grey values 0..16 become ``(x/16 − 0.5)/0.5``, between −1 and 1. Within each class the images are
ranked by a hash of their pixels and the first 30 % go to validation: the split is stratified and
does not depend on any library's random numbers.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.errors import MissingDependencyError

GREY_LEVELS = 16.0
VALIDATION_SHARE = 0.3


def digit_images(
    split: Literal["train", "validation"],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The images of one split with their labels.

    Returns:
        Pixels ``[N, 1, 8, 8]`` between −1 and 1, and labels ``[N]`` between 0 and 9.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            'the digits need scikit-learn: pip install "compress-onnx[recipes]"'
        ) from error
    known = load_digits()
    pixels = known.images.astype(np.float32)[:, None]
    labels = known.target.astype(np.int64)
    held_out = _validation_rows(pixels, labels)
    rows = held_out if split == "validation" else ~held_out
    return (pixels[rows] / GREY_LEVELS - 0.5) / 0.5, labels[rows]


def digits(
    split: Literal["train", "validation"],
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """As :func:`digit_images`, by the name of the model's input: what recipes read."""
    pixels, labels = digit_images(split)
    return {"pixel_values": pixels}, labels


def _validation_rows(pixels: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """``[N]`` boolean, True for the images that are held out."""
    digests = [hashlib.sha256(image.astype(np.uint8).tobytes()).digest() for image in pixels]
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        ranked = sorted(np.flatnonzero(labels == label), key=digests.__getitem__)
        held_out[ranked[: round(VALIDATION_SHARE * len(ranked))]] = True
    return held_out
