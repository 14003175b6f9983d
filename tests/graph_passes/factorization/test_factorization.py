"""The algebra of every method, as properties."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import (
    METHODS,
    ActivationStats,
    GradientStats,
    MomentAccumulator,
    make_method,
)
from compress_onnx.graph_passes.factorization.activations import square_root
from compress_onnx.graph_passes.factorization.error import (
    activation_error,
    least_errors,
    weight_error,
)
from compress_onnx.graph_passes.factorization.gauss_newton import damped_half
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import split_rank

Float64 = NDArray[np.float64]

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 24)
SHAPES = [(12, 7), (7, 12), (9, 9), (1, 6), (6, 1), (1, 1)]


def spread(rng: np.random.Generator, rows: int, columns: int) -> Float64:
    """A random matrix whose singular values fall off, as those of trained weights do."""
    left = np.linalg.qr(rng.standard_normal((rows, rows)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    size = min(rows, columns)
    return (left[:, :size] * 0.8 ** np.arange(size)) @ right[:size]


def inputs(rng: np.random.Generator, count: int, features: int) -> Float64:
    """Rows that correlate, have a mean, and differ in scale by channel."""
    mixing = rng.standard_normal((features, features))
    return rng.standard_normal((count, features)) @ mixing + 3 * rng.standard_normal(features)


def moments(rows: NDArray[np.floating]) -> ActivationStats:
    accumulator = MomentAccumulator(rows.shape[1])
    accumulator.update(rows)
    return accumulator.result()


def with_gradients(
    stats: ActivationStats, rng: np.random.Generator, features: int
) -> ActivationStats:
    """The same inputs, and random gradients at a site's output."""
    rows = inputs(rng, 40, features)
    return replace(stats, gradients=GradientStats(stats, rows.T @ rows))


def truncated_svd(matrix: Float64, rank: int) -> Float64:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def centred_loss(x: Float64, difference: Float64) -> float:
    return float(np.linalg.norm((x - x.mean(axis=0)) @ difference))


class TestSVD:
    @given(SEEDS, SIZES, SIZES, st.data())
    def test_is_the_truncated_svd(self, seed: int, rows: int, columns: int, data) -> None:
        weight = spread(np.random.default_rng(seed), rows, columns)
        rank = data.draw(st.integers(1, min(rows, columns)))
        product = make_method("svd").decompose(weight, None).factorize(rank).product()
        np.testing.assert_allclose(product, truncated_svd(weight, rank), atol=1e-7)

    @given(SEEDS, SIZES, SIZES)
    def test_tail_is_the_error_of_every_rank(self, seed: int, rows: int, columns: int) -> None:
        weight = np.random.default_rng(seed).standard_normal((rows, columns))
        decomposition = make_method("svd").decompose(weight, None)
        errors = [
            weight_error(weight, decomposition.factorize(rank))
            for rank in range(1, min(rows, columns) + 1)
        ]
        np.testing.assert_allclose(np.sqrt(decomposition.tail), [1.0, *errors], atol=1e-7)

    @pytest.mark.parametrize("shape", [(20, 9), (9, 20)])
    def test_rank_deficient_weight_is_exact_from_its_rank_on(self, shape: tuple[int, int]) -> None:
        rng = np.random.default_rng(1)
        weight = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
        decomposition = make_method("svd").decompose(weight, None)
        assert weight_error(weight, decomposition.factorize(2)) > 0.1
        for rank in (3, 4, 9):
            assert weight_error(weight, decomposition.factorize(rank)) < 1e-7


