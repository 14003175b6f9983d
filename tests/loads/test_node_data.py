"""Node data in the real Model Explorer: its ONNX adapter knows every node that has a value."""

from __future__ import annotations

import json

import pytest


def test_model_explorer_knows_the_nodes(bundles):
    pytest.importorskip("model_explorer_onnx", reason="make load-test")
    from model_explorer import node_data_builder
    from model_explorer_onnx.main import ONNXAdapter

    data = json.loads((bundles / "nodes.json").read_text(encoding="utf-8"))
    drawn = ONNXAdapter().convert(str(bundles / "minilm" / "model.onnx"), {})
    nodes = {graph.id: {node.id: node for node in graph.nodes} for graph in drawn["graphs"]}
    assert data
    for graph, layer in data.items():
        assert layer["results"]
        assert layer["results"].keys() <= nodes[graph].keys()
        # Its own builder takes these fields, and writes them as they were.
        results = {
            name: node_data_builder.NodeDataResult(**value)
            for name, value in layer["results"].items()
        }
        gradient = [node_data_builder.GradientItem(**stop) for stop in layer["gradient"]]
        built = node_data_builder.GraphNodeData(
            results=results, name=layer["name"], gradient=gradient
        )
        written = json.loads(node_data_builder.ModelNodeData({graph: built}).to_json_string())
        for key, value in layer.items():
            assert written[graph][key] == value
        # What Netron shows beside a node, this shows too.
        node = nodes[graph][next(iter(layer["results"]))]
        assert any("compress_onnx.form" in attribute.key for attribute in node.attrs)
