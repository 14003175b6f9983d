"""Stacks of matrices: each expert has its own statistics, factors, bias and error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models as small
from graphs import assert_parity, canonical, compress, model, operators, sites_of, weights
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import (
    ActivationStats,
    GradientStats,
    MomentAccumulator,
    make_method,
)
from compress_onnx.graph_passes.factorization.error import activation_error, least_errors
from compress_onnx.graph_passes.factorization.stack import decompose
from compress_onnx.graph_passes.planning.evidence import statistics_of
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.routing import row_source
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence.calibrate import calibrate, taps_of
from compress_onnx.pipeline.evidence.gradients import output_gradients
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.stacks import part
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.original import Original, open_original
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

EXPERTS, WIDTH, HIDDEN = 3, 16, 24

SWITCH = """g (float[N,16] x) => (float[N,16] y) {
    scores = MatMul(x, router)
    best = ReduceMax<axes=[-1], keepdims=1>(scores)
    is_chosen = Equal(scores, best)
    chosen = Cast<to=1>(is_chosen)
    turned = Transpose<perm=[1,0]>(chosen)
    gates = Unsqueeze(turned, last)
    sent = Mul(gates, x)
    wi = MatMul(sent, wi_weight)
    wi_biased = Add(wi, wi_bias)
    hidden = Tanh(wi_biased)
    wo = MatMul(hidden, wo_weight)
    wo_biased = Add(wo, wo_bias)
    gated = Mul(wo_biased, gates)
    y = ReduceSum<keepdims=0>(gated, first)
}"""
"""A Switch layer, written densely: zeros for the tokens of other experts, gates of 0 and 1."""


def switch(used: int = EXPERTS) -> onnx.ModelProto:
    """The layer; token i goes to expert ``i mod used`` where :func:`tokens` made it."""
    arrays = weights(
        3,
        wi_weight=(EXPERTS, WIDTH, HIDDEN),
        wi_bias=(EXPERTS, 1, HIDDEN),
        wo_weight=(EXPERTS, HIDDEN, WIDTH),
        wo_bias=(EXPERTS, 1, WIDTH),
    )
    arrays["wi_weight"] *= 0.1
    router = np.zeros((WIDTH, EXPERTS), np.float32)
    router[range(used), range(used)] = 1
    router[:, used:] = 0
    arrays |= {"router": router, "last": np.array([-1]), "first": np.array([0])}
    return onnx.shape_inference.infer_shapes(model(SWITCH, arrays))


def tokens(seed: int, count: int, used: int = EXPERTS) -> np.ndarray:
    """``[count, WIDTH]``: each expert's tokens vary around a mean, in directions of their own."""
    fixed = np.random.default_rng(7)
    means = 2 * fixed.normal(size=(EXPERTS, WIDTH))
    spreads = fixed.normal(size=(EXPERTS, WIDTH, WIDTH)) * 0.6 ** np.arange(WIDTH)[:, None]
    rng = np.random.default_rng(seed)
    expert = np.arange(count) % used
    x = means[expert] + np.einsum("tk,tkn->tn", rng.normal(size=(count, WIDTH)), spreads[expert])
    x[:, :EXPERTS] = 0.1
    x[range(count), expert] = 5
    return x.astype(np.float32)


def opened(tmp_path: Path, proto: onnx.ModelProto) -> Original:
    return open_original(small.save(proto, tmp_path / "model.onnx"))


def known_of(subject: Original, samples: Samples, **options: Any) -> dict[str, ActivationStats]:
    return dict(calibrate(subject, samples, RunSettings(**options)).stats)


def moments(rows: np.ndarray) -> ActivationStats:
    accumulator = MomentAccumulator(rows.shape[1])
    accumulator.update(rows)
    return accumulator.result()


def assert_same(one: ActivationStats, other: ActivationStats) -> None:
    assert one.count == other.count
    for field in ("mean", "magnitude", "second_moment"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-5)


