"""Every error that the project raises on purpose.

    CompressOnnxError          the request cannot be carried out        exit code 2
    ├── ModelFileError         a model file is missing, damaged or unsafe
    ├── RequestError           an option, a recipe or a plan makes no sense
    ├── NotDifferentiableError the model has no gradient graph
    ├── DataError              calibration or validation data does not fit
    ├── ProviderError          an execution provider is not available
    ├── OutputError            the result cannot be written
    ├── MissingDependencyError an optional package is not installed
    ├── BackendError           workers on other machines cannot be had, or are gone
    └── NothingToCompressError no weight can be factored with a gain    exit code 3
        └── NoShareWithinError no share stays within a drop (pipeline.compress.search)

A message is one line: what is wrong, then what to do about it. The command line prints it
without a traceback; anything that is *not* a ``CompressOnnxError`` is a bug and keeps its
traceback. A gate that fails is a result, not an error (exit code 1).
"""

from __future__ import annotations


class CompressOnnxError(Exception):
    """Base of all expected errors; ``exit_code`` is what the command line returns."""

    exit_code = 2


class ModelFileError(CompressOnnxError):
    """A model file is missing, truncated, not ONNX, or refers to data outside its folder."""


class RequestError(CompressOnnxError):
    """An option, a recipe or a plan is invalid."""


class NotDifferentiableError(CompressOnnxError):
    """Gradients of the model's outputs were asked for, and an operator has none."""


class DataError(CompressOnnxError):
    """Calibration or validation data is missing, empty, or does not match the model's inputs."""


class ProviderError(CompressOnnxError):
    """An execution provider was asked for that this machine or this ONNX Runtime lacks."""


class OutputError(CompressOnnxError):
    """The result cannot be written where it was asked for."""


class MissingDependencyError(CompressOnnxError):
    """An optional package is needed for this request and is not installed."""


class BackendError(CompressOnnxError):
    """The workers that jobs should run on cannot be reached, do not fit, or are gone."""


class NothingToCompressError(CompressOnnxError):
    """No selected weight can be replaced by factors with fewer parameters."""

    exit_code = 3
