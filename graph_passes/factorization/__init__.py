"""By which factors is a weight replaced, and what do they lose? Arrays in, arrays out; no onnx.

A method is added by writing its module and naming its class in :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.activations import (
    ActivationStats,
    GradientStats,
    Known,
)
from compress_onnx.graph_passes.factorization.asvd import ASVD
from compress_onnx.graph_passes.factorization.asvd_diagonal import DiagonalASVD
from compress_onnx.graph_passes.factorization.base import Decomposition, Factorization, Method, Term
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton
from compress_onnx.graph_passes.factorization.moments import (
    MomentAccumulator,
    PairedAccumulator,
    PairedStats,
)
from compress_onnx.graph_passes.factorization.svd import SVD
from compress_onnx.graph_passes.factorization.svdlora import SVDLoRA
from compress_onnx.graph_passes.validation_text import first_problem

__all__ = [
    "METHODS",
    "ActivationStats",
    "Decomposition",
    "Factorization",
    "GradientStats",
    "Known",
    "Method",
    "MomentAccumulator",
    "PairedAccumulator",
    "PairedStats",
    "Term",
    "make_method",
]

METHODS: Mapping[str, type[Method]] = {
    "svd": SVD,
    "svdlora": SVDLoRA,
    "asvd": ASVD,
    "asvd-diagonal": DiagonalASVD,
    "gauss-newton": GaussNewton,
}


def make_method(name: str, options: Mapping[str, object] | None = None) -> Method:
    """Build a method from its registered name and its hyper-parameters.

    Raises:
        RequestError: unknown method, unknown option, or an option out of range.
    """
    if name not in METHODS:
        raise RequestError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    try:
        return TypeAdapter(METHODS[name]).validate_python(dict(options or {}))
    except ValidationError as error:
        raise RequestError(f"method {name}: {first_problem(error)}") from error