class TestNumerics:
    @given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 6), st.integers(2, 6))
    def test_a_stack_is_its_matrices(self, seed: int, count: int, rows: int, columns: int) -> None:
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=(count, rows, columns))
        xs = [rng.normal(size=(3 + 5 * e, rows)) * 10.0**e + 1 for e in range(count)]
        known = [moments(x) for x in xs]
        rank = min(rows, columns) - 1
        whole = decompose(make_method("asvd"), weight, known)
        factors = whole.factorize(rank)
        lost = energy = 0.0
        for e, (x, stats) in enumerate(zip(xs, known, strict=True)):
            alone = make_method("asvd").decompose(weight[e], stats).factorize(rank)
            np.testing.assert_array_equal(factors.product()[e], alone.product())
            np.testing.assert_array_equal(factors.bias[e], alone.bias)
            centred = x - x.mean(axis=0)
            lost += np.sum((centred @ (weight[e] - alone.product())) ** 2)
            energy += np.sum((centred @ weight[e]) ** 2)
        least = least_errors(weight, known)
        assert least[0] == pytest.approx(energy, rel=1e-6)
        assert least[rank] == pytest.approx(lost, rel=1e-6, abs=1e-9 * energy)
        reached = activation_error(weight, factors, known)
        assert reached == pytest.approx(np.sqrt(lost / energy), rel=1e-6, abs=1e-7)
        np.testing.assert_allclose(
            whole.tail * whole.energy, least / sum(map(len, xs)), atol=1e-12 * whole.energy
        )

    @pytest.mark.parametrize("method", ["asvd", "asvd-diagonal"])
    def test_a_matrix_without_rows_has_plain_svd_and_no_share_in_the_error(self, method) -> None:
        rng = np.random.default_rng(0)
        weight, stats = rng.normal(size=(2, 6, 5)), moments(rng.normal(size=(30, 6)))
        found = decompose(make_method(method), weight, [stats, None])
        factors, alone = found.factorize(2), make_method(method).decompose(weight[0], stats)
        plain = make_method("svd").decompose(weight[1], None).factorize(2)
        np.testing.assert_array_equal(factors.product()[1], plain.product())
        np.testing.assert_allclose(found.tail, alone.tail)
        assert found.energy == pytest.approx(alone.energy)
        assert activation_error(weight, factors, [stats, None]) == activation_error(
            weight[0], alone.factorize(2), [stats]
        )
        if factors.bias is not None:
            assert not factors.bias[1].any()

    def test_wrong_statistics_fail(self) -> None:
        rng = np.random.default_rng(0)
        weight = rng.normal(size=(3, 6, 5))
        known = [moments(rng.normal(size=(40, 6)) * np.geomspace(1, 1e3, 6)[o]) for o in _ORDERS]
        asvd = make_method("asvd")
        for wrong in (known[:2], [*known, known[0]], [None] * 3):
            with pytest.raises(ValueError, match=r"strict|shorter|longer|nothing is known"):
                decompose(asvd, weight, wrong)
        with pytest.raises(ValueError, match="does not fit"):
            decompose(asvd, weight, [moments(rng.normal(size=(9, 5)))] * 3)
        right = decompose(asvd, weight, known).factorize(2)
        others = decompose(asvd, weight, [*known[1:], known[0]]).factorize(2)
        assert activation_error(weight, others, known) > 2 * activation_error(weight, right, known)

    def test_damages_of_experts_add_up(self) -> None:
        """gauss-newton: a stack does what its matrices do together, in one unit."""
        rng = np.random.default_rng(0)
        weight, method = rng.normal(size=(2, 6, 5)), make_method("gauss-newton")
        known = []
        for scale in (1.0, 10.0):
            stats, gradients = moments(rng.normal(size=(30, 6))), rng.normal(size=(30, 5)) * scale
            known.append(replace(stats, gradients=GradientStats(stats, gradients.T @ gradients)))
        whole = decompose(method, weight, known)
        alone = [method.decompose(w, stats) for w, stats in zip(weight, known, strict=True)]
        expected = sum(part.energy * part.tail for part in alone)
        np.testing.assert_allclose(whole.energy * whole.tail, expected)


_ORDERS = (slice(None), slice(None, None, -1), [2, 0, 5, 1, 3, 4])


