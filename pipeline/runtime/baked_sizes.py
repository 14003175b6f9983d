"""Graphs with the sizes of their trace baked in, recognized by how they fail.

A mixture of experts, say, counts the tokens of each expert while it is traced, and the exporter
writes the counts down as constants of Split, Reshape or Expand. Such a graph declares free axes
and runs at the traced sizes alone. With sizes that are computed from the input, these operators
cannot fail on inputs that the model takes: where one does, its sizes are constants.
"""

from __future__ import annotations

import re

_FAILED = re.compile(r"running (Split|Reshape|Expand) node\. Name:'([^']*)'")


def baked_sizes(message: str) -> str | None:
    """What to do about a failed run, if ``message`` of ONNX Runtime says that sizes disagree."""
    failed = _FAILED.search(message)
    if failed is None:
        return None
    operator, name = failed.groups()
    return (
        f"{operator} {name!r} does not take a batch of this size: the graph has the sizes that it "
        "was traced at baked in; give it the batch size of the trace (--batch-size, and a multiple "
        "of as many samples) at the length of the trace without padding, or export it anew with "
        "free sizes"
    )
