"""What sharing a factor between siblings is worth: ``python -m studies.shared_factors RECIPE…``.

Three questions, one table each:

1. Which siblings lose less together, at equal parameters, in the metric of each method?
2. What does that do to the model, on validation data?
3. Which way of writing a shared factor is fast: products of their own behind one ``down``, or one
   wide product and a Split?
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.cli.console import ProgressBars
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.measure.benchmark import benchmark
from compress_onnx.pipeline.recipe import read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model
from compress_onnx.pipeline.report.formats import significant
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.session import SessionSpec

METHODS = ("svd", "asvd", "auto")
SHARES = (0.5, 0.33, 0.19)
SHAPES = ((384, 384, 3, 128), (768, 768, 3, 128), (768, 768, 3, 16), (512, 512, 12, 64))
"""K, N, siblings, positions: sentence encoders, BERT-base, and the keys and values of a decoder."""

logger = logging.getLogger(__name__)


def document(
    recipes: Sequence[Path], methods: Sequence[str], shares: Sequence[float], command: str
) -> str:
    """All tables as Markdown, with the ``command`` that writes them again."""
    found = environment()
    parts = [
        "# Siblings that share a factor\n",
        f"Written by `{command}` on {found.processor}, {found.cores} cores; rules in "
        "`graph_passes/planning/sharing.py`.\n",
    ]
    for path in recipes:
        parts += _model_tables(path, methods, shares)
    parts += _latency_tables(shares)
    return "\n".join(parts)


def _model_tables(path: Path, methods: Sequence[str], shares: Sequence[float]) -> Iterator[str]:
    recipe = read_recipe(path)
    yield f"## {recipe.name}\n"
    yield "| method | share | siblings | groups, damage over damage apart | parameters | measured |"
    yield "|:---|---:|:---|:---|---:|:---|"
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        cache = ArrayCache(default_folder())
        settings = settings_of(
            recipe, RunSettings(cache=cache, progress=ProgressBars(), allow_code=True)
        )
        experiment = prepare_model(recipe, Path(work), base_dir=path.parent, settings=settings)
        for method in methods:
            for share in shares:
                for siblings in ("never", "auto"):
                    logger.info("%s, %s at %s, siblings %s", recipe.name, method, share, siblings)
                    yield _row(experiment, method, share, siblings)
    yield ""


def _row(experiment: ModelExperiment, method: str, share: float, siblings: str) -> str:
    changes = {"method": MethodSpec(name=method), "params": share, "siblings": siblings}
    request = CompressionSpec.model_validate(
        {**dict(experiment.recipe.compression.plain), **changes}
    )
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        candidate = Path(folder) / "candidate.onnx"
        plan = experiment.write(experiment.compress(request), candidate)
        validation = experiment.validate(candidate)
    assert validation is not None
    measured = {"relative L2": validation.outputs[0].relative_l2}
    names = ("cosine", "neighbour_overlap", "spearman", "accuracy", "agreement")
    measured |= {name: validation.metrics[name] for name in names if name in validation.metrics}
    text = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
    return (
        f"| {method} | {share:.0%} | {siblings} | {_groups(plan)} | {plan.parameters_after:,} | "
        f"{text} |"
    )


def _groups(plan: CompressionPlan) -> str:
    """``{query,key} 0.89, …``: the ends of the names and the ratio that the plan's notes give."""
    notes = {note.partition(" share one down: ")[0]: note for note in plan.notes}
    found = []
    for site in plan.sites:
        note = notes.get(", ".join(site.siblings), "")
        if site.siblings:
            ratio = note.partition("they do ")[2].partition(" ")[0]
            found.append(f"`{site.site}` {ratio}")
    return "<br>".join(found) or "none"


def _latency_tables(shares: Sequence[float]) -> Iterator[str]:
    yield "## Latency\n"
    yield "Speed over factors of their own, at equal parameters, on the CPU, with one thread:"
    yield ""
    yield "| K×N, siblings, positions | share | one down, own products | one down, Split |"
    yield "|:---|---:|---:|---:|"
    began, busy = time.perf_counter(), time.process_time()
    for shape in SHAPES:
        for share in shares:
            cells = [_speed(shape, share, layout) for layout in ("products", "split")]
            rows, columns, siblings, positions = shape
            yield (
                f"| {rows}×{columns}, {siblings}, {positions} | {share:.0%} | {cells[0]} | "
                f"{cells[1]} |"
            )
    used = (time.process_time() - busy) / (time.perf_counter() - began)
    yield f"\nCPU time was {used:.2f} of the elapsed time; well below 1, others took the cores."


def _speed(shape: tuple[int, int, int, int], share: float, layout: str) -> str:
    rows, columns, siblings, positions = shape
    logger.info("latency of %s, %s at %s", layout, shape, share)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, positions, rows)).astype(np.float32)}
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        paths = []
        for name in ("apart", layout):
            paths.append(Path(folder) / f"{name}.onnx")
            onnx.save(siblings_model(rows, columns, siblings, share, name), paths[-1])
        found = benchmark(
            paths[0], paths[1], feeds, SessionSpec(threads=1), warmup=20, iterations=200, seed=0
        )
    low, high = (significant(end, 3) for end in (found.speedup_low, found.speedup_high))
    return f"{found.speedup:.2f}× [{low}, {high}]"


def siblings_model(
    rows: int, columns: int, siblings: int, share: float, layout: str
) -> onnx.ModelProto:
    """Factored siblings ``x [1, T, K] -> y_i [1, T, N]``, written as ``layout`` says.

    Args:
        rows: K.
        columns: N.
        siblings: how many.
        share: of the parameters; ranks are multiples of 8.
        layout: ``apart`` (a down for each), ``products`` (one down, an up for each) or ``split``.
    """
    rng = np.random.default_rng(0)
    wide = 1 if layout == "apart" else siblings
    rank = max(8, int(share * rows * wide * columns / (rows + wide * columns)) // 8 * 8)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def product(x: str, out: str, *shape: int) -> str:
        weight = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"{out}.weight"))
        nodes.append(helper.make_node("MatMul", [x, f"{out}.weight"], [out], out))
        return out

    outputs = [f"y{index}" for index in range(siblings)]
    shared = None if layout == "apart" else product("x", "h", rows, rank)
    if layout == "split":
        product("h", "y", rank, siblings * columns)
        nodes.append(helper.make_node("Split", ["y"], outputs, axis=-1, num_outputs=siblings))
    else:
        for out in outputs:
            product(shared or product("x", f"{out}.h", rows, rank), out, rank, columns)
    graph = helper.make_graph(
        nodes,
        "siblings",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "T", rows])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, [1, "T", columns]) for o in outputs],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def main() -> None:
    """Measure, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("-m", "--method", action="append", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("-p", "--params", action="append", type=float)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command = shlex.join(["python", "-m", "studies.shared_factors", *sys.argv[1:]])
    text = document(
        arguments.recipes, arguments.method or METHODS, arguments.params or SHARES, command
    )
    with atomic_file(arguments.output) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
