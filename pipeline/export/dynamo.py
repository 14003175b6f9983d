"""Export with ``torch.onnx.export(dynamo=True)``, in a form that ONNX Runtime runs.

Opset 23 keeps scaled-dot-product attention as one ``Attention`` node. At that opset the exporter
also fuses what it recognizes into other new operators, and ONNX Runtime does not run all of those
(``RotaryEmbedding`` at a batch above 1). So up to three forms are tried:

1. the requested opset;
2. the same without those fusions, which keeps ``Attention``;
3. opset 20, which spells attention out too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.pipeline.export.exported import ExportedModel
from compress_onnx.pipeline.export.parity import Outputs, compare_with_torch, run_onnx
from compress_onnx.pipeline.export.quiet import quiet
from compress_onnx.pipeline.export.tidy import drop_noise, name_axes
from compress_onnx.pipeline.export.torch_model import TorchModel
from compress_onnx.pipeline.recipe import SourceSpec
from compress_onnx.pipeline.results import ExportReport
from compress_onnx.pipeline.runtime.session import one_line

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

_LOGGER = logging.getLogger(__name__)

# Below this the exporter would have to convert, which it does badly.
MIN_OPSET = 18
# The highest that it knows.
MAX_OPSET = 23
FALLBACK_OPSET = 20
# A protobuf ends at 2 GiB; the passes that follow need room below it.
_INLINE_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True)
class _Form:
    opset: int
    fused: bool = True

    def __str__(self) -> str:
        return f"opset {self.opset}" + ("" if self.fused else " without the exporter's fusions")


def export_dynamo(model: TorchModel, spec: SourceSpec, folder: Path) -> ExportedModel:
    """Write ``folder/model.onnx`` and compare it with PyTorch.

    Raises:
        RequestError: the exporter cannot write ``spec.opset``.
        ModelFileError: PyTorch cannot export the model, ONNX Runtime cannot run the result, or
            the two differ by more than ``spec.parity_tolerance``.
    """
    if not MIN_OPSET <= spec.opset <= MAX_OPSET:
        raise RequestError(
            f"the exporter dynamo writes opset {MIN_OPSET} to {MAX_OPSET}, not {spec.opset}: "
            "choose one of these, or the exporter optimum for an older one"
        )
    path = folder / "model.onnx"
    try:
        opset, candidates, notes = _write_runnable(model, spec, path)
        parity = compare_with_torch(model, candidates, spec.parity_tolerance)
    except ModelFileError:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        raise
    report = ExportReport(source=spec.model, exporter="dynamo", opset=opset, parity=parity)
    return ExportedModel(path, report, notes=notes)


def _write_runnable(
    model: TorchModel, spec: SourceSpec, path: Path
) -> tuple[int, list[Outputs], tuple[str, ...]]:
    """Write the first form that ONNX Runtime runs: its opset, its outputs, and why not another."""
    refusal: ModelFileError | None = None
    for form in _forms(spec.opset):
        _write(_traced(model, form, spec.model), model, path)
        try:
            candidates = run_onnx(path, model.probes)
        except ModelFileError as error:
            _LOGGER.info("%s cannot be run at %s: %s", spec.model, form, error)
            refusal = error
        else:
            notes = (f"exported at {form}, because otherwise {refusal}",) if refusal else ()
            return form.opset, candidates, notes
    assert refusal is not None  # there is at least one form
    raise refusal


def _forms(opset: int) -> tuple[_Form, ...]:
    requested = _Form(opset)
    if opset <= FALLBACK_OPSET:
        return (requested,)
    return requested, _Form(opset, fused=False), _Form(FALLBACK_OPSET)


def _traced(model: TorchModel, form: _Form, label: str) -> ONNXProgram:
    import onnxscript.optimizer
    import torch

    inputs = model.probes[0]
    axes = [model.dynamic_axes.get(name, {}) for name in inputs]
    dynamic = tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in axes)
    try:
        with quiet(), model.positional():
            program = torch.onnx.export(
                model.module,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                opset_version=form.opset,
                input_names=list(inputs),
                output_names=list(model.outputs),
                dynamic_shapes=(dynamic,),
                optimize=form.fused,
            )
            assert program is not None  # only the TorchScript exporter returns nothing
            if not form.fused:
                onnxscript.optimizer.optimize(program.model)
    except torch.onnx.OnnxExporterError as error:
        raise ModelFileError(
            f"PyTorch cannot export {label}: {one_line(error.__cause__ or error)}"
        ) from error
    return program


def _write(program: ONNXProgram, model: TorchModel, path: Path) -> None:
    name_axes(program.model, model.dynamic_axes)
    drop_noise(program.model)
    program.save(path, external_data=_weight_bytes(program.model) > _INLINE_LIMIT_BYTES)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ModelFileError(f"the exported model is invalid: {one_line(error)}") from error


def _weight_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