class TestSVDLoRA:
    @given(SEEDS, SIZES, SIZES, st.integers(1, 9), st.sampled_from(["merged", "branches"]))
    def test_exact_stages_equal_one_svd_of_the_summed_rank(
        self, seed: int, rows: int, columns: int, stages: int, layout: str
    ) -> None:
        rng = np.random.default_rng(seed)
        weight = spread(rng, rows, columns)
        rank = int(rng.integers(1, min(rows, columns) + 1))
        method = make_method("svdlora", {"stages": stages, "layout": layout})
        factorization = method.decompose(weight, None).factorize(rank)
        np.testing.assert_allclose(factorization.product(), truncated_svd(weight, rank), atol=1e-5)
        assert factorization.rank == rank
        assert len(factorization.terms) == (1 if layout == "merged" else min(stages, rank))

    def test_layouts_hold_the_same_factors(self) -> None:
        weight = np.random.default_rng(2).standard_normal((16, 12)).astype(np.float32)
        merged, branches = (
            make_method("svdlora", {"stages": 3, "layout": layout})
            .decompose(weight, None)
            .factorize(7)
            for layout in ("merged", "branches")
        )
        np.testing.assert_array_equal(
            merged.terms[0].down, np.hstack([term.down for term in branches.terms])
        )
        np.testing.assert_array_equal(
            merged.terms[0].up, np.vstack([term.up for term in branches.terms])
        )

    def test_later_stages_repair_the_rounding_of_float16(self) -> None:
        weight = np.random.default_rng(3).standard_normal((64, 48)).astype(np.float16)

        def rounding_error(stages: int) -> float:
            method = make_method("svdlora", {"stages": stages})
            return weight_error(weight, method.decompose(weight, None).factorize(48))

        assert rounding_error(1) > 1e-4
        assert rounding_error(2) < 0.85 * rounding_error(1)
        assert rounding_error(4) < rounding_error(2)

    @given(st.integers(1, 500), st.integers(1, 64))
    def test_ranks_are_split_evenly(self, rank: int, stages: int) -> None:
        parts = split_rank(rank, stages)
        assert sum(parts) == rank
        assert len(parts) <= stages
        assert 1 <= min(parts) <= max(parts) <= min(parts) + 1


class TestASVD:
    @given(SEEDS, SIZES, SIZES, st.integers(2, 60))
    def test_reaches_its_bound_at_every_rank(
        self, seed: int, rows: int, columns: int, count: int
    ) -> None:
        rng = np.random.default_rng(seed)
        weight, x = rng.standard_normal((rows, columns)), inputs(rng, count, rows)
        stats = moments(x)
        decomposition = make_method("asvd").decompose(weight, stats)
        squared = least_errors(weight, [stats])
        least = np.sqrt(squared / squared[0])
        for rank in range(1, min(rows, columns) + 1):
            factorization = decomposition.factorize(rank)
            reached = activation_error(weight, factorization, [stats])
            measured = centred_loss(x, weight - factorization.product()) / centred_loss(x, weight)
            assert reached == pytest.approx(least[rank], abs=1e-6)
            assert measured == pytest.approx(least[rank], abs=1e-6)

    @given(SEEDS, st.integers(2, 8), st.integers(2, 8))
    def test_no_random_alternative_is_better(self, seed: int, rows: int, columns: int) -> None:
        rng = np.random.default_rng(seed)
        weight, x = rng.standard_normal((rows, columns)), inputs(rng, 50, rows)
        rank = int(rng.integers(1, min(rows, columns)))
        best = make_method("asvd").decompose(weight, moments(x)).factorize(rank)
        loss = centred_loss(x, weight - best.product())
        for _ in range(20):
            direction = rng.standard_normal((rank, columns))
            # The best that this row space allows, so that the comparison is not won by default.
            projector = np.linalg.pinv(direction) @ direction
            assert loss <= centred_loss(x, weight - weight @ projector) * (1 + 1e-9) + 1e-9
            nudged = (best.terms[0].down + 1e-3 * rng.standard_normal((rows, rank))) @ (
                best.terms[0].up + 1e-3 * rng.standard_normal((rank, columns))
            )
            assert loss <= centred_loss(x, weight - nudged) * (1 + 1e-9) + 1e-9

    @given(SEEDS, SIZES, SIZES)
    def test_bias_keeps_the_mean_output(self, seed: int, rows: int, columns: int) -> None:
        rng = np.random.default_rng(seed)
        weight, x = rng.standard_normal((rows, columns)), inputs(rng, 40, rows)
        factorization = make_method("asvd").decompose(weight, moments(x)).factorize(1)
        outputs = x @ factorization.product() + factorization.bias
        np.testing.assert_allclose(outputs.mean(axis=0), (x @ weight).mean(axis=0), atol=1e-8)

    def test_is_at_least_as_good_as_every_other_method_in_its_metric(self) -> None:
        rng = np.random.default_rng(4)
        weight, x = spread(rng, 20, 15), inputs(rng, 100, 20)
        stats = with_gradients(moments(x), rng, 15)
        errors = {
            name: activation_error(
                weight, make_method(name).decompose(weight, stats).factorize(5), [stats]
            )
            for name in METHODS
        }
        assert min(errors, key=errors.__getitem__) == "asvd"
        assert errors["asvd"] < 0.9 * errors["svd"]

    @pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
    def test_singular_covariance_leaves_the_rest_of_the_rank_to_the_weight(
        self, shape: tuple[int, int]
    ) -> None:
        rng = np.random.default_rng(5)
        weight, x = rng.standard_normal(shape), rng.standard_normal((5, shape[0]))
        stats = moments(x)
        decomposition = make_method("asvd").decompose(weight, stats)
        errors = [weight_error(weight, decomposition.factorize(rank)) for rank in range(4, 13)]
        assert activation_error(weight, decomposition.factorize(4), [stats]) < 1e-6
        assert all(later < earlier for earlier, later in pairwise(errors))
        assert errors[-1] < 1e-6

    def test_constant_inputs_fall_back_on_the_weight_metric(self) -> None:
        weight = np.random.default_rng(6).standard_normal((8, 6))
        stats = moments(np.ones((10, 8)))
        decomposition = make_method("asvd").decompose(weight, stats)
        np.testing.assert_allclose(
            decomposition.factorize(3).product(), truncated_svd(weight, 3), atol=1e-6
        )


