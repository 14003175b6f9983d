"""Write docs/graphs.md: what is found, rewritten and skipped in the collection of exports.

Usage: ``python tests/graph_table.py docs/graphs.md``
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from graph_collection import Graph, collection, load
from graphs import FULL_RANK, compress, parity

from graph_passes.plan import CompressionPlan

_HEADER = """# Graphs of other exporters

Made by `make graphs`. Every graph of `tests/graph_collection.py` is rewritten at full rank, which
must reproduce its outputs: *parity* is the largest difference, relative to the largest value of the
output, with ONNX Runtime's optimizations on and off. *Sites* are linear layers that are found;
*skipped* are all other products, with the reason.

| graph | sites | rewritten | skipped | parity |
|---|---:|---:|---|---:|
"""


def main() -> None:
    """Write the table to the path that the command line names."""
    Path(sys.argv[1]).write_text(_HEADER + "\n".join(_rows()) + "\n", encoding="utf-8")


def _rows() -> Iterator[str]:
    for graph in collection():
        if graph.path is None:
            yield f"| {graph} | | | does not export: {graph.error} | |"
        else:
            yield _row(graph)


def _row(graph: Graph) -> str:
    before = load(graph)
    after, plan = compress(before, FULL_RANK)
    worst = max(parity(before, after, feeds) for feeds in graph.feeds())
    found, rewritten = len(plan.sites), len(plan.factored)
    return f"| {graph} | {found} | {rewritten} | {_skipped(plan)} | {worst:.1e} |"


def _skipped(plan: CompressionPlan) -> str:
    reasons = Counter(node.reason for node in plan.skipped)
    reasons.update(site.reason for site in plan.sites if site.decision != "factor")
    return "<br>".join(f"{count} × {reason}" for reason, count in reasons.most_common()) or "none"


if __name__ == "__main__":
    main()
