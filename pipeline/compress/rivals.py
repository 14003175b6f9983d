"""What a user has without us: ONNX Runtime's own tools, one line each.

=====================  ===========================================================================
``original``           the model as it is
``dynamic int8``       ``quantize_dynamic(per_channel=True)`` for MatMul and Gemm
``8-bit weights``      ``MatMulNBitsQuantizer(bits=8)``: integers in the file, floats in the product
``4-bit weights``      the same with 4 bits
``half floats``        ``convert_float_to_float16(keep_io_types=True)``, on CUDA
=====================  ===========================================================================

``quantize_dynamic`` without a list of operators writes an Attention node of opset 23 that ONNX
Runtime does not load; hence the list. It refuses models whose recorded shapes differ from those
that ONNX infers: then it gets them without.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.runtime.session import Provider, one_line

_BLOCK = 32
_INT8_PRODUCTS = 4
"""The accuracy level at which ONNX Runtime multiplies integers."""


def dynamic_int8(model: Path, output: Path) -> None:
    """Write ``model`` with integer products whose input scales come from the batch at hand."""
    with quiet(f"quantize_dynamic cannot read {model}"):
        try:
            _quantize(model, output)
        except Exception:  # shapes on record that ONNX infers otherwise, mostly
            proto = onnx.load(model)
            del proto.graph.value_info[:]
            _quantize(proto, output)
        save_model(ir.load(output), output)


def _quantize(model: Path | onnx.ModelProto, output: Path) -> None:
    quantize_dynamic(
        model,
        output,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def weight_only(model: Path, output: Path, bits: Literal[4, 8]) -> None:
    """Write ``model`` with weights of so many ``bits``."""
    with quiet(f"MatMulNBitsQuantizer cannot read {model}"):
        quantizer = MatMulNBitsQuantizer(
            onnx.load(model),
            bits=bits,
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=_INT8_PRODUCTS,
        )
        quantizer.process()
        save_model(ir.from_proto(quantizer.model.model), output)


def half_floats(model: Path, output: Path) -> None:
    """Write ``model`` with weights and products of float16."""
    with quiet(f"onnxruntime.transformers.float16 cannot read {model}"):
        converted = convert_float_to_float16(onnx.load(model), keep_io_types=True)
        halves = ir.from_proto(converted)
        halves.graph.sort()  # the tool appends its Casts
        save_model(halves, output)


RIVALS: Mapping[str, Callable[[Path, Path], None]] = {
    "dynamic int8": dynamic_int8,
    "8-bit weights": lambda model, output: weight_only(model, output, 8),
    "4-bit weights": lambda model, output: weight_only(model, output, 4),
}


def rivals(provider: Provider) -> Mapping[str, Callable[[Path, Path], None]]:
    """What is tried on ``provider``."""
    return {"half floats": half_floats, **RIVALS} if provider == "cuda" else RIVALS


@contextlib.contextmanager
def quiet(failure: str) -> Iterator[None]:
    """Without the tool's log lines; whatever goes wrong inside is one error.

    Raises:
        ModelFileError: ``failure``, and what the tool says.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except Exception as error:  # the tools raise whatever they come across
        raise ModelFileError(f"{failure}: {one_line(error)}") from error
    finally:
        logging.disable(disabled)