class TestCalibration:
    def test_each_expert_has_the_rows_that_were_sent_to_it(self, tmp_path: Path) -> None:
        """Also behind the first layer, whose bias makes other rows than zeros of the zeros."""
        x, proto = tokens(0, 60), switch()
        subject = opened(tmp_path, proto)
        found = known_of(subject, Samples({"x": x}), batch_size=7)
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        first, second = [site for site in subject.table.sites if site.weight.stacked]
        for e in range(EXPERTS):
            mine = x[np.arange(60) % EXPERTS == e]
            hidden = np.tanh(mine @ arrays["wi_weight"][e] + arrays["wi_bias"][e])
            assert_same(found[f"{first.name}[{e}]"], moments(mine))
            assert_same(found[f"{second.name}[{e}]"], moments(hidden))

    def test_zeros_of_other_tokens_do_not_move_the_mean(self, tmp_path: Path) -> None:
        stats = known_of(opened(tmp_path, switch()), Samples({"x": tokens(0, 60)}))
        means = [known.mean for name, known in stats.items() if name.endswith("[0]")]
        assert means[0][0] == pytest.approx(5)

    def test_an_expert_without_tokens_has_none_also_from_the_cache(self, tmp_path: Path) -> None:
        subject, cache = opened(tmp_path, switch(used=2)), ArrayCache(tmp_path / "cache")
        samples = Samples({"x": tokens(0, 30, used=2)})
        for _ in range(2):
            found = known_of(subject, samples, cache=cache)
            stacked = [site for site in subject.table.sites if site.weight.stacked]
            for site in stacked:
                known = statistics_of([site], found)
                assert [stats is None for stats in known] == [False, False, True]

    def test_one_input_for_all_experts_is_seen_once(self, tmp_path: Path) -> None:
        """It is not routed: its rows of zeros count."""
        proto = model(
            "g (float[N,8] x) => (float[3,N,6] y, float[3,N,6] v) "
            "{ m = MatMul(x, w) y = Add(m, b) z = Unsqueeze(x, first) n = MatMul(z, u) "
            "v = Add(n, b) }",
            {**weights(w=(3, 8, 6), u=(3, 8, 6), b=(3, 1, 6)), "first": np.array([0])},
        )
        subject = opened(tmp_path, onnx.shape_inference.infer_shapes(proto))
        taps = taps_of(subject.table.sites)
        assert len(taps) == 6
        assert {tap.key for tap in taps.values()} == {"x", "z"}
        x = weights(1, x=(20, 8))["x"]
        x[:5] = 0
        found = known_of(subject, Samples({"x": x}))
        assert len(found) == 6
        for stats in found.values():
            assert_same(stats, moments(x))

    def test_a_stack_without_a_bias_is_not_centred(self, tmp_path: Path) -> None:
        proto = model(
            "g (float[N,3,5,8] x) => (float[N,3,5,6] y) { y = MatMul(x, w) }", weights(w=(3, 8, 6))
        )
        x = weights(1, x=(20, 3, 5, 8))["x"] + 3
        subject = opened(tmp_path, proto)
        found = known_of(subject, Samples({"x": x}))
        for e, stats in enumerate(found.values()):
            rows = x[:, e].reshape(-1, 8)
            np.testing.assert_array_equal(stats.mean, 0)
            np.testing.assert_allclose(stats.covariance, rows.T @ rows / len(rows), rtol=1e-5)

    def test_gradients_are_those_of_the_rows_that_were_sent(self, tmp_path: Path) -> None:
        subject, x = opened(tmp_path, switch()), tokens(0, 60)
        found = output_gradients(subject, Samples({"x": x}), RunSettings())
        last = [site for site in subject.table.sites if site.weight.stacked][-1]
        for e, name in enumerate(last.matrices):
            # The gradient of a sign at the output of the last layer is that sign.
            assert found.stats[name].inputs.count == 20
            assert found.stats[name].strength == pytest.approx(20 * WIDTH / 60)
            sent = found.weights[last.name][0][e] > 0
            np.testing.assert_array_equal(sent, np.arange(32) % EXPERTS == e)


class TestRouting:
    @pytest.mark.parametrize(
        ("nodes", "source"),
        [
            ("y = Relu(x)", "x"),
            ("m = MatMul(x, w) a = Add(m, b) y = Tanh(a)", "x"),
            ("g = MatMul(x, w) s = Sigmoid(g) v = MatMul(x, w) y = Mul(s, v)", "x"),
            ("s = Sigmoid(x) p = Mul(s, x) z = Softmax(p) m = MatMul(z, w) y = Tanh(m)", "z"),
            ("t = Softmax(x) z = Mul(t, r) y = Tanh(z)", "z"),
            ("z = MatMul(w, x) y = Tanh(z)", "z"),
            ("z = MatMul(x, r) y = Tanh(z)", "z"),
        ],
    )
    def test_source(self, nodes: str, source: str) -> None:
        text = f"g (float[8,8] x, float[8,8] r) => (float[8,8] y) {{ {nodes} }}"
        work = canonical(model(text, weights(w=(8, 8), b=(8,))))
        assert row_source(work.graph.outputs[0]).name == source


@pytest.mark.parametrize(
    ("leading", "shape", "expected"),
    [
        ((), (2, 5, 4), (2, 5, 4)),
        ((3,), (3, 5, 4), (5, 4)),
        ((3,), (5, 4), (5, 4)),
        ((3,), (2, 1, 5, 4), (2, 5, 4)),
        ((1, 3), (2, 3, 5, 4), (2, 5, 4)),
    ],
)
def test_part_of_a_value(leading, shape, expected) -> None:
    value = np.arange(np.prod(shape)).reshape(shape)
    for place in np.ndindex(*leading):
        found = part(value, leading, place)
        assert found.shape == expected
    if leading == (3,) and len(shape) == 3:
        np.testing.assert_array_equal(part(value, leading, (1,)), value[1])


