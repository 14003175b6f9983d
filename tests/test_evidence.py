"""Sites where calibration cannot look: what needs evidence leaves them, and says which and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from graphs import model, weights

from graph_passes.plan import MethodSpec
from graph_passes.request import CompressionSpec
from pipeline.compress import open_subject, write_compressed
from pipeline.data.samples import Samples
from pipeline.session import open_session
from pipeline.study import Researcher, plan_study

STACKED = "for each matrix of a stack"
NESTED = "inside an If, Loop or Scan"
ON_LEFT = "for a weight on the left of its input"

GRAPH = """g (float[N,3,24,24] x) => (float[N,3,24,24] y) {
    plain = MatMul(x, plain_weight)
    stacked = MatMul(plain, stacked_weight)
    left = MatMul(left_weight, stacked)
    flag = Constant<value = bool {1}>()
    y = If (flag) <
        then_branch = yes () => (float[N,3,24,24] a) { a = MatMul(left, nested_weight) },
        else_branch = no () => (float[N,3,24,24] b) { b = Relu(left) }
    >
}"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    square = (24, 24)
    arrays = weights(
        plain_weight=square, stacked_weight=(3, 24, 24), left_weight=square, nested_weight=square
    )
    proto = onnx.shape_inference.infer_shapes(model(GRAPH, arrays))
    return small.save(proto, tmp_path / "model.onnx")


def reasons(path: Path, method: str, allocation: str = "auto") -> dict[str, str]:
    """By site, why it stays dense, "" where it is factored; the result loads."""
    x = np.random.default_rng(0).standard_normal((20, 3, 24, 24)).astype(np.float32)
    subject = open_subject(path)
    researcher = Researcher(subject, Samples({"x": x}))
    request = CompressionSpec(
        method=MethodSpec(name=method), allocation=allocation, params=0.5, rank_multiple=1
    )
    study = researcher.study(request)
    plan = plan_study(subject, study)
    ready = researcher.factor(plan, study)
    small_path = path.with_name("small.onnx")
    plan = write_compressed(subject, plan, study.calibration, small_path, ready=ready)
    open_session(small_path)
    return {
        site.weight.split("_")[0]: "" if site.decision == "factor" else site.reason
        for site in plan.sites
    }


@pytest.mark.parametrize("allocation", ["uniform", "energy"])
def test_svd_needs_no_evidence(path, allocation):
    found = reasons(path, "svd", allocation)
    assert found.keys() == {"plain", "stacked", "left", "nested"}
    assert not any("no " in reason for reason in found.values())


def test_asvd_needs_activations(path):
    assert reasons(path, "asvd") == {
        "plain": "",
        "stacked": f"no activation statistics {STACKED}: use --method svd",
        "left": "",
        "nested": f"no activation statistics {NESTED}: use --method svd",
    }


def test_allocation_by_sensitivity_needs_a_measurement(path):
    remedy = "use --allocation uniform"
    assert reasons(path, "svd", "sensitivity") == {
        "plain": "",
        "stacked": f"no measured sensitivity {STACKED}: {remedy}",
        "left": f"no measured sensitivity {ON_LEFT}: {remedy}",
        "nested": f"no measured sensitivity {NESTED}: {remedy}",
    }
    assert reasons(path, "asvd", "sensitivity")["left"] == (
        f"no measured sensitivity {ON_LEFT}: {remedy}"
    )


def test_gauss_newton_needs_gradients(path):
    assert reasons(path, "gauss-newton") == {
        "plain": "",
        "stacked": f"no gradients {STACKED}: use --method svd",
        "left": f"no gradients {ON_LEFT}: use --method svd",
        "nested": f"no gradients {NESTED}: use --method svd",
    }


def test_allocation_by_gradients_needs_gradients(path):
    assert reasons(path, "asvd", "gauss-newton")["left"] == (
        f"no gradients {ON_LEFT}: use --allocation uniform"
    )
