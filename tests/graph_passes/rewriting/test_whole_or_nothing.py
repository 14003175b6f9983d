"""A plan is carried out as a whole or not at all, whatever is found out on the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from graphs import HALF, canonical, compress, model, statistics, weights

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec, SitePlan
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.sites.find import find_sites

GRAPH = model(
    """g (float[N,32] x) => (float[N,32] y) {
        a = MatMul(x, u)
        b = Relu(a)
        c = MatMul(b, v)
        d = Tanh(c)
        e = MatMul(d, w)
        y = MatMul(e, w)
    }""",
    weights(u=(32, 32), v=(32, 32), w=(32, 32)),
)
FEEDS = {"x": np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)}
ASVD = CompressionSpec(method=MethodSpec(name="asvd"), params=0.5, rank_multiple=1)
FIRST, SECOND, THIRD, FOURTH = "MatMul_a", "MatMul_c", "MatMul_e", "MatMul_y"

Edit = Callable[[dict[str, SitePlan]], None]


def edited(plan: CompressionPlan, **changes: dict[str, object]) -> CompressionPlan:
    """The plan with changes by site name."""
    sites = [site.model_copy(update=changes.get(site.site, {})) for site in plan.sites]
    return plan.model_copy(update={"sites": tuple(sites)})


def refused(low_rank: LowRankPass, work: ir.Model, message: str) -> None:
    """The pass raises, and leaves the model as it was, byte for byte."""
    before = ir.to_proto(work).SerializeToString()
    with pytest.raises(RequestError, match=message) as caught:
        low_rank(work)
    assert "\n" not in str(caught.value)
    assert ir.to_proto(work).SerializeToString() == before


def half_plan() -> CompressionPlan:
    return make_plan(find_sites(canonical(GRAPH)), HALF)


def test_a_second_site_without_statistics() -> None:
    stats = statistics(GRAPH, FEEDS)
    plan = make_plan(find_sites(canonical(GRAPH)), ASVD, stats)
    del stats[SECOND]
    refused(LowRankPass(plan, stats), canonical(GRAPH), f"{SECOND} is planned with asvd, which")


def test_a_second_site_with_statistics_of_another_model() -> None:
    stats = statistics(GRAPH, FEEDS)
    plan = make_plan(find_sites(canonical(GRAPH)), ASVD, stats)
    narrow = model("g (float[N,8] x) => (float[N,4] c) { c = MatMul(x, v) }", weights(v=(8, 4)))
    stats |= statistics(narrow, {"x": FEEDS["x"][:, :8]})
    refused(
        LowRankPass(plan, stats), canonical(GRAPH), f"statistics of {SECOND} are about 8 inputs"
    )


def test_a_last_weight_that_is_not_finite() -> None:
    work, plan = canonical(GRAPH), half_plan()
    broken = np.full((32, 32), np.nan, np.float32)
    work.graph.initializers["w"].const_value = ir.Tensor(broken, name="w")
    refused(LowRankPass(plan), work, f"'{THIRD}', which has NaN|'{FOURTH}', which has NaN")


def test_a_sink_that_fails_at_the_last_weight() -> None:
    def full(array: np.ndarray, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
        if name.startswith("w."):
            raise RequestError("the disk is full")
        return ir.Tensor(array, dtype=dtype, name=name)

    refused(LowRankPass(half_plan(), sink=full), canonical(GRAPH), "the disk is full")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({SECOND: {"method": MethodSpec(name="pca")}}, f"'{SECOND}': unknown method 'pca'"),
        ({SECOND: {"method": MethodSpec(name="svd", options={"a": 1})}}, "method svd: a: "),
        ({SECOND: {"method": MethodSpec(name="asvd")}}, "needs calibration data"),
        ({SECOND: {"method": MethodSpec(name="gauss-newton")}}, "and gradients"),
        ({SECOND: {"decision": "dense"}}, f"leaves '{SECOND}' as it is .dense., but gives it the"),
        ({SECOND: {"decision": "skip"}}, "let the rank be null, or the decision factor"),
        ({SECOND: {"store": "int4"}}, "int4 needs opset 21"),
        ({SECOND: {"site": FIRST}}, f"names the site '{FIRST}' 2 times"),
        ({SECOND: {"siblings": {"q": "q", "k": "k"}}}, "stand for the siblings q, k, in the model"),
        ({SECOND: {"site": "{q,k}", "siblings": {"q": "q", "k": "k"}}}, "join these first"),
        ({FOURTH: {"store": "int8"}}, f"planned apart: plan '{FOURTH}' as '{THIRD}'"),
        ({FOURTH: {"method": MethodSpec(name="svdlora")}}, "planned apart"),
        ({FOURTH: {"decision": "dense", "rank": None}}, "planned apart"),
    ],
)
def test_a_plan_by_hand(changes: dict[str, dict[str, object]], message: str) -> None:
    refused(LowRankPass(edited(half_plan(), **changes)), canonical(GRAPH), message)


def test_a_weight_that_is_planned_at_one_of_its_two_sites() -> None:
    plan = half_plan()
    known = tuple(site for site in plan.sites if site.site != FOURTH)
    low_rank = LowRankPass(plan.model_copy(update={"sites": known}))
    refused(low_rank, canonical(GRAPH), f"planned apart: plan '{FOURTH}'")


def test_an_edited_rank_is_counted_anew() -> None:
    plan = edited(half_plan(), **{FIRST: {"rank": 2}})
    _, applied = compress(GRAPH, plan=plan)
    first = applied.sites[0]
    assert (first.parameters_before, first.parameters_after) == (32 * 32, 2 * 64)
    assert (first.bytes_before, first.bytes_after) == (4 * 32 * 32, 4 * 2 * 64)
