"""Kernel time goes to the node that it came from, or to none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from compress_onnx.pipeline.measure.kernel_times import (
    KernelTime,
    attribute,
    executed_op_counts,
    ideal_speedup,
    kernel_times,
    linear_shares,
    origin,
)
from compress_onnx.pipeline.runtime.session import SessionSpec

SPEC = SessionSpec(threads=1)
HEADER = '<ir_version: 10, opset_import: ["" : 17]>\n'
X = np.ones((4, 64), np.float32)

FUSED = """g (float[4, 64] x) => (float[4, 64] y) {
    [lin] a = MatMul(x, w1)   [add] b = Add(a, bias)   [relu] c = Relu(b)
    [inner] d = MatMul(c, w2)
    [gemm] e = Gemm(d, w3, bias)   [leaky] f = LeakyRelu(e)
    [scaled] h = MatMul(f, w4)   [half] i = Div(h, two)
    [tail] y = Tanh(i)
}"""
MERGED = """g (float[4, 64] x) => (float[4, 64] y) {
    [one] a = MatMul(x, w1)   [two_] b = MatMul(x, w1)   [add] y = Add(a, b)
}"""
BRANCHED = """g (float[4, 64] x, bool c) => (float[4, 64] y) {
    [choice] y = If(c) <
        then_branch = t () => (float[4, 64] p) { [deep] o = MatMul(x, w1)  [act] p = Tanh(o) },
        else_branch = e () => (float[4, 64] q) { [id] q = Identity(x) }
    >
}"""


def write(folder: Path, text: str, *, external: bool = False) -> Path:
    model = parser.parse_model(HEADER + text)
    rng = np.random.default_rng(0)
    weights = {
        **{f"w{i}": rng.standard_normal((64, 64), dtype=np.float32) for i in range(1, 5)},
        "bias": rng.standard_normal(64, dtype=np.float32),
        "two": np.array(2, np.float32),
    }
    for name, value in weights.items():
        if name in text:
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=external)
    return path


def test_time_of_fused_nodes_is_found(tmp_path: Path) -> None:
    nodes = ["lin", "inner", "gemm", "scaled"]
    path = write(tmp_path, FUSED)
    counts = executed_op_counts(path, SPEC)
    assert counts["com.microsoft.FusedGemm"] == 2
    assert counts["com.microsoft.FusedMatMul"] == 1
    assert "Relu" not in counts
    shares, note = linear_shares(path, {"x": X}, SPEC, nodes, runs=5)
    assert note is None
    assert shares is not None
    assert list(shares) == nodes
    assert 0 < sum(shares.values()) <= 1


def test_without_optimization_the_names_are_the_model_s(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"optimization": "off"})
    shares, _ = linear_shares(write(tmp_path, FUSED), {"x": X}, spec, ["lin", "gemm"], runs=2)
    assert shares is not None


@pytest.mark.parametrize("name", ["wrong", "li", "tail", "relu", ""])
def test_unknown_or_not_linear_node_gives_no_share(tmp_path: Path, name: str) -> None:
    shares, note = linear_shares(write(tmp_path, FUSED), {"x": X}, SPEC, ["lin", name], runs=1)
    assert shares is None
    assert note is not None
    assert "1 of 2" in note


def test_merged_nodes_give_no_share(tmp_path: Path) -> None:
    path = write(tmp_path, MERGED)
    assert executed_op_counts(path, SPEC)["MatMul"] == 1
    assert linear_shares(path, {"x": X}, SPEC, ["one", "two_"], runs=1).by_node is None


def test_nodes_in_subgraphs(tmp_path: Path) -> None:
    path = write(tmp_path, BRANCHED)
    feeds = {"x": X, "c": np.array(True)}
    assert executed_op_counts(path, SPEC) == {"If": 1, "Identity": 1, "MatMul": 1, "Tanh": 1}
    shares, _ = linear_shares(path, feeds, SPEC, ["deep"], runs=3)
    assert shares is not None
    assert 0 <= shares["deep"] <= 1


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, FUSED, external=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert executed_op_counts(path, SPEC)["com.microsoft.FusedGemm"] == 2
    linear_shares(path, {"x": X}, SPEC, ["lin"], runs=1)
    assert not list(scratch.iterdir())


def test_cuda_profile_is_not_believed(tmp_path: Path) -> None:
    spec = SessionSpec(provider="cuda")
    shares, note = linear_shares(write(tmp_path, FUSED), {"x": X}, spec, ["lin"], runs=1)
    assert shares is None
    assert note is not None
    assert "launches" in note


@pytest.mark.parametrize(
    ("kernel", "node"),
    [
        ("a/b", "a/b"),
        ("a/b/MatMulAddFusion", "a/b"),
        ("a/b_1/MatMulAddFusion", "a/b_1"),
        ("a/b/MatmulTransposeFusion/", "a/b"),
        ("fused a/b/MatMulAddFusion", "a/b"),
        ("fused c", "fused c"),
        ("fused fused c", "fused c"),
        ("a/b_2", "a"),
        ("Attention", None),
        ("", None),
    ],
)
def test_origin(kernel: str, node: str | None) -> None:
    assert origin(kernel, {"", "a", "a/b", "a/b_1", "fused c"}) == node


def test_shares_are_of_all_kernels() -> None:
    kernels = [
        KernelTime("fused lin/MatMulAddFusion", "FusedGemm", 30),
        KernelTime("lin/Reshape", "Reshape", 20),
        KernelTime("soft", "Softmax", 50),
    ]
    found = attribute(kernels, Counter({"lin": 1, "soft": 1}), ["lin"])
    assert found.by_node == {"lin": 0.3}
    assert attribute(kernels, Counter({"lin": 2, "soft": 1}), ["lin"]).by_node is None
    assert attribute([], Counter({"lin": 1}), ["lin"]).by_node is None


def event(name: str, ts: int, dur: int, op: str = "X") -> dict[str, object]:
    return {"name": name, "ts": ts, "dur": dur, "args": {"op_name": op}}


def test_first_run_and_nested_time_are_left_out() -> None:
    events = [
        event("warm_kernel_time", 1, 50),
        event("model_run", 0, 100),
        event("inner_kernel_time", 120, 30),
        event("inmost_kernel_time", 125, 10),
        event("if_kernel_time", 110, 50, "If"),
        event("next_kernel_time", 160, 5),
        event("model_run", 105, 70),
    ]
    times = {kernel.name: kernel.time_us for kernel in kernel_times(events)}
    assert times == {"if": 20, "inner": 20, "inmost": 10, "next": 5}


def test_ideal_speedup() -> None:
    # 40 % and 20 % of the time, at a half and a quarter of the FLOPs: 1 − 0.2 − 0.15 is left.
    assert ideal_speedup({"a": 0.4, "b": 0.2}, {"a": 0.5, "b": 0.25}) == pytest.approx(1 / 0.65)
    assert ideal_speedup({}, {}) == 1
    assert ideal_speedup({"a": 1.0}, {"a": 2.0}) == 0.5
