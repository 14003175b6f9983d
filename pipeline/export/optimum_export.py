"""Export with ``optimum.exporters.onnx.main_export``, which knows more architectures and tasks.

It traces with TorchScript: attention comes out in pieces, and the opset is at most 20. Parity is
checked for the tasks of :mod:`pipeline.export.tasks`; another task is exported all the same, with
a note that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.pipeline.export.checkpoint import (
    load_checkpoint,
    read_config,
    require_safetensors,
    torch_model,
)
from compress_onnx.pipeline.export.exported import ExportedModel
from compress_onnx.pipeline.export.onnx_file import use_onnx_file
from compress_onnx.pipeline.export.parity import compare_with_torch, run_onnx
from compress_onnx.pipeline.export.quiet import quiet
from compress_onnx.pipeline.export.tasks import Task, task_of
from compress_onnx.pipeline.recipe import SourceSpec
from compress_onnx.pipeline.results import ExportParity, ExportReport
from compress_onnx.pipeline.runtime.session import one_line, open_session

MAX_OPSET = 20


def export_optimum(checkpoint: Path, spec: SourceSpec, folder: Path, *, seed: int) -> ExportedModel:
    """Write ``folder/model.onnx`` and compare it with PyTorch.

    A decoder is exported without past key values unless ``spec.task`` asks for them.

    Args:
        checkpoint: a folder in the hub's layout.
        spec: the source.
        folder: takes the exported files.
        seed: of the made-up inputs.

    Raises:
        ModelFileError: optimum cannot export the model, or the result differs from PyTorch.
        RequestError: the task cannot be told, or the export has several parts; those stay in
            ``folder``.
    """
    require_safetensors(checkpoint)
    architectures = read_config(checkpoint).architectures
    task = task_of(spec.task, architectures)
    name = task.name if task else spec.task
    if name is None:
        raise RequestError(
            f"cannot tell the task of {spec.model} from its architecture {architectures}: give "
            "the task, by optimum's name"
        )
    run_optimum(checkpoint, name, min(spec.opset, MAX_OPSET), spec.model, folder)
    path = _only_model(folder, spec.model)
    parity = _compare(path, checkpoint, task, spec, seed) if task else ()
    report = ExportReport(
        source=spec.model,
        exporter="optimum",
        opset=use_onnx_file(path, spec.model).report.opset,
        parity=parity,
    )
    return ExportedModel(path, report, notes=tuple(export_notes(spec, report)))


def run_optimum(checkpoint: Path, task: str, opset: int, label: str, folder: Path) -> None:
    """Let optimum write what it makes of ``checkpoint`` for ``task`` into ``folder``.

    Raises:
        ModelFileError: it cannot.
    """
    from optimum.exporters.onnx import main_export

    try:
        with quiet():
            main_export(
                str(checkpoint),
                output=folder,
                task=task,
                opset=opset,
                framework="pt",
                library_name="transformers",
                trust_remote_code=False,
                local_files_only=True,
                do_validation=False,
            )
    except Exception as error:  # it traces the model's own code, and raises what that raises
        raise ModelFileError(f"optimum cannot export {label}: {one_line(error)}") from error


def export_notes(spec: SourceSpec, report: ExportReport) -> Iterator[str]:
    """How the export differs from what was asked for."""
    if report.opset != spec.opset:
        yield f"optimum exported at opset {report.opset} instead of {spec.opset}"
    if not report.parity:
        yield f"the export was not compared with PyTorch: no inputs are known for {spec.task}"


def _only_model(folder: Path, label: str) -> Path:
    models = sorted(folder.glob("*.onnx"))
    if len(models) != 1:
        names = ", ".join(path.name for path in models)
        raise RequestError(
            f"{label} became several models in {folder} ({names}): compress each on its own with "
            "`compress-onnx compress`"
        )
    return models[0]


def _compare(
    path: Path, checkpoint: Path, task: Task, spec: SourceSpec, seed: int
) -> tuple[ExportParity, ...]:
    names = [value.name for value in open_session(path).get_inputs()]
    loaded = load_checkpoint(checkpoint, task)
    model = torch_model(loaded, task, checkpoint, seed=seed, input_names=names)
    return compare_with_torch(model, run_onnx(path, model.probes), spec.parity_tolerance)
