"""Layers that keep integers: ONNX Runtime computes what the decoded weights would."""

from __future__ import annotations

from collections import Counter

import ffn_forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ffn_forms import SPELLINGS
from forms import FORMS
from graph_collection import ARCHITECTURES, collection, load
from graphs import canonical, difference, model, sites_of, weights

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.factorization.weight_only import WeightOnly, round_weight_only
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.weight_only import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    WeightOnlyPass,
    why_not_weight_only,
)
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run


def kept(proto: onnx.ModelProto, bits: int = 4, rank: int = 0, **options) -> dict[str, WeightOnly]:
    """What stands for each weight that can be rounded."""
    return {
        key: round_weight_only(sites[0].weight.array(), None, bits, rank=rank, **options)
        for key, sites in group_by_weight(sites_of(proto).sites).items()
        if not any(why_not_weight_only(site) for site in sites)
    }


def rewritten(
    proto: onnx.ModelProto, found: dict[str, WeightOnly], level: int = FLOAT_PRODUCTS
) -> onnx.ModelProto:
    work = canonical(proto)
    assert WeightOnlyPass(found, level)(work).modified == bool(found)
    CleanupPass()(work)
    return ir.to_proto(work)


def decoded(proto: onnx.ModelProto, found: dict[str, WeightOnly]) -> onnx.ModelProto:
    """The same model with float weights, those that the integers and factors stand for."""
    work = canonical(proto)
    for key, sites in group_by_weight(find_sites(work).sites).items():
        if key in found:
            total = found[key].base.values().astype(np.float64)
            if found[key].residual is not None:
                total = total + found[key].residual.product()
            weight = sites[0].weight
            stored = (total.T if weight.transposed else total).astype(np.float32)
            name = weight.initializer.name
            weight.initializer.const_value = ir.tensor(np.ascontiguousarray(stored), name=name)
    return ir.to_proto(work)


def outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], optimization: str = "all"):
    return run(
        open_session(proto.SerializeToString(), SessionSpec(threads=1, optimization=optimization)),
        feeds,
    )


@pytest.mark.parametrize(("bits", "rank"), [(4, 0), (4, 2), (8, 0), (8, 2)])
@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"no rows"}))
def test_every_form_of_a_layer_takes_part_or_says_why(name: str, bits: int, rank: int) -> None:
    proto, feeds = FORMS[name].build(17, np.float32), FORMS[name].feeds()
    found = kept(proto, bits, rank)
    after = rewritten(proto, found)
    assert after.graph.output == proto.graph.output
    exact = outputs(decoded(proto, found), feeds)
    for optimization in ("all", "off"):
        assert difference(exact, outputs(after, feeds, optimization)) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", SPELLINGS)
def test_networks_are_near_to_what_they_were(name: str, bits: int) -> None:
    before, feeds = ffn_forms.build(name), ffn_forms.feeds(name)
    after = rewritten(before, kept(before, bits), INTEGER_PRODUCTS)
    error = difference(outputs(before, feeds), outputs(after, feeds))
    assert error < (0.3 if bits == 4 else 0.03)


def test_a_residual_of_full_rank_is_the_model_as_it_was() -> None:
    before, feeds = ffn_forms.build("erf"), ffn_forms.feeds("erf")
    after = rewritten(before, kept(before, rank=100, storage="same"))
    assert difference(outputs(before, feeds), outputs(after, feeds)) < 1e-5
    kinds = Counter(node.op_type for node in after.graph.node)
    assert kinds["MatMulNBits"] == 2
    assert kinds["MatMul"] == 4


def test_a_damaged_scale_is_seen() -> None:
    before, feeds = ffn_forms.build("relu"), ffn_forms.feeds("relu")
    found = kept(before)
    after = rewritten(before, found)
    scale = next(t for t in after.graph.initializer if ".scale" in t.name)
    damaged = onnx.numpy_helper.to_array(scale).copy()
    damaged[0] *= 1.5
    scale.CopyFrom(onnx.numpy_helper.from_array(damaged, scale.name))
    assert difference(outputs(decoded(before, found), feeds), outputs(after, feeds)) > 1e-3


def test_a_corrected_bias_keeps_the_mean_output() -> None:
    """With a bias, and without one to correct."""
    for name in ("bias last", "2-D bias", "Gemm", "Gemm without C", "MatMul", "Gemm C computed"):
        proto, feeds = FORMS[name].build(17, np.float32), FORMS[name].feeds()
        x = feeds["x"].astype(np.float64)
        stats = ActivationStats(len(x), x.mean(0), np.abs(x).mean(0), np.cov(x.T, bias=True))
        groups = group_by_weight(sites_of(proto).sites)
        found = {
            key: round_weight_only(sites[0].weight.array(), stats)
            for key, sites in groups.items()
            if not any(map(why_not_weight_only, sites))
        }
        before, after = (outputs(p, feeds)["y"] for p in (proto, rewritten(proto, found)))
        if found:
            np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-5)
            assert np.abs(after - before).max() > 1e-3
        else:
            assert name == "Gemm C computed"  # it scales by alpha


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    before, feeds = ffn_forms.build("erf"), ffn_forms.feeds("erf", count=16)
    feeds["x"][5] *= 8
    after = rewritten(before, kept(before, rank=2), INTEGER_PRODUCTS)
    whole = outputs(after, feeds)["y"]
    alone = [outputs(after, {"x": feeds["x"][i : i + 1]})["y"][0] for i in range(16)]
    np.testing.assert_allclose(np.stack(alone), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(31, 3), (32, 1), (33, 8), (100, 40)])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_may_be_cut_short(rows: int, columns: int, bits: int) -> None:
    text = f"g (float[N,{rows}] x) => (float[N,{columns}] y) {{ y = MatMul(x, w) }}"
    proto = model(text, weights(w=(rows, columns)))
    found, feeds = kept(proto, bits), weights(2, x=(5, rows))
    exact = outputs(decoded(proto, found), feeds)
    assert difference(exact, outputs(rewritten(proto, found), feeds)) < 1e-5


def test_weights_that_cannot_be_rounded_are_refused() -> None:
    for form, reason in (("Gemm alpha beta", "scales by alpha"), ("MatMul", "lacks the weight")):
        proto = FORMS[form].build(17, np.float32)
        some = round_weight_only(np.ones((8, 6), np.float32), None)
        key = sites_of(proto).sites[0].weight.key if form != "MatMul" else "nobody"
        work = canonical(proto)
        before = ir.to_proto(work).SerializeToString()
        with pytest.raises(RequestError, match=reason):
            WeightOnlyPass({key: some})(work)
        assert ir.to_proto(work).SerializeToString() == before


@pytest.mark.slow
@pytest.mark.xdist_group("collection")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_collection_computes_what_the_decoded_weights_would(architecture: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("optimum")
    for graph in collection():
        if graph.architecture != architecture or graph.path is None:
            continue
        before = load(graph)
        found = kept(before, rank=2, storage="int8")
        after, exact = rewritten(before, found), decoded(before, found)
        for feeds in graph.feeds(2, 8):
            assert difference(outputs(exact, feeds), outputs(after, feeds)) < 1e-3, graph
