"""Whose metadata goes: exporters' traces of sources, and nothing that its owner wrote."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from graphs import canonical, model, weights

from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass

TRACES = (
    "namespace",
    "pkg.torch.onnx.stack_trace",
    "pkg.torch.onnx.fx_node",
    "pkg.torch.onnx.class_hierarchy",
    "pkg.torch.export.ExportedProgram.graph_signature",
    "pkg.onnxscript.optimizer.folded_from",
)
OWNED = ("character", "author", "names", "license", "compress_onnx.site")


@pytest.fixture
def documented() -> onnx.ModelProto:
    proto = model("g (float[N,8] x) => (float[N,6] y) { y = MatMul(x, w) }", weights(w=(8, 6)))
    places = (proto, proto.graph, proto.graph.node[0], proto.graph.input[0], proto.graph.output[0])
    for place in places:
        place.doc_string = "what it is for"
        for key in (*TRACES, *OWNED):
            place.metadata_props.add(key=key, value="v")
    return proto


def cleaned(proto: onnx.ModelProto) -> onnx.ModelProto:
    work = canonical(proto)
    CleanupPass()(work)
    return ir.to_proto(work)


def test_traces_go_and_what_is_owned_stays(documented: onnx.ModelProto) -> None:
    after = cleaned(documented)
    for place in (after, after.graph, after.graph.node[0], after.graph.input[0]):
        assert {entry.key for entry in place.metadata_props} == set(OWNED)


def test_descriptions_stay_and_stack_traces_go(documented: onnx.ModelProto) -> None:
    after = cleaned(documented)
    assert after.doc_string == after.graph.doc_string == "what it is for"
    assert after.graph.input[0].doc_string == after.graph.output[0].doc_string == "what it is for"
    assert not after.graph.node[0].doc_string
