"""An ONNX model for MLServer 1.7: the runtime class that a bundle carries beside its model.

It needs mlserver, onnxruntime and numpy, nothing of compress-onnx. ``model-settings.json`` says
where the model is, and in ``parameters.extra`` how many ``threads`` an inference may take (null:
ONNX Runtime's choice) and how many samples a request may hold (``max_batch``).

What a client got wrong (names, types, shapes, too many samples, data that does not fill its shape,
values that the graph refuses) is an ``InferenceError``: status 400, and the server goes on. A
request never names a file: the model's path comes from the settings alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import (
    Datatype,
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    MetadataTensor,
    RequestInput,
)
from mlserver.utils import get_model_uri

_DATATYPES = {
    "tensor(float16)": ("FP16", np.float16),
    "tensor(float)": ("FP32", np.float32),
    "tensor(double)": ("FP64", np.float64),
    "tensor(bool)": ("BOOL", np.bool_),
    **{
        f"tensor({kind.__name__})": (kind.__name__.upper(), kind)
        for kind in (np.int8, np.int16, np.int32, np.int64)
    },
    **{
        f"tensor({kind.__name__})": (kind.__name__.upper(), kind)
        for kind in (np.uint8, np.uint16, np.uint32, np.uint64)
    },
}


class OnnxModel(MLModel):  # type: ignore[misc]  # mlserver has no types here
    """Runs ``model.onnx`` in ONNX Runtime."""

    async def load(self) -> bool:
        """Open the model; what cannot be opened raises.

        The event loop waits meanwhile: MLServer announces a version before it is loaded, and would
        answer requests that come in between with an error.
        """
        settings = self.settings.parameters.extra or {}
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.get("threads") or 0
        # Threads that spin while they wait take the processor from other requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = await get_model_uri(self.settings)
        self._session = ort.InferenceSession(path, options, ort.get_available_providers())
        self._most = int(settings.get("max_batch") or 0)
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        return True

    async def unload(self) -> bool:
        """Do nothing: requests on the way still use the session, and the last one frees it."""
        return True

    async def metadata(self) -> MetadataModelResponse:
        """Names, types and shapes of inputs and outputs; -1 is any size."""
        return MetadataModelResponse(
            name=self.name,
            versions=[self.version] if self.version else [],
            platform="onnxruntime_onnx",
            inputs=[_described(value) for value in self._inputs.values()],
            outputs=[_described(value) for value in self._session.get_outputs()],
        )

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request.

        Raises:
            InferenceError: the request does not fit the model.
        """
        feeds = self._feeds(payload)
        known = [value.name for value in self._session.get_outputs()]
        asked = [output.name for output in payload.outputs or ()] or known
        for name in asked:
            if name not in known:
                raise InferenceError(f"there is no output {name!r}, only {', '.join(known)}")
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, self._session.run, asked, feeds)
        except Exception as error:  # ONNX Runtime's have no common base
            raise InferenceError(f"the model refuses these values: {_line(error)}") from error
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            id=payload.id,
            outputs=[
                NumpyCodec.encode_output(name, array)
                for name, array in zip(asked, found, strict=True)
            ],
        )

    def _feeds(self, payload: InferenceRequest) -> dict[str, np.ndarray[Any, Any]]:
        given = {value.name: value for value in payload.inputs}
        if len(given) != len(payload.inputs) or given.keys() != self._inputs.keys():
            raise InferenceError(
                f"give each of {', '.join(self._inputs)} once; given: "
                f"{', '.join(value.name for value in payload.inputs)}"
            )
        return {name: self._decoded(value) for name, value in given.items()}

    def _decoded(self, given: RequestInput) -> np.ndarray[Any, Any]:
        declared = self._inputs[given.name]
        name, dtype = _DATATYPES[declared.type]
        if (told := Datatype(given.datatype).value) != name:
            raise InferenceError(f"{given.name!r} holds {name}, not {told}")
        shape = tuple(given.shape)
        fixed = [size if isinstance(size, int) else None for size in declared.shape]
        if len(shape) != len(fixed) or any(
            size < 0 or (wanted is not None and size != wanted)
            for size, wanted in zip(shape, fixed, strict=True)
        ):
            raise InferenceError(
                f"{given.name!r} has the shape {[s or -1 for s in fixed]}, not {list(shape)}"
            )
        if self._most and shape and shape[0] > self._most:
            raise InferenceError(f"at most {self._most} samples a request, not {shape[0]}")
        try:
            array = np.asarray(getattr(given.data, "root", given.data), dtype).reshape(shape)
        except (TypeError, ValueError, OverflowError) as error:
            raise InferenceError(f"the data of {given.name!r}: {_line(error)}") from error
        return array


def _described(value: Any) -> MetadataTensor:  # noqa: ANN401  # ONNX Runtime's NodeArg
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return MetadataTensor(name=value.name, datatype=_DATATYPES[value.type][0], shape=shape)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
