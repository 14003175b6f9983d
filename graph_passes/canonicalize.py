"""Bring a graph into the form that the other passes rely on, without changing what it computes.

After it, weights are initializers (never Constant nodes) and every node and value has a name of its
own, so that sites can be told apart.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


def canonicalize(model: ir.Model) -> None:
    """Lift constants to initializers and make names unique, in place."""
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=False),
        common.NameFixPass(),
    )(model)
