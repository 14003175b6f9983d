"""A plan is data: written, read, edited and applied again, or refused."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from graphs import HALF, canonical, compress, model, sites_of, weights

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.fitting import check_fits
from compress_onnx.graph_passes.planning.plan import (
    CompressionPlan,
    MethodSpec,
    SitePlan,
    read_plan,
)
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass

GRAPH = model(
    "g (float[N,64] x) => (float[N,32] y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }",
    weights(v=(64, 64), w=(64, 32)),
)
TABLE = sites_of(GRAPH)
PLAN = make_plan(TABLE, HALF)


def edited(index: int = 0, **changes: object) -> CompressionPlan:
    sites = list(PLAN.sites)
    sites[index] = sites[index].model_copy(update=changes)
    return PLAN.model_copy(update={"sites": tuple(sites)})


def write(plan: CompressionPlan, folder: Path) -> Path:
    path = folder / "plan.json"
    path.write_text(plan.model_dump_json(indent=2))
    return path


def test_json_round_trip_keeps_everything(tmp_path: Path) -> None:
    _, applied = compress(GRAPH, HALF)
    assert applied.sites[0].error is not None
    assert read_plan(write(applied, tmp_path)) == applied


def test_plan_applied_again_gives_the_same_model(tmp_path: Path) -> None:
    first, plan = compress(GRAPH, HALF)
    again, _ = compress(GRAPH, plan=read_plan(write(plan, tmp_path)))
    assert again.SerializeToString() == first.SerializeToString()


def test_edited_plan_is_what_is_applied() -> None:
    plan = edited(0, rank=3)
    plan = plan.model_copy(
        update={
            "sites": (
                plan.sites[0],
                plan.sites[1].model_copy(update={"decision": "dense", "rank": None}),
            )
        }
    )
    after, _ = compress(GRAPH, plan=plan)
    shapes = {t.name: list(t.dims) for t in after.graph.initializer}
    assert shapes == {"v.lowrank.down": [64, 3], "v.lowrank.up": [3, 64], "w": [64, 32]}


def test_each_site_may_have_a_method_of_its_own() -> None:
    options = {"stages": 2, "layout": "branches"}
    plan = edited(1, method=MethodSpec(name="svdlora", options=options))
    after, _ = compress(GRAPH, plan=plan)
    assert sum(node.op_type == "MatMul" for node in after.graph.node) == 2 + 4


def test_errors_are_reached_and_bounded() -> None:
    _, plan = compress(GRAPH, HALF)
    for site in plan.factored:
        assert site.error is not None
        assert 0 < site.error.bound <= site.error.reached <= site.error.bound + 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "elsewhere"}, "'elsewhere', which the model lacks"),
        ({"in_features": 63}, "made for another model"),
        ({"matrices": 2}, "made for another model"),
        ({"weight": "u"}, "made for another model"),
        ({"rank": None}, "without a rank"),
        ({"rank": 0}, "not between 1 and 64"),
        ({"rank": 65}, "not between 1 and 64"),
        ({"method": None}, "without a method"),
        ({"method": MethodSpec(name="asvd")}, "needs calibration data"),
        ({"method": MethodSpec(name="pca")}, "unknown method"),
        ({"method": MethodSpec(name="svd", options={"a": 1})}, "method svd: a: "),
    ],
)
def test_plan_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    work = canonical(GRAPH)
    before = ir.to_proto(work).SerializeToString()
    with pytest.raises(RequestError, match=message):
        LowRankPass(edited(**changes))(work)
    assert ir.to_proto(work).SerializeToString() == before


def test_sites_that_share_a_weight_must_agree() -> None:
    shared = model(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) y = MatMul(a, w) }",
        weights(w=(64, 64)),
    )
    table = sites_of(shared)
    plan = make_plan(table, HALF)
    other = plan.sites[1].model_copy(update={"rank": 5})
    with pytest.raises(RequestError, match="planned apart"):
        check_fits(table, plan.model_copy(update={"sites": (plan.sites[0], other)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a compression plan"),
        ("[]", "not a compression plan"),
        ('{"allocation": "uniform", "budget": "half"}', "sites: this key is required"),
        ('{"allocation": "u", "budget": "b", "sites": [], "rnak": 1}', "rnak: unknown key"),
        ('{"schema_version": 2, "allocation": "u", "budget": "b", "sites": []}', "schema_version"),
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_plan(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot read the plan"):
        read_plan(tmp_path / "plan.json")


def test_counts_weights_not_sites() -> None:
    site = PLAN.sites[0]
    twin = site.model_copy(update={"site": "twin"})
    plan = PLAN.model_copy(update={"sites": (site, twin)})
    assert plan.parameters_before == site.parameters_before
    assert isinstance(twin, SitePlan)
