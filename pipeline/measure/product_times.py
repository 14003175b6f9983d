"""How long a product takes, dense and as a chain of factors, measured in graphs of nothing else.

    dense:    y = x·W               x [rows, K], W [K, N]
    rank r:   y = (x·down)·up       down [K, r], up [r, N]

1. A graph of a small product holds several copies of it, each with weights of its own. They share
   the fixed cost of a run.
2. All graphs of one product take turns, in random order in each round. Drift of the machine hits
   them alike. No weights stay in the innermost cache, as they would not in a whole model.
3. The least time over the rounds counts. Other processes can only add to it, and they hit long runs
   more often than short ones. Medians were off by a factor of three on a machine with four
   processes a core.

Measured are multiples of the rank multiple, as far as factors are smaller than the weight. Of many
such ranks a few are measured, evenly spread, with straight lines in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.allocation.price import TabulatedPrice
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.measure.benchmark import BoundModel, interleave
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec

_WARMUP_ROUNDS = 3
_MEASURE_S = 2.0
_LEAST_ROUNDS, _MOST_ROUNDS = 10, 100
_POINTS = 16
_MOST_COPIES = 16
_COPIES_BYTES = 256_000_000
# Runs of about a millisecond: long next to their fixed cost, and most are not interrupted.
_RUN_FLOPS: Mapping[Provider, float] = {"cpu": 1e8, "cuda": 1e10, "openvino": 1e8}
_OPSET, _IR_VERSION = 17, 8


@dataclass(frozen=True)
class Product:
    """``x [rows, in_features] · W [in_features, out_features]``, for each of ``matrices``."""

    matrices: int
    rows: int
    in_features: int
    out_features: int
    dtype: ir.DataType

    @property
    def leading(self) -> tuple[int, ...]:
        """The axes in front of those of a matrix: none, unless it is a stack."""
        return () if self.matrices == 1 else (self.matrices,)


def time_product(product: Product, ranks: Sequence[int], spec: SessionSpec) -> TabulatedPrice:
    """Milliseconds of ``product``, dense and at ``ranks``.

    Args:
        product: what to measure.
        ranks: rising.
        spec: how it is run.

    Raises:
        ProviderError: the provider does not work here.
        ModelFileError: ONNX Runtime has no product of this type there.
    """
    rng = np.random.default_rng(0)
    copies = _copies(product, spec.provider)
    shape = *product.leading, product.rows, product.in_features
    feeds = {"x": rng.standard_normal(shape).astype(product.dtype.numpy())}
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        models = []
        for index, inner in enumerate([(), *((rank,) for rank in ranks)]):
            path = Path(folder) / f"{index}.onnx"
            save_model(_chains(product, inner, copies, rng), path)
            models.append(BoundModel(path, feeds, spec))
        warmup_s = interleave(models, _WARMUP_ROUNDS, rng).min(axis=0).sum() / 1e9
        rounds = int(np.clip(_MEASURE_S / warmup_s, _LEAST_ROUNDS, _MOST_ROUNDS))
        times_ms = interleave(models, rounds, rng) / 1e6
    dense, *chains = times_ms.min(axis=0) / copies
    return TabulatedPrice.fit(float(dense), ranks, [float(time) for time in chains])


def ranks_to_measure(in_features: int, out_features: int, multiple: int) -> tuple[int, ...]:
    """Multiples of ``multiple`` whose factors are smaller than the weight, at most a few of them.

    Where even the first is not, the largest rank that is, or 1.
    """
    largest = max(1, (in_features * out_features - 1) // (in_features + out_features))
    grid = np.arange(multiple, largest + 1, multiple)
    if not len(grid):
        return (largest,)
    chosen = np.unique(np.linspace(0, len(grid) - 1, _POINTS).round().astype(int))
    return tuple(int(rank) for rank in grid[chosen])


def _copies(product: Product, provider: Provider) -> int:
    """How many products a graph holds."""
    numbers = product.matrices * product.in_features * product.out_features
    by_time = _RUN_FLOPS[provider] / max(2 * product.rows * numbers, 1)
    by_memory = _COPIES_BYTES / (numbers * product.dtype.itemsize)
    return int(np.clip(min(by_time, by_memory), 1, _MOST_COPIES))


def _chains(
    product: Product, inner: tuple[int, ...], copies: int, rng: np.random.Generator
) -> ir.Model:
    """Copies of ``x·W_1·W_2…`` from K over the ``inner`` sizes to N."""
    sizes = product.in_features, *inner, product.out_features
    x = _value("x", product, product.in_features)
    nodes, outputs, initializers = [], [], []
    for copy in range(copies):
        value = x
        for step, (rows, columns) in enumerate(pairwise(sizes)):
            numbers = rng.standard_normal((*product.leading, rows, columns)) / np.sqrt(rows)
            name = f"w{copy}.{step}"
            tensor = ir.tensor(numbers.astype(product.dtype.numpy()), name=name)
            weight = ir.Value(name=name, const_value=tensor)
            result = _value(f"y{copy}.{step}", product, columns)
            nodes.append(ir.Node("", "MatMul", [value, weight], outputs=[result]))
            initializers.append(weight)
            value = result
        outputs.append(value)
    graph = ir.Graph(
        [x],
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": _OPSET},
        name="products",
    )
    return ir.Model(graph, ir_version=_IR_VERSION)


def _value(name: str, product: Product, features: int) -> ir.Value:
    shape = ir.Shape((*product.leading, product.rows, features))
    return ir.Value(name=name, shape=shape, type=ir.TensorType(product.dtype))
