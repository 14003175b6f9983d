"""The acceptance test: real architectures, written by real exporters, keep what they compute.

One test an architecture, so that a failure says which; every graph of the collection is in it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_collection import ARCHITECTURES, Graph, collection, load
from graphs import FULL_RANK, HALF, canonical, compress, difference, interface, parameters, parity

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.neurons import NeuronsPass
from compress_onnx.graph_passes.rewriting.smoothing import SmoothingPass, folds, shared_inputs
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.compress.half import half_model
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.files.model_file import data_files, load_model
from compress_onnx.pipeline.runtime.session import open_session, run

# The collection is exported once, by the worker that gets this group.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("collection")]

# Transformers masks by vmap, which the tracing exporter cannot follow; optimum replaces it.
DO_NOT_EXPORT = {"whisper-trace17", "gpt2-trace17", "llama-trace17"}
# A depthwise convolution in between, or no network at all.
WITHOUT_NETWORKS = {
    *("segformer", "packed-qkv", "experts", "experts-einsum", "lstm", "pointwise", "functional"),
}
UNTOUCHED = {"bert-trace17-int8", "bert-trace17-bf16", "vit-trace17-bf16"}


def graphs_of(architecture: str) -> list[Graph]:
    pytest.importorskip("torch")
    pytest.importorskip("optimum")
    return [
        graph
        for graph in collection()
        if graph.architecture == architecture and graph.path is not None
    ]


def tolerance(graph: Graph, exact: float = 1e-3) -> float:
    return 1e-2 if graph.part == "fp16" else exact


def runs_at(graph: Graph, before: onnx.ModelProto, batch: int, length: int) -> bool:
    session = open_session(before.SerializeToString())
    try:
        for feeds in graph.feeds(batch, length):
            run(session, feeds)
    except ModelFileError:
        return False
    return True


def test_everything_exports_that_can() -> None:
    pytest.importorskip("optimum")
    failed = {str(graph): graph.error for graph in collection() if graph.path is None}
    assert failed.keys() == DO_NOT_EXPORT, failed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_rank_reproduces_the_outputs(architecture: str) -> None:
    for graph in graphs_of(architecture):
        before = load(graph)
        after, plan = compress(before, FULL_RANK)
        assert interface(before) == interface(after), graph
        assert bool(plan.factored) == (str(graph) not in UNTOUCHED), graph
        assert all(site.decision == "factor" for site in plan.sites), graph
        for batch, length in ((2, 8), (3, 11)):
            if (batch, length) == (2, 8) or runs_at(graph, before, batch, length):
                for feeds in graph.feeds(batch, length):
                    assert parity(before, after, feeds) <= tolerance(graph), graph


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networks_with_all_neurons_are_what_they_were(architecture: str) -> None:
    """New weights in the place of the old ones, which are those in another order."""
    for graph in graphs_of(architecture):
        before = load(graph)
        model = canonical(before)
        chosen = {}
        for ffn in find_ffns(find_sites(model).sites).ffns:
            weight = ffn.down.weight.array().astype(np.float64)
            turned = np.arange(ffn.neurons)[::-1]
            chosen[ffn.name] = Folded(turned, weight[turned], np.zeros(weight.shape[1]))
        if not chosen:
            without = architecture in WITHOUT_NETWORKS or graph.part == "decoder_model_merged"
            assert without or str(graph) in UNTOUCHED, graph
            continue
        NeuronsPass(chosen)(model)
        CleanupPass()(model)
        after = ir.to_proto(model)
        for feeds in graph.feeds(2, 8):
            assert parity(before, after, feeds) <= tolerance(graph), graph


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_divided_inputs_are_what_they_were(architecture: str) -> None:
    rng = np.random.default_rng(0)
    for graph in graphs_of(architecture):
        before = load(graph)
        model = canonical(before)
        products = products_in(model)
        groups = shared_inputs(find_sites(model).sites)
        multiplied = sum(not folds(group) for group in groups)
        found = {g[0].name: np.exp(rng.uniform(-1, 1, g[0].in_features)) for g in groups}
        SmoothingPass(found)(model)
        assert products_in(model) == products + multiplied, graph
        CleanupPass()(model)
        after = ir.to_proto(model)
        assert interface(before) == interface(after), graph
        for feeds in graph.feeds(2, 8):
            assert parity(before, after, feeds) <= tolerance(graph, exact=1e-5), graph


def products_in(model: ir.Model) -> int:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return sum(node.op_type == "Mul" for node in nodes)


OUT_PROJECTIONS = {
    **dict.fromkeys(("bert", "bert-eager", "vit"), "attention.output.dense"),
    "distilbert": "attention.out_lin",
    "packed-qkv": "out_proj",
}


@pytest.mark.parametrize("architecture", OUT_PROJECTIONS)
def test_contexts_are_divided_without_a_node(architecture: str) -> None:
    for graph in graphs_of(architecture):
        if graph.part in {"ort", "int8", "bf16"}:
            continue
        sites = find_sites(canonical(load(graph))).sites
        ends = OUT_PROJECTIONS[architecture]
        groups = [g for g in shared_inputs(sites) if g[0].name.endswith(ends)]
        assert groups, graph
        assert all(map(folds, groups)), graph


def float_bytes(proto: onnx.ModelProto) -> int:
    """What the floats of the main graph's weights take."""
    kinds = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}
    return sum(kinds.get(t.data_type, 0) * math.prod(t.dims) for t in proto.graph.initializer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_floats_are_near_and_half_as_large(architecture: str) -> None:
    for graph in graphs_of(architecture):
        before = load(graph)
        feeds = graph.feeds()
        half = half_model(before, as_samples(feeds[-1], graph.inputs()))
        after = ir.to_proto(half.model)
        assert interface(before) == interface(after), graph
        assert max(parity(before, after, each) for each in feeds) <= 1e-2, graph
        # A recurrence keeps its weights in float32.
        if graph.part not in {"fp16", "bf16", "int8"} and architecture != "lstm":
            assert float_bytes(after) < 0.6 * float_bytes(before), graph


def test_external_data_goes_through_files(tmp_path: Path) -> None:
    graphs = [g for name in ("bert", "vit") for g in graphs_of(name) if g.part == "external"]
    assert len(graphs) == 2
    for graph in graphs:
        assert graph.path is not None
        compressed = learn(graph.path).compress(FULL_RANK)
        written = tmp_path / f"{graph}.onnx"
        compressed.write(written, external_data=True)
        assert data_files(load_model(written)), graph
        for feeds in graph.feeds():
            before, after = (run(open_session(path), feeds) for path in (graph.path, written))
            assert difference(before, after) <= tolerance(graph), graph


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_is_smaller_by_what_the_plan_states(architecture: str) -> None:
    for graph in graphs_of(architecture):
        before = load(graph)
        after, plan = compress(before, HALF)
        assert parameters(after) - parameters(before) == plan.file_parameters_added, graph
        if plan.factored:
            assert plan.file_parameters_added < 0, graph
            # Two nodes for one cost up to 1500 bytes (long names): more than toy weights may save.
            overhead = 1500 * len(plan.factored)
            saved = -plan.file_parameters_added * (2 if graph.part == "fp16" else 4)
            assert after.ByteSize() < before.ByteSize() - saved + overhead, graph
        session = open_session(after.SerializeToString())
        for feeds in graph.feeds():
            run(session, feeds)
