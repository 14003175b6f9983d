"""The version of ONNX's operators that a graph is written in."""

from __future__ import annotations

import logging

import onnx
from onnx import version_converter

RECENT = 17
"""Gathers have gradients from opset 16 on, LayerNormalization is an operator from 17 on."""

_IR_VERSION = 8

logger = logging.getLogger(__name__)


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the domain of ONNX itself."""
    versions = (o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"})
    return next(versions, 1)


def in_recent_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` in opset 17 at least, or itself where ONNX cannot convert it."""
    if opset_of(proto) >= RECENT:
        return proto
    try:
        converted = version_converter.convert_version(proto, RECENT)
    except Exception as error:  # the converter raises whatever its adapters do
        logger.info("opset %d stays: %s", opset_of(proto), error)
        return proto
    converted.ir_version = max(converted.ir_version, _IR_VERSION)
    return converted
