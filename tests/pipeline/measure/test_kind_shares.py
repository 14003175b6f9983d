"""Bytes and time go to the kind of operator that takes them."""

from __future__ import annotations

from collections.abc import Mapping

import model_kinds
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compress_onnx.pipeline.files.original import Original, open_original
from compress_onnx.pipeline.measure.kernel_times import KernelTime
from compress_onnx.pipeline.measure.kind_shares import bytes_by_kind, shares_of, times_by_kind
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs, synthetic_feeds
from compress_onnx.pipeline.runtime.session import SessionSpec

SPEC = SessionSpec(threads=1)

MOST_BYTES = {
    "cnn": "convolution",
    "lstm": "recurrent",
    "embedding": "embedding",
    "block": "linear",
    "quantized": "quantized",
    "tied": "embedding",
}
RUNS = {
    "cnn": {"convolution", "linear", "other"},
    "lstm": {"recurrent"},
    "embedding": {"embedding", "linear", "elementwise", "other"},
    "block": {"linear", "attention", "normalization", "elementwise"},
    "quantized": {"quantized", "attention", "normalization", "elementwise"},
    "tied": {"embedding", "product"},
}


def original_of(name: str) -> Original:
    return open_original(model_kinds.MODELS[name]())


def feeds(original: Original) -> Mapping[str, np.ndarray]:
    inputs = model_inputs(load_structure(original.path))
    return synthetic_feeds(inputs, batch=1, length=16, seed=0)


@pytest.mark.parametrize("name", MOST_BYTES)
def test_every_weight_belongs_to_one_kind(name: str) -> None:
    original = original_of(name)
    found = bytes_by_kind(original)
    assert max(found, key=lambda kind: found[kind]) == MOST_BYTES[name]
    assert sum(found.values()) == model_kinds.nbytes(onnx.load(original.path))


def test_bytes_are_those_of_the_weights() -> None:
    width = model_kinds.WIDTH
    found = bytes_by_kind(original_of("embedding"))
    assert found == {"embedding": 4 * 5000 * width, "linear": 4 * width**2, "other": 8}


def test_a_weight_that_is_cast_belongs_to_what_reads_the_result() -> None:
    assert set(bytes_by_kind(original_of("lstm"))) == {"recurrent"}


@pytest.mark.parametrize("name", RUNS)
def test_every_kernel_belongs_to_one_kind(name: str) -> None:
    original = original_of(name)
    shares = times_by_kind(original, feeds(original), SPEC)
    assert RUNS[name] <= set(shares.by_kind)
    assert sum(shares.by_kind.values()) == pytest.approx(1)
    assert shares.lost_sites == 0


def test_fused_kernels_count_as_the_node_that_they_were_made_from() -> None:
    original = original_of("block")
    nodes = {node.name or "": node for node in original.model.graph}
    by_output = {node.outputs[0].name: node.name for node in original.model.graph}
    kernels = [
        KernelTime(f"fused {by_output['u']}/MatMulAddFusion", "FusedGemm", 40),
        KernelTime(f"{by_output['s1']}/MatMulScaleFusion/", "FusedMatMul", 30),
        KernelTime("nobody knows", "MatMul", 20),
        KernelTime("SkipLayerNorm_1", "SkipLayerNormalization", 10),
    ]
    shares = shares_of(kernels, nodes, original.table)
    assert shares.by_kind == pytest.approx(
        {"linear": 0.4, "attention": 0.3, "product": 0.2, "normalization": 0.1}
    )
    assert shares.lost_sites == 5


def test_a_kernel_that_was_interrupted_does_not_outweigh_the_others() -> None:
    original = original_of("block")
    (name,) = (n.name or "" for n in original.model.graph if n.outputs[0].name == "u")
    kernels = [KernelTime(name, "MatMul", 30) for _ in range(3)]
    kernels += [KernelTime("soft", "Softmax", time_us) for time_us in (10, 9000, 10)]
    shares = shares_of(kernels, {n.name or "": n for n in original.model.graph}, original.table)
    assert shares.by_kind == pytest.approx({"linear": 0.75, "normalization": 0.25})


def test_a_branch_that_does_not_run_is_counted_as_lost() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[4,32] x, bool c) => (float[4,32] y)
        {
            y = If(c) <
                then_branch = t () => (float[4,32] p) { p = MatMul(x, w) },
                else_branch = e () => (float[4,32] q) { q = MatMul(x, v) }
            >
        }"""
    proto = onnx.parser.parse_model(text)
    for name in "wv":
        array = np.ones((32, 32), np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    original = open_original(ir.from_proto(proto))
    inputs = {"x": np.ones((4, 32), np.float32), "c": np.array(True)}
    shares = times_by_kind(original, inputs, SPEC)
    assert "linear" in shares.by_kind
    assert shares.lost_sites == 1
