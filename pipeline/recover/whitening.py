"""Steps in coordinates in which the inputs of a layer are white.

Where x varies little, it takes a large change of W to change ``y = x·W`` at all, and gradients are
small there. With the second moment M = E[xᵀx] of the inputs, over its mean eigenvalue::

    P = (M + δ·I)^(−½)      W = P·V      x·W = (x·P)·V

the inputs of V are white, up to the damping δ. The optimizer moves V: by the gradient ``P·∂W``, in
steps relative to V's own scale, and W by ``P·ΔV``. What noise there is in the gradients then shakes
all directions of y alike, and not those most in which x varies most.

Inputs wider than :data:`WIDEST` are left as they are: the eigenvalues would take longer than they
save.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from scipy import linalg
from torch import Tensor

from compress_onnx.graph_passes.arrays import Array, Float32, Float64
from compress_onnx.pipeline.recover.torch_operators import product
from compress_onnx.pipeline.runtime.inner_values import exposed
from compress_onnx.pipeline.runtime.samples import Batch
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

DAMPING = 0.03
WIDEST = 1024
_BATCHES = 8
"""As many tell what the inputs are like."""


@dataclass(frozen=True)
class Whitening:
    """The coordinates of one weight.

    Attributes:
        basis: ``[K, K]`` P, symmetric.
        scale: the root mean square of V.
        axis: that of the inputs in the weight as it is stored.
    """

    basis: Tensor
    scale: float
    axis: int

    def apply(self, array: Tensor, half: bool = False) -> Tensor:
        """``P·array``, of what is stored like the weight; as a product of bfloat16 if ``half``."""
        if self.axis == 0:
            return product(self.basis, array, half)
        return product(array, self.basis, half)


def whitenings(
    model: ir.Model,
    trained: Mapping[ir.Value, Float32],
    batches: Sequence[Batch],
    data_folder: Path,
    spec: SessionSpec | None = None,
    *,
    device: str = "cpu",
) -> dict[str, Whitening]:
    """The coordinates of the matrices that are trained and multiplied with, by name.

    Args:
        model: what is trained; unchanged.
        trained: the numbers to start from.
        batches: a few of them are run.
        data_folder: where the model's external data lies.
        spec: how it is run.
        device: of PyTorch, where weights are moved.
    """
    products = [layer for layer in _products(model, trained) if layer.width <= WIDEST]
    moments = _moments(model, {layer.input for layer in products}, batches, data_folder, spec)
    roots = {name: _roots(moment) for name, moment in moments.items()}
    found: dict[str, Whitening] = {}
    for layer in products:
        if layer.input in roots:
            basis, inverse = roots[layer.input]
            array = trained[layer.weight]
            white = inverse @ array if layer.axis == 0 else array @ inverse
            scale = float(np.sqrt(np.mean(white * white)))
            placed = torch.from_numpy(basis).to(device)
            found[layer.weight.name or ""] = Whitening(placed, scale, layer.axis)
    return found


@dataclass(frozen=True)
class _Product:
    weight: ir.Value
    input: str
    axis: int
    width: int


def _products(model: ir.Model, trained: Collection[ir.Value]) -> Iterator[_Product]:
    """Where a trained matrix is the right operand, and is read once."""
    for node in model.graph:
        if node.op_type not in {"MatMul", "Gemm"} or node.domain not in {"", "ai.onnx"}:
            continue
        x, weight = node.inputs[:2]
        if x is None or weight is None or weight not in trained or len(weight.uses()) != 1:
            continue
        assert weight.const_value is not None
        turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
        if len(weight.const_value.shape) == 2 and not turned[0]:
            shape = weight.const_value.shape.numpy()
            yield _Product(weight, x.name or "", turned[1], int(shape[turned[1]]))


def _moments(
    model: ir.Model,
    inputs: Collection[str],
    batches: Sequence[Batch],
    data_folder: Path,
    spec: SessionSpec | None,
) -> dict[str, Float64]:
    """``[K, K]`` second moments of ``inputs`` over their mean eigenvalue, padding left out."""
    fed = {value.name for value in model.graph.inputs}
    names = sorted(set(inputs) - fed)
    session = open_session(exposed(model, names), spec, data_folder=data_folder)
    sums: dict[str, Float64] = {}
    for batch in batches[:: -(-len(batches) // _BATCHES)]:
        values = {**batch.feeds, **run(session, batch.feeds, names)} if names else batch.feeds
        for name in inputs:
            x = _rows(values[name], batch)
            sums[name] = sums.get(name, 0.0) + (x.T @ x).astype(np.float64)
    return {
        name: total * (len(total) / np.trace(total))
        for name, total in sums.items()
        if np.isfinite(total).all() and np.trace(total) > 0
    }


def _rows(value: Array, batch: Batch) -> Float32:
    """``[rows, K]`` without padding."""
    mask = batch.mask
    if mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape:
        value = value[mask]
    return value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False)


def _roots(moment: Float64) -> tuple[Float32, Float32]:
    """P and its inverse."""
    # Single precision is enough: the damping is far above it.
    values, vectors = linalg.eigh(moment.astype(np.float32))
    roots = np.sqrt(np.maximum(values, 0) + np.float32(DAMPING))
    basis, inverse = (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T
    return basis.astype(np.float32, copy=False), inverse.astype(np.float32, copy=False)
