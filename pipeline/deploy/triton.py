"""Model repositories of Triton, and of KServe, whose runtime for ONNX is Triton.

    repository/NAME/config.pbtxt
    repository/NAME/1/model.onnx    the original, where there is one; else the model
    repository/NAME/2/model.onnx    the model
    repository/NAME/warmup/0.bin    what its first input is warmed up with: raw numbers

Nothing else is in ``repository``: Triton takes every folder there for a model.

``config.pbtxt`` is Triton's own message ``inference.ModelConfig`` in text form, built with the
class that tritonclient ships: a field that Triton does not know cannot be written. With
``max_batch_size`` above 0, ``dims`` leave out the axis of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import MissingDependencyError, RequestError
from compress_onnx.pipeline.deploy.batching import has_batch_axis, why_not_together
from compress_onnx.pipeline.deploy.package import MODEL_NAME, Package, Value, place_model
from compress_onnx.pipeline.runtime.inputs import model_inputs, synthetic_feeds

CONFIG_NAME = "config.pbtxt"
_WARMUP_LENGTH = 16
_QUEUE_DELAY_US = 500

_TYPES = {
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "BFLOAT16": "TYPE_BF16",
    "DOUBLE": "TYPE_FP64",
    "BOOL": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
    **{
        f"{sign}INT{bits}": f"TYPE_{sign}INT{bits}"
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
}


def lay_out_triton(package: Package, folder: Path) -> Iterator[str]:
    """A model repository with one model."""
    return _repository(package, folder / "repository")


def lay_out_kserve(package: Package, folder: Path) -> Iterator[str]:
    """The same repository, and the resource that serves it."""
    yield from _repository(package, folder / "repository")
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": package.name.lower().replace("_", "-").replace(".", "-")},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "onnx"},
                    "protocolVersion": "v2",
                    "storageUri": "pvc://models/repository",
                }
            }
        },
    }
    text = yaml.safe_dump(service, sort_keys=False)
    (folder / "inference-service.yaml").write_text(text, encoding="utf-8")
    yield "set storageUri in inference-service.yaml to where the folder repository is copied"


def model_config(package: Package) -> tuple[Any, tuple[str, ...]]:
    """Triton's ``ModelConfig`` for ``package``, and notes on what it leaves out.

    Raises:
        MissingDependencyError: tritonclient is not installed.
        RequestError: dynamic batching is asked for and answers depend on the batch, or a value has
            a type that Triton does not know.
    """
    messages = _messages()
    serving, notes = package.serving, []
    batched = has_batch_axis(package)
    config = messages.ModelConfig(
        name=package.name,
        backend="onnxruntime",
        max_batch_size=serving.max_batch if batched else 0,
        default_model_filename=MODEL_NAME,
    )
    if len(package.versions) > 1:
        config.version_policy.all.SetInParent()
    for value in package.inputs:
        config.input.add(name=value.name, data_type=_type(value), dims=_dims(value, batched))
    for value in package.outputs:
        config.output.add(name=value.name, data_type=_type(value), dims=_dims(value, batched))
    config.instance_group.add(
        count=serving.instances, kind=messages.ModelInstanceGroup.Kind.Value("KIND_AUTO")
    )
    if serving.threads is not None:
        config.parameters["intra_op_thread_count"].string_value = str(serving.threads)
    if serving.dynamic_batching is not False:
        if (reason := why_not_together(package)) is None:
            config.dynamic_batching.max_queue_delay_microseconds = _QUEUE_DELAY_US
        elif serving.dynamic_batching:
            raise RequestError(f"dynamic batching is refused: {reason}")
        else:
            notes.append(f"no dynamic batching: {reason}")
    warmup = config.model_warmup.add(name="one sample", batch_size=1 if batched else 0, count=1)
    for place, (value, array) in enumerate(_warmup(package)):
        entry = warmup.inputs[value.name]
        entry.data_type, entry.input_data_file = _type(value), _warmup_file(place)
        entry.dims.extend(array.shape[1:] if batched else array.shape)
    return config, tuple(notes)


def _repository(package: Package, folder: Path) -> Iterator[str]:
    from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none

    config, notes = model_config(package)
    model = folder / package.name
    for version, source in enumerate(package.versions, start=1):
        place_model(source, model / str(version) / MODEL_NAME)
    (model / "warmup").mkdir()
    for place, (_, array) in enumerate(_warmup(package)):
        (model / "warmup" / _warmup_file(place)).write_bytes(array.tobytes())
    (model / CONFIG_NAME).write_text(text_format.MessageToString(config), encoding="utf-8")
    yield from notes


def _messages() -> Any:  # noqa: ANN401  # generated code without types
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingDependencyError(
            'the configuration is built of Triton\'s messages: pip install "compress-onnx[deploy]"'
        ) from error
    return model_config_pb2


def _type(value: Value) -> int:
    name = _TYPES.get(value.type_name)
    if name is None:
        raise RequestError(f"Triton has no type for {value.name!r}, which holds {value.type_name}")
    return int(_messages().DataType.Value(name))


def _dims(value: Value, batched: bool) -> list[int]:
    shape = value.shape[1:] if batched else value.shape
    return [size if isinstance(size, int) else -1 for size in shape]


def _warmup(package: Package) -> list[tuple[Value, Array]]:
    """Each input with what it is warmed up with."""
    feeds = synthetic_feeds(model_inputs(package.structure), batch=1, length=_WARMUP_LENGTH, seed=0)
    return [(value, feeds[value.name]) for value in package.inputs]


def _warmup_file(place: int) -> str:
    """Not called after the input: whoever made the model chose that name."""
    return f"{place}.bin"
