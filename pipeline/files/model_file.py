"""Read strangers' model files safely, and write models that appear complete or not at all.

Large models keep their weights in a data file beside the model. Two files cannot replace two files
in one step, so the data file gets a name of its own (with a hash of its content) and the model file
that refers to it is replaced last: at any moment the model in place and its data belong together.
The data file of the model that was replaced goes after that, if it was named like this, unless
another model in the folder refers to it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.errors import ModelFileError, OutputError
from compress_onnx.graph_passes.sites.weights import read
from compress_onnx.pipeline.files.atomic import atomic_file, scratch_folder
from compress_onnx.pipeline.files.soundness import check_graph, check_messages, messages
from compress_onnx.pipeline.results import SizeReport
from compress_onnx.pipeline.runtime.protobuf import serialized
from compress_onnx.pipeline.runtime.session import one_line

INLINE_LIMIT_BYTES = 256_000_000
"""Above this the weights go into a data file: writing a model with its weights inside takes three
times their size in memory (and protobuf cannot hold 2 GiB at all)."""

_SMALL_TENSOR_BYTES = 1024
_SMALL_INTEGERS = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}

MARK = "compress_onnx.version"
"""The key of a model's metadata that says that this tool wrote the file."""

_INLINE_TOO_LARGE = "leave --inline out, so that the weights go into a file of their own"


def load_model(path: Path) -> ir.Model:
    """Load the ONNX model at ``path``; weights in external data are read only when used.

    Raises:
        ModelFileError: the file is missing, is not an ONNX model, or its external data is missing,
            truncated or outside its folder.
    """
    model = _read(path)
    for tensor in external_tensors(model):
        _check_location(tensor, path)
    return model


def _read(path: Path) -> ir.Model:
    proto = _proto(path)
    try:
        check_messages(proto)
        _open_negative_dimensions(proto)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        check_graph(model)
    except Exception as error:  # onnx_ir raises unrelated classes on a damaged file
        raise _damaged(path, error) from error
    if model.opset_imports.get("") is None or not len(model.graph) or not model.graph.outputs:
        raise ModelFileError(f"{path} is not an ONNX model, or an empty one: export it again")
    return model


