"""``.npz`` files: one array for each model input, samples along the first axis.

An input that has no axis of samples in the model (a flag, a trip count) is an array of the very
shape that the model declares: ``numpy.savez(path, input_ids=ids, use_cache_branch=[False])``.

An archive may come from anywhere: it is read without pickle, and what its directory declares is
checked against this machine's memory before anything is unpacked (``zipfile`` never unpacks more
than is declared).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.files.archive import ARCHIVE_ERRORS, open_archive
from compress_onnx.pipeline.runtime.inputs import ModelInput, constants_among
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import one_line


def load_npz(
    path: Path,
    labels: str | None = None,
    mask: str | None = None,
    declared: Sequence[ModelInput] = (),
) -> Samples:
    """Read samples from an ``.npz`` file.

    Args:
        path: the file.
        labels: the array with the labels ``[samples, ...]``; every other array is a model input.
        mask: the input that is the padding mask ``[samples, T]``.
        declared: what the model takes, which says which arrays have no axis of samples.

    Raises:
        DataError: the file is missing, damaged, larger than the memory, not plain arrays, or
            lacks ``labels``; or the arrays are no samples (see :class:`Samples`).
    """
    arrays = _read_arrays(path)
    if labels is not None and labels not in arrays:
        raise DataError(f"{path} has no labels {labels!r}, only {', '.join(arrays)}")
    inputs = {name: array for name, array in arrays.items() if name != labels}
    return Samples(
        inputs,
        mask,
        None if labels is None else arrays[labels],
        origin=f"npz file {path.name}",
        constants=constants_among(inputs, declared),
    )


def memory_bytes() -> int:
    """The memory of this machine; 64 GiB where it cannot be told."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 64 * 2**30


def _read_arrays(path: Path) -> dict[str, Array]:
    try:
        _check_directory(path)
        with open_archive(path) as archive:
            return {name: archive[name] for name in archive.files}
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is damaged or no .npz file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ARCHIVE_ERRORS as error:
        raise DataError(
            f"cannot read {path}: {one_line(error)}; save it with numpy.savez"
        ) from error


def _check_directory(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    strangers = [member.filename for member in members if not member.filename.endswith(".npy")]
    if strangers:
        raise DataError(f"{path} holds {strangers[0]!r}, which is no array: use numpy.savez")
    declared_bytes = sum(member.file_size for member in members)
    if declared_bytes > memory_bytes():
        raise DataError(
            f"{path} unpacks to {declared_bytes / 2**30:.1f} GiB, more than this machine's memory: "
            "give fewer samples"
        )
