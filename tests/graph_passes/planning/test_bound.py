"""The error of a whole plan beside its bounds: allocation bound <= bound <= reached."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from graphs import canonical, compress, model, statistics, weights
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from compress_onnx.graph_passes.allocation import Candidate
from compress_onnx.graph_passes.allocation.least_damage import least_possible
from compress_onnx.graph_passes.planning.bound import PlanErrors
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.factoring import factor_weights
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.graph_passes.sites.find import find_sites

THREE = """g (float[N,12] x) => (float[N,9] y) {
    a = MatMul(x, one)
    b = Relu(a)
    c = MatMul(b, two)
    d = Relu(c)
    y = MatMul(d, three)
}"""
SHAPES = {"one": (12, 16), "two": (16, 10), "three": (10, 9)}


def three_layers(seed: int = 0):
    """A model of three sites of different scales, and its inputs."""
    named = weights(seed, **SHAPES)
    named["two"] *= np.float32(3)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 12)) * np.linspace(0.1, 2, 12) + 0.3
    return model(THREE, named), {"x": x.astype(np.float32)}


def request(method: str = "asvd", **changes) -> CompressionSpec:
    values = {"method": MethodSpec(name=method), "params": 0.5, "rank_multiple": 1}
    return CompressionSpec(**values | changes)


def relative(part, whole):
    return float(np.sqrt(sum(np.sum(np.square(p)) for p in part) / sum(map(energy, whole))))


def energy(y):
    return np.sum(np.square(y - y.mean(axis=0)))


def site_outputs(named, x):
    """The inputs of each site in the original model."""
    a = x @ named["one"]
    c = np.maximum(a, 0) @ named["two"]
    return [x, np.maximum(a, 0), np.maximum(c, 0)]


@given(st.integers(0, 10_000), st.sampled_from(["svd", "asvd-diagonal", "asvd"]))
def test_bounds_are_in_order_whatever_the_method(seed, method):
    proto, feeds = three_layers(seed)
    found = compress(proto, request(method), statistics(proto, feeds))[1].error
    assert found.metric == "activation"
    assert (found.weights, found.left_out) == (3, 0)
    assert 0 < found.allocation_bound <= found.bound + 1e-9
    assert found.bound <= found.reached + 1e-6
    assert found.reached < 1.5


@pytest.mark.parametrize("method", ["asvd", "svd"])
def test_the_exact_method_reaches_the_bound_and_others_do_not(method):
    proto, feeds = three_layers()
    found = compress(proto, request(method), statistics(proto, feeds))[1].error
    if method == "asvd":
        assert found.reached == pytest.approx(found.bound, rel=1e-5)
    else:
        assert found.reached > 1.05 * found.bound


def test_reached_is_the_error_of_all_site_outputs_together():
    proto, feeds = three_layers()
    _, plan = compress(proto, request("svd"), statistics(proto, feeds))
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    lost, whole = [], []
    for site, x in zip(plan.sites, site_outputs(named, feeds["x"]), strict=True):
        w = named[site.weight].astype(np.float64)
        left, values, right = np.linalg.svd(w, full_matrices=False)
        kept = (left[:, : site.rank] * values[: site.rank]) @ right[: site.rank]
        centred = x - x.mean(axis=0)
        lost.append(centred @ (w - kept))
        whole.append(centred @ w)
    assert plan.error.reached == pytest.approx(relative(lost, whole), rel=1e-4)


def test_a_damaged_factorization_exceeds_the_bound():
    proto, feeds = three_layers()
    stats = statistics(proto, feeds)
    table = find_sites(canonical(proto))
    plan = make_plan(table, request(), stats)
    exact, damaged = (PlanErrors(table, plan, Decompositions(stats)) for _ in range(2))
    ready = {}
    for factored in factor_weights(table, plan, Decompositions(stats)):
        exact.add(factored)
        (term,) = factored.factorization.terms
        worse = replace(term, up=term.up + np.float32(0.05))
        ready[factored.plan.weight] = replace(factored.factorization, terms=(worse,))
    for factored in factor_weights(table, plan, Decompositions(stats), ready):
        damaged.add(factored)
    one, other = exact.result().error, damaged.result().error
    assert other.bound == pytest.approx(one.bound)
    assert other.reached > 1.02 * other.bound
    assert one.reached < 1.0001 * one.bound


def test_no_allocation_of_the_same_parameters_is_below_its_bound():
    proto, feeds = three_layers()
    stats = statistics(proto, feeds)
    plan = compress(proto, request(), stats)[1]
    table = find_sites(canonical(proto))
    menus = []
    for site in table.sites:
        k, n = site.weight.shape
        menus.append([r for r in range(1, min(k, n) + 1) if r * (k + n) < k * n] + [None])
    reached = []
    for ranks in product(*menus):
        cost = sum(
            s.parameters_before if r is None else r * (s.in_features + s.out_features)
            for s, r in zip(plan.sites, ranks, strict=True)
        )
        if cost > plan.parameters_after:
            continue
        sites = tuple(
            s.model_copy(
                update={"rank": r, "parameters_after": 0, "decision": "factor" if r else "dense"}
            )
            for s, r in zip(plan.sites, ranks, strict=True)
        )
        errors = PlanErrors(table, plan.model_copy(update={"sites": sites}), Decompositions(stats))
        for factored in factor_weights(
            table, plan.model_copy(update={"sites": sites}), Decompositions(stats)
        ):
            errors.add(factored)
        reached.append(errors.result().error.reached)
    assert len(reached) > 20
    assert plan.error.allocation_bound <= min(reached) + 1e-6
    assert plan.error.allocation_bound > 0.8 * min(reached)  # it is no trivial bound
    assert min(reached) < plan.error.reached


@given(st.integers(0, 10_000), st.floats(0.3, 1.0))
def test_the_relaxation_is_below_every_choice(seed, share):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(3):
        k, n = (int(size) for size in rng.integers(5, 11, 2))
        spectrum = np.sort(rng.gamma(0.3, 1.0, min(k, n)))[::-1]
        tail = np.concatenate([np.cumsum(spectrum[::-1])[::-1], [0.0]])
        found.append(Candidate(str(i), k, n, damage=tail))
    budget = max(int(share * sum(c.dense for c in found)), sum(c.cost for c in found))
    menus = [[*range(1, c.max_rank + 1), None] for c in found]
    best = min(
        sum(0.0 if r is None else c.damage[r] for c, r in zip(found, ranks, strict=True))
        for ranks in product(*menus)
        if sum(c.dense if r is None else r * c.cost for c, r in zip(found, ranks, strict=True))
        <= budget
    )
    assert -1e-12 <= least_possible(found, budget) <= best + 1e-9


def test_without_calibration_the_bound_is_about_the_weights():
    proto, _ = three_layers()
    found = compress(proto, request("svd"))[1].error
    assert found.metric == "weight"
    assert found.reached == pytest.approx(found.bound, rel=1e-5)
    assert found.allocation_bound <= found.bound


def test_weights_that_stay_dense_have_no_error_but_count():
    proto, feeds = three_layers()
    stats = statistics(proto, feeds)
    everything = compress(proto, request(), stats)[1]
    sites = tuple(
        site.model_copy(
            update={"decision": "dense", "rank": None, "parameters_after": site.parameters_before}
        )
        if site.weight == "two"
        else site
        for site in everything.sites
    )
    edited = everything.model_copy(update={"sites": sites})
    found = compress(proto, stats=stats, plan=edited)[1].error
    assert found.weights == 3
    assert found.bound < everything.error.bound
    assert found.allocation_bound < everything.error.allocation_bound


def test_what_is_not_selected_or_not_finite_is_not_bounded():
    proto, feeds = three_layers()
    stats = statistics(proto, feeds)
    names = [site.name for site in find_sites(canonical(proto)).sites]
    chosen = Selection(exclude=(names[1],))
    assert compress(proto, request(select=chosen), stats)[1].error.weights == 2
    named = weights(0, **SHAPES)
    named["two"][0, 0] = np.nan
    broken = compress(model(THREE, named), request("svd"))[1].error
    assert (broken.weights, broken.left_out) == (2, 1)
    assert np.isfinite(broken.reached)


def test_metrics_are_not_mixed():
    proto, feeds = three_layers()
    stats = statistics(proto, feeds)
    some = dict(list(stats.items())[:2])
    found = compress(proto, request("svd"), some)[1].error
    assert (found.metric, found.weights, found.left_out) == ("activation", 2, 1)
