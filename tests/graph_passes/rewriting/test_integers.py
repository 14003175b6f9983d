"""Layers of integers: near to the float ones, the same in ONNX Runtime and by the standard."""

from __future__ import annotations

from collections import Counter

import ffn_forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ffn_forms import SPELLINGS
from forms import FORMS
from graphs import canonical, difference, model, weights
from onnx.reference import ReferenceEvaluator

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.rounding import InputRange, InputScale
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.integers import IntegerForm, IntegersPass, why_float
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

INTEGER_FORMS: tuple[IntegerForm, ...] = ("fused", "standard", "dynamic", "qdq")


def scales(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, InputScale]:
    """Of the inputs of all layers that take part."""
    work = canonical(proto)
    sites = [site for site in find_sites(work).sites if why_float(site) is None]
    named = {site.input.name for site in sites}
    work.graph.outputs.extend(
        v
        for node in work.graph
        for v in node.outputs
        if v.name in named and not v.is_graph_output()
    )
    values = run(open_session(ir.to_proto(work).SerializeToString()), feeds) | feeds
    found = {}
    for site in sites:
        rows = values[site.input.name or ""].reshape(-1, site.in_features)
        found[site.name] = InputRange(
            rows.min(axis=0), rows.max(axis=0), (rows**2).mean(axis=0)
        ).scale()
    return found


def rounded(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], form: IntegerForm
) -> onnx.ModelProto:
    work = canonical(proto)
    IntegersPass(scales(proto, feeds), form)(work)
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result


def outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], optimization: str = "all"):
    spec = SessionSpec(threads=1, optimization=optimization)
    return run(open_session(proto.SerializeToString(), spec), feeds)


@pytest.mark.parametrize("form", INTEGER_FORMS)
@pytest.mark.parametrize("name", SPELLINGS)
def test_networks_are_near_to_what_they_were(name: str, form: IntegerForm) -> None:
    before, feeds = ffn_forms.build(name), ffn_forms.feeds(name)
    after = rounded(before, feeds, form)
    assert after.graph.output == before.graph.output
    kinds = Counter(node.op_type for node in after.graph.node)
    layers = 3 if name == "gated" else 2
    wanted = {"fused": "MatMulIntegerToFloat", "qdq": "MatMul"}.get(form, "MatMulInteger")
    assert kinds[wanted] == layers
    assert kinds["QuantizeLinear"] + kinds["DynamicQuantizeLinear"] == 2  # gate and up share one
    optimizations = ("all", "off") if form != "qdq" else ("off",)
    for optimization in optimizations:
        error = difference(outputs(before, feeds), outputs(after, feeds, optimization))
        assert 0 < error < 0.05


@pytest.mark.parametrize("form", ["standard", "dynamic", "qdq"])
@pytest.mark.parametrize("name", ["erf", "gemm", "gated", "no biases"])
def test_the_reference_computes_the_same(name: str, form: IntegerForm) -> None:
    before, feeds = ffn_forms.build(name), ffn_forms.feeds(name)
    after = rounded(before, feeds, form)
    expected = outputs(after, feeds, "off")
    values = ReferenceEvaluator(after).run(None, feeds)
    assert difference(expected, dict(zip(expected, values, strict=True))) < 1e-2


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"no rows"}))
def test_every_form_of_a_layer_takes_part_or_says_why(name: str) -> None:
    proto, feeds = FORMS[name].build(17, np.float32), FORMS[name].feeds()
    sites = find_sites(canonical(proto)).sites
    taking = [site for site in sites if why_float(site) is None]
    after = rounded(proto, feeds, "fused")
    nodes = ir.traversal.RecursiveGraphIterator(ir.from_proto(after).graph)
    assert [node.op_type for node in nodes].count("MatMulIntegerToFloat") == len(taking)
    assert difference(outputs(proto, feeds), outputs(after, feeds)) < 0.05


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    before, feeds = ffn_forms.build("erf"), ffn_forms.feeds("erf", count=16)
    feeds["x"][5] *= 8
    found = {}
    for form in ("fused", "standard", "dynamic"):
        after = rounded(before, feeds, form)
        whole = outputs(after, feeds)["y"]
        alone = [outputs(after, {"x": feeds["x"][i : i + 1]})["y"][0] for i in range(16)]
        found[form] = float(np.abs(np.stack(alone) - whole).max())
    assert found["fused"] == found["standard"] == 0
    assert found["dynamic"] > 0


def test_one_bias_is_taken_inside_and_no_add_is_left() -> None:
    before, feeds = ffn_forms.build("relu"), ffn_forms.feeds("relu")
    after = rounded(before, feeds, "fused")
    assert [node.op_type for node in after.graph.node] == [
        "QuantizeLinear",
        "MatMulIntegerToFloat",
        "Relu",
        "QuantizeLinear",
        "MatMulIntegerToFloat",
    ]


def test_an_opset_without_scales_of_columns_is_refused() -> None:
    work = canonical(relu_at(12))
    site = find_sites(work).sites[0]
    some = {site.name: InputScale(np.float32(1), np.uint8(0))}
    before = ir.to_proto(work).SerializeToString()
    with pytest.raises(RequestError, match="needs opset 13"):
        IntegersPass(some, "qdq")(work)
    assert ir.to_proto(work).SerializeToString() == before


def relu_at(opset: int) -> onnx.ModelProto:
    text = "g (float[2,4] x) => (float[2,3] y) { m = MatMul(x, w) y = Relu(m) }"
    return model(text, weights(w=(4, 3)), opset)


def test_layers_that_the_model_lacks_are_refused() -> None:
    work = canonical(ffn_forms.build("relu"))
    before = ir.to_proto(work).SerializeToString()
    some = InputScale(np.float32(1), np.uint8(0))
    with pytest.raises(RequestError, match="the model lacks it"):
        IntegersPass({"nobody": some})(work)
    assert ir.to_proto(work).SerializeToString() == before
