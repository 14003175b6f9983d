"""The page of bundles."""

from __future__ import annotations

import pytest
import small_models as small
from packages import encoder_model, encoder_package

pytest.importorskip("cyclonedx", reason="needs the deploy extra")
pytest.importorskip("tritonclient.grpc", reason="needs the deploy extra")

from studies import deploy

from compress_onnx.pipeline.deploy.targets import TARGETS


def test_every_target_is_told_with_its_tree_and_what_showed_it(tmp_path):
    original = small.save(encoder_model(), tmp_path / "original.onnx")
    lines = list(deploy.page(encoder_package(tmp_path / "package"), original))
    assert deploy.SHOWN.keys() == TARGETS.keys()
    for name in TARGETS:
        assert f"## {name}" in lines
    assert "repository/minilm/2/model.onnx" in lines
    assert "Put the element of component.xml into the <container> of services.xml." in lines
    assert not any(str(tmp_path) in line for line in lines)