class TestCompression:
    def compressed(
        self, tmp_path: Path, method: str, used: int = EXPERTS, seed: int = 1, **changes: object
    ):
        """The plan, and how far the outputs moved on tokens that (but for seed 0) are held out."""
        proto = switch(used)
        original = opened(tmp_path, proto)
        request = CompressionSpec.model_validate(
            {
                "method": {"name": method},
                "params": 0.4,
                "rank_multiple": 1,
                "select": {"include": ["MatMul_w?"]},
                **changes,
            }
        )
        path = tmp_path / f"{method}.onnx"
        learned = learn(original, Samples({"x": tokens(0, 300, used)}))
        plan = learned.compress(request).write(path)
        held_out = {"x": tokens(seed, 300, used)}
        before = run(open_session(proto.SerializeToString()), held_out)["y"]
        after = run(open_session(path), held_out)["y"]
        return plan, np.linalg.norm(after - before) / np.linalg.norm(before), after - before

    def test_statistics_of_each_expert_are_worth_it_on_held_out_tokens(self, tmp_path) -> None:
        errors = {m: self.compressed(tmp_path, m)[1] for m in ("svd", "asvd", "gauss-newton")}
        assert errors["asvd"] < 0.5 * errors["svd"]
        assert errors["gauss-newton"] < 0.5 * errors["svd"]

    def test_the_corrected_bias_keeps_the_mean_of_each_expert(self, tmp_path) -> None:
        """On the calibration data, at the last layer, when nothing else is factored."""
        last = {"include": ["MatMul_wo"]}
        *_, change = self.compressed(tmp_path, "asvd", seed=0, select=last)
        *_, plain = self.compressed(tmp_path, "svd", seed=0, select=last)
        for e in range(EXPERTS):
            mine = np.arange(300) % EXPERTS == e
            assert np.abs(change[mine].mean(axis=0)).max() < 1e-4
            assert np.abs(plain[mine].mean(axis=0)).max() > 0.1

    def test_bound_is_reached_and_errors_are_of_the_stack(self, tmp_path) -> None:
        plan, *_ = self.compressed(tmp_path, "asvd")
        assert plan.error.metric == "activation"
        assert plan.error.left_out == 0
        assert plan.error.reached == pytest.approx(plan.error.bound, rel=1e-4)
        svd, *_ = self.compressed(tmp_path, "svd")
        assert svd.error.bound == pytest.approx(plan.error.bound, rel=1e-6)
        assert svd.error.reached > 1.5 * plan.error.reached

    @pytest.mark.parametrize("method", ["asvd", "gauss-newton", "auto"])
    def test_an_expert_without_tokens_is_visible(self, tmp_path, method) -> None:
        plan, error, _ = self.compressed(tmp_path, method, used=2)
        assert error < 0.5
        for site in plan.factored:
            assert site.reason.endswith("; svd for 1 of 3 matrices: no row for them")

    def test_zeros_stay_zeros_without_a_bias(self) -> None:
        proto = model(
            "g (float[3,N,8] x) => (float[3,N,6] y) { y = MatMul(x, w) }", weights(w=(3, 8, 6))
        )
        x = weights(1, x=(3, 20, 8))["x"] + 2
        x[:, ::2] = 0
        name = sites_of(proto).sites[0].name
        stats = {f"{name}[{e}]": moments(x[e, 1::2]).uncentred() for e in range(3)}
        request = CompressionSpec(method=MethodSpec(name="asvd"), rank=2, allow_larger=True)
        after, plan = compress(proto, request, stats)
        y = run(open_session(after.SerializeToString()), {"x": x})["y"]
        assert operators(after) == ["MatMul", "MatMul"]
        assert plan.sites[0].bias_parameters == 0
        assert not y[:, ::2].any()
        assert y[:, 1::2].any()
        full = request.model_copy(update={"rank": 6})
        assert_parity(proto, compress(proto, full, stats)[0], {"x": x})

    def test_plan_with_statistics_that_are_not_there_is_refused(self, tmp_path) -> None:
        subject = opened(tmp_path, switch())
        request = CompressionSpec(method=MethodSpec(name="asvd"), select={"include": ["MatMul_w?"]})
        with pytest.raises(RequestError, match="calibration data"):
            learn(subject).compress(request)
