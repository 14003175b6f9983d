"""Does the exported graph compute what PyTorch computes?

One run at the traced size proves little: an export may have baked that size in. So both sides run
at two sizes, on inputs with padding where the model takes a mask, and every element counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.export.torch_model import TorchModel
from compress_onnx.pipeline.measure.compare import OutputComparator
from compress_onnx.pipeline.results import ExportParity, OutputComparison
from compress_onnx.pipeline.runtime.session import open_session, run

if TYPE_CHECKING:
    from torch import Tensor

Outputs = dict[str, np.ndarray]


def run_onnx(path: Path, probes: Sequence[Mapping[str, Tensor]]) -> list[Outputs]:
    """The outputs of the model at ``path`` for each of ``probes``.

    Inputs that the exporter found unused, and dropped, are not fed.

    Raises:
        ModelFileError: ONNX Runtime cannot load or run the model.
    """
    session = open_session(path)
    names = [value.name for value in session.get_inputs()]
    return [run(session, {name: probe[name].numpy() for name in names}) for probe in probes]


def compare_with_torch(
    model: TorchModel, candidates: Sequence[Outputs], tolerance: float
) -> tuple[ExportParity, ...]:
    """Compare ONNX outputs, one entry a probe of ``model``, with those of PyTorch.

    Raises:
        ModelFileError: the relative L2 error of an output is above ``tolerance``.
    """
    return tuple(
        _compare(model, probe, candidate, tolerance)
        for probe, candidate in zip(model.probes, candidates, strict=True)
    )


def _compare(
    model: TorchModel, probe: Mapping[str, Tensor], candidate: Outputs, tolerance: float
) -> ExportParity:
    shapes = {name: tuple(tensor.shape) for name, tensor in probe.items()}
    outputs = []
    for name, reference in model.run(probe).items():
        comparison = _compare_output(name, reference, candidate[name])
        if comparison.relative_l2 > tolerance:
            raise ModelFileError(
                f"the exported model's output {name!r} is off by {comparison.relative_l2:.2e} "
                f"(relative L2, at most {tolerance:.0e} is allowed) from PyTorch's, with inputs "
                f"{shapes}: try the other exporter or a lower opset"
            )
        outputs.append(comparison)
    return ExportParity(input_shapes=shapes, outputs=tuple(outputs))


def _compare_output(name: str, reference: np.ndarray, candidate: np.ndarray) -> OutputComparison:
    comparator = OutputComparator()
    comparator.update(reference, candidate)
    return comparator.result(name)
