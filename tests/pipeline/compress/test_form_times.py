"""What takes time has to be worth it: one multiplier decides, by what was timed."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from graphs import operators
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import unmark_factors
from compress_onnx.pipeline.compress.form_times import FormTimes, Speed, measure_form_times
from compress_onnx.pipeline.compress.forms import Forms
from compress_onnx.pipeline.compress.integers import Thresholds, prepare_integers
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.moments import output_moments
from compress_onnx.pipeline.compress.number_forms import OBJECTIVE
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.recipe import OptimizeSpec

FEATURES, HIDDEN, OUTPUTS = 32, 128, 48
PARAMETERS = FEATURES * HIDDEN + HIDDEN * OUTPUTS


@pytest.fixture
def path(tmp_path):
    return saved(tmp_path, two_layers((FEATURES, HIDDEN, OUTPUTS))[0])


@pytest.fixture
def far():
    """One input reaches far: a division saves much."""
    found = samples(FEATURES, 150)
    found.inputs["x"][..., 3] *= 60
    return found


@pytest.fixture
def learned(path, far):
    return learn(path, far)


def gradients_of(learned):
    basis = learned.basis(CompressionSpec(sequential=False, objective=OBJECTIVE))
    assert basis.gradients is not None
    return basis.gradients.stats


def moments_of(learned):
    compressed = Forms(learned, OptimizeSpec())._whole()
    return output_moments(learned.original, compressed, gradients_of(learned))


def sure(speeds):
    return {name: Speed(value, value, value) for name, value in speeds.items()}


def test_each_part_is_counted_in_parameters(path):
    built = {}

    def speedups(makes):
        assert next(iter(makes)) == "plain"
        built.update({name: make() for name, make in makes.items()})
        return sure(
            {"plain": 1, "fewer": 1 / 0.75, "divided": 1 / 1.1, "branches": 0.8, "floats": 0.5}
        )

    found = measure_form_times(open_original(path), speedups)
    parameter = 0.25 / (PARAMETERS // 2)  # half of the neurons take a quarter of the time
    assert found.division == pytest.approx(0.1 / parameter)
    assert found.branch == pytest.approx(0.25 / parameter)
    assert found.float_parameter == pytest.approx(1 / PARAMETERS / parameter)
    assert "a division takes at least as long as 2,048 parameters" in str(found)
    counts = {name: operators(ir.to_proto(model)) for name, model in built.items()}
    assert counts["floats"].count("MatMulIntegerToFloat") == 0
    assert all(counts[n].count("MatMulIntegerToFloat") == 2 for n in counts.keys() - {"floats"})
    assert counts["divided"].count("Mul") == counts["plain"].count("Mul") + 1
    assert sum("MatMul" in o or o == "Gemm" for o in counts["branches"]) == 4
    fewer = [tuple(v.shape) for v in built["fewer"].graph.initializers.values()]
    assert (FEATURES, HIDDEN // 2) in fewer


def test_a_parameter_takes_something_even_where_the_clock_says_nothing(path):
    flat = sure(dict.fromkeys(["plain", "fewer", "divided", "branches", "floats"], 1.0))
    found = measure_form_times(open_original(path), lambda _: flat)
    assert found == FormTimes(0, 0, math.inf)
    assert "float" not in str(found)
    noisy = flat | sure({"fewer": 0.9, "divided": 0.5})
    found = measure_form_times(open_original(path), lambda _: noisy)
    assert 0 < found.division < math.inf


def test_where_the_clock_is_not_sure_parts_are_cheap(path):
    values = {"plain": 1, "fewer": 1.5, "divided": 0.9, "branches": 0.9, "floats": 0.5}
    exact = measure_form_times(open_original(path), lambda _: sure(values))
    wide = {name: Speed(value, 0.9 * value, 1.05 * value) for name, value in values.items()}
    unsure = measure_form_times(open_original(path), lambda _: wide)
    assert 0 < unsure.division < exact.division
    assert 0 < unsure.branch < exact.branch
    assert exact.float_parameter < unsure.float_parameter < math.inf
    hidden = {name: Speed(value, 0.5 * value, 2 * value) for name, value in values.items()}
    unknown = measure_form_times(open_original(path), lambda _: hidden)
    assert (unknown.division, unknown.branch) == (0, 0)
    faster = measure_form_times(open_original(path), lambda _: sure(values | {"floats": 1.1}))
    assert faster.float_parameter == math.inf


def test_without_networks_nothing_is_timed(tmp_path):
    proto, _ = two_layers((8, 8, 8))
    original = open_original(saved(tmp_path, proto))
    assert measure_form_times(original, lambda _: pytest.fail("timed")) is None


def test_a_division_has_to_save_its_threshold(learned):
    moments = moments_of(learned)

    def prepared(**thresholds):
        return prepare_integers(
            learned.original, learned.samples, moments=moments, thresholds=Thresholds(**thresholds)
        )

    free, dear = prepared(), prepared(division=1e30)
    assert len(free.smoothed) == 1
    assert dear.smoothed == ()
    saved_damage = sum(dear.damage.values()) - sum(free.damage.values())
    assert saved_damage > 0
    assert prepared(division=0.99 * saved_damage).smoothed == free.smoothed
    assert prepared(division=1.01 * saved_damage).smoothed == ()


def test_a_layer_that_loses_too_much_stays_in_float(learned):
    moments = moments_of(learned)
    whole = prepare_integers(learned.original, learned.samples, moments=moments)
    densest = max(whole.damage, key=lambda n: whole.damage[n] / size_of(learned, n))
    least = whole.damage[densest] / size_of(learned, densest)
    thresholds = Thresholds(division=1e30, branch=1e30, float_parameter=0.99 * least)
    found = prepare_integers(
        learned.original, learned.samples, moments=moments, thresholds=thresholds, smoothing=False
    )
    assert densest in found.floats
    assert densest not in found.scales
    layers = {layer.layer: layer for layer in found.rounded().layers}
    assert layers[densest].numbers == "float32"
    assert layers[densest].damage is None
    assert layers[densest].weight_bytes == 4 * size_of(learned, densest)


def test_some_layers_multiply_integers_also_where_time_is_worth_nothing(learned):
    thresholds = FormTimes(1e5, 1e5, 2.0).thresholds(0.0)
    found = prepare_integers(
        learned.original, learned.samples, moments=moments_of(learned), thresholds=thresholds
    )
    assert 0 < len(found.scales) < len(learned.original.table.sites)
    assert FormTimes(0, 0, math.inf).thresholds(0.0).float_parameter == math.inf


def size_of(learned, name):
    site = next(site for site in learned.original.table.sites if site.name == name)
    return site.in_features * site.out_features


def test_without_moments_thresholds_do_not_count(learned):
    dear = Thresholds(division=1e30)
    found = prepare_integers(learned.original, learned.samples, thresholds=dear)
    assert len(found.smoothed) == 1


def test_moments_of_a_chain_are_those_behind_each_factor(learned):
    """For any change of a factor, the damage in its moment is that of the product in G."""
    request = CompressionSpec(
        method=MethodSpec(name="gauss-newton"), params=0.5, sequential=False, ffns="factor"
    )
    compressed = learned.compress(request)
    model, gradients = compressed.model, gradients_of(learned)
    unmark_factors(model)
    moments = output_moments(model, compressed, gradients)
    rng = np.random.default_rng(0)
    sites = {str(site.node.name): site for site in find_sites(model).sites}
    chains = 0
    for site in learned.original.table.sites:
        down = sites.get(f"{site.node.name}.lowrank.down")
        if down is None:
            continue
        chains += 1
        up, exact = sites[f"{site.node.name}.lowrank.up"], gradients[site.name].moment
        np.testing.assert_array_equal(moments[str(up.node.name)], exact)
        change = rng.standard_normal(down.weight.shape)  # of the down factor
        whole = change @ up.weight.array()
        wanted = np.trace(whole @ exact @ whole.T)
        assert np.trace(change @ moments[str(down.node.name)] @ change.T) == pytest.approx(wanted)
    assert chains == len(compressed.plan.factored) > 0


def test_the_plan_tells_of_every_layer(learned, tmp_path):
    timed = []

    def speedups(makes):
        timed.append(list(makes))
        return sure({"plain": 1, "fewer": 1.3, "divided": 0.9, "branches": 0.9, "floats": 0.5})

    families = {f.name: f for f in Forms(learned, OptimizeSpec(), speedups=speedups).families()}
    whole = families["neurons, integers"].build(1.0, tmp_path / "whole.onnx")
    assert timed == []  # all of the weights are as close as integers get
    assert whole.plan.changed == ()
    assert {layer.numbers for layer in whole.plan.layers} == {"int8"}
    assert all(layer.damage >= 0 for layer in whole.plan.layers)
    fewer = families["neurons, integers"].build(0.5, tmp_path / "fewer.onnx")
    assert len(timed) == 1
    assert fewer.plan.multiplier > 0
    down = fewer.plan.thinned[0]
    assert down.damage > 0
    layers = {layer.node: layer for layer in fewer.plan.layers}
    assert layers[down.node].weight_bytes == OUTPUTS * down.neurons + 4 * OUTPUTS
    families["neurons and low rank, integers"].build(0.5, tmp_path / "both.onnx")
    assert len(timed) == 1


def test_for_size_nothing_has_to_be_worth_its_time(learned, tmp_path):
    forms = Forms(learned, OptimizeSpec(objective="size"), speedups=lambda _: pytest.fail("timed"))
    families = {f.name: f for f in forms.families()}
    found = families["neurons, integers"].build(0.5, tmp_path / "small.onnx")
    assert any("divided" in layer.reason for layer in found.plan.layers)
