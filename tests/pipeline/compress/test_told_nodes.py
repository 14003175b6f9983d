"""What the nodes of compressed models tell: form, method, rank, damage."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.told import (
    DAMAGE,
    ERROR,
    FORM,
    KEPT,
    METHOD,
    RANK,
    ROUNDING,
    TOLD,
    figure,
)
from compress_onnx.graph_passes.sites.linear_site import unmark_factors
from compress_onnx.pipeline.compress.integers import round_model
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.compress.weight_only import round_weights

FEATURES, HIDDEN = 32, 64
PRODUCTS = {"MatMul", "Gemm", "MatMulIntegerToFloat", "MatMulInteger", "MatMulNBits"}


@pytest.fixture
def learned(tmp_path) -> Learned:
    path = saved(tmp_path, two_layers((FEATURES, HIDDEN, FEATURES))[0])
    return learn(path, samples(FEATURES, 200))


def told(model: onnx.ModelProto | ir.Model) -> dict[str, dict[str, str]]:
    """By node, of the products."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return {
        node.name: {e.key: e.value for e in node.metadata_props if e.key in TOLD}
        for node in proto.graph.node
        if node.op_type in PRODUCTS
    }


def compressed(learned, path, **request):
    plan = learned.compress(CompressionSpec(**request)).write(path)
    return plan, told(onnx.load(path))


def test_factors(learned, tmp_path):
    method = MethodSpec(name="gauss-newton")
    plan, found = compressed(
        learned, tmp_path / "out.onnx", method=method, allocation="gauss-newton", params=0.6
    )
    factored = [entries for entries in found.values() if entries]
    assert len(factored) == 2 * len(plan.factored) > 0
    for site in plan.factored:
        assert site.damage is not None
        expected = {
            FORM: "low rank",
            METHOD: "gauss-newton",
            RANK: str(site.rank),
            ERROR: figure(site.error.reached),
            DAMAGE: figure(site.damage),
        }
        assert factored.count(expected) == 2


def test_no_damage_is_told_where_none_was_predicted(learned, tmp_path):
    _, found = compressed(
        learned, tmp_path / "out.onnx", method=MethodSpec(name="svd"), allocation="uniform"
    )
    assert found
    assert not any(DAMAGE in entries for entries in found.values())


def test_networks_with_fewer_neurons(learned, tmp_path):
    method = MethodSpec(name="neurons")
    plan, found = compressed(learned, tmp_path / "out.onnx", method=method, params=0.5)
    (network,) = plan.thinned
    assert len(found) == 2
    for entries in found.values():
        assert entries[FORM] == "neurons"
        assert entries[KEPT] == str(network.neurons)
        assert entries[ERROR] == figure(network.error.reached)


@pytest.mark.parametrize("form", ["fused", "standard", "qdq"])
def test_integers_tell_what_the_layer_was_before(learned, tmp_path, form):
    """Both: the factors' own words, and those of their numbers."""
    request = CompressionSpec(method=MethodSpec(name="svd"), allocation="uniform", params=0.5)
    model = learned.compress(request).model
    before = {entries[RANK] for entries in told(model).values()}
    unmark_factors(model)
    rounded = round_model(model, samples(FEATURES, 64), form=form, outliers=0)
    found = told(rounded.model)
    assert len(found) == 4
    assert {entries[FORM] for entries in found.values()} == {"low rank, int8"}
    assert {entries[RANK] for entries in found.values()} == before


def test_the_damage_of_rounding(learned):
    found = told(round_weights(learned.original, samples(FEATURES, 64), bits=4).model)
    assert {entries[FORM] for entries in found.values()} == {"4-bit weights"}
    assert all(float(entries[ROUNDING]) > 0 for entries in found.values())


def test_nothing_is_told_of_what_stays(learned, tmp_path):
    request = CompressionSpec(method=MethodSpec(name="svd"), select={"include": ["*first*"]})
    _, found = compressed(learned, tmp_path / "out.onnx", **request.model_dump(exclude_unset=True))
    assert sum(not entries for entries in found.values()) == 1
