"""The search for the smallest model within a drop, on an experiment whose drops are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.planning.request import CompressionSpec
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
    """Drops fall linearly with the share; from ``dense_from`` on nothing can be compressed."""

    def __init__(self, dense_from: float = 1.1, validates: bool = True) -> None:
        self._dense_from = dense_from
        self._validates = validates
        self._share = 0.0
        self.tried: list[float] = []

    @property
    def held_out(self) -> Samples | None:
        rows = {"x": np.zeros((10, 2))}
        return Samples(rows, origin="known rows") if self._validates else None

    def compress(self, request: CompressionSpec, candidate: Path) -> SimpleNamespace:
        assert request.rank is None
        assert candidate.parent.is_dir()
        self._share = request.share
        self.tried.append(request.share)
        if request.share >= self._dense_from:
            raise NothingToCompressError("all stay dense")
        return SimpleNamespace(parameters_after=int(1000 * request.share))

    def validate(self, candidate: Path) -> ValidationReport:
        assert candidate.parent.is_dir()
        drop = 1 - self._share
        metrics = {"accuracy_drop": drop, "accuracy_drop_low": drop - 0.1}
        return report({**metrics, "accuracy_drop_high": drop + 0.1})


@pytest.mark.parametrize("max_drop", [0.02, 0.1, 0.3, 0.5, 0.77, 0.97])
def test_it_finds_the_smallest_share_within_the_drop(tmp_path, max_drop):
    experiment = Known()

    request, search = smallest_within(experiment, REQUEST, max_drop, tmp_path)

    assert request.params == search.found.share
    assert request.method == REQUEST.method
    assert 1 - search.found.share <= max_drop
    assert search.found.share - 2**-STEPS < 1 - max_drop
    assert len(experiment.tried) == STEPS
    assert search.found.parameters_after == int(1000 * search.found.share)


def test_it_says_how_sure_it_is(tmp_path):
    _, search = smallest_within(Known(), REQUEST, 0.5, tmp_path)

    assert search.measured_on == "10 samples of known rows"
    assert "not sure" in search.answer
    assert not search.sure  # the drop is 0.5 or a little less, its interval reaches beyond
    loose = search.model_copy(update={"max_drop": search.found.drop.high})
    assert loose.sure
    assert "not sure" not in loose.answer


def test_a_share_that_leaves_all_dense_is_no_answer(tmp_path):
    _, search = smallest_within(Known(dense_from=0.5), REQUEST, 0.7, tmp_path)

    assert 0.3 <= search.found.share < 0.3 + 2**-STEPS
    first = search.steps[0]
    assert (first.share, first.problem, first.within) == (0.5, "all stay dense", False)


@pytest.mark.parametrize("budget", ["bytes", "flops", "latency"])
def test_it_searches_the_budget_that_was_asked_for(tmp_path, budget):
    asked = CompressionSpec.model_validate({"method": {"name": "svd"}, budget: 0.9})

    request, search = smallest_within(Known(), asked, 0.3, tmp_path)

    assert (request.budget, request.share) == (budget, search.found.share)
    assert request.params is None


def test_nothing_within_the_drop_is_said(tmp_path):
    with pytest.raises(NothingToCompressError, match="no share up to 98%"):
        smallest_within(Known(), REQUEST, 0.001, tmp_path)


def test_without_validation_data_there_is_no_drop(tmp_path):
    with pytest.raises(RequestError, match="validation"):
        smallest_within(Known(validates=False), REQUEST, 0.1, tmp_path)


def test_the_drop_of_each_kind_of_metric():
    cosine = {"cosine": 0.9, "cosine_low": 0.88, "cosine_high": 0.92}
    drop = drop_of(report(cosine))
    assert (drop.quantity, drop.value) == ("1 - cosine", pytest.approx(0.1))
    assert (drop.low, drop.high) == (pytest.approx(0.08), pytest.approx(0.12))
    drop = drop_of(report({}))
    assert (drop.quantity, drop.value, drop.low, drop.high) == ("relative_l2", 0.25, 0.2, 0.3)
