"""Factors that a graph holds rounded, and what is computed from them."""

from __future__ import annotations

import numpy as np
import onnx
import small_models as small
from graphs import model
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

Float64 = NDArray[np.float64]


def trained(seed: int, rows: int = 32, columns: int = 24) -> Float64:
    """A random matrix whose singular values fall off, as those of trained weights do."""
    return small.weight(np.random.default_rng(seed), rows, columns)


def request(store: Storage, name: str = "svd", **options: int | str) -> CompressionSpec:
    """As many ranks as there are, so that all error is rounding."""
    method = MethodSpec(name=name, options=options)
    return CompressionSpec(method=method, rank=10_000, allow_larger=True, store=store)


def product(opset: int = 21, dtype: type = np.float32, seed: int = 0) -> onnx.ModelProto:
    """``y = x·w``, x of any number of rows."""
    kind = {np.float16: "float16", np.float64: "double"}.get(dtype, "float")
    text = f"g ({kind}[N,32] x) => ({kind}[N,24] y) {{ y = MatMul(x, w) }}"
    return model(text, {"w": trained(seed).astype(dtype)}, opset)


def computed(proto: onnx.ModelProto, dtype: type = np.float32) -> list[Float64]:
    """The weight that the graph multiplies by: in ONNX Runtime, with and without optimizations,
    and in the reference evaluator."""
    feeds = {"x": np.eye(32, dtype=dtype)}
    outputs = [ReferenceEvaluator(proto).run(None, feeds)[0]]
    for optimization in ("all", "off"):
        session = open_session(
            proto.SerializeToString(), SessionSpec(threads=1, optimization=optimization)
        )
        outputs.append(run(session, feeds)["y"])
    return [output.astype(np.float64) for output in outputs]


def reached(
    before: onnx.ModelProto, after: onnx.ModelProto, dtype: type = np.float32
) -> list[float]:
    """The relative error of each of :func:`computed`."""
    weight = numpy_helper.to_array(before.graph.initializer[0]).astype(np.float64)
    norm = np.linalg.norm(weight)
    return [float(np.linalg.norm(y - weight) / norm) for y in computed(after, dtype)]
