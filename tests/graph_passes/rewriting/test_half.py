"""Graphs that compute with float16: what becomes float16, what stays, and where Casts stand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from forms import FORMS
from graphs import canonical, difference, interface, listing, model, operators, parity, weights
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress_onnx.graph_passes.rewriting import half_rules as rules
from compress_onnx.graph_passes.rewriting.bound_masks import BOUND, BoundMasksPass
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.half import HalfPass, to_half
from compress_onnx.pipeline.runtime.session import open_session, run

PRECISION = 2.0**-11
"""Of a float16: half of the distance from 1 to the next one."""


def halved(
    proto: onnx.ModelProto, floats: Mapping[str, str] | None = None
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """The model after the pass, checked in full, and what stayed in float32."""
    work = canonical(proto)
    BoundMasksPass()(work)
    halving = HalfPass(floats)
    halving(work)
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    assert interface(result) == interface(proto)
    return result, halving.floats


def error(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, np.ndarray]
) -> float:
    """The largest difference: in ONNX Runtime, and in the evaluator, which rounds every value."""
    expected = run(open_session(before.SerializeToString()), feeds)
    rounded = ReferenceEvaluator(after).run(None, dict(feeds))
    exact = difference(expected, dict(zip(expected, rounded, strict=True)))
    return max(exact, parity(before, after, feeds))


def test_casts_stand_at_the_border_and_weights_are_halved() -> None:
    before = model(
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }",
        weights(w=(8, 8), v=(8, 4)),
    )
    after, floats = halved(before)
    assert listing(after) == [
        "x.half = Cast(x)",
        "a = MatMul(x.half, w.half)",
        "r = Relu(a)",
        "y.inner = MatMul(r, v.half)",
        "y = Cast(y.inner)",
    ]
    assert not floats
    assert {t.data_type for t in after.graph.initializer} == {TensorProto.FLOAT16}
    kinds = {v.name: v.type.tensor_type.elem_type for v in after.graph.value_info}
    assert set(kinds.values()) == {TensorProto.FLOAT16}
    x = weights(3, x=(5, 8))
    assert 0 < error(before, after, x) < 8 * PRECISION


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_layer(name: str) -> None:
    form = FORMS[name]
    before = form.build(13 if name == "packed QKV" else 17)
    after, _ = halved(before)
    assert parity(before, after, form.feeds()) < 8 * PRECISION
    # A weight that is twice as large must not go unnoticed.
    tensors = [t for t in after.graph.initializer if t.data_type == TensorProto.FLOAT16]
    matrix = max(tensors, key=lambda t: np.prod(t.dims))
    matrix.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(matrix), matrix.name))
    feeds = form.feeds()
    assert not feeds["x"].size or parity(before, after, feeds) > 100 * PRECISION


def test_a_chain_that_stays_is_not_rounded_inside() -> None:
    """ONNX Runtime's own converter rounds between the two, and hands out infinity."""
    before = model(
        "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, big) b = Mul(a, a) y = Div(b, huge) }",
        {"big": np.array(1e3, np.float32), "huge": np.array(1e6, np.float32)},
    )
    named = {node.name: "overflows" for node in canonical(before).graph}
    after, floats = halved(before, named)
    assert operators(after) == ["Mul", "Mul", "Div"]
    assert set(floats.values()) == {"overflows"}
    x = {"x": np.array([[1.0, 2, 3, 4]], np.float32)}
    assert error(before, after, x) < 1e-6
    # Without being told, it overflows: that is what the evaluator has to see.
    overflowing, _ = halved(before)
    with np.errstate(over="ignore"):
        assert not np.isfinite(ReferenceEvaluator(overflowing).run(None, x)[0]).all()


@pytest.mark.parametrize(
    ("square", "root"),
    [
        ("s = Mul(c, c)", "q = Sqrt(e) d = Div(c, q)"),
        ("s = Pow(c, two)", "q = Sqrt(e) d = Div(c, q)"),
        ("s = Pow(c, two)", "q = Sqrt(e) i = Div(one, q) d = Mul(c, i)"),
        ("s = Pow(c, two)", "q = Sqrt(e) i = Reciprocal(q) d = Mul(c, i)"),
        ("s = Pow(c, two)", "d0 = Pow(e, minus) d = Mul(c, d0)"),
    ],
)
def test_a_norm_written_out_stays(square: str, root: str) -> None:
    """Its squares leave the range of float16; the layers around it do not."""
    before = model(
        f"""g (float[N,8] x) => (float[N,8] y) {{
            h = MatMul(x, w) m = ReduceMean<axes=[-1]>(h) c = Sub(h, m) {square}
            v = ReduceMean<axes=[-1]>(s) e = Add(v, epsilon) {root}
            t = Mul(d, gamma) y = MatMul(t, w) }}""",
        weights(w=(8, 8), gamma=(8,))
        | {
            "epsilon": np.array(1e-12, np.float32),
            "two": np.array(2, np.float32),
            "one": np.array(1, np.float32),
            "minus": np.array(-0.5, np.float32),
        },
    )
    after, floats = halved(before)
    inside = [n for n in operators(after) if n not in {"Cast", "MatMul"}]
    assert len(floats) == len(inside) - 1  # all but the product with gamma
    assert operators(after).count("Cast") == 4
    assert operators(after)[-4:] == ["Cast", "Mul", "MatMul", "Cast"]
    for scale in (1e3, 1, 1e-3):
        x = {name: scale * value for name, value in weights(3, x=(5, 8)).items()}
        assert error(before, after, x) < 16 * PRECISION


