"""Where stages and rounded factors help: ``python -m pipeline.studies.stages docs/stages.md``.

Writes what it measures as tables, under what follows from theory:

1. storage x stages at an equal summed rank, and at equal bytes, through the whole pipeline;
2. stages of mixed storage at equal bytes, in the metric of the weights alone;
3. what ONNX Runtime makes of each way to write rounded factors into a graph.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from ml_dtypes import int4
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graph_passes.factorization.base import Term
from graph_passes.factorization.projection import project
from graph_passes.factorization.storage import Packed, Storage, pack
from graph_passes.plan import MethodSpec
from graph_passes.planning import group_by_weight
from pipeline.atomic import atomic_file
from pipeline.benchmark import benchmark
from pipeline.cache import ArrayCache, default_folder
from pipeline.compress import open_subject
from pipeline.experiment import Experiment, prepare
from pipeline.model_file import model_size
from pipeline.profile import executed_op_counts
from pipeline.recipe import BenchmarkSpec, read_recipe
from pipeline.report import formats
from pipeline.report.environment import environment
from pipeline.session import SessionSpec, open_session, run

MODELS = Path("models")
STORES: tuple[Storage, ...] = ("same", "float16", "int8", "int4")
BITS: Mapping[Storage, int] = {"same": 32, "float16": 16, "int8": 8, "int4": 4}
STAGES = (1, 2, 3, 4)

logger = logging.getLogger(__name__)

Table = list[list[str]]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A recipe, the methods to build stages with, and what to look at.

    Attributes:
        share: of the linear parameters, for the comparison at an equal summed rank.
        byte_share: of the linear bytes in float32, for the comparison at equal bytes.
        quality: a metric of the recipe.
    """

    recipe: str
    methods: tuple[str, ...]
    share: float
    byte_share: float
    rank_multiple: int
    quality: str


CASES = (
    Case("digits-vit", ("svdlora",), 0.33, 0.125, 1, "accuracy"),
    Case("minilm", ("asvd",), 0.5, 0.125, 8, "cosine"),
)


@dataclass(frozen=True)
class Row:
    """One compressed model."""

    store: Storage
    stages: int
    share: float
    site_error: float
    output_error: float
    quality: float
    file_bytes: int


class Bench:
    """A prepared recipe, and the rows that were measured on it already."""

    def __init__(self, case: Case, experiment: Experiment, folder: Path) -> None:
        self._case = case
        self._experiment = experiment
        self._folder = folder
        self._known: dict[tuple[str, Storage, int, float], Row] = {}

    def row(self, method: str, store: Storage, stages: int, share: float) -> Row:
        """Compress, validate and time one variant, unless that was done before."""
        key = method, store, stages, share
        if key not in self._known:
            self._known[key] = self._measure(*key)
            logger.info("%s %s", self._case.recipe, self._known[key])
        return self._known[key]

    def _measure(self, method: str, store: Storage, stages: int, share: float) -> Row:
        experiment, candidate = self._experiment, self._folder / "candidate.onnx"
        request = experiment.recipe.compression.model_copy(
            update={
                "method": MethodSpec(name=method, options={"stages": stages}),
                "params": share,
                "allocation": "uniform",
                "sequential": False,
                "store": store,
                "rank_multiple": self._case.rank_multiple,
                "allow_larger": True,
            }
        )
        plan = experiment.compress(request, candidate)
        validation = experiment.validate(candidate)
        assert validation is not None
        return Row(
            store,
            stages,
            share,
            float(np.mean([site.error.reached for site in plan.factored if site.error])),
            max(output.relative_l2 for output in validation.outputs),
            validation.metrics[self._case.quality],
            model_size(experiment.reference, candidate).candidate_bytes,
        )


def pipeline_tables(case: Case) -> Iterator[str]:
    """Storage x stages through the whole pipeline, at an equal summed rank and at equal bytes."""
    path = MODELS / f"{case.recipe}.yaml"
    recipe = read_recipe(path)
    recipe = recipe.model_copy(update={"benchmark": BenchmarkSpec(threads=1)})
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        folder = Path(work) / "reference"
        folder.mkdir()
        cache = ArrayCache(default_folder())
        experiment = prepare(recipe, folder, base_dir=path.parent, cache=cache)
        bench = Bench(case, experiment, Path(work))
        for method in case.methods:
            equal_rank = [
                bench.row(method, store, stages, case.share)
                for store, stages in product(STORES, STAGES)
            ]
            equal_bytes = [
                bench.row(method, store, stages, case.byte_share * 32 / BITS[store])
                for store, stages in product(STORES, STAGES)
                if stages == 1 or store in {"int8", "int4"}
            ]
            yield f"### {case.recipe}, `{method}`, {case.share:.0%} of the linear parameters\n"
            yield table(case.quality, equal_rank)
            yield f"### {case.recipe}, `{method}`, {case.byte_share:.1%} of the linear bytes\n"
            yield table(case.quality, equal_bytes)