def _proto(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelFileError(f"there is no model file {path}")
    try:
        return onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf raises unrelated classes on what is no model
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{path} is not an ONNX model, or it is damaged: {one_line(error)}")


def _open_negative_dimensions(proto: onnx.ModelProto) -> None:
    """Some exporters write an open dimension of a value as -1; everybody else leaves it out."""
    for message in messages(proto):
        if isinstance(message, onnx.TensorShapeProto.Dimension) and message.dim_value < 0:
            message.ClearField("dim_value")


def data_files(model: ir.Model) -> list[Path]:
    """The external data files of ``model``, each once, sorted."""
    return sorted({Path(tensor.path) for tensor in external_tensors(model)})


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of ``model`` whose numbers are in another file."""
    for graph in (*model.graphs(), *model.functions.values()):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                yield from _external_in(attribute)


def _external_in(attribute: ir.Attr) -> Iterator[ir.ExternalTensor]:
    tensors: list[ir.TensorProtocol] = []
    if attribute.is_ref():
        return
    if attribute.type == ir.AttributeType.TENSOR:
        tensors = [attribute.as_tensor()]
    elif attribute.type == ir.AttributeType.TENSORS:
        tensors = list(attribute.as_tensors())
    yield from (tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


def _check_location(tensor: ir.ExternalTensor, path: Path) -> None:
    location = os.fspath(tensor.location)
    if (
        PurePosixPath(location).is_absolute()
        or PureWindowsPath(location).is_absolute()
        or not Path(os.path.realpath(path.parent / location)).is_relative_to(
            os.path.realpath(path.parent)
        )
    ):
        raise ModelFileError(
            f"{path} keeps {tensor.name!r} in {location!r}, outside its own folder: move the data "
            "beside the model and save the model with relative locations"
        )
    if tensor.length is not None and tensor.length != tensor.nbytes:
        raise ModelFileError(
            f"{path} says that {tensor.name!r} of {tensor.nbytes} bytes has {tensor.length}: "
            "the file is damaged, export it again"
        )
    data = path.parent / location
    if not _is_file(data):
        raise ModelFileError(f"{path} keeps weights in {location!r}, and there is no file {data}")
    start = tensor.offset or 0
    end = start + tensor.nbytes
    if start < 0 or data.stat().st_size < end:
        raise ModelFileError(f"{data} is truncated: {tensor.name!r} ends at byte {end}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False


def save_model(
    model: ir.Model,
    path: Path,
    *,
    external_data: bool | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write ``model`` to ``path`` atomically.

    Args:
        model: computes the same afterwards, but may hold weights that were in its data files.
        path: replaced in one step once everything is on the disk.
        external_data: whether weights go into a data file; None decides by size.
        check: called with the complete model under its temporary name; what it raises leaves
            ``path`` as it was.

    Raises:
        OutputError: ``path`` cannot be written, or is where the model's own weights are read from.
        ModelFileError: with its weights inside, the model is too large for one file.
    """
    _refuse_own_data(model, path)
    model.metadata_props[MARK] = version("compress-onnx")
    if external_data is None:
        external_data = weight_bytes(model) > INLINE_LIMIT_BYTES
    with atomic_file(path) as temporary:
        if external_data:
            _save_with_data(model, path, temporary, check)
        else:
            _inline(model)
            temporary.write_bytes(serialized(ir.to_proto(model), instead=_INLINE_TOO_LARGE))
            if check is not None:
                check(temporary)
        replaced = _own_data(path)
    _remove_unread(replaced, path)


def was_written_here(path: Path) -> bool:
    """Whether the file ``path`` is a model that :func:`save_model` wrote."""
    try:
        return any(entry.key == MARK for entry in _proto(path).metadata_props)
    except ModelFileError:
        return False


def referred_files(path: Path) -> list[Path]:
    """The external data files that the model file ``path`` names, whether they exist or not.

    Raises:
        ModelFileError: there is no such model.
    """
    proto = _proto(path)
    check_messages(proto)
    return sorted({path.parent / location.value for location in _locations(proto)})


def _locations(proto: onnx.ModelProto) -> Iterator[onnx.StringStringEntryProto]:
    """The entries of ``proto`` that name a data file."""
    for message in messages(proto):
        if isinstance(message, onnx.TensorProto):
            yield from (entry for entry in message.external_data if entry.key == "location")


def _data_name(path: Path, digest: str) -> str:
    return f"{path.name}.{digest[:16]}.data"


def _own_data(path: Path) -> list[Path]:
    """The data files of the model in place at ``path`` that bear the names of this module."""
    own = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    with suppress(ModelFileError):  # what is no model has no data
        return [file for file in referred_files(path) if own.fullmatch(file.name)]
    return []


def _remove_unread(files: list[Path], path: Path) -> None:
    """Remove those of ``files`` that no model beside ``path`` refers to, hidden ones included."""
    if not files:
        return
    models = [
        file
        for file in path.parent.iterdir()
        if file.suffix in {".onnx", path.suffix} and file.is_file()
    ]
    try:
        read = {data.name for model in models for data in referred_files(model)}
    except ModelFileError:
        return  # nobody can tell what it refers to
    for file in files:
        if file.name not in read:
            with suppress(OSError):  # another user's, or another run was faster
                file.unlink()


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(tensor.nbytes for tensor in _initializers(model))


def _initializers(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """What ``Constant`` nodes hold as tensors, those in functions included."""
    for owner in (*model.graphs(), *model.functions.values()):
        for node in owner:
            tensor = node.attributes.get("value")
            if node.op_type == "Constant" and tensor is not None and not tensor.is_ref():
                yield tensor.as_tensor()


def model_size(reference: Path, candidate: Path) -> SizeReport:
    """Bytes on disk, external data included, and parameters of two models.

    Parameters are the numbers of all weights, whether initializers or ``Constant`` nodes:
    floating-point ones and integers of up to 8 bits.

    Raises:
        ModelFileError: a model cannot be read.
    """
    before, after = load_model(reference), load_model(candidate)
    return SizeReport(
        reference_bytes=_bytes_on_disk(reference, before),
        candidate_bytes=_bytes_on_disk(candidate, after),
        reference_parameters=_parameters(before),
        candidate_parameters=_parameters(after),
    )


def _bytes_on_disk(path: Path, model: ir.Model) -> int:
    return sum(file.stat().st_size for file in (path, *data_files(model)))


def _parameters(model: ir.Model) -> int:
    weights = chain(_initializers(model), _constants(model))
    return sum(tensor.size for tensor in weights if _is_parameter(tensor.dtype))


def _is_parameter(dtype: ir.DataType) -> bool:
    return dtype.is_floating_point() or dtype in _SMALL_INTEGERS


def content_digest(path: Path, model: ir.Model) -> str:
    """SHA-256 over the model file and its external data."""
    digest = hashlib.sha256()
    for file in (path, *data_files(model)):
        digest.update(file_digest(file).encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of one file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_own_data(model: ir.Model, path: Path) -> None:
    target = Path(os.path.realpath(path))
    if any(Path(os.path.realpath(file)) == target for file in data_files(model)):
        raise OutputError(f"{path} holds the weights of the input model: choose another output")


def _inline(model: ir.Model) -> None:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                tensor = value.const_value
                value.const_value = ir.Tensor(read(tensor), dtype=tensor.dtype, name=tensor.name)


def _save_with_data(
    model: ir.Model, path: Path, temporary: Path, check: Callable[[Path], None] | None
) -> None:
    with scratch_folder(path) as folder:
        staged, data = folder / temporary.name, folder / "weights.data"
        _write_data(model, staged, data.name)
        if check is not None:
            check(staged)
        final = path.with_name(_data_name(path, file_digest(data)))
        _rename_data(staged, final.name, temporary)
        data.replace(final)


def _write_data(model: ir.Model, path: Path, data_name: str) -> None:
    try:
        ir.save(model, path, external_data=data_name, size_threshold_bytes=_SMALL_TENSOR_BYTES)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy says only how many numbers it wrote and how many it should have.
        raise OSError(errno.ENOSPC, f"{one_line(error)}: is the disk full?") from error


def _rename_data(model: Path, data_name: str, renamed: Path) -> None:
    """Write ``model`` to ``renamed``, its data file being called ``data_name`` from now on."""
    proto = onnx.load(model, load_external_data=False)
    for location in _locations(proto):
        location.value = data_name
    renamed.write_bytes(serialized(proto))