def test_positions_stay_exact() -> None:
    """An angle of a thousand has four bits behind the point in float16."""
    before = model(
        """g (int64[N] at, float[N,8] x) => (float[N,8] y, int64[N] bucket) {
            p = Cast<to = 1>(at) u = Unsqueeze(p, last) f = MatMul(u, frequencies)
            sin = Sin(f) r = Mul(x, sin) y = MatMul(r, w)
            l = Log(p) k = Mul(l, three) bucket = Cast<to = 7>(k) }""",
        weights(w=(8, 8))
        | {
            "frequencies": np.linspace(0.5, 1, 8, dtype=np.float32)[None],
            "last": np.array([1]),
            "three": np.array(3, np.float32),
        },
    )
    after, floats = halved(before)
    assert sorted(floats.values()) == sorted([rules.EXACT] * 6 + [rules.GROWS])
    feeds = {"at": np.arange(990, 1000), **weights(3, x=(10, 8))}
    assert error(before, after, feeds) < 16 * PRECISION


def test_scales_of_a_resize_are_floats_whatever_comes_in() -> None:
    before = model(
        """g (float[1,2,3,3] x, int64[1] n) => (float[1,2,H,W] y) {
            s = Cast<to = 1>(n) t = Div(s, three) scales = Concat<axis = 0>(one, one, t, t)
            a = Relu(x) y = Resize(a, , scales) }""",
        {"one": np.ones(1, np.float32), "three": np.full(1, 3, np.float32)},
    )
    after, floats = halved(before)
    assert set(floats) == {"Cast_s", "Div_t", "Concat_scales"}
    x = {**weights(3, x=(1, 2, 3, 3)), "n": np.array([7])}
    assert parity(before, after, x) < 8 * PRECISION  # shapes, too


@pytest.mark.parametrize(
    ("text", "constants", "stays"),
    [
        ("y = Mul(x, c)", {"c": 7e4}, "too large"),
        ("a = Relu(x) y = Add(a, c)", {"c": 1e-12}, "too small"),
        ("y = Mul(x, c)", {"c": 6e4}, ""),
        ("y = Mul(x, c)", {"c": np.inf}, ""),
        ("y = Mul(x, c)", {"c": 0.0}, ""),
    ],
)
def test_constants_that_float16_cannot_hold(
    text: str, constants: Mapping[str, float], stays: str
) -> None:
    arrays = {name: np.array(value, np.float32) for name, value in constants.items()}
    _, floats = halved(model(f"g (float[N,8] x) => (float[N,8] y) {{ {text} }}", arrays))
    if stays:
        assert any(stays in reason for reason in floats.values())
    else:
        assert not floats


