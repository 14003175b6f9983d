"""Factors that the file holds rounded: what is computed from them is what the plan says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import Float64, trained

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import (
    METHODS,
    Factorization,
    MomentAccumulator,
    make_method,
)
from compress_onnx.graph_passes.factorization.activations import square_root
from compress_onnx.graph_passes.factorization.base import Term
from compress_onnx.graph_passes.factorization.error import activation_error, weight_error
from compress_onnx.graph_passes.factorization.gauss_newton import damped_half
from compress_onnx.graph_passes.factorization.storage import INTEGERS, Storage, pack

FLOAT32 = np.dtype(np.float32)


ROUNDED: tuple[Storage, ...] = ("float16", "int8", "int4")


SEEDS = st.integers(0, 2**32 - 1)


def stages(
    weight: Float64, count: int, rank: int, store: Storage, layout: str = "branches"
) -> Factorization:
    method = make_method("svdlora", {"stages": count, "layout": layout})
    return method.decompose(weight.astype(np.float32), None).factorize(rank, store)


def left_over(weight: Float64, terms: Sequence[Term]) -> list[float]:
    """Errors after each of ``terms``."""
    sums = [Factorization(tuple(terms[:count])) for count in range(1, len(terms) + 1)]
    return [weight_error(weight, factorization) for factorization in sums]


class TestRounding:
    @given(SEEDS, st.sampled_from(["int8", "int4"]), st.integers(1, 30), st.integers(1, 20))
    def test_integers_have_one_scale_for_each_rank_index(
        self, seed: int, store: Storage, rows: int, rank: int
    ) -> None:
        spread = np.exp(np.random.default_rng(seed).standard_normal(rank))
        factor = np.random.default_rng(seed).standard_normal((rows, rank)) * spread
        packed = pack(factor, store, FLOAT32, axis=0)
        assert packed.scale.shape == (1, rank)
        assert packed.numbers.dtype == np.int8
        assert np.abs(packed.numbers).max() <= INTEGERS[store]
        np.testing.assert_array_equal(
            packed.values(FLOAT32), packed.numbers.astype(np.float32) * packed.scale
        )
        step = np.abs(factor).max(axis=0) / INTEGERS[store]
        textbook = np.square(np.rint(factor / step) * step - factor).sum(axis=0)
        ours = np.square(packed.values(FLOAT32) - factor).sum(axis=0)
        assert np.all(ours <= textbook * (1 + 1e-3) + 1e-12 * np.square(factor).sum(axis=0))

    def test_clipping_pays_where_one_number_sticks_out(self) -> None:
        factor = np.random.default_rng(1).standard_normal((400, 1))
        factor[0] = 12
        step = 12 / INTEGERS["int4"]
        textbook = np.linalg.norm(np.rint(factor / step) * step - factor)
        ours = np.linalg.norm(pack(factor, "int4", FLOAT32, 0).values(FLOAT32) - factor)
        assert ours < 0.8 * textbook

    @pytest.mark.parametrize("store", ROUNDED)
    @pytest.mark.parametrize("size", [0.0, 1e-44])
    def test_what_is_next_to_nothing_becomes_zero(self, store: Storage, size: float) -> None:
        values = pack(np.full((3, 2), size), store, FLOAT32, 0).values(FLOAT32)
        assert np.abs(values).max() <= size

    def test_float16_says_what_it_cannot_hold(self) -> None:
        with pytest.raises(RequestError, match=r"do not fit into float16"):
            pack(np.full((2, 2), 1e5), "float16", FLOAT32, 0)
        assert pack(np.full((2, 2), 1e5), "int8", FLOAT32, 0).values(FLOAT32).max() > 9e4

    def test_a_weight_of_sixteen_bits_is_no_smaller_as_float16(self) -> None:
        assert pack(np.ones((2, 2)), "float16", np.dtype(np.float16), 0) is None
        assert pack(np.ones((2, 2)), "int8", np.dtype(np.float16), 0) is not None

    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize("store", ROUNDED)
    def test_every_method_rounds_its_factors(self, name: str, store: Storage) -> None:
        from test_factorization import TestEveryMethod

        weight, stats = TestEveryMethod.problem((24, 16))
        decomposition = make_method(name).decompose(weight, stats)
        exact, rounded = decomposition.factorize(16), decomposition.factorize(16, store)
        errors = weight_error(weight, exact), weight_error(weight, rounded)
        assert errors[0] < 1e-6 < errors[1] < {"float16": 1e-3, "int8": 0.05, "int4": 0.6}[store]
        for term in rounded.terms:
            for values, packed in zip((term.down, term.up), term.packed, strict=True):
                assert packed.storage == store
                np.testing.assert_array_equal(values, packed.values(FLOAT32))
        if rounded.bias is not None:  # what rounding does to the mean is corrected, too
            residual = stats.mean @ (weight - rounded.product())
            np.testing.assert_allclose(rounded.bias, residual, rtol=1e-6, atol=1e-9)


class TestStages:
    @given(SEEDS, st.integers(2, 6), st.sampled_from(ROUNDED))
    def test_each_stage_leaves_less_than_the_one_before(
        self, seed: int, count: int, store: Storage
    ) -> None:
        weight = trained(seed)
        errors = left_over(weight, stages(weight, count, 24, store).terms)
        assert len(errors) == count
        assert all(later < earlier for earlier, later in pairwise(errors))

    @given(SEEDS, st.integers(2, 6))
    def test_exact_stages_change_nothing(self, seed: int, count: int) -> None:
        weight = trained(seed)
        one, many = (weight_error(weight, stages(weight, n, 12, "same")) for n in (1, count))
        assert many == pytest.approx(one, rel=1e-5)

    @given(SEEDS, st.sampled_from(["int8", "int4"]))
    def test_a_stage_factors_what_is_really_left(self, seed: int, store: Storage) -> None:
        """Stages that look at unrounded residuals repair nothing, and must not pass for these."""
        weight = trained(seed).astype(np.float32).astype(np.float64)
        first, second = stages(weight, 2, 24, store).terms

        def stage(residual: Float64) -> Term:
            u, s, vt = np.linalg.svd(residual, full_matrices=False)
            return Term.rounded(u[:, :12] * s[:12], vt[:12], FLOAT32, store)

        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        unrounded = (u[:, :12] * s[:12]) @ vt[:12]
        repairing, blind = stage(weight - first.product()), stage(weight - unrounded)

        def reached(term: Term) -> float:
            return weight_error(weight, Factorization((first, term)))

        assert reached(second) == pytest.approx(reached(repairing), rel=1e-3)
        assert reached(blind) > 1.05 * reached(second)

    @given(SEEDS, st.integers(2, 5))
    def test_stages_work_in_the_metric_of_the_inputs_too(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        weight, rows = trained(seed).astype(np.float32), rng.standard_normal((100, 32))
        accumulator = MomentAccumulator(32)
        accumulator.update(rows @ rng.standard_normal((32, 32)) + 1)
        stats = accumulator.result()

        def reached(stages: int, store: Storage) -> float:
            decomposition = make_method("asvd", {"stages": stages}).decompose(weight, stats)
            factorization = decomposition.factorize(20, store)
            residual = stats.mean @ (weight - factorization.product())
            np.testing.assert_allclose(factorization.bias, residual, rtol=1e-5, atol=1e-7)
            return activation_error(weight, factorization, [stats])

        assert reached(count, "same") == pytest.approx(reached(1, "same"), rel=1e-3, abs=1e-6)
        assert reached(count, "int4") < reached(1, "int4")

    @pytest.mark.parametrize("name", ["svdlora", "asvd", "gauss-newton"])
    def test_every_method_with_stages(self, name: str) -> None:
        from test_factorization import TestEveryMethod

        weight, stats = TestEveryMethod.problem((24, 16))

        left = np.eye(24) if name == "svdlora" else square_root(stats.covariance)
        right = damped_half(stats.gradients.moment, 0.02) if name == "gauss-newton" else np.eye(16)

        def error(stages: int, store: Storage) -> float:
            decomposition = make_method(name, {"stages": stages}).decompose(weight, stats)
            lost = left @ (weight - decomposition.factorize(16, store).product()) @ right
            return float(np.linalg.norm(lost) / np.linalg.norm(left @ weight @ right))

        assert error(3, "same") < 1e-6
        assert error(3, "int4") < 0.8 * error(1, "int4")

    def test_stages_repair_more_the_coarser_the_storage(self) -> None:
        weight = trained(3, 64, 48)

        def gain(store: Storage) -> float:
            one, four = (weight_error(weight, stages(weight, n, 32, store)) for n in (1, 4))
            return one / four

        assert gain("same") == pytest.approx(1, abs=1e-4)
        assert gain("float16") == pytest.approx(1, abs=1e-2)  # the tail is far above the rounding
        assert gain("int8") > 1.1
        assert gain("int4") > gain("int8")

    @pytest.mark.parametrize("store", ["same", *ROUNDED])
    def test_layouts_hold_the_same_numbers(self, store: Storage) -> None:
        weight = trained(4)
        (merged,) = stages(weight, 3, 20, store, "merged").terms
        branches = stages(weight, 3, 20, store).terms
        np.testing.assert_array_equal(merged.down, np.hstack([t.down for t in branches]))
        np.testing.assert_array_equal(merged.up, np.vstack([t.up for t in branches]))
        if store == "same":
            assert merged.packed is None
            return
        for index, join in enumerate((np.hstack, np.vstack)):
            parts = [term.packed[index] for term in branches]
            np.testing.assert_array_equal(
                merged.packed[index].numbers, join([p.numbers for p in parts])
            )
            if merged.packed[index].scale is not None:
                scales = join([part.scale for part in parts])
                np.testing.assert_array_equal(merged.packed[index].scale, scales)
            np.testing.assert_array_equal(
                merged.packed[index].values(FLOAT32), (merged.down, merged.up)[index]
            )
