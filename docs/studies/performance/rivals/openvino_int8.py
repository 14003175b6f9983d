"""OpenVINO beside ONNX Runtime: ``python openvino_int8.py REQUEST ANSWER``.

For OpenVINO's environment, which has NNCF and ONNX Runtime too. ONNX Runtime runs the ``anchors``
of the request (paths of .onnx files by name, the first of them the original). OpenVINO runs the
``compiled`` (paths by name) and, under the name ``quantized``, the original with integers by
NNCF's post-training quantization (SmoothQuant, bias correction). All take turns on each of
``timed`` (.npz files of inputs by name), with the same number of threads.

Accuracy is measured on ``held_out``, calibration runs on ``calibration`` (.npz files of samples),
with ``mask`` for the padding mask's input or null. ``output`` is the index of the output that
counts; with ``pooling`` it is averaged over a sample's positions, else taken whole.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnxruntime as ort
import openvino as ov

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Run = Callable[[Feeds], list[Array]]


class Runtime:
    """A model in ONNX Runtime."""

    def __init__(self, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Feeds) -> list[Array]:
        """All outputs, in the model's order."""
        return list(self._session.run(None, feeds))


class OpenVino:
    """A model in OpenVINO."""

    def __init__(self, model: ov.Model, threads: int) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._compiled = ov.Core().compile_model(model, "CPU", settings)
        self.precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self._request = self._compiled.create_infer_request()

    def __call__(self, feeds: Feeds) -> list[Array]:
        """All outputs, in the model's order."""
        found = self._request.infer(feeds, share_inputs=True)
        return [np.array(found[output]) for output in self._compiled.outputs]


def trimmed(arrays: Feeds, mask: str | None) -> Feeds:
    """A batch without the positions that are padding in all of it."""
    if not mask:
        return arrays
    width, used = arrays[mask].shape[1], arrays[mask].astype(bool).any(axis=0)
    return {
        name: np.ascontiguousarray(array[:, used])
        if array.ndim > 1 and array.shape[1] == width
        else array
        for name, array in arrays.items()
    }


def batches(arrays: Feeds, mask: str | None, size: int) -> Iterator[Feeds]:
    """Samples, so many at a time."""
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield trimmed({n: array[start : start + size] for n, array in arrays.items()}, mask)


def answers(run: Run, arrays: Feeds, mask: str | None, size: int, output: int) -> Iterator[Array]:
    """For each sample, its part of the output ``[positions, D]`` or whatever it is."""
    for feeds in batches(arrays, mask, size):
        value = run(feeds)[output]
        for row in range(len(value)):
            one = value[row]
            if mask and one.ndim > 1 and len(one) == feeds[mask].shape[1]:
                one = one[feeds[mask][row].astype(bool)]
            yield one


def cosine(one: Array, other: Array) -> float:
    """Of two arrays, as vectors."""
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def fidelity(reference: Iterable[Array], candidate: Iterable[Array], *, pooling: bool) -> float:
    """The mean cosine of samples to their originals."""

    def vector(value: Array) -> Array:
        return value.mean(axis=0) if pooling and value.ndim > 1 else value

    pairs = zip(reference, candidate, strict=True)
    return float(np.mean([cosine(vector(ours), vector(theirs)) for ours, theirs in pairs]))


def interleaved(models: Sequence[Run], feeds: Feeds, rounds: int, warmup: int) -> list[list[float]]:
    """Nanoseconds ``[rounds, models]``, in random order within a round."""
    rng = np.random.default_rng(0)
    times = np.empty((warmup + rounds, len(models)))
    for index in range(len(times)):
        for which in rng.permutation(len(models)):
            start = time.perf_counter_ns()
            models[which](feeds)
            times[index, which] = time.perf_counter_ns() - start
    kept: list[list[float]] = times[warmup:].tolist()
    return kept


def main() -> None:
    """Quantize, compare, time."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threads, mask, output = asked["threads"], asked["mask"], asked["output"]
    with np.load(asked["calibration"]) as file:
        calibration = list(batches(dict(file), mask, 1))
    with np.load(asked["held_out"]) as file:
        held_out = dict(file)
    few = {name: array[: asked["batch"]] for name, array in held_out.items()}
    anchors = {name: Runtime(path, threads) for name, path in asked["anchors"].items()}
    original = next(iter(asked["anchors"].values()))
    graphs = {name: ov.Core().read_model(path) for name, path in asked["compiled"].items()}
    graphs[asked["quantized"]] = nncf.quantize(
        ov.Core().read_model(original),
        nncf.Dataset(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    reference = list(answers(next(iter(anchors.values())), held_out, mask, 32, output))
    models = {name: OpenVino(graph, threads) for name, graph in graphs.items()}
    measured = {}
    for name, run in models.items():
        file = Path(asked["folder"]) / "openvino.xml"
        ov.save_model(graphs[name], file, compress_to_fp16=False)
        alone = answers(run, few, mask, 1, output)
        together = answers(run, few, mask, asked["batch"], output)
        measured[name] = {
            "precision": run.precision,
            "cosine": fidelity(
                reference, answers(run, held_out, mask, 32, output), pooling=asked["pooling"]
            ),
            "in_a_batch": min(cosine(*pair) for pair in zip(alone, together, strict=True)),
            "bytes": file.stat().st_size + file.with_suffix(".bin").stat().st_size,
        }
    times = {}
    for inputs, path in asked["timed"].items():
        with np.load(path) as file:
            feeds = dict(file)
        runs: list[Run] = [*anchors.values(), *models.values()]
        times[inputs] = interleaved(runs, feeds, asked["rounds"], asked["warmup"])
    answer = {
        "versions": {"openvino": ov.__version__, "nncf": nncf.__version__, "ort": ort.__version__},
        "models": measured,
        "names": [*anchors, *models],
        "times_ns": times,
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
