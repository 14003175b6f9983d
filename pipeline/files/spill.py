"""New weights that wait on the disk until the model is saved.

A model with external data may be larger than memory, and the factors of its weights are a good part
of it: they go into one file, and the graph holds tensors that refer to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compress_onnx.graph_passes.rewriting.initializers import Sink
from compress_onnx.pipeline.files.atomic import scratch_folder

_FILE_NAME = "weights.bin"


@contextmanager
def spill(output: Path) -> Iterator[Sink]:
    """Yield a sink whose tensors can be read until the context ends.

    Args:
        output: the model to be written; the file is in a hidden folder beside it meanwhile.

    Raises:
        OutputError: the file system refuses (no permission, no space).
    """
    with scratch_folder(output) as folder, (folder / _FILE_NAME).open("wb") as stream:

        def sink(array: NDArray[np.generic], dtype: ir.DataType, name: str) -> ir.TensorProtocol:
            offset = stream.tell()
            length = stream.write(ir.Tensor(array, dtype=dtype).tobytes())
            stream.flush()
            return ir.ExternalTensor(
                _FILE_NAME,
                offset,
                length,
                dtype,
                shape=ir.Shape(array.shape),
                name=name,
                base_dir=folder,
            )

        yield sink
