"""Readable names: the module path of a node, a free name for a new value.

Exporters leave the module path in different places:

1. ``torch.onnx.export(dynamo=True)``: the node's metadata ``pkg.torch.onnx.name_scopes``, the text
   of a list of ever longer paths that ends with the operation's own name.
2. Tracing exporters: the node's name, ``/encoder/layer.0/attention/self/query/MatMul``.
3. Otherwise a parameter's name, where it reads like one (``encoder.layer.0.query.weight``).
4. Otherwise the node's own name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"

_PARAMETER = re.compile(r"(?P<module>[A-Za-z_][\w]*(\.\w+)+)\.(weight|bias|kernel)(_[\w]+)?")
_ATTENTION = re.compile(
    r"(^|[._])(self_?attn|cross_?attn|attn|attention|self_?attention|selfattention|encdecattention"
    r"|q|k|v|o|q_?proj|k_?proj|v_?proj|o_?proj|qkv|in_proj|out_proj|query|key|value)([._]|$)",
    re.IGNORECASE,
)
_MLP = re.compile(
    r"(^|[._])(mlp|ffn?|feed_?forward|intermediate|output|c?_?fc\d*|lin\d|w[io123](_\d)?"
    r"|(gate|up|down)_proj|densereludense)([._]|$)",
    re.IGNORECASE,
)

_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")


def module_path(node: ir.Node, parameters: Iterable[ir.Value | None] = ()) -> str:
    """The module that ``node`` belongs to, or the node's own name where nothing tells."""
    scopes = _name_scopes(node.metadata_props.get(NAME_SCOPES, ""))
    if scopes:
        return scopes
    name = node.name or ""
    if name.startswith("/") and name.count("/") > 1:
        return ".".join(_without_repeats(name.strip("/").split("/")[:-1]))
    for parameter in parameters:
        match = _PARAMETER.fullmatch((parameter.name or "") if parameter is not None else "")
        if match:
            return match["module"]
    return name or f"{node.op_type}_{node.outputs[0].name}"


def _name_scopes(text: str) -> str:
    try:
        scopes = ast.literal_eval(text) if text.startswith("[") else []
    except (ValueError, SyntaxError):  # written by a stranger: not worth failing for
        return ""
    paths = [scope for scope in scopes[:-1] if isinstance(scope, str) and scope]
    return paths[-1] if paths else ""


def _without_repeats(parts: list[str]) -> list[str]:
    """Tracing writes ``layer/layer.0``: a part that only announces the next one goes."""
    return [
        part
        for part, following in zip(parts, [*parts[1:], ""], strict=True)
        if not following.startswith(part + ".")
    ]


def group_of(path: str) -> str:
    """``attention``, ``mlp`` or ``other``, by the names that module paths usually carry."""
    if _ATTENTION.search(path):
        return "attention"
    return "mlp" if _MLP.search(path) else "other"


def kind_of(path: str) -> tuple[str, int | None]:
    """What ``path`` is in every layer, and in which layer it is: its first number.

    ``encoder.layer.3.attention.query`` is ``encoder.layer.*.attention.query`` in layer 3; a path
    without a number is of its own kind, in no layer.
    """
    number = _NUMBER.search(path)
    if number is None:
        return path, None
    return f"{path[: number.start()]}*{path[number.end() :]}", int(number[0])


class UniqueNames:
    """Hands out names that are not taken: ``name``, then ``name#2``, ``name#3`` and so on."""

    def __init__(self, taken: Iterable[str] = (), separator: str = "#") -> None:
        self._taken = set(taken)
        self._separator = separator

    def __call__(self, name: str) -> str:
        """Return ``name`` or the first free variant of it, and take it."""
        candidate, number = name, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{name}{self._separator}{number}"
        self._taken.add(candidate)
        return candidate


def value_names(model: ir.Model) -> set[str]:
    """The names of all values and nodes of the graphs of ``model``."""
    taken: set[str] = set()
    for graph in model.graphs():
        taken.update(value.name for value in graph.inputs if value.name)
        taken.update(graph.initializers)
        for node in graph:
            taken.update(value.name for value in node.outputs if value.name)
            taken.add(node.name or "")
    return taken
