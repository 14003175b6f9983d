"""Properties of any graph that mixes the known forms, and no harm to graphs that do not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import random_graphs
from graphs import (
    FULL_RANK,
    HALF,
    assert_parity,
    canonical,
    compress,
    parameters,
    sites_of,
    statistics,
)
from hypothesis import given
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.runtime.session import open_session, run

ASVD = CompressionSpec(method=MethodSpec(name="asvd"), rank=10_000, allow_larger=True)


@given(random_graphs.graphs())
def test_full_rank_reproduces_the_outputs(before: onnx.ModelProto) -> None:
    after, plan = compress(before, FULL_RANK)
    assert parameters(after) - parameters(before) == plan.file_parameters_added
    for flag in (True, False):
        assert_parity(before, after, random_graphs.feeds(flag), reference=False)


@given(random_graphs.graphs())
def test_corrected_biases_at_full_rank_change_nothing(before: onnx.ModelProto) -> None:
    stats = statistics(before, random_graphs.feeds(True))
    if not stats:
        return
    after, plan = compress(before, ASVD, stats)
    assert parameters(after) - parameters(before) == plan.file_parameters_added
    for flag in (True, False):
        assert_parity(before, after, random_graphs.feeds(flag), reference=False)


@given(random_graphs.graphs())
def test_half_saves_what_the_plan_states(before: onnx.ModelProto) -> None:
    after, plan = compress(before, HALF)
    saved = parameters(before) - parameters(after)
    assert saved == -plan.file_parameters_added
    assert saved > 0 or not plan.factored
    assert not {site.site for site in sites_of(after).sites} & {s.site for s in plan.factored}


def with_weights(case: TestCase) -> tuple[onnx.ModelProto, dict[str, np.ndarray]] | None:
    """A node test whose inputs but the first are weights; None where they are no plain tensors."""
    proto = onnx.ModelProto.FromString(case.model.SerializeToString())
    values = case.data_sets[0][0]
    if not values or not all(isinstance(value, np.ndarray) for value in values):
        return None
    if any(value.dtype.kind not in "iufb" for value in values):
        return None
    names = [value.name for value in proto.graph.input]
    del proto.graph.input[1:]
    proto.graph.initializer.extend(map(numpy_helper.from_array, values[1:], names[1:]))
    return proto, {names[0]: values[0]}


def shape_of_graph(proto: onnx.ModelProto) -> list[object]:
    """What the nodes are, without their names."""
    return [
        (node.domain, node.op_type, list(node.input), list(node.output), list(node.attribute))
        for node in proto.graph.node
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_node_tests_of_onnx_come_to_no_harm() -> None:
    """The graph stays as it is, or its outputs do."""
    untouched = compared = factored = 0
    for case in load_model_tests(kind="node"):
        made = with_weights(case)
        if made is None:
            continue
        before, feeds = made
        work = canonical(before)
        plan = make_plan(find_sites(work), FULL_RANK)
        LowRankPass(plan)(work)
        CleanupPass()(work)
        after = ir.to_proto(work)
        if shape_of_graph(before) == shape_of_graph(after):
            untouched += 1
            continue
        try:
            expected = run(open_session(before.SerializeToString()), feeds)
        except ModelFileError:
            continue  # ONNX Runtime lacks the operator in that type
        actual = run(open_session(after.SerializeToString()), feeds)
        compared += 1
        factored += bool(plan.factored)
        tolerance = 1e-3 if plan.factored else 0
        for name, value in expected.items():
            np.testing.assert_allclose(
                actual[name], value, rtol=tolerance, atol=tolerance, err_msg=case.name
            )
    assert untouched > 1000
    assert compared > 100
    assert factored > 10
