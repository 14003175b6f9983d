"""A PyTorch module together with what an export has to know about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress_onnx.graph_passes.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class TorchModel:
    """A module that is called with named tensors.

    Attributes:
        module: in evaluation mode.
        outputs: the outputs to export, in order, as :func:`named_tensors` names them.
        dynamic_axes: for each input the axes of free size and their names; axes of one name
            always have one size.
        probes: inputs to trace (the first) and to compare with; every free axis of the first is
            longer than 1, because the tracer takes 1 for a constant.

    Raises:
        RequestError: an output has the name of an input or of a weight, which ONNX forbids.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    dynamic_axes: Axes
    probes: tuple[dict[str, Tensor], ...]

    def __post_init__(self) -> None:
        weights = {name for name, _ in self.module.named_parameters()}
        weights |= {name for name, _ in self.module.named_buffers()}
        clash = sorted((weights | set(self.probes[0])) & set(self.outputs))
        if clash:
            raise RequestError(
                f"the output {clash[0]!r} has the name of an input or a weight: rename the output"
            )

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The outputs that PyTorch computes, by name."""
        import torch

        with torch.no_grad():
            found = named_tensors(self.module(**inputs))
        return {name: found[name].numpy() for name in self.outputs}

    @contextmanager
    def positional(self) -> Iterator[None]:
        """Let the module take its inputs by position and return a tuple of its outputs.

        The method is shadowed on the instance, because a module wrapped around this one would
        prefix every module path and weight name in the exported graph.
        """
        forward = self.module.forward

        def shadow(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = named_tensors(forward(**dict(zip(self.probes[0], tensors, strict=True))))
            return tuple(found[name] for name in self.outputs)

        self.module.forward = shadow
        try:
            yield
        finally:
            self.module.forward = forward


def named_tensors(value: object) -> dict[str, Tensor]:
    """Name the tensors that a module returned.

    The keys of a mapping are the names; a single tensor is ``output``, those of a sequence are
    ``output_0``, ``output_1``, …. Whatever is not a tensor (caches, None) is left out.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return {"output": value}
    if isinstance(value, Sequence):
        value = {f"output_{index}": item for index, item in enumerate(value)}
    if not isinstance(value, Mapping):
        return {}
    return {str(name): item for name, item in value.items() if isinstance(item, torch.Tensor)}
