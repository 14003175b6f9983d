"""Write docs/graphs.md: what is found, rewritten and skipped in the collection of exports.

Usage: ``python tests/graph_table.py docs/graphs.md``
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnx
from graph_collection import Graph, collection, load
from graphs import FULL_RANK, compress, parity

from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.measure.sizes import compare_sizes
from compress_onnx.pipeline.runtime.session import open_session

_HEADER = """# Graphs of other exporters

Made by `make graphs`. Every graph of `tests/graph_collection.py` is rewritten at full rank, which
must reproduce its outputs: *parity* is the largest difference, relative to the largest value of the
output, with ONNX Runtime's optimizations on and off. *Sites* are linear layers that are found;
*skipped* are all other products, with the reason. A graph is named after its architecture, its
exporter with the opset, and its part or variant (`tests/graph_collection.py` explains them).

ONNX Runtime has no bfloat16 products on a CPU: `bf16` graphs keep their weights in bfloat16 and
cast them, which makes them no plain weights. That products in bfloat16 get factors in bfloat16 is
tested without running them (`tests/test_lowrank.py`). The experts of Mixtral and Switch
Transformers are loops over the tokens that each expert is given: no exporter here can follow
Mixtral's, and tracing Switch's bakes in how many tokens each expert got. Modules that show every
expert every token (`experts`) stand in for them.

| graph | sites | rewritten | skipped | parity |
|---|---:|---:|---|---:|
"""


_SIZES = """
## Sizes

Where axes are dynamic, the original and the rewritten graph run at two sizes, and must return equal
shapes. All graphs do so, except:

"""


def main() -> None:
    """Write the table to the path that the command line names."""
    rows: list[str] = []
    sizes: dict[str, list[str]] = {}
    for graph in collection():
        if graph.path is None:
            rows.append(f"| {graph} | | | does not export: {graph.error} | |")
            continue
        before = load(graph)
        after, plan = compress(before, FULL_RANK)
        rows.append(_row(graph, before, after, plan))
        sizes.setdefault(_sizes(graph, before, after), []).append(str(graph))
    exceptions = [
        f"- {finding}: {', '.join(names)}."
        for finding, names in sizes.items()
        if not finding.startswith("both models run")
    ]
    text = _HEADER + "\n".join(rows) + "\n" + _SIZES + "\n".join(exceptions or ["- none."]) + "\n"
    Path(sys.argv[1]).write_text(text, encoding="utf-8")


def _sizes(graph: Graph, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    reference, candidate = (open_session(model.SerializeToString()) for model in (before, after))
    return compare_sizes(reference, candidate, graph.inputs())


def _row(
    graph: Graph, before: onnx.ModelProto, after: onnx.ModelProto, plan: CompressionPlan
) -> str:
    worst = max(parity(before, after, feeds) for feeds in graph.feeds())
    found, rewritten = len(plan.sites), len(plan.factored)
    return f"| {graph} | {found} | {rewritten} | {_skipped(plan)} | {worst:.1e} |"


def _skipped(plan: CompressionPlan) -> str:
    reasons = Counter(node.reason for node in plan.skipped)
    reasons.update(site.reason for site in plan.sites if site.decision != "factor")
    return "<br>".join(f"{count} × {reason}" for reason, count in reasons.most_common()) or "none"


if __name__ == "__main__":
    main()
