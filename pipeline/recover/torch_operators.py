"""What the operators of ONNX compute, in PyTorch, so that autograd differentiates it.

Operators are as in opset 17 or later; the older ways to give axes are understood too. Those that
ONNX defines by others (Attention, RMSNormalization, Mish) are written out by
:mod:`pipeline.recover.torch_graph` and not listed here, unless PyTorch is faster.

Rounding has no useful gradient. The straight-through estimator takes that of what is rounded::

    QuantizeLinear     q = clip(rint(x/s) + z, 0, 255)     ∂q/∂x = 1/s where nothing is clipped
    DequantizeLinear   x̂ = s·(q − z)                       ∂x̂/∂q = s
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

OWN_DOMAIN, FAKE_QUANTIZE = "compress_onnx", "FakeQuantize"
"""Operator of ours, and its domain: QuantizeLinear with DequantizeLinear behind it."""

Result: TypeAlias = Tensor | tuple[Tensor, ...]
Operator: TypeAlias = Callable[..., Result]


class Attributes:
    """The attributes of a node.

    Args:
        node: of a graph, not of a function with attributes of its own.
    """

    def __init__(self, node: onnx.NodeProto) -> None:
        self.outputs = len(node.output)
        self._found = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - whatever ONNX stores there
        return self._found[name]

    def number(self, name: str, default: float) -> float:
        """A number."""
        return float(self._found.get(name, default))

    def integer(self, name: str, default: int) -> int:
        """A whole number."""
        return int(self._found.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers; None where it was left out."""
        found = self._found.get(name)
        return None if found is None else [int(number) for number in found]

    def text(self, name: str, default: str) -> str:
        """A word."""
        found = self._found.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)


def tensor_of(proto: onnx.TensorProto) -> Tensor:
    """A constant, with numbers of its own."""
    array = numpy_helper.to_array(proto)
    return torch.tensor(np.asarray(array))


def integers(value: Tensor) -> list[int]:
    """Sizes or axes that a graph computes."""
    return [int(number) for number in value.reshape(-1).tolist()]


# Products


def product(a: Tensor, b: Tensor, half: bool) -> Tensor:
    """``a·b`` in float32, or rounded to bfloat16 and added up in float32."""
    if half and a.dtype == b.dtype == torch.float32:
        return torch.matmul(a.bfloat16(), b.bfloat16()).float()
    return torch.matmul(a, b)


