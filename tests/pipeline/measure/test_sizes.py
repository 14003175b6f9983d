"""Baked sizes: said of the reference, refused in the candidate."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_models as small
from onnx import parser

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.measure.sizes import compare_sizes
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.session import open_session

_FREE = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, t, 4] x) => (float[n, t, 4] y)'
FREE = _FREE + " { y = Relu(x) }"
BAKED = _FREE + " <int64[3] s = {2, 7, 4}> { r = Relu(x) y = Reshape(r, s) }"
FLAT = _FREE + " <int64[3] s = {1, -1, 4}> { r = Relu(x) y = Reshape(r, s) }"
FIXED = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }'
)


def said(tmp_path, reference: str, candidate: str) -> str:
    paths = [tmp_path / "reference.onnx", tmp_path / "candidate.onnx"]
    for path, text in zip(paths, (reference, candidate), strict=True):
        onnx.save(parser.parse_model(text), path)
    inputs = model_inputs(load_structure(paths[0]))
    return compare_sizes(open_session(paths[0]), open_session(paths[1]), inputs)


def test_both_run_everywhere(tmp_path):
    assert said(tmp_path, FREE, FREE).startswith("both models run at batch 2")


def test_a_reference_with_baked_sizes_is_told(tmp_path):
    text = said(tmp_path, BAKED, BAKED)
    assert "reference itself does not run at batch 3, length 12" in text
    assert "batch 2" not in text


def test_a_candidate_with_baked_sizes_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="cannot run"):
        said(tmp_path, FREE, BAKED)


def test_a_candidate_with_other_shapes_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="instead of"):
        said(tmp_path, FREE, FLAT)


def test_fixed_axes_leave_nothing_to_try(tmp_path):
    assert said(tmp_path, FIXED, FIXED) == "all axes are fixed: there is one size only"


def test_validation_reports_it(tmp_path):
    from compress_onnx.pipeline.measure.validate import validate
    from compress_onnx.pipeline.runtime.samples import Samples

    path = small.save(small.perceptron(), tmp_path / "model.onnx")
    rows = np.zeros((4, small.FEATURES), np.float32)
    assert "both models run" in (validate(path, path, Samples({"x": rows})).sizes or "")
