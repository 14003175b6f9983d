"""What the nodes of a compressed model tell about themselves, in their ``metadata_props``.

===========================  =======================================================================
``compress_onnx.form``       what became of the layer: ``low rank``, ``neurons``, ``int8``,
                             ``4-bit weights``; several with commas in between
``compress_onnx.method``     by which method, where it was factored or lost neurons
``compress_onnx.rank``       of the factors
``compress_onnx.kept``       neurons that stay
``compress_onnx.error``      how far the factors are from the weight, relative to it
``compress_onnx.damage``     what that costs the model's outputs, as predicted
``compress_onnx.rounding``   what holding the numbers so costs, in the same unit
===========================  =======================================================================

Viewers show them: Netron beside the node, which ``make load-test`` checks. Nothing here decides
anything: the marks of other modules, such as
:data:`~graph_passes.sites.linear_site.SITE_PROPERTY`, do.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

FORM = "compress_onnx.form"
METHOD = "compress_onnx.method"
RANK = "compress_onnx.rank"
KEPT = "compress_onnx.kept"
ERROR = "compress_onnx.error"
DAMAGE = "compress_onnx.damage"
ROUNDING = "compress_onnx.rounding"

TOLD = (FORM, METHOD, RANK, KEPT, ERROR, DAMAGE, ROUNDING)
_BETWEEN = ", "


def figure(value: float) -> str:
    """A number as the nodes tell it."""
    return f"{value:.6g}"


def told_of(node: ir.Node) -> dict[str, str]:
    """What ``node`` tells."""
    return {key: node.metadata_props[key] for key in TOLD if key in node.metadata_props}


def with_numbers(told: Mapping[str, str], form: str, damage: float | None) -> dict[str, str]:
    """The same of a layer whose numbers are held in a new ``form``, at that ``damage``."""
    forms = [told[FORM], form] if FORM in told else [form]
    found = {**told, FORM: _BETWEEN.join(forms)}
    return found if damage is None else {**found, ROUNDING: figure(damage)}
