"""Small models that each spend their bytes on another kind of operator, and inputs for them."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
import onnx
from graphs import model, weights
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

WIDTH = 32


def cnn() -> onnx.ModelProto:
    """``x [b, 3, h, w]`` through three convolutions and a tiny linear head."""
    text = """g (float[b,3,h,w] x) => (float[b,4] y) {
        a = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, k1)
        b1 = Relu(a)
        c = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(b1, k2)
        d = Relu(c)
        e = Conv<kernel_shape = [1,1]>(d, k3)
        f = GlobalAveragePool(e)
        h1 = Flatten(f)
        y = MatMul(h1, head)
    }"""
    shapes = {"k1": (32, 3, 3, 3), "k2": (64, 32, 3, 3), "k3": (64, 64, 1, 1), "head": (64, 4)}
    return model(text, weights(**shapes))


def lstm() -> onnx.ModelProto:
    """``x [s, b, 32]`` through an LSTM, whose weights pass through a Cast; no product at all."""
    text = """g (float[s,b,32] x) => (float[s,1,b,32] y) {
        wf = Cast<to = 1>(w)
        y = LSTM<hidden_size = 32>(x, wf, r)
    }"""
    named = weights(w=(1, 4 * WIDTH, WIDTH), r=(1, 4 * WIDTH, WIDTH))
    return model(text, {**named, "w": named["w"].astype(np.float16)})


def embedding() -> onnx.ModelProto:
    """``ids [b, s]`` through a table of 5,000 rows and one small linear layer."""
    text = """g (int64[b,s] ids) => (float[b,s,32] y) {
        shape = Shape(ids)
        length = Gather(shape, one)
        scale = Cast<to = 1>(length)
        h = Gather(table, ids)
        m = MatMul(h, w)
        y = Div(m, scale)
    }"""
    named = weights(table=(5000, WIDTH), w=(WIDTH, WIDTH))
    return model(text, {**named, "one": np.array(1)})


def block() -> onnx.ModelProto:
    """``x [b, s, 32]`` through a transformer block of one head."""
    text = """g (float[b,s,32] x) => (float[b,s,32] y) {
        n1 = LayerNormalization(x, g1)
        q = MatMul(n1, wq)
        k = MatMul(n1, wk)
        v = MatMul(n1, wv)
        kt = Transpose<perm = [0,2,1]>(k)
        s1 = MatMul(q, kt)
        s2 = Mul(s1, scale)
        p = Softmax(s2)
        c = MatMul(p, v)
        o = MatMul(c, wo)
        h = Add(x, o)
        n2 = LayerNormalization(h, g2)
        u = MatMul(n2, w1)
        r = Relu(u)
        d = MatMul(r, w2)
        y = Add(h, d)
    }"""
    square = dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH))
    named = weights(
        **square, w1=(WIDTH, 4 * WIDTH), w2=(4 * WIDTH, WIDTH), g1=(WIDTH,), g2=(WIDTH,)
    )
    return model(text, {**named, "scale": np.array(WIDTH**-0.5, np.float32)})


def quantized() -> onnx.ModelProto:
    """:func:`block` after one line of ONNX Runtime's tools."""
    with TemporaryDirectory() as folder:
        onnx.save(block(), f"{folder}/block.onnx")
        quantize_dynamic(f"{folder}/block.onnx", f"{folder}/int8.onnx", weight_type=QuantType.QInt8)
        return onnx.load(f"{folder}/int8.onnx")


def tied() -> onnx.ModelProto:
    """``ids [b, s]`` to logits through one table: a product that is no linear layer."""
    text = """g (int64[b,s] ids) => (float[b,s,500] y) {
        h = Gather(table, ids)
        t = Transpose<perm = [1,0]>(table)
        y = MatMul(h, t)
    }"""
    return model(text, weights(table=(500, WIDTH)))


MODELS = {
    "cnn": cnn,
    "lstm": lstm,
    "embedding": embedding,
    "block": block,
    "quantized": quantized,
    "tied": tied,
}


def nbytes(proto: onnx.ModelProto) -> int:
    """Bytes of all initializers."""
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer)
