"""Export any ``torch.nn.Module`` that a factory function builds.

The factory takes no arguments and returns ``(module, example_inputs)`` or ``(module,
example_inputs, dynamic_axes)``. Example inputs are tensors by the names of ``forward``'s
parameters. Dynamic axes are ``{input: {axis: name}}``, and axes of one name have one size; without
them the first axis of every input is ``batch_size``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.export.dependencies import require_export_extra
from compress_onnx.pipeline.export.dynamo import export_dynamo
from compress_onnx.pipeline.export.exported import ExportedModel
from compress_onnx.pipeline.export.source import ModuleSource
from compress_onnx.pipeline.export.torch_model import Axes, TorchModel, named_tensors
from compress_onnx.pipeline.files.python_code import imported, locate, require_permission
from compress_onnx.pipeline.recipe import SourceSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def export_module(
    source: ModuleSource,
    spec: SourceSpec,
    folder: Path,
    *,
    base_dir: Path,
    seed: int,
    allow_code: bool,
) -> ExportedModel:
    """Call the factory and export what it returns into ``folder``.

    The module is imported as from a script in ``base_dir`` or in the current folder.

    Raises:
        RequestError: the factory may not run, is not there, returns something else than described
            above, or the exporter is not ``dynamo``.
        ModelFileError: the module cannot be exported, or its export differs from PyTorch.
        MissingDependencyError: PyTorch or its exporter is not installed.
    """
    if spec.exporter != "dynamo":
        raise RequestError(f"{spec.model} is a PyTorch module: export it with the exporter dynamo")
    require_permission([source.name], base_dir, allow_code=allow_code)
    require_export_extra("torch", "onnxscript")
    import torch

    with imported(locate(source.name, base_dir), allow_code=allow_code) as factory:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = factory()
        # Still inside: a forward may import what lies beside it.
        return export_dynamo(_torch_model(built, spec.model), spec, folder)


def _torch_model(built: object, label: str) -> TorchModel:
    import torch

    axes: Axes | None = None
    match built:
        case (torch.nn.Module() as module, Mapping() as example):
            pass
        case (torch.nn.Module() as module, Mapping() as example, Mapping() as axes):
            pass
        case _:
            raise RequestError(
                f"{label} must return (module, example_inputs) or (module, example_inputs, "
                f"dynamic_axes), not {_kind(built)}"
            )
    if not example or not all(isinstance(value, torch.Tensor) for value in example.values()):
        raise RequestError(f"the example inputs of {label} must be tensors by input name")
    if axes is None:
        axes = {name: {0: "batch_size"} for name in example}
    sizes = {name: max(size, 2) for name, size in _free_sizes(example, axes, label).items()}
    traced = _resized(example, axes, sizes)
    longer = _resized(example, axes, {name: size + 1 for name, size in sizes.items()})
    module.eval()
    return TorchModel(module, _output_names(module, traced, label), axes, (traced, longer))


def _free_sizes(example: Mapping[str, Tensor], axes: Axes, label: str) -> dict[str, int]:
    """The size of each named axis in the example inputs."""
    sizes: dict[str, int] = {}
    for name, named in axes.items():
        for axis, symbol in named.items():
            if name not in example or not 0 <= axis < example[name].ndim:
                raise RequestError(f"{label}: there is no axis {axis} of an input {name!r}")
            size = example[name].shape[axis]
            if sizes.setdefault(symbol, size) != size or size == 0:
                raise RequestError(
                    f"{label}: the axis {symbol!r} has {size} elements in the example input "
                    f"{name!r}: give it one size, at least 1, in all of them"
                )
    return sizes


def _resized(
    example: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Cut or repeat the example inputs; invented values might be out of range."""
    import torch

    inputs = dict(example)
    for name, named in axes.items():
        for axis, symbol in named.items():
            index = torch.arange(sizes[symbol]) % example[name].shape[axis]
            inputs[name] = inputs[name].index_select(axis, index)
    return inputs


def _output_names(
    module: torch.nn.Module, inputs: dict[str, Tensor], label: str
) -> tuple[str, ...]:
    import torch

    try:
        inspect.signature(module.forward).bind(**inputs)
    except TypeError as error:
        raise RequestError(f"{label}: the example inputs do not fit forward(): {error}") from error
    with torch.no_grad():
        names = tuple(named_tensors(module(**inputs)))
    if not names:
        raise RequestError(f"{label}: the module returns no tensors")
    return names


def _kind(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__
