"""A model folder for MLServer, which has no ONNX runtime of its own: ours is put beside the model.

    settings.json
    NAME/v1/model-settings.json      implementation: onnx_model.OnnxModel
    NAME/v1/onnx_model.py            the runtime class (pipeline/deploy/runtime/onnx_model.py)
    NAME/v1/model.onnx

MLServer imports the class from the folder of ``model-settings.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from compress_onnx.pipeline.deploy.package import MODEL_NAME, Package, place_model

RUNTIME_NAME = "onnx_model.py"


def lay_out_mlserver(package: Package, folder: Path) -> Iterator[str]:
    """A folder for each version."""
    runtime = files(__package__).joinpath("runtime", RUNTIME_NAME).read_text(encoding="utf-8")
    for version, source in enumerate(package.versions, start=1):
        place = folder / package.name / f"v{version}"
        place_model(source, place / MODEL_NAME)
        _write(place / "model-settings.json", _model_settings(package, version))
        (place / RUNTIME_NAME).write_text(runtime, encoding="utf-8")
    _write(folder / "settings.json", {"debug": False, "parallel_workers": 0})
    yield "its environment needs mlserver, onnxruntime and numpy"


def _model_settings(package: Package, version: int) -> dict[str, Any]:
    serving = package.serving
    return {
        "name": package.name,
        "implementation": "onnx_model.OnnxModel",
        "parameters": {
            "uri": f"./{MODEL_NAME}",
            "version": str(version),
            "extra": {"threads": serving.threads, "max_batch": serving.max_batch},
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
