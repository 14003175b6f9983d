"""Nodes that change the axes of a hidden value and leave the last one, the neurons, as it is.

A Reshape keeps a last axis of size H where it has that size before and after. What tells it so is
the end of its target, in one of these ways::

    [.., H]                      a constant
    Concat(.., [.., H])          the last operand is a constant
    Concat(.., Shape(h)[-1])     the last operand is read from a hidden value

Where neurons go, the end is replaced. The rest of the target need not change: it is about the other
axes, which hold as many rows whatever H is.

A Reshape to −1 or 0 on the last axis, a Flatten, a Squeeze and an Unsqueeze need no telling. They
keep the neurons where the recorded shape of their output ends in H.

The shape of a hidden value may be read for its other sizes, which stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import onnx_ir as ir

from compress_onnx.graph_passes.sites.elementwise import is_elementwise

RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})

_HANDING_ON = frozenset({"Cast", "Identity", "Squeeze", "Unsqueeze"})
"""Operators that hand on a single number, as a scalar or a vector of one."""


def why_lost(node: ir.Node, size: int) -> str | None:
    """Why a node of :data:`RESHAPING` may not keep a last axis of ``size``; None where it does."""
    if node.op_type == "Squeeze" and "axes" not in node.attributes and len(node.inputs) < 2:
        return f"Squeeze {node.name!r} would take out a single neuron"
    if node.op_type == "Reshape" and _may_copy_last(node):
        return f"Reshape {node.name!r} may copy the number of neurons to another axis"
    if is_told(node):
        end = numbers(end_of_target(node))
        kept = end is None or end[-1] == size
    else:
        shape = node.outputs[0].shape
        kept = shape is not None and len(shape) > 0 and shape[-1] == size
    return None if kept else f"{node.op_type} {node.name!r} may not keep the neurons together"


def is_told(node: ir.Node) -> bool:
    """Whether ``node`` is a Reshape with the size of the last axis in its target."""
    if node.op_type != "Reshape":
        return False
    end = numbers(end_of_target(node))
    if end is None:
        return end_of_target(node) is not node.inputs[1]
    return bool(end) and end[-1] > 0


def end_of_target(reshape: ir.Node) -> ir.Value | None:
    """The last operand of the Concat that makes the target; the target itself where none does."""
    return parts_of_target(reshape)[-1]


def front_of_target(reshape: ir.Node) -> Sequence[ir.Value | None]:
    """The other operands of that Concat; none where none does."""
    return parts_of_target(reshape)[:-1]


def parts_of_target(reshape: ir.Node) -> Sequence[ir.Value | None]:
    """What the Concat that makes the target joins; the target alone where none does."""
    target = reshape.inputs[1]
    producer = None if target is None else target.producer()
    return [target] if producer is None or producer.op_type != "Concat" else producer.inputs


def numbers(value: ir.Value | None) -> list[int] | None:
    """The integers of a constant vector."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def _may_copy_last(reshape: ir.Node) -> bool:
    """Whether a 0 in front of the end of the target may copy the last axis of the input."""
    if reshape.attributes.get_int("allowzero", 0):
        return False
    sizes: list[int | None] = []  # a None stands for any count of computed numbers
    for part in parts_of_target(reshape):
        sizes += numbers(part) or [None]
    rank = _least_rank(reshape.inputs[0])
    return any(
        size == 0 and (axis + 1 >= rank or None in sizes[:axis])
        for axis, size in enumerate(sizes[:-1])
    )


def why_unclear(nodes: Iterable[ir.Node], shapes: Iterable[ir.Node]) -> str | None:
    """Why it is not clear who is told how many neurons there are; None where it is.

    Args:
        nodes: of the network.
        shapes: the Shape nodes that read its hidden values.
    """
    told = {node for node in nodes if is_told(node)}
    sizes: set[ir.Value] = set()
    for shape in shapes:
        if not _sizes_stay(shape, sizes) or not all(_tells_only(told, size) for size in sizes):
            return f"Shape {shape.name!r} tells others how many neurons there are"
    for node in told:
        end = end_of_target(node)
        if numbers(end) is None and end not in sizes:
            return f"what tells Reshape {node.name!r} the number of neurons is computed"
    return None


def _sizes_stay(shape: ir.Node, sizes: set[ir.Value]) -> bool:
    """Whether every reader of ``shape`` picks one size, or sizes without the last.

    The last one is added to ``sizes``, in each form that it takes.
    """
    rank = _least_rank(shape.inputs[0])
    if shape.attributes or shape.outputs[0].is_graph_output():
        return False
    for reader, _ in shape.outputs[0].uses():
        last = _picks_last(reader, rank)
        if last is None:
            return False
        if last:
            sizes.add(reader.outputs[0])
    waiting = list(sizes)
    while waiting:
        for reader, index in waiting.pop().uses():
            if reader.op_type in _HANDING_ON and index == 0 and reader.outputs[0] not in sizes:
                sizes.add(reader.outputs[0])
                waiting.append(reader.outputs[0])
    return True


def _tells_only(told: Set[ir.Node], size: ir.Value) -> bool:
    """Whether ``size`` ends up at the end of the targets of ``told`` alone."""
    return not size.is_graph_output() and all(
        reader.op_type in _HANDING_ON
        or (
            reader.op_type == "Concat"
            and index == len(reader.inputs) - 1
            and not reader.outputs[0].is_graph_output()
            and all(node in told and place == 1 for node, place in reader.outputs[0].uses())
        )
        for reader, index in size.uses()
    )


def _picks_last(reader: ir.Node, rank: int) -> bool | None:
    """Whether ``reader`` takes the last of the ``rank`` sizes, or others; None where it is unknown.

    ``rank`` is the least that it can be.
    """
    operands = [numbers(value) for value in reader.inputs[1:]]
    if any(operand is None or len(operand) != 1 for operand in operands):
        return None
    places = [operand[0] for operand in operands if operand]
    if reader.op_type == "Gather":
        (place,) = places
        if place in range(rank - 1) or place < -1:
            return False
        return True if place == -1 else None
    if reader.op_type == "Slice" and places[3:] in ([], [1]):
        start, end = places[:2]
        if end in range(rank) or -rank < end < 0:
            return False
        return True if start == -1 else None
    return None


def _least_rank(value: ir.Value | None) -> int:
    """How many axes ``value``, a hidden value, has at least: those of what it is computed from."""
    least, waiting, seen = 1, [value], {value}
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if value is not None and value.shape is not None:
            least = max(least, len(value.shape))
        elif node is not None and node.op_type == "Reshape":
            least = max(least, _least_length(node.inputs[1]))
        elif node is not None and is_elementwise(node):
            waiting += [operand for operand in node.inputs if operand not in seen]
            seen.update(node.inputs)
        elif node is not None and node.op_type == "Gemm":
            least = max(least, 2)
    return least


def _least_length(vector: ir.Value | None) -> int:
    """How many numbers ``vector`` has at least."""
    if (known := numbers(vector)) is not None:
        return len(known)
    node = None if vector is None else vector.producer()
    if node is None:
        return 0
    if node.op_type == "Concat":
        return sum(map(_least_length, node.inputs))
    return int(node.op_type == "Unsqueeze")
