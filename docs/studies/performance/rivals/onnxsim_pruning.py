"""Take neurons out by onnxsim's Wanda: ``python onnxsim_pruning.py REQUEST ANSWER``.

For onnxsim's environment. The request says ``original``, ``calibration`` (an .npz of samples),
``mask`` (the input that is the padding mask, or null), ``sparsity`` (the share of neurons that
goes), ``output`` and ``integers`` (where the same goes in products of integers).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim

Feeds = dict[str, np.ndarray[Any, Any]]


BATCH = 32
"""Samples of a batch at most."""


def batches(path: str, mask: str | None) -> list[Feeds]:
    """Samples without their padding, those of one length together: each batch opens a session."""
    with np.load(path) as file:
        arrays = dict(file)
    count = len(next(iter(arrays.values())))
    used = arrays[mask].astype(bool) if mask else np.ones((count, 0), bool)  # [samples, positions]
    lengths = used.sum(axis=1)
    found: list[Feeds] = []
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        for start in range(0, len(alike), BATCH):
            taken = alike[start : start + BATCH]
            found.append(
                {
                    name: array[taken][used[taken]].reshape(len(taken), length, *array.shape[2:])
                    if mask and array.shape[:2] == used.shape
                    else array[taken]
                    for name, array in arrays.items()
                }
            )
    return found


def main() -> None:
    """Prune, round, write."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = onnxsim.apply_structured_wanda_pruning(
        onnx.load(asked["original"]),
        calibration_data=batches(asked["calibration"], asked["mask"]),
        sparsity=asked["sparsity"],
    )
    onnx.save(model, asked["output"])
    rounded = onnxsim.quantize_dynamic_matmul_integer_to_float(model)
    onnx.save(rounded, asked["integers"])
    Path(sys.argv[2]).write_text(json.dumps({"onnxsim": onnxsim.__version__}), encoding="utf-8")


if __name__ == "__main__":
    main()