class TestDiagonalASVD:
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
    def test_equals_the_textbook_form(self, alpha: float, shape: tuple[int, int]) -> None:
        rng = np.random.default_rng(7)
        weight, x = rng.standard_normal(shape), inputs(rng, 60, shape[0])
        scale = np.abs(x).mean(axis=0) ** alpha
        textbook = truncated_svd(scale[:, None] * weight, 4) / scale[:, None]
        method = make_method("asvd-diagonal", {"alpha": alpha})
        product = method.decompose(weight, moments(x)).factorize(4).product()
        np.testing.assert_allclose(product, textbook, atol=1e-7)

    def test_a_dead_channel_is_no_trouble(self) -> None:
        rng = np.random.default_rng(8)
        x = inputs(rng, 30, 6)
        x[:, 2] = 0
        weight = rng.standard_normal((6, 5))
        product = make_method("asvd-diagonal").decompose(weight, moments(x)).factorize(5).product()
        np.testing.assert_allclose(x @ product, x @ weight, atol=1e-8)


class TestMoments:
    @given(SEEDS, SIZES, st.lists(st.integers(0, 9), min_size=1, max_size=6))
    def test_streaming_equals_numpy_on_the_concatenation(
        self, seed: int, features: int, sizes: list[int]
    ) -> None:
        rng = np.random.default_rng(seed)
        batches = [inputs(rng, size, features) for size in [*sizes, 1]]
        accumulator = MomentAccumulator(features)
        for batch in batches:
            accumulator.update(batch)
        stats, x = accumulator.result(), np.concatenate(batches)
        assert stats.count == len(x)
        np.testing.assert_allclose(stats.mean, x.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(stats.magnitude, np.abs(x).mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(stats.second_moment, x.T @ x / len(x), atol=1e-10)
        np.testing.assert_allclose(
            stats.covariance, np.cov(x.T, bias=True).reshape(features, features), atol=1e-8
        )
        root = square_root(stats.covariance)
        np.testing.assert_allclose(root.T @ root, stats.covariance, atol=1e-8)

    def test_merge_weighs_by_count(self) -> None:
        rng = np.random.default_rng(9)
        first, second = inputs(rng, 3, 4), inputs(rng, 50, 4)
        merged = ActivationStats.merge([moments(first), moments(second)])
        whole = moments(np.concatenate([first, second]))
        assert merged.count == whole.count
        for name in ("mean", "magnitude", "second_moment"):
            np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-12)

    def test_low_precision_rows_are_summed_in_float64(self) -> None:
        rows = np.full((5000, 1), 100, np.float16)
        assert moments(rows).mean[0] == 100
        assert moments(rows).second_moment[0, 0] == 10000

    def test_no_rows_are_no_statistics(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            MomentAccumulator(3).result()


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    """What must hold for any entry of ``METHODS``."""

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_shapes_and_dtype(self, name: str, shape: tuple[int, int], dtype: type) -> None:
        weight, stats = self.problem(shape, dtype)
        decomposition = make_method(name).decompose(weight, stats)
        assert decomposition.tail.shape == (min(shape) + 1,)
        assert decomposition.tail[0] == 1
        assert decomposition.tail[-1] == 0
        assert np.all(np.diff(decomposition.tail) <= 0)
        for rank in range(1, min(shape) + 1):
            factorization = decomposition.factorize(rank)
            assert factorization.rank == rank
            assert (factorization.bias is not None) == METHODS[name].corrects_bias
            for term in factorization.terms:
                assert term.down.shape == (shape[0], term.rank)
                assert term.up.shape == (term.rank, shape[1])
                assert term.down.dtype == term.up.dtype == dtype

    @pytest.mark.parametrize("shape", SHAPES)
    def test_full_rank_reproduces_the_weight(self, name: str, shape: tuple[int, int]) -> None:
        weight, stats = self.problem(shape)
        factorization = make_method(name).decompose(weight, stats).factorize(min(shape))
        assert weight_error(weight, factorization) < 1e-6
        if factorization.bias is not None:
            assert np.abs(factorization.bias).max() < 1e-5

    @pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
    def test_error_falls_with_rank_in_the_metric_of_the_method(
        self, name: str, shape: tuple[int, int]
    ) -> None:
        weight, stats = self.problem(shape, np.float64)
        method = make_method(name)
        decomposition = method.decompose(weight, stats)
        metric = {
            "weight": np.eye(shape[0]),
            "activation": square_root(stats.covariance),
            "scaled": np.diag(np.sqrt(stats.magnitude)),
            "output": square_root(stats.covariance),
        }[method.metric]
        right = np.eye(shape[1])
        if method.metric == "output":
            right = damped_half(stats.gradients.moment, method.damping)

        def error(rank: int) -> float:
            difference = weight - decomposition.factorize(rank).product()
            lost = np.linalg.norm(metric @ difference @ right)
            return float(lost / np.linalg.norm(metric @ weight @ right))

        errors = [error(rank) for rank in range(1, min(shape) + 1)]
        assert all(later < earlier for earlier, later in pairwise(errors))
        np.testing.assert_allclose(errors, np.sqrt(decomposition.tail[1:]), atol=1e-6)

    def test_is_deterministic_and_leaves_its_inputs_alone(self, name: str) -> None:
        weight, stats = self.problem((12, 7))
        before = weight.copy(), stats.second_moment.copy(), stats.mean.copy()
        first = make_method(name).decompose(weight, stats).factorize(3)
        second = make_method(name).decompose(weight.copy(), stats).factorize(3)
        for one, other in zip(first.terms, second.terms, strict=True):
            np.testing.assert_array_equal(one.down, other.down)
            np.testing.assert_array_equal(one.up, other.up)
        for array, kept in zip((weight, stats.second_moment, stats.mean), before, strict=True):
            np.testing.assert_array_equal(array, kept)

    def test_zero_weight_becomes_zero(self, name: str) -> None:
        _, stats = self.problem((12, 7))
        weight = np.zeros((12, 7), np.float32)
        decomposition = make_method(name).decompose(weight, stats)
        factorization = decomposition.factorize(4)
        assert not factorization.product().any()
        assert not decomposition.tail.any()
        assert weight_error(weight, factorization) == 0

    def test_view_of_a_transposed_weight_is_as_good_as_a_copy(self, name: str) -> None:
        weight, stats = self.problem((12, 7))
        view = np.ascontiguousarray(weight.T).T
        product = make_method(name).decompose(view, stats).factorize(3).product()
        expected = make_method(name).decompose(weight, stats).factorize(3).product()
        np.testing.assert_allclose(product, expected, atol=1e-6)

    def test_unknown_option_is_named(self, name: str) -> None:
        with pytest.raises(RequestError, match=f"{name}.*no_such_option"):
            make_method(name, {"no_such_option": 1})

    def test_asks_for_the_statistics_that_it_needs(self, name: str) -> None:
        weight, stats = self.problem((6, 5))
        if not METHODS[name].needs_activations:
            make_method(name).decompose(weight, None).factorize(1)
            return
        with pytest.raises(ValueError, match="statistics"):
            make_method(name).decompose(weight, None)
        with pytest.raises(ValueError, match="does not fit"):
            make_method(name).decompose(weight.T, stats)

    @staticmethod
    def problem(
        shape: tuple[int, int], dtype: type = np.float32
    ) -> tuple[NDArray[np.floating], ActivationStats]:
        rng = np.random.default_rng(10)
        weight = rng.standard_normal(shape).astype(dtype)
        return weight, with_gradients(moments(inputs(rng, 64, shape[0])), rng, shape[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("svdlora", {"stages": 0}),
        ("svdlora", {"layout": "sideways"}),
        ("asvd-diagonal", {"alpha": -1}),
        ("asvd-diagonal", {"alpha": float("nan")}),
    ],
)
def test_option_out_of_range_is_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        make_method(name, options)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(RequestError, match="svd, svdlora, asvd, asvd-diagonal"):
        make_method("pca")


def test_metric_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        project(np.ones((3, 2)), np.eye(2))
