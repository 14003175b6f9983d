"""Models as bytes; what protobuf cannot hold is refused in one line.

A message of protobuf has less than 2 GiB, weights included. Above that its implementations fail in
ways of their own, or write what nobody can read.
"""

from __future__ import annotations

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # ships none

from compress_onnx.graph_passes.errors import ModelFileError

MESSAGE_LIMIT_BYTES = 2**31 - 1

INSIDE = (
    "work on fewer weights at a time: --method asvd --one-shot with --allocation uniform needs no "
    "copy of the model with its weights inside"
)
"""What to do where a graph was made that holds all weights."""

SMALLER = "recovery trains only models that fit: make it smaller, or do without --recover"
"""What to do where a graph was made to train a model."""

OUTSIDE = "save the model with external data first (onnx.save_model, save_as_external_data=True)"
"""What to do where weights are inside only because they are in the model's file."""


def serialized(model: onnx.ModelProto, *, instead: str = INSIDE) -> bytes:
    """The bytes of ``model``; equal models of one process have equal bytes.

    Args:
        model: weights in external data do not count.
        instead: what to do where it is too large.

    Raises:
        ModelFileError: it is too large.
    """
    try:
        content = bytes(model.SerializeToString(deterministic=True))
    except EncodeError as error:
        raise _too_large(instead) from error
    if len(content) > MESSAGE_LIMIT_BYTES:
        raise _too_large(instead)
    return content


def _too_large(instead: str) -> ModelFileError:
    limit = f"{MESSAGE_LIMIT_BYTES / 2**30:.2g} GiB"
    return ModelFileError(
        f"the graph and the weights inside it are too large for one protobuf message ({limit} at "
        f"most): {instead}"
    )
