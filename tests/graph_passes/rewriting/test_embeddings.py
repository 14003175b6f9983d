"""Embedding tables of integers: rows come out near to what they were, in every spelling."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import canonical, difference, model, weights
from onnx.reference import ReferenceEvaluator

from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.embeddings import EmbeddingsPass, tables
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

ROWS, WIDTH = 50, 64
GATHER = "y = Gather(w, i)"
IDS = {"i": np.array([[0, 3, 49], [7, 7, -1]], np.int64)}


def build(body: str = GATHER, outputs: str = f"float[B,T,{WIDTH}] y") -> onnx.ModelProto:
    text = f"g (int64[B,T] i) => ({outputs}) {{ {body} }}"
    return model(text, weights(w=(ROWS, WIDTH), v=(7, WIDTH)))


def rewritten(proto: onnx.ModelProto, bits: int, least_bytes: int = 0) -> onnx.ModelProto:
    work = canonical(proto)
    taking = any(reason is None for reason in tables(work, bits, least_bytes).values())
    assert EmbeddingsPass(bits, least_bytes)(work).modified == taking
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result


def outputs(proto: onnx.ModelProto, optimization: str = "all") -> dict[str, np.ndarray]:
    return run(
        open_session(proto.SerializeToString(), SessionSpec(threads=1, optimization=optimization)),
        IDS,
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_near_to_what_they_were(bits: int) -> None:
    before = build()
    after = rewritten(before, bits)
    assert after.graph.output == before.graph.output
    assert not any(t.data_type == onnx.TensorProto.FLOAT and t.dims[-1] == WIDTH
                   for t in after.graph.initializer)  # fmt: skip
    for optimization in ("all", "off"):
        error = difference(outputs(before), outputs(after, optimization))
        assert 0 < error < (0.01 if bits == 8 else 0.15)


def test_each_row_is_off_by_half_a_step_at_most() -> None:
    before = build()
    exact, found = (outputs(p)["y"] for p in (before, rewritten(before, 8)))
    step = np.abs(exact).max(axis=-1, keepdims=True) / 127
    assert (np.abs(found - exact) <= 0.501 * step).all()


def test_the_reference_computes_the_same() -> None:
    after = rewritten(build(), 8)
    assert {node.domain for node in after.graph.node} <= {"", "ai.onnx"}
    (values,) = ReferenceEvaluator(after).run(None, IDS)
    np.testing.assert_array_equal(values, outputs(after)["y"])


def test_a_damaged_scale_is_seen() -> None:
    after = rewritten(build(), 8)
    scale = next(t for t in after.graph.initializer if ".scale" in t.name)
    damaged = onnx.numpy_helper.to_array(scale).copy()
    damaged[3] *= 1.5
    scale.CopyFrom(onnx.numpy_helper.from_array(damaged, scale.name))
    assert difference(outputs(build()), outputs(after)) > 0.1


@pytest.mark.parametrize("bits", [8, 4])
def test_readers_share_one_table(bits: int) -> None:
    body = "a = Gather(w, i) b = Gather<axis=0>(w, i) y = Add(a, b)"
    after = rewritten(build(body), bits)
    assert len(after.graph.initializer) == 2
    assert difference(outputs(build(body)), outputs(after)) < 0.15


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Gather(w, i) t = Transpose(w) y = MatMul(a, t)", "Transpose .* reads it too"),
        ("y = Gather(v, i)", "it is small"),
    ],
)
def test_tables_that_stay_have_a_reason(body: str, reason: str) -> None:
    import re

    work = canonical(build(body, "float[B,T,M] y"))
    (found,) = tables(work, 8, 4 * 7 * WIDTH + 1).values()
    assert found is not None
    assert re.search(reason, found)
    assert not EmbeddingsPass(8, 4 * 7 * WIDTH + 1)(work).modified


def test_columns_are_no_rows() -> None:
    work = canonical(build("a = Gather<axis=1>(w, i) y = Identity(a)", f"float[{ROWS},B,T] y"))
    assert not tables(work)
    assert not EmbeddingsPass(8, 0)(work).modified


def test_rows_that_are_no_blocks_stay_at_four_bits() -> None:
    text = "g (int64[B,T] i) => (float[B,T,40] y) { y = Gather(w, i) }"
    work = canonical(model(text, weights(w=(ROWS, 40))))
    (found,) = tables(work, 4, 0).values()
    assert found == "its rows are no blocks of 32"
    assert list(tables(work, 8, 0).values()) == [None]