def table(quality: str, rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    header = ["storage", "stages", "parameters kept", "site error", "output error"]
    cells = [
        [
            row.store,
            str(row.stages),
            f"{row.share:.1%}",
            formats.significant(row.site_error),
            formats.significant(row.output_error),
            formats.significant(row.quality),
            formats.size(row.file_bytes),
        ]
        for row in rows
    ]
    return markdown([[*header, quality, "file"], *cells])


def markdown(rows: Table) -> str:
    """A table of which the first column is text."""
    header, *body = rows
    lines = [header, [":---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


MIXTURES: tuple[tuple[Storage, ...], ...] = (
    ("same",),
    ("float16",),
    ("int8",),
    ("int8", "int8"),
    ("int8", "int4"),
    ("int4",),
    ("int4", "int4"),
    ("int4", "int4", "int4"),
    ("int4", "int4", "int4", "int4"),
)
"""The storage of each stage; the bytes are shared evenly among stages."""


def mixture_table(model: Path, bits: Sequence[float]) -> str:
    """Mean relative error in the weights, for each mixture and number of bits a weight."""
    weights = [
        sites[0].weight.array().astype(np.float64)
        for sites in group_by_weight(open_subject(model).table.sites).values()
    ]
    header = ["stages", *(f"{size:g} bits a weight" for size in bits)]
    rows = [header]
    for mixture in MIXTURES:
        errors = [np.mean([staged_error(w, mixture, size) for w in weights]) for size in bits]
        rows.append([" + ".join(mixture), *(formats.significant(float(e)) for e in errors)])
        logger.info("%s", rows[-1])
    return markdown(rows)


def staged_error(weight: Float64, mixture: Sequence[Storage], bits: float) -> float:
    """``‖W − Σ down·up‖ / ‖W‖`` where stage i is stored as ``mixture[i]``, scales not counted."""
    residual = weight
    for store in mixture:
        share = bits / len(mixture) / BITS[store]
        rank = min(int(share * weight.size / sum(weight.shape)), *weight.shape)
        basis = project(residual).basis(rank)
        term = Term.rounded(residual @ basis, basis.T, np.dtype(np.float32), store)
        residual = residual - term.product()
    return float(np.linalg.norm(residual) / np.linalg.norm(weight))


def form_table(features: int = 384, rank: int = 152, hidden: int = 1536) -> str:
    """What ONNX Runtime makes of each form of a chain: error, and speed against float32."""
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal(shape) for shape in ((features, rank), (rank, hidden))]
    header = ["storage", "form", "executed", "error", "speed, 1 row", "speed, 128 rows", "file"]
    rows: Table = [header]
    for store, form in (
        ("float16", "Cast"),
        ("int8", "Cast, Mul"),
        ("int8", "DequantizeLinear"),
        ("int4", "Cast, Mul"),
        ("int4", "DequantizeLinear"),
    ):
        rows.append(_form_row(factors, store, form))
        logger.info("%s", rows[-1])
    return markdown(rows)


def _form_row(factors: Sequence[Float64], store: Storage, form: str) -> list[str]:
    packed = [pack(factor, store, np.dtype(np.float32), axis=0) for factor in factors]
    values = [
        factor.astype(np.float32) if p is None else p.values(np.dtype(np.float32))
        for factor, p in zip(factors, packed, strict=True)
    ]
    spec = SessionSpec(threads=1)
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        paths = Path(work) / "plain.onnx", Path(work) / "form.onnx"
        onnx.save(_chain(values, [None, None], "plain"), paths[0])
        onnx.save(_chain(values, packed, form), paths[1])
        inputs = [
            np.random.default_rng(1).standard_normal((n, len(factors[0]))).astype(np.float32)
            for n in (1, 128)
        ]
        times = [
            benchmark(*paths, {"x": x}, spec, warmup=20, iterations=400, seed=0).speedup
            for x in inputs
        ]
        expected = inputs[1].astype(np.float64) @ values[0] @ values[1]
        found = run(open_session(paths[1], spec), {"x": inputs[1]})["y"]
        counts = executed_op_counts(paths[1], spec)
        size = paths[1].stat().st_size
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    return [
        store,
        form,
        ", ".join(f"{count} {name}" for name, count in counts.items()),
        formats.significant(float(error)),
        *(f"{speedup:.2f}×" for speedup in times),
        formats.size(size),
    ]


def _chain(
    values: Sequence[NDArray[np.float32]], packed: Sequence[Packed | None], form: str
) -> onnx.ModelProto:
    """``y = x·A·B`` with both factors written in ``form``."""
    nodes, initializers, current = [], [], "x"
    for index, (array, factor) in enumerate(zip(values, packed, strict=True)):
        name = f"w{index}"
        decode, tensors = _decoded(name, array, factor, form)
        nodes += [*decode, helper.make_node("MatMul", [current, name], [f"y{index}"])]
        initializers += tensors
        current = f"y{index}"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", values[0].shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", values[1].shape[1]])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _decoded(
    name: str, array: NDArray[np.float32], packed: Packed | None, form: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes that make ``name`` and the initializers that they read."""
    if packed is None:
        return [], [numpy_helper.from_array(array, name)]
    numbers = packed.numbers.astype(int4) if packed.storage == "int4" else packed.numbers
    tensors = [numpy_helper.from_array(numbers, f"{name}.n")]
    if packed.scale is None:
        return [helper.make_node("Cast", [f"{name}.n"], [name], to=TensorProto.FLOAT)], tensors
    scales = [f"{name}.n", f"{name}.s"]
    if form == "DequantizeLinear":
        tensors.append(numpy_helper.from_array(packed.scale[0], f"{name}.s"))
        return [helper.make_node("DequantizeLinear", scales, [name], axis=1)], tensors
    tensors.append(numpy_helper.from_array(packed.scale, f"{name}.s"))
    return [
        helper.make_node("Cast", [f"{name}.n"], [f"{name}.f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.f", f"{name}.s"], [name]),
    ], tensors


INTRODUCTION = """# Stages, and factors that the file holds rounded

TODO
"""


def main() -> None:
    """Measure, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = environment()
    parts = [
        INTRODUCTION,
        f"{found.processor}, {found.cores} cores; `make stages` measures all of it again.\n",
        FORMS,
        form_table(),
    ]
    with atomic_file(arguments.output) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
