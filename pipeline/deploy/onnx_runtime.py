"""ONNX Runtime itself: the model in the layout of ONNX's model zoo, with a case to check it by.

    NAME/model.onnx
    NAME/test_data_set_0/input_0.pb …     what goes in
    NAME/test_data_set_0/output_0.pb …    what came out here

``onnx_test_runner`` and ``onnxruntime_perf_test`` of ONNX Runtime, and ONNX's own backend tests,
read it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnx import numpy_helper

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.deploy.package import MODEL_NAME, Package, Value, place_model
from compress_onnx.pipeline.runtime.inputs import model_inputs, synthetic_feeds
from compress_onnx.pipeline.runtime.session import open_session, run

_BATCH, _LENGTH = 2, 16


def lay_out_onnx_runtime(package: Package, folder: Path) -> Iterator[str]:
    """A folder for each version."""
    feeds = synthetic_feeds(model_inputs(package.structure), batch=_BATCH, length=_LENGTH, seed=0)
    names = (package.name,) if package.original is None else ("original", package.name)
    for name, source in zip(names, package.versions, strict=True):
        place_model(source, folder / name / MODEL_NAME)
        case = folder / name / "test_data_set_0"
        case.mkdir()
        _write(case, "input", package.inputs, feeds)
        _write(case, "output", package.outputs, run(open_session(source), feeds))
    package.copy_assets(folder / package.name)
    yield from ()


def _write(folder: Path, kind: str, values: Sequence[Value], arrays: Mapping[str, Array]) -> None:
    for place, value in enumerate(values):
        tensor = numpy_helper.from_array(arrays[value.name], value.name)
        (folder / f"{kind}_{place}.pb").write_bytes(tensor.SerializeToString())
