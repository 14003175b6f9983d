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


def samples(path: str, mask: str | None) -> list[dict[str, np.ndarray[Any, Any]]]:
    """One feed a sample, without its padding."""
    with np.load(path) as file:
        arrays = dict(file)
    width = arrays[mask].shape[1] if mask else None
    feeds: list[dict[str, np.ndarray[Any, Any]]] = []
    for index in range(len(next(iter(arrays.values())))):
        feed = {name: array[index : index + 1] for name, array in arrays.items()}
        if mask:
            used = feed[mask][0].astype(bool)
            feed = {
                name: array[:, used] if array.ndim > 1 and array.shape[1] == width else array
                for name, array in feed.items()
            }
        feeds.append(feed)
    return feeds


def main() -> None:
    """Prune, round, write."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = onnxsim.apply_structured_wanda_pruning(
        onnx.load(asked["original"]),
        calibration_data=samples(asked["calibration"], asked["mask"]),
        sparsity=asked["sparsity"],
    )
    onnx.save(model, asked["output"])
    rounded = onnxsim.quantize_dynamic_matmul_integer_to_float(model)
    onnx.save(rounded, asked["integers"])
    Path(sys.argv[2]).write_text(json.dumps({"onnxsim": onnxsim.__version__}), encoding="utf-8")


if __name__ == "__main__":
    main()
