"""Small graphs in the words of other exporters: one construct between two linear layers each.

Each is text for ONNX's parser, with operators of its opset and weights w1, w2, … and constants that
are named here. What the construct does to the shapes is part of it: axes are open as an exporter
would leave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.runtime.samples import Samples

WIDTH = 8
_TOKENS = "float[B,T,8] x"
_IMAGE = "float[B,3,8,8] x"


@dataclass(frozen=True)
class Stranger:
    """A graph as text.

    Attributes:
        body: its nodes; ``y`` is the output.
        exporter: who writes such graphs.
        inputs: as the parser reads them.
        output: its type.
        opset: of ONNX's own operators.
        sizes: of the samples' arrays, without their number, by input.
        shapes: of random weights by name, beside w1 and w2.
        constants: arrays by name.
        dtype: of all floats.
        in_nodes: weights are in Constant nodes.
    """

    body: str
    exporter: str = "by hand"
    inputs: str = _TOKENS
    output: str = "float[B,T,4] y"
    opset: int = 17
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (5, WIDTH)})
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    dtype: str = "float"
    in_nodes: bool = False

    def build(self, seed: int = 0) -> onnx.ModelProto:
        """The model, with random weights."""
        header = f'<ir_version: {_ir_version(self.opset)}, opset_import: ["" : {self.opset}, '
        header += '"com.microsoft" : 1]>'
        text = f"{header} g ({self.inputs}) => ({self.output}) {{ {self.body} }}"
        proto = parser.parse_model(text.replace("float", self.dtype))
        rng = np.random.default_rng(seed)
        shapes = {"w1": (WIDTH, WIDTH), "w2": (WIDTH, 4), **self.shapes}
        used = {name for node in proto.graph.node for name in node.input}
        kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[self.dtype]
        arrays: dict[str, Array] = {
            name: (rng.standard_normal(shape) / 2).astype(kind)
            for name, shape in shapes.items()
            if name in used
        }
        arrays |= {
            name: array.astype(kind) if array.dtype == np.float32 else array
            for name, array in self.constants.items()
        }
        self._store(proto, arrays)
        return proto

    def _store(self, proto: onnx.ModelProto, arrays: Mapping[str, Array]) -> None:
        tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        if self.in_nodes:
            nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
            nodes += proto.graph.node
            del proto.graph.node[:]
            proto.graph.node.extend(nodes)
            return
        proto.graph.initializer.extend(tensors)

    def samples(self, count: int = 5, seed: int = 1) -> Samples:
        """Random samples."""
        rng = np.random.default_rng(seed)
        kinds = {v.name: v.type.tensor_type.elem_type for v in self.build().graph.input}
        arrays: dict[str, Array] = {}
        for name, size in self.sizes.items():
            kind = helper.tensor_dtype_to_np_dtype(kinds[name])
            if kinds[name] in {TensorProto.INT64, TensorProto.INT32}:
                arrays[name] = rng.integers(0, 4, (count, *size)).astype(kind)
            else:
                arrays[name] = rng.standard_normal((count, *size)).astype(kind)
        return Samples(arrays)


def _ir_version(opset: int) -> int:
    return 6 if opset < 15 else 8 if opset < 20 else 10


def _between(middle: str, **settings: object) -> Stranger:
    """``middle`` makes b of a, both ``[B, T, 8]``."""
    body = f"a = MatMul(x, w1)\n{middle}\ny = MatMul(b, w2)"
    return Stranger(body, **settings)  # type: ignore[arg-type]


def _ints(**values: int | list[int]) -> dict[str, Array]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


_ORT = "onnxruntime"
_PADDLE = "paddle2onnx"
_TF = "tf2onnx"
_TORCH = "torch, old"
_VISION = {"inputs": _IMAGE, "sizes": {"x": (3, 8, 8)}}

STRANGERS: Mapping[str, Stranger] = {
    "fast-gelu": _between("b = com.microsoft.FastGelu(a)", exporter=_ORT),
    "fast-gelu-bias": _between(
        "b = com.microsoft.FastGelu(a, bias)", exporter=_ORT, shapes={"bias": (8,)}
    ),
    "bias-gelu": _between(
        "b = com.microsoft.BiasGelu(a, bias)", exporter=_ORT, shapes={"bias": (8,)}
    ),
    "quick-gelu": _between("b = com.microsoft.QuickGelu<alpha = 1.702>(a)", exporter=_ORT),
    "skip-layer-norm": _between(
        "b = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(a, x, g, z, bias)",
        exporter=_ORT,
        shapes={"g": (8,), "z": (8,), "bias": (8,)},
    ),
    "skip-rms-norm": _between(
        "b = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.00001>(a, x, g)",
        exporter=_ORT,
        shapes={"g": (8,)},
        opset=20,
    ),
    "rms-norm": _between(
        "b = SimplifiedLayerNormalization<axis = -1, epsilon = 0.00001>(a, g)",
        exporter=_ORT,
        shapes={"g": (8,)},
    ),
    "fused-matmul": _between(
        """s = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(a, a)
        p = Softmax<axis = -1>(s)
        b = MatMul(p, a)""",
        exporter=_ORT,
    ),
    "multi-head-attention": _between(
        "b = com.microsoft.MultiHeadAttention<num_heads = 2>(a, a, a)", exporter=_ORT
    ),
    "rotary-embedding": _between(
        "b = com.microsoft.RotaryEmbedding<num_heads = 2>(a, at, cos, sin)",
        exporter=_ORT,
        inputs=f"{_TOKENS}, int64[B,T] at",
        sizes={"x": (5, 8), "at": (5,)},
        shapes={"cos": (8, 2), "sin": (8, 2)},
    ),
    "constant-weights-11": Stranger(
        """a = MatMul(x, w1)
        h = Add(a, bias)
        u = Unsqueeze<axes = [1]>(h)
        r = Relu(u)
        s = Squeeze<axes = [1]>(r)
        b = Softmax<axis = -1>(s)
        y = MatMul(b, w2)""",
        exporter=_PADDLE,
        opset=11,
        shapes={"bias": (8,)},
        in_nodes=True,
    ),
    "constant-weights-12": Stranger(
        """a = MatMul(x, w1)
        size = Shape(a)
        d = Reshape(a, heads)
        t = Transpose<perm = [0, 2, 1, 3]>(d)
        back = Transpose<perm = [0, 2, 1, 3]>(t)
        b = Reshape(back, size)
        y = MatMul(b, w2)""",
        exporter=_PADDLE,
        opset=12,
        constants=_ints(heads=[0, 0, 2, 4]),
        in_nodes=True,
    ),
    "reshape-through-shape-11": Stranger(
        """a = MatMul(x, w1)
        size = Shape(a)
        batch = Gather(size, zero)
        first = Unsqueeze<axes = [0]>(batch)
        rows = Concat<axis = 0>(first, rest)
        b = Reshape(a, rows)
        y = MatMul(b, w2)""",
        exporter=_PADDLE,
        opset=11,
        constants=_ints(zero=0, rest=[-1, 8]),
        in_nodes=True,
    ),
    "first-token-11": _between(
        """c = Gather<axis = 1>(a, zero)
        d = Unsqueeze<axes = [1]>(c)
        b = Add(a, d)""",
        exporter=_TORCH,
        opset=11,
        constants=_ints(zero=0),
    ),
    "softmax-over-the-rest-12": _between("b = Softmax<axis = 1>(a)", exporter=_TORCH, opset=12),
    "layer-norm-by-hand-11": _between(
        """m = ReduceMean<axes = [-1]>(a)
        c = Sub(a, m)
        s = Mul(c, c)
        v = ReduceMean<axes = [-1]>(s)
        e = Add(v, epsilon)
        r = Sqrt(e)
        b = Div(c, r)""",
        exporter=_TORCH,
        opset=11,
        constants={"epsilon": np.array(1e-5, np.float32)},
    ),
    "half": _between(
        """g = Sigmoid(a)
        b = Mul(a, g)""",
        dtype="float16",
        output="float[B,T,4] y",
    ),
    "half-casts": Stranger(
        """a = MatMul(x, w1)
        wide = Cast<to = 1>(a)
        p = Softmax<axis = -1>(wide)
        b = Cast<to = 10>(p)
        y = MatMul(b, w2)""",
        dtype="float16",
    ),
    "double": _between("b = Tanh(a)", dtype="double"),
    "conv-open-batch": Stranger(
        """c = Conv<kernel_shape = [2, 2], strides = [2, 2]>(x, k)
        f = Reshape(c, flat)
        t = Transpose<perm = [0, 2, 1]>(f)
        a = MatMul(t, w1)
        i = Transpose<perm = [0, 2, 1]>(a)
        g = Reshape(i, grid)
        d = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8>(g, k2)
        p = GlobalAveragePool(d)
        b = Flatten(p)
        y = MatMul(b, w2)""",
        output="float[B,4] y",
        shapes={"k": (8, 3, 2, 2), "k2": (8, 1, 3, 3)},
        constants=_ints(flat=[0, 8, 16], grid=[0, 8, 4, 4]),
        **_VISION,  # type: ignore[arg-type]
    ),
    "conv-auto-pad": Stranger(
        """r = Transpose<perm = [0, 2, 3, 1]>(x)
        h = MatMul(r, w3)
        c = Transpose<perm = [0, 3, 1, 2]>(h)
        d = Conv<kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]>(c, k)
        m = MaxPool<kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]>(d)
        p = GlobalAveragePool(m)
        b = Flatten(p)
        y = MatMul(b, w2)""",
        exporter=_TF,
        output="float[B,4] y",
        shapes={"w3": (3, 8), "k": (8, 8, 3, 3)},
        **_VISION,  # type: ignore[arg-type]
    ),
    "conv-auto-pad-lower": Stranger(
        """r = Transpose<perm = [0, 2, 3, 1]>(x)
        h = MatMul(r, w3)
        c = Transpose<perm = [0, 3, 1, 2]>(h)
        d = Conv<auto_pad = "SAME_LOWER", strides = [3, 2]>(c, k)
        p = Conv<pads = [1, 1, 1, 1], strides = [3, 3]>(d, k)
        f = GlobalAveragePool(p)
        b = Flatten(f)
        y = MatMul(b, w2)""",
        exporter=_TF,
        output="float[B,4] y",
        shapes={"w3": (3, 8), "k": (8, 8, 2, 3)},
        **_VISION,  # type: ignore[arg-type]
    ),
    "average-pool-padded": Stranger(
        """r = Transpose<perm = [0, 2, 3, 1]>(x)
        h = MatMul(r, w3)
        c = Transpose<perm = [0, 3, 1, 2]>(h)
        d = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)
        s = Transpose<perm = [0, 2, 3, 1]>(d)
        y = MatMul(s, w2)""",
        output="float[B,H,W,4] y",
        shapes={"w3": (3, 8)},
        **_VISION,  # type: ignore[arg-type]
    ),
    "average-pool": Stranger(
        """r = Transpose<perm = [0, 2, 3, 1]>(x)
        h = MatMul(r, w3)
        c = Transpose<perm = [0, 3, 1, 2]>(h)
        d = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(c)
        e = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(d, , twice)
        s = Transpose<perm = [0, 2, 3, 1]>(e)
        y = MatMul(s, w2)""",
        output="float[B,H,W,4] y",
        shapes={"w3": (3, 8)},
        constants={"twice": np.array([1, 1, 2, 2], np.float32)},
        **_VISION,  # type: ignore[arg-type]
    ),
    "pixel-shuffle": Stranger(
        """r = Transpose<perm = [0, 2, 3, 1]>(x)
        h = MatMul(r, w3)
        c = Transpose<perm = [0, 3, 1, 2]>(h)
        d = DepthToSpace<blocksize = 2, mode = "CRD">(c)
        e = SpaceToDepth<blocksize = 2>(d)
        s = Transpose<perm = [0, 2, 3, 1]>(e)
        y = MatMul(s, w2)""",
        output="float[B,H,W,4] y",
        shapes={"w3": (3, 8)},
        **_VISION,  # type: ignore[arg-type]
    ),
    "batch-norm": Stranger(
        """r = Transpose<perm = [0, 2, 3, 1]>(x)
        h = MatMul(r, w3)
        c = Transpose<perm = [0, 3, 1, 2]>(h)
        n = BatchNormalization(c, one, zero, zero, one)
        i = InstanceNormalization(n, one, zero)
        s = Transpose<perm = [0, 2, 3, 1]>(i)
        y = MatMul(s, w2)""",
        output="float[B,H,W,4] y",
        shapes={"w3": (3, 8)},
        constants={"one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)},
        **_VISION,  # type: ignore[arg-type]
    ),
    "group-norm": _between(
        """t = Transpose<perm = [0, 2, 1]>(a)
        n = GroupNormalization<num_groups = 2>(t, one, zero)
        b = Transpose<perm = [0, 2, 1]>(n)""",
        opset=21,
        constants={"one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)},
    ),
    "concat-with-a-past": Stranger(
        """a = MatMul(x, w1)
        both = Concat<axis = 1>(past, a)
        t = Transpose<perm = [0, 2, 1]>(both)
        s = MatMul(a, t)
        p = Softmax<axis = -1>(s)
        b = MatMul(p, both)
        y = MatMul(b, w2)""",
        inputs=f"{_TOKENS}, float[B,P,8] past",
        output="float[B,T,4] y, float[B,S,8] both",
        sizes={"x": (5, 8), "past": (3, 8)},
    ),
    "tile": _between(
        """m = ReduceMean<axes = [1]>(a)
        size = Shape(a)
        length = Slice(size, one, two)
        times = Concat<axis = 0>(one, length, one)
        c = Tile(m, times)
        b = Mul(a, c)""",
        exporter=_TF,
        constants=_ints(one=[1], two=[2]),
    ),
    "gather-nd": _between(
        """size = Shape(a)
        length = Slice(size, one, two)
        flat = ConstantOfShape<value = int64[1] {0}>(length)
        at = Unsqueeze(flat, one)
        swapped = Transpose<perm = [1, 0, 2]>(a)
        c = GatherND(swapped, at)
        d = Transpose<perm = [1, 0, 2]>(c)
        b = Add(a, d)""",
        exporter=_TF,
        constants=_ints(one=[1], two=[2]),
    ),
    "gather-nd-batch": Stranger(
        """a = MatMul(x, w1)
        b = GatherND<batch_dims = 1>(a, at)
        y = MatMul(b, w2)""",
        exporter=_TF,
        inputs=f"{_TOKENS}, int64[B,S,1] at",
        sizes={"x": (5, 8), "at": (3, 1)},
    ),
    "slice-to-the-length": _between(
        """size = Shape(a)
        length = Slice(size, one, two)
        less = Sub(length, one)
        c = Slice(a, one, length, one)
        d = Slice(a, zero, less, one)
        e = Sub(c, d)
        f = Slice(a, zero, one, one)
        b = Concat<axis = 1>(f, e)""",
        constants=_ints(zero=[0], one=[1], two=[2]),
    ),
    "every-other": _between(
        """c = Slice(a, zero, far, two, two)
        d = Slice(a, one, far, two, two)
        b = Concat<axis = 2>(d, c)""",
        constants=_ints(zero=[0], one=[1], two=[2], far=[2**62]),
    ),
    "roll-open-axis": _between(
        """c = Slice(a, minus, far, one)
        d = Slice(a, zero, minus, one)
        e = Concat<axis = 1>(c, d)
        b = Add(a, e)""",
        constants=_ints(zero=[0], one=[1], minus=[-1], far=[2**62]),
    ),
    "reversed": _between(
        "b = Slice(a, minus, least, one, minus)",
        constants=_ints(one=[1], minus=[-1], least=[-(2**62)]),
    ),
    "split": _between(
        """c, d = Split<axis = -1, num_outputs = 2>(a)
        s = Sigmoid(c)
        e = Mul(s, d)
        b = Concat<axis = -1>(e, d)""",
        opset=18,
    ),
    "pad": _between(
        """c = Pad(a, pads)
        b = Slice(c, one, minus, one)""",
        constants=_ints(pads=[0, 1, 0, 0, 1, 0], one=[1], minus=[-1]),
    ),
    "expand-and-where": _between(
        """size = Shape(a)
        zeros = ConstantOfShape<value = float[1] {0}>(size)
        big = Greater(a, zeros)
        b = Where(big, a, zeros)"""
    ),
    "einsum-attention": _between(
        """s = Einsum<equation = "bik,bjk->bij">(a, a)
        p = Softmax<axis = -1>(s)
        b = Einsum<equation = "bij,bjk->bik">(p, a)"""
    ),
    "causal-by-trilu": _between(
        """t = Transpose<perm = [0, 2, 1]>(a)
        s = MatMul(a, t)
        mask = Trilu<upper = 0>(s)
        p = Softmax<axis = -1>(mask)
        b = MatMul(p, a)"""
    ),
    "relative-positions": _between(
        """t = Transpose<perm = [0, 2, 1]>(a)
        s = MatMul(a, t)
        size = Shape(a)
        length = Gather(size, one)
        range = Range(zero, length, one)
        r = Unsqueeze(range, first)
        c = Unsqueeze(range, last)
        apart = Sub(r, c)
        near = Clip(apart, low, high)
        at = Add(near, high)
        bias = Gather(table, at)
        flat = Squeeze(bias, third)
        total = Add(s, flat)
        p = Softmax<axis = -1>(total)
        b = MatMul(p, a)""",
        constants=_ints(zero=0, one=1, first=[0], last=[1], low=-2, high=2, third=[2]),
        shapes={"table": (5, 1)},
    ),
    "experts-by-top-k": _between(
        """logits = MatMul(x, router)
        best, which = TopK<axis = -1>(logits, two)
        gate = Softmax<axis = -1>(best)
        size = Shape(logits)
        none = ConstantOfShape<value = float[1] {0}>(size)
        gates = ScatterElements<axis = -1>(none, which, gate)
        first = Gather<axis = -1>(gates, zero)
        third = Gather<axis = -1>(gates, two_)
        c = Mul(a, first)
        d = Mul(a, third)
        b = Sub(c, d)""",
        shapes={"router": (8, 4)},
        constants=_ints(two=[2], zero=[0], two_=[2]),
    ),
    "experts-by-nonzero": Stranger(
        """rows = Reshape(x, flat)
        logits = MatMul(rows, router)
        best = ArgMax<axis = -1, keepdims = 0>(logits)
        chosen = Equal(best, zero)
        found = NonZero(chosen)
        at = Transpose<perm = [1, 0]>(found)
        mine = GatherND(rows, at)
        a = MatMul(mine, w1)
        b = Tanh(a)
        c = MatMul(b, w1b)
        size = Shape(rows)
        none = ConstantOfShape<value = float[1] {0}>(size)
        back = ScatterND(none, at, c)
        shape = Shape(x)
        d = Reshape(back, shape)
        y = MatMul(d, w2)""",
        exporter="torch.export",
        shapes={"router": (8, 2), "w1b": (8, 8)},
        constants=_ints(flat=[-1, 8], zero=0),
        opset=18,
    ),
    "if": _between(
        """size = Shape(a)
        length = Gather(size, one)
        long = Greater(length, one)
        b = If (long) <
            then_branch = then () => (float[B,T,8] p) { p = Tanh(a) },
            else_branch = else () => (float[B,T,8] q) { q = Identity(a) }
        >""",
        constants=_ints(one=1),
    ),
    "attention-23": _between(
        "b = Attention<q_num_heads = 2, kv_num_heads = 2>(a, a, a)", exporter="dynamo", opset=23
    ),
    "rms-norm-23": _between(
        "b = RMSNormalization<axis = -1>(a, g)", exporter="dynamo", opset=23, shapes={"g": (8,)}
    ),
    "activations": _between(
        """c = HardSwish(a)
        d = Mish(c)
        e = Elu(d)
        f = LeakyRelu(e)
        g = PRelu(f, slope)
        h = Softplus(g)
        i = Gelu(h)
        b = Clip(i, , six)""",
        opset=20,
        constants={"slope": np.full(8, 0.1, np.float32), "six": np.array(6, np.float32)},
    ),
    "cumulated": _between(
        """c = CumSum(a, one)
        b = LayerNormalization<axis = -1>(c, g)""",
        constants=_ints(one=1),
        shapes={"g": (8,)},
    ),
    "several-outputs": Stranger(
        """a = MatMul(x, w1)
        b = Tanh(a)
        y = MatMul(b, w2)
        best = ArgMax<axis = -1>(y)
        loss = ReduceMean<keepdims = 0>(y)""",
        output="float[B,T,4] y, int64[B,T,1] best, float loss",
    ),
    "quantized-between": _between(
        """q = QuantizeLinear(a, scale, point)
        b = DequantizeLinear(q, scale, point)""",
        exporter=_ORT,
        constants={"scale": np.array(0.01, np.float32), "point": np.array(0, np.int8)},
    ),
    "sequence": _between(
        """s = SplitToSequence<axis = -1>(a, four)
        b = ConcatFromSequence<axis = -1>(s)""",
        exporter=_TORCH,
        constants=_ints(four=4),
    ),
    "classes-only": Stranger(
        """a = MatMul(x, w1)
        b = Tanh(a)
        z = MatMul(b, w2)
        y = ArgMax<axis = -1>(z)""",
        exporter="skl2onnx",
        output="int64[B,T,1] y",
    ),
}