def test_a_weight_of_both_kinds_of_nodes_is_there_twice() -> None:
    """So that the one in float32 reads what it read."""
    before = model(
        "g (float[N,8] x, float[N,8] z) => (float[N,8] y, float[N,8] q) "
        "{ a = Add(x, w) y = MatMul(a, m) q = Add(z, w) }",
        weights(w=(8,), m=(8, 8)),
    )
    after, _ = halved(before, {"Add_q": "as it was"})
    assert listing(after)[-1] == "q = Add(z, w)"
    kinds = {t.name: t.data_type for t in after.graph.initializer}
    assert (kinds["w"], kinds["w.half"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    feeds = weights(3, x=(5, 8), z=(5, 8))
    q = ReferenceEvaluator(after).run(["q"], feeds)[0]
    np.testing.assert_array_equal(q, ReferenceEvaluator(before).run(["q"], feeds)[0])


@pytest.mark.parametrize(
    ("order", "product", "stays"),
    [
        ((1, 0, 2), "y = MatMul(t, w)", True),
        ((1, 2, 0), "y = MatMul(t, w)", True),
        ((1, 0, 2), "i = Identity(t) y = MatMul(i, w)", True),
        ((1, 0, 2), "u = Transpose<perm = [1, 0]>(w) y = MatMul(t, u)", True),
        ((1, 0, 2), "y = MatMul(w, t)", True),
        ((1, 0, 2), "p = MatMul(w, w) y = MatMul(t, p)", True),
        ((0, 2, 1), "y = MatMul(t, w)", False),
        ((2, 0, 1), "y = MatMul(t, w)", False),
        ((1, 0, 2), "y = MatMul(t, x)", False),
        ((1, 0, 2), "y = Tanh(t)", False),
    ],
)
def test_axes_that_onnx_runtime_cannot_turn_in_front_of_a_product(
    order: tuple[int, ...], product: str, stays: bool
) -> None:
    """In float16 the CPU dies of them; the products themselves are in float16 all the same."""
    before = model(
        "g (float[8,8,8] x) => (float[8,8,8] y) "
        f"{{ a = MatMul(x, v) h = Tanh(a) t = Transpose<perm = {list(order)}>(h) {product} }}",
        weights(w=(8, 8), v=(8, 8)),
    )
    after, floats = halved(before)
    assert floats == ({"Transpose_t": rules.CRASHES} if stays else {})
    assert {t.data_type for t in after.graph.initializer} <= {TensorProto.FLOAT16}
    assert error(before, after, weights(3, x=(8, 8, 8))) < 32 * PRECISION


def test_recurrences_stay() -> None:
    before = model(
        "g (float[T,B,8] x) => (float[T,1,B,4] y) "
        "{ a = Relu(x) y = LSTM<hidden_size = 4>(a, w, r, b, , start, start) }",
        weights(w=(1, 16, 8), r=(1, 16, 4), b=(1, 32), start=(1, 2, 4)),
    )
    after, floats = halved(before)
    assert floats == {"LSTM_y": rules.RECURS}
    assert parity(before, after, weights(3, x=(5, 2, 8))) < 8 * PRECISION


def test_nested_graphs_hand_over_floats() -> None:
    before = model(
        """g (float[N,8] x, bool flag) => (float[N,8] y) {
            h = MatMul(x, w)
            b = If (flag) <
                then_branch = yes () => (float[N,8] p) { c = Relu(h) p = MatMul(c, w) },
                else_branch = no () => (float[N,8] q) { d = CumSum(h, axis) q = Neg(d) }
            >
            y = MatMul(b, w) }""",
        weights(w=(8, 8)) | {"axis": np.array(1)},
    )
    after, floats = halved(before)
    assert {floats[name] for name in ("If_b", "CumSum_d")} == {rules.NESTED, rules.GROWS}
    branch = next(n for n in after.graph.node if n.op_type == "If").attribute[0].g
    assert [n.op_type for n in branch.node] == ["Relu", "MatMul", "Cast"]
    for flag in (True, False):
        feeds = {**weights(3, x=(5, 8)), "flag": np.array(flag)}
        assert error(before, after, feeds) < 8 * PRECISION


def test_a_loop_carries_floats() -> None:
    before = model(
        """g (float[N,8] x, int64 times, bool go) => (float[N,8] y) {
            y = Loop (times, go, x) <
                body = step (int64 i, bool on, float[N,8] v) => (bool still, float[N,8] u)
                { still = Identity(on) m = MatMul(v, w) u = Tanh(m) }
            > }""",
        weights(w=(8, 8)),
    )
    after, _ = halved(before)
    feeds = {**weights(3, x=(5, 8)), "times": np.array(3), "go": np.array(True)}
    assert 0 < error(before, after, feeds) < 64 * PRECISION


def test_what_only_moves_floats_is_not_cast() -> None:
    before = model(
        "g (float[N,8] x) => (float[8,N] y, int64[2] size) "
        "{ t = Transpose(x) y = Identity(t) size = Shape(x) }",
        {},
    )
    after, floats = halved(before)
    assert "Cast" not in operators(after)
    assert set(floats.values()) == {rules.BETWEEN}


def test_no_two_casts_cancel_out() -> None:
    """Casts of the model itself become Casts of a type to itself, and go."""
    before = model(
        """g (float[N,8] x) => (float[N,8] y) {
            a = MatMul(x, w) h = Cast<to = 10>(a) t = Tanh(h) f = Cast<to = 1>(t)
            e = Exp(f) r = Reshape(e, shape) c = CumSum(r, axis) y = MatMul(c, w) }""",
        weights(w=(8, 8)) | {"shape": np.array([-1, 8]), "axis": np.array(1)},
    )
    after, floats = halved(before)
    assert floats["Reshape_r"] == rules.BETWEEN
    expected = ["Cast", "MatMul", "Tanh", "Cast", "Exp", "Reshape", "CumSum", "Cast", "MatMul"]
    assert operators(after) == [*expected, "Cast"]
    assert error(before, after, weights(3, x=(5, 8))) < 32 * PRECISION


def test_a_table_is_halved_in_front_of_a_cast_to_what_it_is() -> None:
    """Some exporters cast what they look up to the type that it has."""
    before = model(
        """g (int64[N] ids) => (float[N,8] y) {
            e = Gather(table, ids) c = Cast<to = 1>(e) y = MatMul(c, w) }""",
        weights(table=(9, 8), w=(8, 8)),
    )
    after, floats = halved(before)
    assert not floats
    assert operators(after) == ["Gather", "MatMul", "Cast"]


def test_inputs_that_integers_become_are_cast_to_float16() -> None:
    before = model(
        "g (int64[N,8] x) => (float[N,8] y) { f = Cast<to = 1>(x) y = MatMul(f, w) }",
        weights(w=(8, 8)),
    )
    after, _ = halved(before)
    assert listing(after)[0] == "f = Cast(x)"
    assert operators(after) == ["Cast", "MatMul", "Cast"]


def test_other_types_are_left_alone() -> None:
    before = model(
        "g (double[N,8] x, float16[N,8] z) => (double[N,8] y, float16[N,8] q) "
        "{ y = Tanh(x) q = Tanh(z) }",
        {},
    )
    after, _ = halved(before)
    assert operators(after) == ["Tanh", "Tanh"]


def test_numbers_keep_their_sign_and_stay_finite() -> None:
    array = np.array([1e-12, -1e-12, 0, -0.0, 1e30, -1e30, np.inf, -np.inf, 1], np.float32)
    halves = to_half(array)
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(np.sign(halves), np.sign(array))
    np.testing.assert_array_equal(np.isfinite(halves), np.isfinite(array))
    np.testing.assert_array_equal(halves != 0, array != 0)
    assert np.isnan(to_half(np.array([np.nan], np.float32))).all()


MASKED = """g (float[N,4,8] x, int64[N,4] mask) => (float[N,4,8] y) {
    k = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(x, t)
    f = Cast<to = 1>(mask) u = Unsqueeze(f, row) i = Sub(one, u) m = Mul(i, lowest)
    a = Add(s, m) b = Add(a, m) p = Softmax<axis = -1>(b) y = MatMul(p, x) }"""


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -1e9])
def test_a_mask_stays_finite(lowest: float) -> None:
    """Of a row that is masked as a whole, −∞ everywhere would make NaN."""
    constants = {"one": np.array(1, np.float32), "lowest": np.array(lowest, np.float32)}
    before = model(MASKED, weights(w=(8, 8)) | constants | {"row": np.array([1])})
    after, floats = halved(before)
    assert not floats
    arrays = [numpy_helper.to_array(t) for t in after.graph.initializer]
    assert min(a.min() for a in arrays) == -BOUND
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    feeds = {**weights(3, x=(3, 4, 8)), "mask": mask}
    y = ReferenceEvaluator(after).run(None, feeds)[0]
    assert np.isfinite(y).all()
    expected = run(open_session(before.SerializeToString()), feeds)["y"]
    np.testing.assert_allclose(y[:2], expected[:2], atol=0.02)
    # Turned as it is, the mask is −∞.
    for tensor in after.graph.initializer:
        if tensor.name.startswith("lowest"):
            tensor.CopyFrom(numpy_helper.from_array(np.array(-np.inf, np.float16), tensor.name))
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(ReferenceEvaluator(after).run(None, feeds)[0]).all()


def test_masks_of_other_operators_are_bounded_too() -> None:
    before = model(
        """g (float[N,4] x, bool[N,4] keep) => (float[N,4] y) {
            size = Shape(x) low = ConstantOfShape<value = float[1] {-3.0e38}>(size)
            a = Where(keep, x, low) y = Softmax<axis = -1>(a) }""",
        {},
    )
    after, floats = halved(before)
    assert not floats
    keep = np.array([[True, False, True, False], [False] * 4])
    y = ReferenceEvaluator(after).run(None, {**weights(3, x=(2, 4)), "keep": keep})[0]
    np.testing.assert_allclose(y[1], 0.25, rtol=1e-3)
    assert (y[0][[1, 3]] == 0).all()


def test_large_numbers_that_are_no_mask_are_kept() -> None:
    before = model(
        "g (float[N,4] x) => (float[N,4] y) { a = Clip(x, low) y = Relu(a) }",
        {"low": np.array(-3e38, np.float32)},
    )
    after, floats = halved(before)
    assert "too large" in floats["Clip_a"]
    assert numpy_helper.to_array(after.graph.initializer[0]) == np.float32(-3e38)
