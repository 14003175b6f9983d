"""Neurons that others can stand in for go, in every spelling, and the outputs stay."""

from __future__ import annotations

import ffn_forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ffn_forms import SPELLINGS, H, N
from graphs import assert_parity, canonical, operators, parameters, parity, statistics

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.neurons import Folded, fold, order_neurons
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.neurons import NeuronsPass
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites


def folded(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], neurons: int) -> dict[str, Folded]:
    stats = statistics(proto, feeds)
    ffns = find_ffns(find_sites(canonical(proto)).sites).ffns
    chosen = {}
    for ffn in ffns:
        weight, known = ffn.down.weight.array(), stats[ffn.name]
        chosen[ffn.name] = fold(weight, known, order_neurons(weight, known).kept(neurons))
    return chosen


def thinned(proto: onnx.ModelProto, chosen: dict[str, Folded]) -> onnx.ModelProto:
    work = canonical(proto)
    NeuronsPass(chosen)(work)
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result


@pytest.mark.parametrize("name", SPELLINGS)
class TestEverySpelling:
    def test_doubled_neurons_go_without_a_trace(self, name: str) -> None:
        before, feeds = ffn_forms.build(name), ffn_forms.feeds(name)
        after = thinned(before, folded(before, ffn_forms.feeds(name, 400, seed=2), H // 2))
        assert_parity(before, after, feeds, tolerance=5e-3)
        assert parameters(after) < 0.6 * parameters(before) + N + 10

    def test_all_neurons_are_the_same_network(self, name: str) -> None:
        before, feeds = ffn_forms.build(name), ffn_forms.feeds(name)
        after = thinned(before, folded(before, ffn_forms.feeds(name, 400, seed=2), H))
        assert_parity(before, after, feeds, tolerance=1e-4)

    def test_too_few_neurons_are_another_one(self, name: str) -> None:
        before, feeds = ffn_forms.build(name), ffn_forms.feeds(name)
        after = thinned(before, folded(before, ffn_forms.feeds(name, 400, seed=2), 1))
        assert parity(before, after, feeds) > 0.05


def test_no_node_is_added_where_there_are_biases() -> None:
    before = ffn_forms.build("erf")
    after = thinned(before, folded(before, ffn_forms.feeds("erf"), 8))
    assert operators(after) == operators(before)


def test_another_models_neurons_are_refused_before_anything_changes() -> None:
    proto = ffn_forms.build("relu")
    work = canonical(proto)
    before = ir.to_proto(work).SerializeToString()
    (name,) = folded(proto, ffn_forms.feeds("relu"), 4)
    for chosen, message in (
        ({"nobody": Folded(np.arange(2), np.zeros((2, N)), np.zeros(N))}, "nobody"),
        ({name: Folded(np.array([0, H]), np.zeros((2, N)), np.zeros(N))}, "another model's"),
        ({name: Folded(np.arange(2), np.full((2, N), 1e300), np.zeros(N))}, "do not fit"),
    ):
        with pytest.raises((RequestError, ir.passes.PassError)) as caught:
            NeuronsPass(chosen)(work)
        assert message in str(caught.value.__cause__ or caught.value)
    assert ir.to_proto(work).SerializeToString() == before
