"""Sequential repair of factors that the file holds rounded."""

from __future__ import annotations

import pytest
from test_sequential import compressed, error

from compress_onnx.graph_passes.errors import RequestError


def test_sequential_repair_sees_the_rounding(tmp_path) -> None:
    options = {"method": "asvd", "store": "int4", "sequential": True}
    with pytest.raises(RequestError, match="opset 21"):
        compressed(tmp_path, **options)
    before, sequential, plan, _ = compressed(tmp_path, **{**options, "store": "int8"})
    assert {site.store for site in plan.factored} == {"int8"}
    _, one_shot, _, _ = compressed(tmp_path, **{**options, "store": "int8", "sequential": False})
    assert error(before, sequential) < error(before, one_shot)
