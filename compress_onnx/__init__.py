"""Low-rank compression of ONNX models, with the proof.

    >>> import compress_onnx
    >>> learned = compress_onnx.learn("model.onnx", "data.npz")
    >>> small = learned.compress(compress_onnx.request_of(params=0.5))
    >>> small.write("small.onnx")

Everything is loaded when it is first used, so that ``compress_onnx.graph_passes`` needs neither
ONNX Runtime nor the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress_onnx.graph_passes.errors import CompressOnnxError as CompressOnnxError
    from compress_onnx.pipeline.api import Calls as Calls
    from compress_onnx.pipeline.api import Compressed as Compressed
    from compress_onnx.pipeline.api import Learned as Learned
    from compress_onnx.pipeline.api import RunSettings as RunSettings
    from compress_onnx.pipeline.api import Samples as Samples
    from compress_onnx.pipeline.api import Serving as Serving
    from compress_onnx.pipeline.api import analyze as analyze
    from compress_onnx.pipeline.api import benchmark as benchmark
    from compress_onnx.pipeline.api import bundle as bundle
    from compress_onnx.pipeline.api import compare as compare
    from compress_onnx.pipeline.api import compare_inside as compare_inside
    from compress_onnx.pipeline.api import compress as compress
    from compress_onnx.pipeline.api import export as export
    from compress_onnx.pipeline.api import judge as judge
    from compress_onnx.pipeline.api import learn as learn
    from compress_onnx.pipeline.api import open_backend as open_backend
    from compress_onnx.pipeline.api import optimize as optimize
    from compress_onnx.pipeline.api import recover as recover
    from compress_onnx.pipeline.api import request_of as request_of
    from compress_onnx.pipeline.api import run as run
    from compress_onnx.pipeline.api import validate as validate

_API = "compress_onnx.pipeline.api"
_ORIGINS = {
    "CompressOnnxError": "compress_onnx.graph_passes.errors",
    **dict.fromkeys(("Calls", "Compressed", "Learned", "RunSettings", "Samples", "Serving"), _API),
    **dict.fromkeys(("analyze", "benchmark", "compress", "export", "learn", "optimize"), _API),
    **dict.fromkeys(("bundle", "compare", "compare_inside"), _API),
    **dict.fromkeys(("judge", "open_backend", "recover", "request_of", "run", "validate"), _API),
}
__all__ = sorted(_ORIGINS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """The public name ``name``, loaded when it is first asked for."""
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ORIGINS[name]), name)


def __dir__() -> list[str]:
    return sorted(_ORIGINS)
