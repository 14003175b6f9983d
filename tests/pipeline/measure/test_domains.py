"""Further validation sets: their quantities, and the worst of all by each figure's direction."""

from __future__ import annotations

import math

import pytest
from test_gates import SIZE, comparison

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.measure.domains import by_set, with_domains, worst
from compress_onnx.pipeline.measure.gates import (
    check_gates,
    check_quantities,
    measured_quantities,
    parse_gate,
)
from compress_onnx.pipeline.measure.quantities import metric_quantities, recipe_quantities
from compress_onnx.pipeline.recipe import AccuracyMetric, EmbeddingMetric, Gate, Recipe
from compress_onnx.pipeline.results import ValidationReport

NPZ = {"kind": "npz", "path": "data.npz"}
DOMAINS = {"packages": NPZ, "verses": NPZ}


def validated(cosine: float, relative_l2: float):
    return ValidationReport(
        samples=3,
        origin="test",
        outputs=(comparison("hidden", relative_l2),),
        metrics={"cosine": cosine},
    )


def recipe(**settings: object) -> Recipe:
    return Recipe.model_validate({"name": "r", "source": {"model": "model.onnx"}, **settings})


MAIN = validated(0.95, 0.1)
BOTH = with_domains(MAIN, {"packages": validated(0.7, 0.2), "verses": validated(0.9, 0.4)})


def test_the_worst_goes_by_the_direction_of_the_figure():
    quantities = measured_quantities(BOTH)
    assert [quantities[f"cosine{of}"] for of in ("", ".packages", ".verses")] == [0.95, 0.7, 0.9]
    assert quantities["cosine.worst"] == 0.7
    assert quantities["relative_l2.worst"] == quantities["relative_l2.verses"] == 0.4
    assert quantities["max_abs.worst"] == 0.8
    assert quantities["output.hidden.relative_l2.worst"] == 0.4
    assert quantities["output.hidden.cosine.worst"] == quantities["min_output_cosine.worst"] == 0.6


def test_the_main_set_may_be_the_worst():
    report = with_domains(MAIN, {"easy": validated(0.99, 0.01)})
    assert (report.worst["cosine"], report.worst["relative_l2"]) == (0.95, 0.1)


LESS_IS_BETTER = {"accuracy_drop", "accuracy_drop_low", "accuracy_drop_high"}


@pytest.mark.parametrize(
    "spec", [EmbeddingMetric(kind="embedding"), AccuracyMetric(kind="accuracy")]
)
def test_every_metric_has_its_direction(spec):
    for figure in metric_quantities(spec):
        assert worst(figure, [0.1, 0.3, 0.2]) == (0.3 if figure in LESS_IS_BETTER else 0.1)


@pytest.mark.parametrize("values", [[math.nan, 0.5], [0.5, math.nan]])
def test_nan_is_the_worst_and_no_gate_passes_on_it(values):
    main, domain = (validated(value, value) for value in values)
    quantities = measured_quantities(with_domains(main, {"packages": domain}))
    gates = [parse_gate("cosine.worst>=0"), parse_gate("relative_l2.worst<=1")]
    assert not any(gate.passed for gate in check_gates(gates, quantities))


def test_without_domains_nothing_is_the_worst():
    assert with_domains(MAIN, {}) == MAIN
    assert by_set(MAIN) == {}
    assert not any("worst" in name for name in measured_quantities(MAIN))


def test_the_table_has_a_column_a_set_and_the_worst():
    rows = by_set(BOTH)
    assert list(rows) == ["cosine", "max_abs", "relative_l2", "min_output_cosine"]
    assert rows["cosine"] == {"validation": 0.95, "packages": 0.7, "verses": 0.9, "worst": 0.7}


def test_what_one_set_alone_has_is_not_compared():
    more = MAIN.model_copy(update={"batch_invariance": 0.99})
    report = with_domains(more, {"packages": MAIN})
    assert measured_quantities(report)["batch_invariance"] == 0.99
    assert report.worst.keys() == BOTH.worst.keys()


def test_the_names_are_known_before_the_run():
    asked = recipe(
        validation=NPZ, domains=DOMAINS, metric={"kind": "embedding"}, benchmark={"provider": "cpu"}
    )
    known = set(recipe_quantities(asked, ["hidden"]))
    for place in (".packages", ".verses", ".worst"):
        assert {f"cosine{place}", f"relative_l2{place}", f"output.hidden.cosine{place}"} <= known
        assert f"batch_invariance{place}" not in known
        assert f"cosine.cpu{place}" not in known
    without = recipe_quantities(recipe(validation=NPZ, metric={"kind": "embedding"}))
    assert not any(name.endswith(".worst") for name in without)
    with pytest.raises(RequestError, match=r"did you mean 'cosine\.packages'"):
        check_quantities([Gate(quantity="cosine.package", min=0)], known)


def test_the_names_are_those_that_are_measured():
    asked = recipe(validation=NPZ, domains=DOMAINS, benchmark=None)
    bare = MAIN.model_copy(update={"metrics": {}})
    report = with_domains(bare, dict.fromkeys(DOMAINS, bare))
    never = {name for name in recipe_quantities(asked, ["hidden"]) if "batch_invariance" in name}
    assert set(recipe_quantities(asked, ["hidden"])) - never == set(
        measured_quantities(report, size=SIZE)
    )
