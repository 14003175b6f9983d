"""Measuring on several providers: named ones must work, `auto` says what does not."""

from __future__ import annotations

import pytest

from compress_onnx.graph_passes.errors import ProviderError
from compress_onnx.pipeline.measure.providers import measure_on
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS

OTHERS = [provider for provider in EXECUTION_PROVIDERS if provider != "cpu"]


def only_cpu(provider):
    if provider != "cpu":
        raise ProviderError(f"no {provider} here")
    return f"on {provider}"


@pytest.mark.parametrize("requested", [["cpu"], ["cpu", "cpu"]])
def test_once_on_each_that_is_named(requested):
    assert measure_on(requested, only_cpu) == (("on cpu",), {})


@pytest.mark.parametrize("requested", [["auto"], ["cpu", "auto"]])
def test_auto_explains_what_does_not_work(requested):
    measured, unmeasured = measure_on(requested, only_cpu)
    assert measured == ("on cpu",)
    assert unmeasured == {provider: f"no {provider} here" for provider in OTHERS}


@pytest.mark.parametrize("requested", [["cuda"], ["cpu", "cuda"], ["auto", "cuda"]])
def test_what_is_named_must_work(requested):
    with pytest.raises(ProviderError, match="no cuda here"):
        measure_on(requested, only_cpu)


def test_the_order_is_that_of_the_request():
    assert measure_on(["cuda", "cpu"], str) == (("cuda", "cpu"), {})
    assert measure_on(["cuda", "auto"], str)[0][:2] == ("cuda", "cpu")
