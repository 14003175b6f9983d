"""What gradients are tried on: graphs of exporters, and graphs in the words of other exporters.

A graph that real exporters write comes from :mod:`graph_collection`, one architecture and exporter
each; one construct each comes from :mod:`stranger_graphs`. The samples are five, in batches of two,
so that sizes differ from batch to batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import graph_collection
import onnx
from stranger_graphs import STRANGERS

from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.pipeline.evidence.gradients import output_gradients
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec

EXPORTS = (
    ("vit", "dynamo", 20),
    ("vit", "trace", 17),
    ("bert", "trace", 14),
    ("marian", "trace", 17),
    ("t5", "trace", 17),
    ("swin", "trace", 13),
    ("clip", "trace", 17),
    ("segformer", "trace", 17),
    ("convnext", "trace", 17),
    ("gpt2", "dynamo", 20),
    ("llama", "dynamo", 20),
    ("packed-qkv", "trace", 13),
    ("experts", "dynamo", 20),
    ("experts-einsum", "trace", 17),
    ("pointwise", "trace", 17),
    ("tied", "trace", 17),
    ("functional", "trace", 17),
)
COUNT, BATCH = 5, 2


@dataclass(frozen=True)
class Finding:
    """Whether a graph has gradients.

    Attributes:
        graph: its name.
        exporter: who wrote it, or who writes such.
        reached: at how many of its linear layers there are gradients.
        sites: how many it has.
        reason: why there are none; "" where there are.
    """

    graph: str
    exporter: str
    reached: int
    sites: int
    reason: str = ""


def findings() -> Iterator[Finding]:
    """Try the whole collection, one graph at a time."""
    yield from map(of_stranger, STRANGERS)
    yield from (of_export(*export) for export in EXPORTS)


def of_stranger(name: str) -> Finding:
    """Try one construct."""
    stranger = STRANGERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(stranger.build(), path)
        label = f"{stranger.exporter}, opset {stranger.opset}"
        return _finding(name, label, path, stranger.samples(COUNT))


def of_export(name: str, exporter: str, opset: int) -> Finding:
    """Try what one exporter writes of one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        graph_collection.export(name, exporter, opset, Path(folder))
        path = Path(folder) / "model.onnx"
        graph = graph_collection.Graph(name, exporter, path=path)
        samples = Samples(dict(graph.feeds(batch=COUNT)[0]))
        return _finding(name, f"torch ({exporter}), opset {opset}", path, samples)


def _finding(name: str, exporter: str, path: Path, samples: Samples) -> Finding:
    subject = open_original(path)
    sites = len(subject.table.sites)
    try:
        found = output_gradients(
            subject, samples, RunSettings(SessionSpec(threads=1), batch_size=BATCH)
        )
    except NotDifferentiableError as error:
        return Finding(name, exporter, 0, sites, str(error))
    reached = [s for s in subject.table.sites if any(name in found.stats for name in s.matrices)]
    return Finding(name, exporter, len(reached), sites)
