"""Where two small graphs part: what counts as equal, and where the walk ends."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model, weights
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.pipeline.divergence.cause import likely_cause
from compress_onnx.pipeline.divergence.find import compare_inside
from compress_onnx.pipeline.divergence.locate import Comparison, Parting
from compress_onnx.pipeline.divergence.trace import trace
from compress_onnx.pipeline.measure.relative_error import relative_error

CHAIN = """g (float[b,8] x) => (float[b,4] y) {
    m = MatMul(x, w1)
    a = Add(m, b1)
    r = Relu(a)
    y = MatMul(r, w2)
}"""
# The same, in a chain of two factors and with other names.
FACTORED = """g (float[b,8] x) => (float[b,4] y) {
    low = MatMul(x, down)
    full = MatMul(low, up)
    moved = Add(full, b1)
    r = Relu(moved)
    y = MatMul(r, w2)
}"""
LOST = """g (float[b,8] x) => (float[b,4] y) {
    m = MatMul(x, w1)
    r = Relu(m)
    y = MatMul(r, w2)
}"""


@pytest.fixture
def named() -> dict[str, np.ndarray]:
    found = weights(w1=(8, 6), b1=(6,), w2=(6, 4))
    left, right = np.linalg.qr(found["w1"])
    return found | {"down": left.astype(np.float32), "up": right.astype(np.float32)}


def saved(folder: Path, name: str, text: str, named: dict[str, np.ndarray]) -> Path:
    used = {key: array for key, array in named.items() if key in text}
    onnx.save(model(text, used), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def feeds(rows: int = 5) -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(rows, 8)).astype(np.float32)
    return {"x": x}


def test_another_way_to_the_same_values_is_no_divergence(tmp_path, named):
    inside = compare_inside(
        saved(tmp_path, "a", CHAIN, named), saved(tmp_path, "b", FACTORED, named), feeds()
    )
    assert inside.divergence is None
    assert all(one.error < 1e-5 for one in inside.depth)


def test_a_factor_with_a_column_less_is_found_behind_it(tmp_path, named):
    damaged = named | {"up": np.vstack([named["up"][:-1], np.zeros((1, 6), np.float32)])}
    inside = compare_inside(
        saved(tmp_path, "a", CHAIN, named), saved(tmp_path, "b", FACTORED, damaged), feeds()
    )
    assert inside.divergence is not None
    # What lies between the factors has no equal: the walk ends at the first of them.
    assert inside.divergence.candidate.tensor in {"low", "full"}
    assert inside.divergence.reference.tensor == "m"


def test_a_lost_bias(tmp_path, named):
    inside = compare_inside(
        saved(tmp_path, "a", CHAIN, named), saved(tmp_path, "b", LOST, named), feeds()
    )
    found = inside.divergence
    assert (found.candidate.tensor, found.reference.tensor) == ("r", "a")
    assert found.cause == "a lost bias ('b1')"
    assert "likely cause: a lost bias" in str(found)


def test_names_do_not_count(tmp_path, named):
    """The candidate calls its values as the reference calls others."""
    text = CHAIN.replace("m = ", "r0 = ").replace("(m,", "(r0,")
    text = text.replace("a = ", "m = ").replace("Relu(a)", "Relu(m)")
    inside = compare_inside(
        saved(tmp_path, "a", CHAIN, named), saved(tmp_path, "b", text, named), feeds()
    )
    assert inside.divergence is None


def test_the_worst_output_comes_first(tmp_path, named):
    text = CHAIN.replace("=> (float[b,4] y)", "=> (float[b,4] y, float[b,6] a)")
    damaged = named | {"w2": named["w2"] * 3, "b1": named["b1"] + 1e-3}
    traces = [
        trace(saved(tmp_path, name, text, own), feeds())
        for name, own in (("a", named), ("b", damaged))
    ]
    comparison = Comparison(*traces, 1e-6)
    assert comparison.wrong_outputs() == ["y", "a"]
    assert comparison.parting("a").value == "a"


def test_weights_in_files_and_functions(tmp_path, named):
    path = saved(tmp_path, "a", CHAIN, named)
    onnx.save(
        onnx.load(path),
        tmp_path / "b.onnx",
        save_as_external_data=True,
        location="b.bin",
        size_threshold=0,
    )
    assert compare_inside(path, tmp_path / "b.onnx", feeds()).divergence is None


def in_modules(path: Path, modules: tuple[str, ...], names: tuple[str, ...]) -> Path:
    """The graph in ``path``, its nodes called as a tracing exporter calls them."""
    proto = onnx.load(path)
    renamed = dict(zip([node.output[0] for node in proto.graph.node], names, strict=True))
    for node, module in zip(proto.graph.node, modules, strict=True):
        node.name = f"/{module}/{node.op_type}_{renamed[node.output[0]]}"
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed[name] for name in node.output]
    onnx.save(proto, path)
    return path


def test_values_are_paired_by_module_where_neither_name_nor_content_is_the_same(tmp_path, named):
    modules = ("encoder/dense", "encoder/dense", "encoder/act", "encoder/out")
    damaged = named | {"w1": named["w1"] * 1.5}
    reference = in_modules(saved(tmp_path, "a", CHAIN, named), modules, ("m", "a", "r", "y"))
    candidate = in_modules(saved(tmp_path, "b", CHAIN, damaged), modules, ("p1", "p2", "p3", "y"))
    inside = compare_inside(reference, candidate, feeds())
    assert [one.module for one in inside.depth] == [
        "encoder.dense",
        "encoder.dense",
        "encoder.act",
        "encoder.out",
    ]
    assert inside.depth[0].error == pytest.approx(0.5)
    assert inside.divergence.reference.tensor == "m"
    assert inside.divergence.error_after == pytest.approx(0.5)


def test_a_place_with_another_size_is_another_value(tmp_path, named):
    modules = ("encoder/dense", "encoder/dense", "encoder/act", "encoder/out")
    wide = named | {"w1": np.tile(named["w1"], 2), "b1": np.tile(named["b1"], 2)}
    wide["w2"] = np.vstack([named["w2"] * 3, named["w2"]])
    one, other = (
        trace(in_modules(saved(tmp_path, name, CHAIN, own), modules, names), feeds())
        for name, own, names in (
            ("a", named, ("m", "a", "r", "y")),
            ("b", wide, ("p1", "p2", "p3", "y")),
        )
    )
    assert [name for name, _ in Comparison(one, other, 1e-6).profile()] == ["y"]


@given(st.integers(1, 40), st.floats(1e-6, 1e3), st.integers(0, 99))
def test_relative_error_is_that_of_the_norms(size, factor, seed):
    rng = np.random.default_rng(seed)
    one = rng.normal(size=size) + 2
    other = one + factor * rng.normal(size=size)
    expected = np.linalg.norm(one - other) / np.linalg.norm(one)
    assert relative_error(one, other) == pytest.approx(expected)
    assert relative_error(one, one) == 0


def test_what_cannot_be_compared_is_infinitely_wrong():
    one = np.array([1.0, np.inf, np.nan])
    assert relative_error(one, one) == 0
    assert math.isinf(relative_error(one, np.array([1.0, 2.0, np.nan])))
    assert math.isinf(relative_error(one, one[:2]))
    assert math.isinf(relative_error(np.array([1, 2]), np.array([1, 3])))
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert math.isinf(relative_error(np.zeros(3), np.ones(3)))


@pytest.mark.parametrize("masked", [-1e4, float(np.finfo(np.float32).min)])
def test_masked_positions_do_not_hide_the_others(masked):
    one = np.random.default_rng(0).normal(size=100)
    one[:10] = masked
    other = one.copy()
    other[10:] *= 1.5
    assert relative_error(one, other) == pytest.approx(0.5)
    other = one.copy()
    other[0] = 0
    assert relative_error(one, other) > 0.1


@pytest.mark.parametrize(("before", "told"), [(0.009, "step by step"), (0.0001, "runtime")])
def test_an_error_that_was_there_before_is_no_nodes_own(tmp_path, named, before, told):
    traced = trace(saved(tmp_path, "a", CHAIN, named), feeds())
    node = traced.node("y")
    parting = Parting("y", node, "y", node, "y", before, 0.011, {})
    assert told in likely_cause(Comparison(traced, traced, 0.01), parting)
