"""Factors of weights that half precision can just hold: they fit, or that is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphs import canonical, model, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import Term, make_method
from compress_onnx.graph_passes.factorization.balance import within
from compress_onnx.graph_passes.factorization.storage import Storage, rounded
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.sites.find import find_sites

HALF = np.dtype(np.float16)
BRAIN = np.dtype(ml_dtypes.bfloat16)


def large(dtype: np.dtype, rows: int = 64, columns: int = 64) -> np.ndarray:
    """A weight of rank 4 whose numbers go up to what ``dtype`` can hold."""
    rng = np.random.default_rng(3)
    product = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, columns))
    product[0] = np.abs(product).max()
    return (0.98 * product / np.abs(product).max() * float(ml_dtypes.finfo(dtype).max)).astype(
        dtype
    )


@pytest.mark.parametrize("dtype", [HALF, BRAIN, np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("method", ["svd", "svdlora"])
def test_factors_of_a_weight_at_the_limit_fit(dtype: np.dtype, method: str) -> None:
    weight = large(dtype)
    found = make_method(method).decompose(weight, None).factorize(8)
    (term,) = found.terms
    for factor in (term.down, term.up):
        assert factor.dtype == dtype
        assert np.isfinite(factor.astype(np.float64)).all()
    exact = weight.astype(np.float64)
    coarse = 8 * float(ml_dtypes.finfo(dtype).eps)
    assert np.linalg.norm(exact - found.product()) < coarse * np.linalg.norm(exact)


@pytest.mark.parametrize("store", ["float16", "int8"])
def test_stored_factors_of_a_weight_at_the_limit_fit(store: Storage) -> None:
    dtype = np.dtype(np.float32) if store == "float16" else HALF
    weight = large(HALF).astype(dtype)
    found = make_method("svd").decompose(weight, None).factorize(8, store)
    exact = weight.astype(np.float64)
    assert np.linalg.norm(exact - found.product()) < 0.03 * np.linalg.norm(exact)


def test_what_fits_is_not_touched() -> None:
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((8, 3)), rng.standard_normal((3, 5))
    assert within(down, up, HALF) == (down, up)
    down[:, 1] *= 1e6
    balanced = within(down, up, HALF)
    np.testing.assert_array_equal(balanced[0][:, ::2], down[:, ::2])
    np.testing.assert_array_equal(balanced[1][::2], up[::2])


@settings(max_examples=100, deadline=None)
@given(st.floats(-9, 9), st.floats(-9, 9))
def test_factors_fit_where_any_scale_makes_them(one: float, other: float) -> None:
    down, up = np.full((3, 1), 10.0**one), np.full((1, 2), 10.0**other)
    balanced = within(down, up, HALF)
    np.testing.assert_allclose(balanced[0] @ balanced[1], down @ up)
    possible = one + other <= 2 * np.log10(65504) - 1e-9
    with np.errstate(over="ignore"):
        fit = all(np.isfinite(factor.astype(HALF)).all() for factor in balanced)
    assert fit or not possible


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
def test_factors_that_never_fit_are_refused(dtype: np.dtype) -> None:
    most = float(ml_dtypes.finfo(dtype).max)
    with pytest.raises(RequestError, match=f"do not fit into {dtype}"):
        Term.rounded(np.full((2, 1), 2 * most), np.full((1, 2), 2 * most), dtype, "same")


def test_infinity_that_was_there_before_is_no_overflow() -> None:
    np.testing.assert_array_equal(rounded(np.array([-np.inf, 1.0]), HALF), [-np.inf, 1.0])


def test_a_plan_whose_last_factors_overflow_changes_nothing(monkeypatch) -> None:
    """A layer of half precision at its limit, and a method whose factors no scale makes fit."""
    proto = model(
        "g (float16[N,16] x) => (float16[N,16] y) { a = MatMul(x, v) y = MatMul(a, w) }",
        weights(v=(16, 16), w=(16, 16), dtype=np.float16),
    )
    work = canonical(proto)
    plan = make_plan(find_sites(work), CompressionSpec(method=MethodSpec(name="svd"), rank=4))
    genuine = Term.rounded.__func__
    calls: list[int] = []

    def second_is_huge(cls, down, up, dtype, storage):
        calls.append(1)
        factor = 1e9 if len(calls) == 2 else 1.0
        return genuine(cls, factor * down, factor * up, dtype, storage)

    monkeypatch.setattr(Term, "rounded", classmethod(second_is_huge))
    before = ir.to_proto(work).SerializeToString()
    with pytest.raises(RequestError, match=r"MatMul_y: numbers up to .* do not fit into float16"):
        LowRankPass(plan)(work)
    assert ir.to_proto(work).SerializeToString() == before
