"""The search for the smallest model within a drop, on an experiment whose drops are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress import search as search_module
from compress_onnx.pipeline.compress.search import STEPS, drop_of, smallest_within
from compress_onnx.pipeline.results import OutputComparison, ValidationReport
from compress_onnx.pipeline.runtime.samples import Samples

REQUEST = CompressionSpec(method={"name": "svd"}, rank=3)
OUTPUT = OutputComparison(
    output="y",
    elements=1,
    max_abs=0.0,
    relative_l2=0.25,
    relative_l2_low=0.2,
    relative_l2_high=0.3,
    cosine=1.0,
    snr_db=None,
)


def report(metrics: dict[str, float]) -> ValidationReport:
    return ValidationReport(samples=10, origin="known", outputs=(OUTPUT,), metrics=metrics)


class Known:
    """A model whose drops fall linearly with the share, whatever the samples.

    From ``dense_from`` on nothing can be compressed.
    """

    def __init__(self, dense_from: float = 1.1) -> None:
        self._dense_from = dense_from
        self.tried: list[float] = []
        self.measured: list[tuple[float, Samples]] = []

    def compress(self, request: CompressionSpec) -> SimpleNamespace:
        assert request.rank is None
        self.tried.append(request.share)
        if request.share >= self._dense_from:
            raise NothingToCompressError("all stay dense")
        plan = SimpleNamespace(parameters_after=int(1000 * request.share))
        return SimpleNamespace(plan=plan, request=request)

    def measure(self, compressed: SimpleNamespace, samples: Samples) -> ValidationReport:
        share = compressed.request.share
        self.measured.append((share, samples))
        drop = 1 - share
        metrics = {"accuracy_drop": drop, "accuracy_drop_low": drop - 0.1}
        metrics["accuracy_drop_high"] = drop + 0.1
        return ValidationReport(
            samples=len(samples), origin=samples.origin, outputs=(OUTPUT,), metrics=metrics
        )


@pytest.fixture
def find(monkeypatch):
    """Searches on 10 known rows; returns the request that was found and the report."""

    def found(known: Known, request: CompressionSpec, max_drop: float):
        monkeypatch.setattr(
            search_module, "measured", lambda _, made, samples, __: known.measure(made, samples)
        )
        rows = Samples({"x": np.arange(20.0).reshape(10, 2)}, origin="known rows")
        result = smallest_within(known, request, max_drop, rows)
        return result.compressed.request, result.report

    return found


@pytest.mark.parametrize("max_drop", [0.02, 0.1, 0.3, 0.5, 0.77, 0.97])
def test_it_finds_the_smallest_share_within_the_drop(find, max_drop):
    experiment = Known()

    request, search = find(experiment, REQUEST, max_drop)

    assert request.params == search.found.share
    assert request.method == REQUEST.method
    assert 1 - search.found.share <= max_drop
    assert search.found.share - 2**-STEPS < 1 - max_drop
    assert len(experiment.tried) == STEPS
    assert search.found.parameters_after == int(1000 * search.found.share)


def test_it_says_how_sure_it_is(find):
    _, search = find(Known(), REQUEST, 0.5)

    assert search.measured_on == "5 samples of known rows, the half that chose the share"
    assert search.reported_on == "5 samples of known rows, the half that chose nothing"
    assert "not sure" in search.answer
    assert not search.sure  # the drop is 0.5 or a little less, its interval reaches beyond
    loose = search.model_copy(update={"max_drop": search.reported.high})
    assert loose.sure
    assert "not sure" not in loose.answer


def test_a_share_that_leaves_all_dense_is_no_answer(find):
    _, search = find(Known(dense_from=0.5), REQUEST, 0.7)

    assert 0.3 <= search.found.share < 0.3 + 2**-STEPS
    first = search.steps[0]
    assert (first.share, first.problem, first.within) == (0.5, "all stay dense", False)


@pytest.mark.parametrize("budget", ["bytes", "flops", "latency"])
def test_it_searches_the_budget_that_was_asked_for(find, budget):
    asked = CompressionSpec.model_validate({"method": {"name": "svd"}, budget: 0.9})

    request, search = find(Known(), asked, 0.3)

    assert (request.budget, request.share) == (budget, search.found.share)
    assert request.params is None


def test_nothing_within_the_drop_is_said(find):
    with pytest.raises(NothingToCompressError, match="no share up to 98%"):
        find(Known(), REQUEST, 0.001)


def test_what_chooses_never_reports(find):
    known = Known()

    _, search = find(known, REQUEST, 0.3)

    *chosen_on, (share, reported_on) = known.measured
    assert share == search.found.share
    assert search.reported.value == pytest.approx(1 - share)
    reported = {float(row[0]) for row in reported_on.inputs["x"]}
    for _, samples in chosen_on:
        assert not reported & {float(row[0]) for row in samples.inputs["x"]}


def test_the_drop_of_each_kind_of_metric():
    cosine = {"cosine": 0.9, "cosine_low": 0.88, "cosine_high": 0.92}
    drop = drop_of(report(cosine))
    assert (drop.quantity, drop.value) == ("1 - cosine", pytest.approx(0.1))
    assert (drop.low, drop.high) == (pytest.approx(0.08), pytest.approx(0.12))
    retrieval = {"ndcg": 0.5, "ndcg_drop": 0.1, "ndcg_drop_low": 0.05, "ndcg_drop_high": 0.2}
    drop = drop_of(report(retrieval))
    assert (drop.quantity, drop.value, drop.low, drop.high) == ("ndcg_drop", 0.1, 0.05, 0.2)
    drop = drop_of(report({}))
    assert (drop.quantity, drop.value, drop.low, drop.high) == ("relative_l2", 0.25, 0.2, 0.3)