def _gemm(half: bool, n: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if n.integer("transA", 0) else a
    b = b.T if n.integer("transB", 0) else b
    y = product(a, b, half)
    if (alpha := n.number("alpha", 1.0)) != 1:
        y = y * alpha
    return y if c is None else y + n.number("beta", 1.0) * c


def products(half: bool) -> Mapping[str, Operator]:
    """The products, whose operands are rounded to bfloat16 where ``half`` says so."""
    return {
        "MatMul": lambda n, a, b: product(a, b, half),
        "Gemm": partial(_gemm, half),
    }


def _einsum(n: Attributes, *operands: Tensor) -> Tensor:
    return torch.einsum(n.text("equation", ""), *operands)


# Elementwise


def _div(n: Attributes, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _pow(n: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _mod(n: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if n.integer("fmod", 0) else torch.remainder(a, b)


def _extreme(choose: Callable[[Tensor, Tensor], Tensor], n: Attributes, *x: Tensor) -> Tensor:
    return reduce(choose, x)


def _sum(n: Attributes, *x: Tensor) -> Tensor:
    return reduce(torch.add, x)


def _clip(
    n: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    if "min" in n or "max" in n:
        return torch.clamp(x, n.number("min", -math.inf), n.number("max", math.inf))
    return x if low is None and high is None else torch.clamp(x, low, high)


def _cast(n: Attributes, x: Tensor) -> Tensor:
    array = helper.tensor_dtype_to_np_dtype(n.integer("to", 1))
    return x.to(torch.from_numpy(np.zeros(0, array)).dtype)


def _gelu(n: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=n.text("approximate", "none"))


def _prelu(n: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def _hard_sigmoid(n: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(n.number("alpha", 0.2) * x + n.number("beta", 0.5), 0, 1)


def _quantize(n: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Integers in a float32 tensor: integers of PyTorch have no gradient."""
    dtype = torch.uint8 if zero is None else zero.dtype
    if "output_dtype" in n or dtype not in {torch.uint8, torch.int8, torch.int16}:
        raise NotImplementedError("QuantizeLinear to this type")
    axis = n.integer("axis", 1)
    limits = torch.iinfo(dtype)
    exact = x / _along(scale, x, axis)
    rounded = torch.round(exact).detach() + (exact - exact.detach())
    if zero is not None:
        rounded = rounded + _along(zero, x, axis).to(x.dtype)
    return torch.clamp(rounded, limits.min, limits.max)


def _fake_quantize(n: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Both in one, with one scale: a tenth of the passes over ``x``."""
    limits = torch.iinfo(zero.dtype)
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), limits.min, limits.max)


def _dequantize(n: Attributes, q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if n.integer("block_size", 0):
        raise NotImplementedError("DequantizeLinear in blocks")
    axis, q = n.integer("axis", 1), q.to(scale.dtype)
    if zero is not None:
        q = q - _along(zero, q, axis).to(q.dtype)
    return q * _along(scale, q, axis)


def _along(value: Tensor, x: Tensor, axis: int) -> Tensor:
    """A number, or one for each index of ``axis`` of ``x``."""
    if value.numel() == 1:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return value.reshape(shape)


# Norms and reductions


def _softmax(of: Callable[..., Tensor], n: Attributes, x: Tensor) -> Tensor:
    return of(x, dim=n.integer("axis", -1))


def _layer_norm(
    n: Attributes, x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    shape = x.shape[n.integer("axis", -1) :]
    fits = all(part is None or part.shape == shape for part in (scale, bias))
    epsilon = n.number("epsilon", 1e-5)
    if fits:
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    y = functional.layer_norm(x, shape, None, None, epsilon)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def _batch_norm(
    n: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, bias, eps=n.number("epsilon", 1e-5))


def _instance_norm(n: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    epsilon = n.number("epsilon", 1e-5)
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _group_norm(n: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, channels = n.integer("num_groups", 1), x.shape[1]
    # In opset 18 there is one scale for each group, from 21 on one for each channel.
    scale, bias = (part.repeat_interleave(channels // len(part)) for part in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, n.number("epsilon", 1e-5))


def _axes(n: Attributes, axes: Tensor | None) -> list[int] | None:
    return n.integers("axes") if axes is None else integers(axes)


def _reduce(
    of: Callable[..., Tensor], n: Attributes, x: Tensor, axes: Tensor | None = None
) -> Tensor:
    found = _axes(n, axes)
    if x.ndim == 0 or (not found and n.integer("noop_with_empty_axes", 0)):
        return x
    return of(x, dim=found or list(range(x.ndim)), keepdim=bool(n.integer("keepdims", 1)))


def _product_of(x: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in dim), reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keepdim)
    return x


def _norm_of(order: int) -> Callable[..., Tensor]:
    def norm(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, order, dim=dim, keepdim=keepdim)
        return length

    return norm


def _sum_of_squares(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return torch.sum(x * x, dim=dim, keepdim=keepdim)


def _arg(of: Callable[..., Tensor], n: Attributes, x: Tensor) -> Tensor:
    axis, kept = n.integer("axis", 0), bool(n.integer("keepdims", 1))
    return of(x, dim=axis, keepdim=kept)


def _top_k(n: Attributes, x: Tensor, k: Tensor) -> Result:
    largest = bool(n.integer("largest", 1))
    return tuple(torch.topk(x, integers(k)[0], dim=n.integer("axis", -1), largest=largest))


def _cumulated(n: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    dim = integers(axis)[0]
    if n.integer("reverse", 0):
        x = x.flip(dim)
    y = torch.cumsum(x, dim).to(x.dtype)
    y = y - x if n.integer("exclusive", 0) else y
    return y.flip(dim) if n.integer("reverse", 0) else y


# Shapes


def _shape(n: Attributes, x: Tensor) -> Tensor:
    end = n.integer("end", x.ndim) if "end" in n else None
    return torch.tensor(x.shape[n.integer("start", 0) : end], dtype=torch.int64)


def _reshape(n: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = integers(shape)
    if not n.integer("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(tuple(sizes))


def _flatten(n: Attributes, x: Tensor) -> Tensor:
    axis = n.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0  # as many as there are axes is one too
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(n: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = _axes(n, axes)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


def _unsqueeze(n: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = _axes(n, axes) or []
    rank = x.ndim + len(found)
    for axis in sorted(axis % rank for axis in found):
        x = x.unsqueeze(axis)
    return x


def _transpose(n: Attributes, x: Tensor) -> Tensor:
    return x.permute(n.integers("perm") or list(reversed(range(x.ndim))))


def _concat(n: Attributes, *x: Tensor) -> Tensor:
    return torch.cat(x, dim=n.integer("axis", 0))


def _split(n: Attributes, x: Tensor, sizes: Tensor | None = None) -> Result:
    axis = n.integer("axis", 0)
    found = n.integers("split") if sizes is None else integers(sizes)
    if found is None:
        found = [-(-x.shape[axis] // n.integer("num_outputs", n.outputs))]
        return torch.split(x, found[0], dim=axis)
    return torch.split(x, found, dim=axis)


def _slice(
    n: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = integers(starts), integers(ends)
    along = range(len(first)) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    for start, end, axis, step in zip(first, last, along, strides, strict=True):
        size = x.shape[axis]
        kept = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        if kept.step > 0:
            taken = [slice(None)] * (axis % x.ndim) + [slice(kept.start, kept.stop, kept.step)]
            x = x[tuple(taken)]
        else:
            x = x.index_select(axis, torch.tensor(list(kept), device=x.device))
    return x


def _gather(n: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = n.integer("axis", 0) % x.ndim
    wrapped = torch.where(index < 0, index + x.shape[axis], index).long()
    taken = x.index_select(axis, wrapped.reshape(-1))
    return taken.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _gather_elements(n: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = n.integer("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index).long())


def _gather_nd(n: Attributes, x: Tensor, index: Tensor) -> Tensor:
    batch = n.integer("batch_dims", 0)
    # An index of its own for each of the axes that both share.
    shared = [
        torch.arange(size).reshape(-1, *[1] * (index.ndim - 2 - axis))
        for axis, size in enumerate(x.shape[:batch])
    ]
    return x[(*shared, *index.long().unbind(-1))]


def _scatter_nd(n: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    if (reduction := n.text("reduction", "none")) not in {"none", "add"}:
        raise NotImplementedError(f"ScatterND with reduction {reduction}")
    places = tuple(index.long().unbind(-1))
    return x.index_put(places, updates, accumulate=reduction == "add")


def _scatter_elements(n: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    if (reduction := n.text("reduction", "none")) not in {"none", "add"}:
        raise NotImplementedError(f"ScatterElements with reduction {reduction}")
    axis = n.integer("axis", 0)
    index = torch.where(index < 0, index + x.shape[axis], index).long()
    if reduction == "add":
        return x.scatter_add(axis, index, updates)
    return x.scatter(axis, index, updates)


def _tile(n: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


def _expand(n: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    # Either of the two may be the broader one.
    sizes = np.broadcast_shapes(tuple(x.shape), tuple(integers(shape)))
    return x.expand(sizes)


def _pad(
    n: Attributes,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    if (mode := n.text("mode", "constant")) != "constant":
        raise NotImplementedError(f"Pad with mode {mode}")
    sizes = integers(pads)
    along = list(range(x.ndim)) if axes is None else [a % x.ndim for a in integers(axes)]
    around = [(0, 0)] * x.ndim
    for place, axis in enumerate(along):
        around[axis] = (sizes[place], sizes[place + len(along)])
    flat = [size for pair in reversed(around) for size in pair]
    return functional.pad(x, flat, value=0.0 if value is None else float(value))


def _constant_of_shape(n: Attributes, shape: Tensor) -> Tensor:
    value = tensor_of(n["value"]) if "value" in n else torch.zeros(1)
    return value.reshape(()).expand(integers(shape)).clone()


def _range(n: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _trilu(n: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if n.integer("upper", 1) else torch.tril(x, diagonal)


def _non_zero(n: Attributes, x: Tensor) -> Tensor:
    return torch.nonzero(x).T.contiguous()


# Images


def _conv(n: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    strides = n.integers("strides") or [1] * rank
    dilations = n.integers("dilations") or [1] * rank
    x = _padded(n, x, list(weight.shape[2:]), strides, dilations)
    of = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return of(x, weight, bias, strides, 0, dilations, n.integer("group", 1))


def _padded(
    n: Attributes,
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    value: float = 0.0,
) -> Tensor:
    """``x`` with its pads written out."""
    rank = x.ndim - 2
    pads = n.integers("pads") or [0] * (2 * rank)
    how = n.text("auto_pad", "NOTSET")
    if how.startswith("SAME"):
        sizes = [
            max((-(-x.shape[2 + a] // strides[a]) - 1) * strides[a] + reach - x.shape[2 + a], 0)
            for a, reach in ((a, (kernel[a] - 1) * dilations[a] + 1) for a in range(rank))
        ]
        low = [size // 2 if how == "SAME_UPPER" else size - size // 2 for size in sizes]
        pads = [*low, *(size - part for size, part in zip(sizes, low, strict=True))]
    flat = [pads[place + axis] for axis in reversed(range(rank)) for place in (0, rank)]
    return functional.pad(x, flat, value=value) if any(flat) else x


def _pool(average: bool, n: Attributes, x: Tensor) -> Tensor:
    rank = x.ndim - 2
    kernel = n.integers("kernel_shape") or []
    strides = n.integers("strides") or [1] * rank
    ones = [1] * rank
    if n.integer("ceil_mode", 0) or (n.integers("dilations") or ones) != ones or n.outputs > 1:
        raise NotImplementedError("a pool with ceil_mode, dilations or indices")
    if not average:
        x = _padded(n, x, kernel, strides, ones, -math.inf)
        return (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1](
            x, kernel, strides
        )
    of = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    y = of(_padded(n, x, kernel, strides, ones), kernel, strides)
    if n.integer("count_include_pad", 0):
        return y
    counts = of(_padded(n, torch.ones_like(x), kernel, strides, ones), kernel, strides)
    return y / counts


def _resize(
    n: Attributes,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    mode = n.text("mode", "nearest")
    where = n.text("coordinate_transformation_mode", "half_pixel")
    if sizes is not None and sizes.numel():
        target = integers(sizes)
    elif scales is not None:
        shares = zip(x.shape, scales.tolist(), strict=True)
        target = [math.floor(size * scale) for size, scale in shares]
    else:
        raise NotImplementedError("Resize without sizes or scales")
    if "axes" in n or target[:2] != list(x.shape[:2]):
        raise NotImplementedError("Resize of other axes than those of images")
    if mode == "nearest" and (where, n.text("nearest_mode", "")) == ("asymmetric", "floor"):
        return functional.interpolate(x, target[2:], mode="nearest")
    if mode == "linear" and where in {"half_pixel", "pytorch_half_pixel", "align_corners"}:
        kind = ("linear", "bilinear", "trilinear")[x.ndim - 3]
        corners = where == "align_corners"
        return functional.interpolate(x, target[2:], mode=kind, align_corners=corners)
    raise NotImplementedError(f"Resize with mode {mode}, {where}")


def _lstm(
    n: Attributes,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Result:
    """Of gates i, o, f, g: ``c = σ(f)·c + σ(i)·tanh(g)`` and ``h = σ(o)·tanh(c)``."""
    changed = any(n.integer(name, 0) for name in ("input_forget", "layout"))
    if changed or "clip" in n or lengths is not None or peepholes is not None:
        raise NotImplementedError("an LSTM with lengths, peepholes, a clip or another layout")
    usual = [b"Sigmoid", b"Tanh", b"Tanh"] * w.shape[0]
    if "activations" in n and list(n["activations"]) != usual:
        raise NotImplementedError("an LSTM with other activations")
    way = n.text("direction", "forward")
    outputs, last_h, last_c = [], [], []
    for place in range(w.shape[0]):
        backwards = way == "reverse" or place == 1
        size = r.shape[-1]
        zero = x.new_zeros(x.shape[1], size)
        state, cell = (zero if start is None else start[place] for start in (h, c))
        gates = x @ w[place].T  # [T, B, 4H]
        if b is not None:
            gates = gates + b[place, : 4 * size] + b[place, 4 * size :]
        steps = []
        for step in reversed(gates) if backwards else gates:
            i, o, f, g = (step + state @ r[place].T).split(size, dim=-1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            steps.append(state)
        outputs.append(torch.stack(steps[::-1] if backwards else steps))
        last_h.append(state)
        last_c.append(cell)
    return torch.stack(outputs, dim=1), torch.stack(last_h), torch.stack(last_c)


def _global_mean(n: Attributes, x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def _depth_to_space(n: Attributes, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    size = n.integer("blocksize", 1)
    if n.text("mode", "DCR") == "DCR":
        parts = x.reshape(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(b, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(b, c // size**2, h * size, w * size)


def _space_to_depth(n: Attributes, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    size = n.integer("blocksize", 1)
    parts = x.reshape(b, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(b, c * size**2, h // size, w // size)


def _constant(n: Attributes) -> Tensor:
    if "value" in n:
        return tensor_of(n["value"])
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for found in (name, f"{name}s"):
            if found in n:
                return torch.tensor(n[found], dtype=dtype)
    raise NotImplementedError("a Constant of this kind")


def _unary(of: Callable[[Tensor], Tensor]) -> Operator:
    return lambda n, x: of(x)


def _binary(of: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda n, a, b: of(a, b)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "ArgMax": partial(_arg, torch.argmax),
    "ArgMin": partial(_arg, torch.argmin),
    "AveragePool": partial(_pool, True),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": lambda n, x, like: x.to(like.dtype),
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Cos": _unary(torch.cos),
    "CumSum": _cumulated,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": _div,
    "Einsum": _einsum,
    "Elu": lambda n, x: functional.elu(x, n.number("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    FAKE_QUANTIZE: _fake_quantize,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "GlobalAveragePool": _global_mean,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": lambda n, x: x,
    "InstanceNormalization": _instance_norm,
    "IsNaN": _unary(torch.isnan),
    "LSTM": _lstm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda n, x: functional.leaky_relu(x, n.number("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": partial(_softmax, torch.log_softmax),
    "Max": partial(_extreme, torch.maximum),
    "MaxPool": partial(_pool, False),
    "Min": partial(_extreme, torch.minimum),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "NonZero": _non_zero,
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "QuantizeLinear": _quantize,
    "Range": _range,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL1": partial(_reduce, _norm_of(1)),
    "ReduceL2": partial(_reduce, _norm_of(2)),
    "ReduceLogSumExp": partial(_reduce, torch.logsumexp),
    "ReduceMax": partial(_reduce, torch.amax),
    "ReduceMean": partial(_reduce, torch.mean),
    "ReduceMin": partial(_reduce, torch.amin),
    "ReduceProd": partial(_reduce, _product_of),
    "ReduceSum": partial(_reduce, torch.sum),
    "ReduceSumSquare": partial(_reduce, _sum_of_squares),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _unary(torch.round),
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Size": lambda n, x: torch.tensor(x.numel()),
    "Slice": _slice,
    "Softmax": partial(_softmax, torch.softmax),
    "Softplus": _unary(functional.softplus),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _sum,
    "Tanh": _unary(torch.tanh),
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": lambda n, condition, a, b: torch.where(condition, a, b),
    "Xor": _binary(torch.logical_xor),
}
