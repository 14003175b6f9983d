"""The passes in a pass manager: they do their work once, and say truly whether they did any."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import assert_parity, canonical, model, operators, weights
from onnx_ir.passes import PassManager, Sequential

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.canonicalize import CanonicalizePass
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.join_siblings import JoinSiblingsPass, PartSiblingsPass
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.sites.find import find_sites

GRAPH = model(
    """g (float[N,16] x) => (float[N,16] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        s = Add(q, k)
        two = Constant<value = float[1,1] {2.0}>()
        t = Mul(s, two)
        y = MatMul(t, w)
    }""",
    weights(wq=(16, 16), wk=(16, 16), w=(16, 16)),
)
FEEDS = {"x": np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)}
SIBLINGS = [["MatMul_q", "MatMul_k"]]
EXACT = CompressionSpec(method=MethodSpec(name="svd"), rank=16, allow_larger=True)


def passes() -> list[ir.passes.InPlacePass]:
    """All passes, with the plan of the joined model."""
    joined = canonical(GRAPH)
    JoinSiblingsPass(SIBLINGS)(joined)
    return [
        CanonicalizePass(),
        JoinSiblingsPass(SIBLINGS),
        LowRankPass(make_plan(find_sites(joined), EXACT)),
        PartSiblingsPass(),
        CleanupPass(),
    ]


def fresh() -> ir.Model:
    return ir.from_proto(onnx.ModelProto.FromString(GRAPH.SerializeToString()))


@pytest.mark.parametrize(
    "manager",
    [
        lambda: Sequential(*passes()),
        lambda: PassManager(passes()),
        lambda: PassManager(passes(), steps=3, early_stop=False),
        lambda: PassManager([PassManager(passes(), steps=2), CleanupPass()]),
    ],
)
def test_any_pass_manager_runs_them(manager) -> None:
    result = manager()(fresh())
    assert result.modified
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    assert operators(after).count("MatMul") == 5  # one down for both siblings
    assert_parity(GRAPH, after, FEEDS)


def test_they_say_whether_they_modified_anything() -> None:
    work = fresh()
    steps = passes()
    assert [step(work).modified for step in steps] == [True] * len(steps)
    once = ir.to_proto(work).SerializeToString()
    assert [step(work).modified for step in steps] == [False] * len(steps)
    assert ir.to_proto(work).SerializeToString() == once


def test_a_plan_that_factors_nothing_modifies_nothing() -> None:
    work = canonical(GRAPH)
    plan = make_plan(find_sites(work), EXACT)
    dense = [site.model_copy(update={"decision": "dense", "rank": None}) for site in plan.sites]
    before = ir.to_proto(work).SerializeToString()
    low_rank = LowRankPass(plan.model_copy(update={"sites": tuple(dense)}))
    assert not low_rank(work).modified
    assert ir.to_proto(work).SerializeToString() == before


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["MatMul_q", "MatMul_k"], ["MatMul_k", "MatMul_q"]], "MatMul_k is in 2 groups|MatMul_q"),
        ([["MatMul_q"]], "no siblings"),
        ([["MatMul_q", "MatMul_q"]], "no siblings"),
        ([["MatMul_q", "MatMul_y"]], "no siblings"),
        ([["MatMul_q", "elsewhere"]], "no siblings"),
    ],
)
def test_groups_that_cannot_be_joined_change_nothing(groups, message) -> None:
    work = canonical(GRAPH)
    before = ir.to_proto(work).SerializeToString()
    with pytest.raises(RequestError, match=message):
        JoinSiblingsPass(groups)(work)
    assert ir.to_proto(work).SerializeToString() == before
