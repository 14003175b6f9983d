"""Networks that are split in two compute what they computed."""

from __future__ import annotations

import ffn_forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ffn_forms import SPELLINGS, H, K
from graphs import assert_parity, canonical

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.outliers import OutliersPass
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites


def split(proto: onnx.ModelProto, aside: np.ndarray) -> onnx.ModelProto:
    work = canonical(proto)
    names = [ffn.name for ffn in find_ffns(find_sites(work).sites).ffns]
    OutliersPass(dict.fromkeys(names, aside))(work)
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result


@pytest.mark.parametrize("aside", [[3], [H - 1], [0, 7, 12]])
@pytest.mark.parametrize("name", SPELLINGS)
def test_the_two_parts_add_up(name: str, aside: list[int]) -> None:
    before = ffn_forms.build(name)
    after = split(before, np.array(aside))
    assert_parity(before, after, ffn_forms.feeds(name))
    inner = {t.name: tuple(t.dims) for t in after.graph.initializer}
    assert any(len(aside) in shape for shape in inner.values())
    assert any(H - len(aside) in shape for shape in inner.values())
    products = [n for n in after.graph.node if n.op_type in {"MatMul", "Gemm"}]
    assert len(products) == 2 * (3 if name == "gated" else 2)


def test_a_network_that_is_named_by_its_nodes() -> None:
    """Tracing exporters write the module in front of the operator: a branch is of the same one."""
    before = ffn_forms.build("relu")
    for node in before.graph.node:
        node.name = f"/layer/{node.input[-1]}/{node.op_type}"
    after = split(before, np.array([3]))
    assert_parity(before, after, ffn_forms.feeds("relu"))
    shapes = {tuple(tensor.dims) for tensor in after.graph.initializer}
    assert {(K, 1), (K, H - 1)} < shapes


@pytest.mark.parametrize("aside", [[], [H], [-1], list(range(H))])
def test_neurons_that_there_are_not_are_refused(aside: list[int]) -> None:
    proto = ffn_forms.build("relu")
    with pytest.raises(RequestError, match="cannot go aside"):
        split(proto, np.array(aside, dtype=np.intp))
