"""Half floats on a GPU: ``python -m studies.cuda [MODEL.onnx DATA.npz]``.

Without a model, an encoder of BERT-base's shape with random weights, built here: its speeds are
those of the shape, and there is no accuracy to speak of. With one, its held-out samples say how
near each row stays.

Prints one Markdown table. Each row is a model that ONNX Runtime's own tools make, or that this
project does, with the nodes that the provider runs after its own fusions, Casts among them, and the
speed over the original in float32 at four sizes, interleaved, with 95 % intervals. Dynamic int8 is
timed beside the original alone, in fewer rounds: it is many times slower on CUDA.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.neurons import NeuronsPass
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.compress.half import half_model
from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.compress.rivals import dynamic_int8, half_floats
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.files.model_file import model_size, save_model
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.measure.benchmark import (
    BoundModel,
    interleave,
    speedup,
    speedup_interval,
)
from compress_onnx.pipeline.measure.kernel_times import executed_op_counts
from compress_onnx.pipeline.measure.latency import benchmark_feeds
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import BenchmarkSpec, MetricSpec
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec, require_provider
from compress_onnx.pipeline.runtime.threads import limited

SIZES: Sequence[tuple[int, int]] = (1, 16), (1, 128), (8, 128), (32, 128)
ROUNDS, WARMUP = 100, 10
SLOW_ROUNDS = 8
SHARES = 0.75, 0.5
RANK_SHARE = 0.5
"""Of the parameters, as low-rank factors."""

SLOW = "dynamic int8"

Build = Callable[[Path], None]


class Subject(NamedTuple):
    """A model; what it is held against, where it is a trained one."""

    learned: Learned
    held_out: Samples | None = None
    metric: MetricSpec | None = None


class Shape(NamedTuple):
    """Of an encoder."""

    layers: int = 12
    width: int = 768
    neurons: int = 3072
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 512


_BEFORE = """encoder (int64[B,T] input_ids, int64[B,T] attention_mask) => (float[B,T,W] y) {
    rows = Gather(words, input_ids) size = Shape(input_ids) length = Slice(size, one, two)
    places = Slice(positions, zero, length, zero) embedded = Add(rows, places)
    x_0 = LayerNormalization(embedded, scale, shift)
    kept = Cast<to = 1>(attention_mask) wide = Unsqueeze(kept, middle) gone = Sub(unit, wide)
    mask = Mul(gone, lowest)"""

_LAYER = """
    q# = MatMul(x#, wq#) qb# = Add(q#, bq#)
    k# = MatMul(x#, wk#) kb# = Add(k#, bk#)
    v# = MatMul(x#, wv#) vb# = Add(v#, bv#)
    qs# = Reshape(qb#, split) qt# = Transpose<perm = [0, 2, 1, 3]>(qs#)
    ks# = Reshape(kb#, split) kt# = Transpose<perm = [0, 2, 3, 1]>(ks#)
    vs# = Reshape(vb#, split) vt# = Transpose<perm = [0, 2, 1, 3]>(vs#)
    s# = MatMul(qt#, kt#) d# = Div(s#, root) m# = Add(d#, mask) p# = Softmax<axis = -1>(m#)
    c# = MatMul(p#, vt#) ct# = Transpose<perm = [0, 2, 1, 3]>(c#) cr# = Reshape(ct#, join)
    o# = MatMul(cr#, wo#) ob# = Add(o#, bo#)
    r# = Add(ob#, x#) n# = LayerNormalization(r#, scale, shift)
    u# = MatMul(n#, w1#) ub# = Add(u#, b1#)
    g# = Div(ub#, root2) e# = Erf(g#) f# = Add(e#, unit) t# = Mul(ub#, f#) h# = Mul(t#, half)
    w# = MatMul(h#, w2#) wb# = Add(w#, b2#)
    z# = Add(wb#, n#) x@ = LayerNormalization(z#, scale, shift)"""


def encoder(shape: Shape, seed: int = 0) -> onnx.ModelProto:
    """An encoder with random weights, in the operators of opset 17."""
    rng = np.random.default_rng(seed)
    width, neurons = shape.width, shape.neurons
    arrays: dict[str, Array] = {
        "words": _random(rng, shape.vocabulary, width),
        "positions": _random(rng, shape.positions, width),
        "scale": np.ones(width, np.float32),
        "shift": np.zeros(width, np.float32),
        "root": np.asarray(np.sqrt(width / shape.heads), np.float32),
        "root2": np.asarray(np.sqrt(2), np.float32),
        "unit": np.asarray(1, np.float32),
        "half": np.asarray(0.5, np.float32),
        "lowest": np.asarray(np.finfo(np.float32).min),
        "split": np.array([0, 0, shape.heads, width // shape.heads]),
        "join": np.array([0, 0, width]),
        "middle": np.array([1, 2]),
        **{name: np.array([number]) for number, name in enumerate(("zero", "one", "two"))},
    }
    body = _BEFORE.replace("float[B,T,W]", f"float[B,T,{width}]")
    for layer in range(shape.layers):
        sizes = {
            **{f"w{name}": (width, width) for name in "qkvo"},
            **{f"b{name}": (width,) for name in ("q", "k", "v", "o", "2")},
            "w1": (width, neurons),
            "b1": (neurons,),
            "w2": (neurons, width),
        }
        arrays |= {f"{name}_{layer}": _random(rng, *size) for name, size in sizes.items()}
        body += _LAYER.replace("#", f"_{layer}").replace("@", f"_{layer + 1}")
    text = f'<ir_version: 8, opset_import: ["" : 17]> {body} y = Identity(x_{shape.layers}) }}'
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return proto


def _random(rng: np.random.Generator, *size: int) -> Array:
    numbers = rng.standard_normal(size, dtype=np.float32)
    return numbers * np.float32(0.5 / np.sqrt(size[0]) if len(size) > 1 else 0.02)


def builds(subject: Subject) -> Iterator[tuple[str, Build]]:
    """The rows of the table, and what writes each model."""
    learned = subject.learned
    original = learned.original
    yield "original, float32", lambda path: save_model(original.copy(), path)
    yield "half floats (ONNX Runtime's tool)", partial(half_floats, original.path)
    yield "half floats", lambda path: _save_half(learned, original, path)
    for share in SHARES:
        yield (
            f"{share:.0%} of the neurons, half floats",
            lambda path, s=share: _save_half(learned, _fewer_neurons(learned, s), path),  # type: ignore[misc]
        )
    yield (
        f"{RANK_SHARE:.0%} of the parameters by low rank, half floats",
        lambda path: _save_half(learned, _low_rank(learned), path),
    )
    yield SLOW, partial(dynamic_int8, original.path)


def _save_half(learned: Learned, model: ir.Model | Original, path: Path) -> None:
    save_model(half_model(model, learned.samples, learned.settings).model, path)


def _fewer_neurons(learned: Learned, share: float) -> ir.Model:
    """A share of the neurons: chosen by the samples; without any, the first ones."""
    if learned.samples is not None:
        request = CompressionSpec(method=MethodSpec(name="neurons"), params=share, sequential=False)
        return learned.compress(request).model
    model = learned.original.copy()
    chosen: dict[str, Folded] = {}
    for ffn in find_ffns(find_sites(model).sites).ffns:
        weight = ffn.down.weight.array().astype(np.float64)  # [H, N]
        kept = np.arange(round(share * ffn.neurons))
        chosen[ffn.name] = Folded(kept, weight[kept], np.zeros(weight.shape[1]))
    NeuronsPass(chosen)(model)
    CleanupPass()(model)
    return model


def _low_rank(learned: Learned) -> ir.Model:
    request = CompressionSpec(params=RANK_SHARE, sequential=False)
    if learned.samples is None:
        request = request.model_copy(update={"method": MethodSpec(name="svd")})
    return learned.compress(request).model


def table(subject: Subject, folder: Path, provider: Provider) -> Iterator[str]:
    """The lines of the table."""
    paths: dict[str, Path] = {}
    for name, build in builds(subject):
        paths[name] = folder / str(len(paths)) / "model.onnx"
        paths[name].parent.mkdir()
        with subject.learned.settings.progress.step(f"build {name}"):
            build(paths[name])
    speeds = [_speeds(subject, paths, size, provider) for size in SIZES]
    header = ["", "cosine", "file", "nodes (Casts)", *(f"{b}×{n}" for b, n in SIZES)]
    yield f"| {' | '.join(header)} |"
    yield f"|:---|{'---:|' * (len(header) - 1)}"
    for name, path in paths.items():
        counts = executed_op_counts(path, SessionSpec(provider=provider))
        cells = [
            name,
            _cosine(subject, path, provider),
            formats.size(model_size(path, path).candidate_bytes),
            f"{sum(counts.values())} ({counts.get('Cast', 0)})",
            *(column[name] for column in speeds),
        ]
        yield f"| {' | '.join(cells)} |"


def _cosine(subject: Subject, path: Path, provider: Provider) -> str:
    if subject.held_out is None:
        return "–"
    report = validate(
        subject.learned.original.path,
        path,
        subject.held_out,
        metric=subject.metric,
        spec=SessionSpec(provider=provider),
    )
    found = report.metrics.get("cosine", min(row.cosine or 0 for row in report.outputs))
    return f"{found:.5f}"


def _speeds(
    subject: Subject, paths: Mapping[str, Path], size: tuple[int, int], provider: Provider
) -> dict[str, str]:
    """The speed of each model over the first, with its interval; of the first, milliseconds."""
    original, *others = paths
    spec = BenchmarkSpec(batch=size[0], length=size[1])
    path = subject.learned.original.path
    feeds = benchmark_feeds(path, spec, samples=subject.learned.samples, seed=0)
    rng = np.random.default_rng(0)
    found: dict[str, str] = {}

    def time(names: Sequence[str], rounds: int) -> None:
        together = [original, *names]
        models = [BoundModel(paths[n], feeds, SessionSpec(provider=provider)) for n in together]
        interleave(models, min(WARMUP, rounds), rng)
        times = interleave(models, rounds, rng)  # [rounds, models]
        found.setdefault(original, f"{np.median(times[:, 0]) / 1e6:.2f} ms")
        for index, name in enumerate(names, 1):
            pair = times[:, [0, index]]
            interval = speedup_interval(pair, rng)
            found[name] = f"{speedup(pair):.2f} [{interval.low:.2f}, {interval.high:.2f}]"

    time([name for name in others if name != SLOW], ROUNDS)
    time([SLOW], SLOW_ROUNDS)
    return found


def built_in(folder: Path, shape: Shape) -> Subject:
    """The encoder with random weights."""
    path = folder / "encoder.onnx"
    save_model(ir.from_proto(encoder(shape)), path)
    return Subject(learn(path))


def by_files(model: Path, data: Path) -> Subject:
    """A sentence encoder and its samples, of which every fifth is held out."""
    samples, held_out = hold_out(as_samples(data, model_inputs(load_structure(model))))
    learned = learn(model, samples, RunSettings(cache=ArrayCache(default_folder())))
    return Subject(learned, held_out, metric_for(model, held_out, "pooled"))


def device() -> str:
    """The name of the GPU."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown device"
    return done.stdout.strip().partition("\n")[0]


def main() -> None:
    """Measure, and print the table."""
    parser_ = argparse.ArgumentParser(description=__doc__)
    parser_.add_argument("model", type=Path, nargs="?")
    parser_.add_argument("data", type=Path, nargs="?")
    parser_.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    given = parser_.parse_args()
    if (given.model is None) != (given.data is None):
        parser_.error("give both a model and its data, or neither")
    logging.basicConfig(level=logging.WARNING)
    require_provider(given.provider)
    with TemporaryDirectory() as name, limited():
        folder = Path(name)
        subject = by_files(given.model, given.data) if given.model else built_in(folder, Shape())
        for line in table(subject, folder, given.provider):
            sys.stdout.write(f"{line}\n")
        sys.stdout.write(f"\n{device()}\n" if given.provider == "cuda" else "")


if __name__ == "__main__":
    main()
