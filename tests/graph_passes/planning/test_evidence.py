"""Sites where calibration cannot look: what needs evidence leaves them, and says which and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from graphs import PLAIN_STACKED_LEFT_NESTED as GRAPH
from graphs import model, weights

from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session

NESTED = "inside an If, Loop or Scan"
ON_LEFT = "for a weight on the left of its input"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    square = (24, 24)
    arrays = weights(
        plain_weight=square, stacked_weight=(3, 24, 24), left_weight=square, nested_weight=square
    )
    proto = onnx.shape_inference.infer_shapes(model(GRAPH, arrays))
    return small.save(proto, tmp_path / "model.onnx")


def reasons(path: Path, method: str, allocation: str = "auto") -> dict[str, str]:
    """By site, which evidence it lacks, "" where it has all; the result loads."""
    return {
        site.weight.split("_")[0]: site.reason if "no " in site.reason else ""
        for site in planned(path, method, allocation).sites
    }


def planned(path: Path, method: str, allocation: str = "auto") -> CompressionPlan:
    """The plan as carried out; the result loads."""
    x = np.random.default_rng(0).standard_normal((20, 3, 24, 24)).astype(np.float32)
    request = CompressionSpec(
        method=MethodSpec(name=method), allocation=allocation, params=0.5, rank_multiple=1
    )
    small_path = path.with_name("small.onnx")
    plan = learn(path, Samples({"x": x})).compress(request).write(small_path)
    open_session(small_path)
    return plan


@pytest.mark.parametrize("allocation", ["uniform", "energy"])
def test_svd_needs_no_evidence(path, allocation):
    found = reasons(path, "svd", allocation)
    assert found.keys() == {"plain", "stacked", "left", "nested"}
    assert not any(found.values())


def test_asvd_needs_activations(path):
    assert reasons(path, "asvd") == {
        "plain": "",
        "stacked": "",
        "left": "",
        "nested": f"no activation statistics {NESTED}: use --method svd",
    }


def test_allocation_by_sensitivity_needs_a_measurement(path):
    remedy = "use --allocation uniform"
    assert reasons(path, "svd", "sensitivity") == {
        "plain": "",
        "stacked": "",
        "left": f"no measured sensitivity {ON_LEFT}: {remedy}",
        "nested": f"no measured sensitivity {NESTED}: {remedy}",
    }
    assert reasons(path, "asvd", "sensitivity")["left"] == (
        f"no measured sensitivity {ON_LEFT}: {remedy}"
    )


def test_gauss_newton_needs_gradients(path):
    assert reasons(path, "gauss-newton") == {
        "plain": "",
        "stacked": "",
        "left": f"no gradients {ON_LEFT}: use --method svd",
        "nested": f"no gradients {NESTED}: use --method svd",
    }


def test_allocation_by_gradients_needs_gradients(path):
    assert reasons(path, "asvd", "gauss-newton")["left"] == (
        f"no gradients {ON_LEFT}: use --allocation uniform"
    )


def test_auto_lets_other_methods_stand_in(path):
    """Where there are no gradients; at uniform ranks, as damages are in another unit there."""
    plan = planned(path, "auto")
    sites = {site.weight.split("_")[0]: site for site in plan.sites}
    for name, method, where in (("left", "asvd", ON_LEFT), ("nested", "svd", NESTED)):
        site = sites[name]
        assert site.decision == "factor"
        assert site.method == MethodSpec(name=method)
        assert site.rank == 6  # half of 24·24 / (24 + 24)
        reason = f"50% of parameters, uniform; {method}, as there are no gradients {where}"
        assert site.reason == reason
    assert {site.method.name for site in plan.factored} == {"gauss-newton", "asvd", "svd"}
    assert plan.parameters_after <= 0.5 * plan.parameters_before


def test_auto_by_sensitivity_gives_uniform_ranks_where_there_is_none(path):
    sites = {s.weight.split("_")[0]: s for s in planned(path, "auto", "sensitivity").sites}
    reason = "50% of parameters, uniform; asvd, as there are no gradients"
    assert sites["left"].reason == f"{reason} {ON_LEFT}"
    assert sites["stacked"].method == MethodSpec(name="gauss-newton")
