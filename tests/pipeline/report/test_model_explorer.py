"""Node data for Model Explorer: by graph and node, as its ONNX adapter calls them."""

from __future__ import annotations

import json

import onnx
import pytest
from cli_runner import Cli, error_line
from onnx import TensorProto, helper
from report_factory import make_report

from compress_onnx.graph_passes.rewriting.told import DAMAGE, ERROR, FORM, RANK, ROUNDING
from compress_onnx.pipeline.files.bundle import write_manifest


def bundle(folder, nodes, functions=()):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "xy")
    graph = helper.make_graph(nodes, "main graph", [x], [y])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "report.json").write_text(make_report().model_dump_json())
    write_manifest(folder)
    return folder


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys, monkeypatch)


def data(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def marked(name, output, op_type="MatMul", **values) -> onnx.NodeProto:
    keys = {"damage": DAMAGE, "rounding": ROUNDING, "error": ERROR, "form": FORM, "rank": RANK}
    node = helper.make_node(op_type, ["x", "w"], [output], name=name)
    for name_, value in values.items():
        node.metadata_props.add(key=keys[name_], value=value)
    return node


NODES = (
    marked("a/down", "h", damage="0.5", rounding="0.25", rank="8", form="low rank, int8"),
    marked("", "unnamed", damage="2", rank="4", form="neurons"),
    marked("decode", "d", op_type="Cast", damage="9", rank="9", form="low rank"),
    marked("plain", "y"),
    marked("theirs", "t", damage="much", rank="nan"),
)


def test_values_by_node(tmp_path, cli):
    bundle(tmp_path / "b", NODES)
    printed = cli("report", "b", "--model-explorer", "out.json")
    assert "PASSED" in printed.out
    (graph,) = data(tmp_path / "out.json").items()
    assert graph[0] == "main graph"
    assert graph[1]["results"] == {"a/down": {"value": 0.75}, "unnamed": {"value": 2.0}}
    assert [stop["stop"] for stop in graph[1]["gradient"]] == [0, 1]
    cli("report", "b", "--model-explorer", "out.json", "--show", "rank")  # ours: replaced
    results = data(tmp_path / "out.json")["main graph"]["results"]
    assert results == {"a/down": {"value": 8.0}, "unnamed": {"value": 4.0}}
    cli("report", "b", "--model-explorer", "out.json", "--show", "form")
    layer = data(tmp_path / "out.json")["main graph"]
    assert layer["results"]["a/down"] == {"value": "low rank, int8"}
    assert "gradient" not in layer


def test_graphs_in_nodes_and_functions(tmp_path, cli):
    inner = helper.make_graph([marked("in", "i", damage="1")], "ignored", [], [])
    outer = helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner)
    opset = [helper.make_opsetid("", 20)]
    body = [marked("f", "y", damage="3")]
    function = helper.make_function("own", "F", ["x", "w"], ["y"], body, opset)
    bundle(tmp_path / "b", [outer], [function])
    cli("report", "b", "--model-explorer", "out.json")
    found = {name: layer["results"] for name, layer in data(tmp_path / "out.json").items()}
    branch = {"in": {"value": 1.0}}
    assert found == {
        "if/then_branch": branch,
        "if/else_branch": branch,
        "[function]own::F": {"f": {"value": 3.0}},
    }


def test_nothing_to_tell_is_one_line_and_no_file(tmp_path, cli):
    bundle(tmp_path / "b", NODES)
    line = error_line(cli("report", "b", "--model-explorer", "out.json", "--show", "error", code=2))
    assert "tells its error" in line
    assert not (tmp_path / "out.json").exists()


def test_what_is_not_ours_is_not_replaced(tmp_path, cli):
    bundle(tmp_path / "b", NODES)
    for theirs in ("{}", '{"a": {"name": "theirs"}}', "no json"):
        (tmp_path / "out.json").write_text(theirs)
        line = error_line(cli("report", "b", "--model-explorer", "out.json", code=2))
        assert "--force" in line
        assert (tmp_path / "out.json").read_text() == theirs
    error_line(cli("report", "b", "--model-explorer", "b/report.json", code=2))
    cli("report", "b", "--model-explorer", "out.json", "--force")
    assert data(tmp_path / "out.json")["main graph"]["results"]
