"""Inputs are tried until the model runs."""

from __future__ import annotations

from collections.abc import Iterator

from compress_onnx.graph_passes.errors import DataError, ModelFileError, ProviderError
from compress_onnx.pipeline.measure.latency import first_that_runs


def failing(problem: Exception):
    def action(_inputs):
        raise problem

    return action


def test_the_first_inputs_that_run_count() -> None:
    def action(inputs):
        if len(inputs) < 2:
            raise ModelFileError("too few")
        return sorted(inputs)

    assert first_that_runs([{}, {"b": 1, "a": 2}, {"c": 3}], action) == (
        {"b": 1, "a": 2},
        ["a", "b"],
    )


def test_why_none_ran_is_said_of_the_first() -> None:
    assert first_that_runs([{}, {}], failing(DataError("wrong axes"))) == "wrong axes"


def test_inputs_that_cannot_be_made_up_are_the_reason() -> None:
    def feeds() -> Iterator[dict]:
        raise DataError("cannot make up data")
        yield {}

    assert first_that_runs(feeds(), failing(AssertionError())) == "cannot make up data"


def test_a_missing_provider_is_not_tried_again() -> None:
    tried = []

    def action(inputs):
        tried.append(inputs)
        raise ProviderError("no such provider")

    assert first_that_runs([{}, {}], action) == "no such provider"
    assert len(tried) == 1
