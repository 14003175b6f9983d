"""A first recipe for somebody's model: what was found in it, and what the user has to add."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.pipeline.data.feeds import DEFAULT_MASK
from compress_onnx.pipeline.files.original import Original, open_original
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.report.markdown import printable
from compress_onnx.pipeline.runtime.inputs import ModelInput, load_structure, model_inputs

_CALIBRATION, _VALIDATION = "data.npz", "heldout.npz"
"""What files that are not there yet are called; they will lie beside the recipe."""


def starter_recipe(
    model: Path, folder: Path, calibration: Path | None = None, validation: Path | None = None
) -> str:
    """The text of a recipe for ``model`` that finds the fastest form within a drop.

    Args:
        model: an ONNX file.
        folder: where the recipe will lie; paths in it are relative to that.
        calibration: an ``.npz`` file of real samples; without, the recipe names one to be made.
        validation: likewise, of other samples.

    Raises:
        NothingToCompressError: the model has no linear layer.
        ModelFileError: it is missing, damaged or unsafe.
    """
    original = open_original(model)
    if not original.table.sites:
        raise NothingToCompressError(
            f"{model} has no linear layer with a stored weight: there is nothing to compress"
        )
    inputs = model_inputs(load_structure(model))
    recipe = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", model.stem).strip("-._") or "model",
        "source": {"model": _relative(model, folder)},
        "calibration": _data(calibration, _CALIBRATION, folder),
        "validation": _data(validation, _VALIDATION, folder),
        **({"mask": DEFAULT_MASK} if DEFAULT_MASK in {i.name for i in inputs} else {}),
        "compression": {"optimize": {"max_drop": 0.01, "objective": "latency", "time": "15min"}},
        "gates": [
            {"quantity": "size_ratio", "max": 0.9},
            {"quantity": "batch_invariance", "min": 0.9999},
        ],
        "benchmark": {"provider": "auto", "batch": 1, "length": 128},
    }
    Recipe.model_validate(recipe)
    text: str = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=100)
    made = calibration is not None and validation is not None
    comments = [*_found(original), *([] if made else _wanted(inputs))]
    return "".join(f"# {printable(line)}\n" for line in comments) + text


def _found(original: Original) -> list[str]:
    sites, skipped = original.table.sites, original.table.skipped
    parameters = sum({id(s.weight): s.in_features * s.out_features for s in sites}.values())
    return [
        f"{original.path.name}: {len(sites)} linear layers with {parameters:,} parameters; "
        f"{len(skipped)} other matrix products stay as they are.",
        "Carry it out: compress-onnx run THIS_FILE. The drop is the relative L2 of the worst "
        "output; name a metric to measure what your task does.",
    ]


def _wanted(inputs: tuple[ModelInput, ...]) -> list[str]:
    arrays = ", ".join(f"{one.name} {one.dtype} {_shape(one)}" for one in inputs)
    return [
        f"{_CALIBRATION} and {_VALIDATION}, where they are not there yet: a few hundred real "
        "samples each, none in both, as arrays of numpy.savez:",
        arrays,
    ]


def _shape(value: ModelInput) -> str:
    return f"[{', '.join('n' if size is None else str(size) for size in value.shape)}]"


def _data(path: Path | None, otherwise: str, folder: Path) -> dict[str, str]:
    return {"kind": "npz", "path": otherwise if path is None else _relative(path, folder)}


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
