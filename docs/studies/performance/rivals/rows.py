"""Rows and lines of rivals that have environments of their own.

onnxsim writes ``.onnx`` files, which are measured like all others. OpenVINO runs models itself: it
is timed in its own environment, in turn with ONNX Runtime and the same files that the table's
ratios are over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.measure.batch_invariance import SAMPLES
from compress_onnx.pipeline.recipe import EmbeddingMetric
from compress_onnx.pipeline.runtime.inputs import load_structure
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec
from studies.performance.rivals.environment import RivalUnavailableError, answer, python_with
from studies.performance.rows import CALIBRATION, Row
from studies.performance.subject import Subject
from studies.performance.table import (
    BASES,
    WARMUP,
    Feeds,
    Line,
    absent,
    accuracy_cells,
    speeds_of,
)

_HERE = Path(__file__).parent
ONNXSIM = ("onnxsim==0.8.1", f"onnxruntime=={ort.__version__}", "onnx==1.23.2")
OPENVINO = (
    "openvino==2026.4.1",
    "nncf==3.4.0",
    f"onnxruntime=={ort.__version__}",
    "onnx==1.23.2",
)
PRUNED = "onnxsim, 50% of the neurons"
COMPILED = "OpenVINO"
QUANTIZED = "OpenVINO, int8 by NNCF"


def pruned_rows(subject: Subject, folder: Path) -> Iterator[Row]:
    """Half of the neurons by onnxsim, and these in integers; pruned once, for both."""
    integers = folder / "onnxsim-integers.onnx"
    yield Row(PRUNED, partial(_prune, subject, integers))
    yield Row(f"{PRUNED}, integers", partial(_tidied, integers))


def _prune(subject: Subject, integers: Path, path: Path) -> None:
    request = {
        "original": str(subject.original.resolve()),
        "calibration": _saved(subject.samples.take(CALIBRATION), path.with_name("samples.npz")),
        "mask": subject.samples.mask_name,
        "sparsity": 0.5,
        "integers": str(integers),
        "output": str(path),
    }
    python = python_with("onnxsim", ONNXSIM)
    answer(python, _HERE / "onnxsim_pruning.py", request, path.parent)


def _tidied(source: Path, path: Path) -> None:
    if not source.is_file():
        raise RivalUnavailableError("for the reason above")
    model = ir.load(source)
    CleanupPass()(model)  # onnxsim leaves the floats of rounded weights in the file
    save_model(model, path)


def openvino_lines(
    subject: Subject,
    paths: Mapping[str, Path],
    ours: Mapping[str, Path],
    feeds: Mapping[str, Feeds],
    *,
    folder: Path,
    rounds: int,
) -> list[Line]:
    """The original in OpenVINO, its integers by NNCF, and forms of ours.

    Args:
        subject: what is measured.
        paths: models by name, with those that ratios are over.
        ours: files of ours that OpenVINO runs, by name.
        feeds: what they are timed on.
        folder: for files in between.
        rounds: how often.
    """
    metric = subject.metric
    if subject.held_out.constants:
        return [absent(COMPILED, "inputs without an axis of samples are not passed on")]
    wanted = metric.output if isinstance(metric, EmbeddingMetric) else None
    outputs = [value.name for value in load_structure(subject.original).graph.output]
    request = {
        "anchors": {name: str(paths[name]) for name in BASES if name in paths},
        "compiled": {COMPILED: str(paths[BASES[0]])}
        | {f"{COMPILED}, ours: {name}": str(path) for name, path in ours.items()},
        "quantized": QUANTIZED,
        "calibration": _saved(subject.samples.take(CALIBRATION), folder / "calibration.npz"),
        "held_out": _saved(subject.held_out, folder / "held_out.npz"),
        "mask": subject.held_out.mask_name,
        "output": outputs.index(wanted) if wanted else 0,
        "pooling": isinstance(metric, EmbeddingMetric) and metric.pooling == "mean",
        "timed": {
            name: _arrays(given, folder / f"timed-{index}.npz")
            for index, (name, given) in enumerate(feeds.items())
        },
        "rounds": rounds,
        "warmup": WARMUP,
        "threads": SessionSpec().thread_count,
        "batch": SAMPLES,
        "folder": str(folder),
    }
    try:
        python = python_with("openvino", OPENVINO)
        found = answer(python, _HERE / "openvino_int8.py", request, folder)
    except RivalUnavailableError as problem:
        return [absent(COMPILED, str(problem))]
    times = {inputs: np.array(measured) for inputs, measured in found["times_ns"].items()}
    speeds = speeds_of(times, found["names"])
    return [
        Line(
            f"{name} ({model['precision']})",
            accuracy_cells(model["cosine"], model["in_a_batch"], model["bytes"]),
            speeds[name],
        )
        for name, model in found["models"].items()
    ]


def _saved(samples: Samples, path: Path) -> str:
    return _arrays(samples.inputs, path)


def _arrays(feeds: Feeds, path: Path) -> str:
    np.savez(path, **feeds)  # type: ignore[arg-type]  # by name, none is allow_pickle
    return str(path)
