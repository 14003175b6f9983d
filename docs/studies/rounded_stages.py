"""Where stages and rounded factors help: ``python -m studies.rounded_stages docs/stages.md``.

Writes what it measures as tables, under what follows from theory:

1. storage x stages at an equal summed rank, and at equal bytes, through the whole pipeline;
2. stages of mixed storage at equal bytes, in the metric of the weights alone;
3. what ONNX Runtime makes of each way to write rounded factors into a graph.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from ml_dtypes import int4
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.base import Term
from compress_onnx.graph_passes.factorization.projection import Projection, project
from compress_onnx.graph_passes.factorization.storage import INTEGERS, Packed, Storage, pack
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.benchmark import benchmark
from compress_onnx.pipeline.measure.kernel_times import executed_op_counts
from compress_onnx.pipeline.recipe import BenchmarkSpec, read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

MODELS = Path("models")
STORES: tuple[Storage, ...] = ("same", "float16", "int8", "int4")
BITS: Mapping[Storage, int] = {"same": 32, "float16": 16, "int8": 8, "int4": 4}
STAGES = (1, 2, 3, 4)

logger = logging.getLogger(__name__)

Table = list[list[str]]


@dataclass(frozen=True)
class Case:
    """A recipe, the method to build stages with, and what to look at.

    Attributes:
        share: of the linear parameters, for the comparison at an equal summed rank.
        byte_share: of the linear bytes in float32, for the comparison at equal bytes.
        quality: a metric of the recipe.
        samples: how many of the held-out ones to look at; None for all.
    """

    recipe: str
    method: str
    share: float
    byte_share: float
    rank_multiple: int
    quality: str
    samples: int | None = None


CASES = (
    Case("digits-vit", "svdlora", 0.33, 0.125, 1, "accuracy"),
    Case("minilm-lowrank", "asvd", 0.5, 0.125, 8, "cosine", samples=128),
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


@dataclass
class Bench:
    """A prepared recipe, and the rows that were measured on it already."""

    case: Case
    experiment: ModelExperiment
    folder: Path
    known: dict[tuple[Storage, int, float], Row] = field(default_factory=dict)

    def row(self, store: Storage, stages: int, share: float) -> Row:
        """Compress and validate one variant, unless that was done before."""
        key = store, stages, share
        if key not in self.known:
            self.known[key] = self._measure(*key)
            logger.info("%s %s", self.case.recipe, self.known[key])
        return self.known[key]

    def _measure(self, store: Storage, stages: int, share: float) -> Row:
        case, experiment, candidate = self.case, self.experiment, self.folder / "candidate.onnx"
        request = experiment.recipe.compression.plain.model_copy(
            update={
                "method": MethodSpec(name=case.method, options={"stages": stages}),
                "params": share,
                "allocation": "uniform",
                "sequential": False,
                "store": store,
                "rank_multiple": case.rank_multiple,
                "allow_larger": True,
            }
        )
        plan = experiment.write(experiment.compress(request), candidate)
        validation = experiment.validate(candidate)
        assert validation is not None
        return Row(
            store,
            stages,
            share,
            float(np.mean([site.error.reached for site in plan.factored if site.error])),
            max(output.relative_l2 for output in validation.outputs),
            validation.metrics[case.quality],
            model_size(experiment.reference, candidate).candidate_bytes,
        )


@contextmanager
def prepared(case: Case) -> Iterator[Bench]:
    """The recipe of ``case``, exported and calibrated."""
    path = MODELS / f"{case.recipe}.yaml"
    recipe = read_recipe(path)
    assert recipe.validation is not None
    held_out = recipe.validation.model_copy(update={"limit": case.samples})
    changes = {"benchmark": BenchmarkSpec(threads=1), "validation": held_out}
    recipe = recipe.model_copy(update=changes)
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        folder = Path(work) / "reference"
        folder.mkdir()
        settings = settings_of(
            recipe, RunSettings(cache=ArrayCache(default_folder()), allow_code=True)
        )
        experiment = prepare_model(recipe, folder, base_dir=path.parent, settings=settings)
        yield Bench(case, experiment, Path(work))


def pipeline_tables(bench: Bench) -> Iterator[str]:
    """Storage x stages through the whole pipeline, at an equal summed rank and at equal bytes."""
    case = bench.case
    equal_rank = [bench.row(store, stages, case.share) for store, stages in product(STORES, STAGES)]
    yield f"### {case.recipe}, `{case.method}`, {case.share:.0%} of the linear parameters\n"
    yield table(case.quality, equal_rank)
    equal_bytes = [
        bench.row(store, stages, case.byte_share * 32 / BITS[store])
        for store, stages in product(STORES, STAGES)
        if stages == 1 or store in INTEGERS
    ]
    yield f"### {case.recipe}, `{case.method}`, {case.byte_share:.1%} of the linear bytes\n"
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


def mixture_table(sites: Sequence[LinearSite], bits: Sequence[float]) -> str:
    """Mean relative error in the weights, for each mixture and number of bits a weight."""
    weights = [project(alike[0].weight.array()) for alike in group_by_weight(sites).values()]
    header = ["stages", *(f"{size:g} bits a weight" for size in bits)]
    rows = [header]
    for mixture in MIXTURES:
        errors = [np.mean([staged_error(w, mixture, size) for w in weights]) for size in bits]
        rows.append([" + ".join(mixture), *(formats.significant(float(e)) for e in errors)])
        logger.info("%s", rows[-1])
    return markdown(rows)


def staged_error(weight: Projection, mixture: Sequence[Storage], bits: float) -> float:
    """``‖W − Σ down·up‖ / ‖W‖`` where stage i is stored as ``mixture[i]``, scales not counted."""
    residual, found = weight.weight, weight
    rows, columns = residual.shape
    terms: list[Term] = []
    for store in mixture:
        if terms:
            residual = residual - terms[-1].product()
            found = project(residual)
        share = bits / len(mixture) / BITS[store]
        basis = found.basis(min(int(share * rows * columns / (rows + columns)), rows, columns))
        terms.append(Term.rounded(residual @ basis, basis.T, np.dtype(np.float32), store))
    left = residual - terms[-1].product()
    return float(np.linalg.norm(left) / np.linalg.norm(weight.weight))


WAYS: tuple[tuple[Storage, str], ...] = (
    ("float16", "Cast"),
    ("int8", "Cast, Mul"),
    ("int8", "DequantizeLinear"),
    ("int4", "Cast, Mul"),
    ("int4", "DequantizeLinear"),
)


def form_table(features: int = 384, rank: int = 152, hidden: int = 1536) -> str:
    """What ONNX Runtime makes of each form of a chain: error, and speed against float32."""
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal(shape) for shape in ((features, rank), (rank, hidden))]
    header = ["storage", "form", "executed", "error", "speed, 1 row", "speed, 128 rows", "file"]
    rows: Table = [header]
    for store, form in WAYS:
        rows.append(_form_row(factors, store, form))
        logger.info("%s", rows[-1])
    return markdown(rows)


def _form_row(factors: Sequence[Float64], store: Storage, form: str) -> list[str]:
    kind = np.dtype(np.float32)
    packed = [p for f in factors if (p := pack(f, store, kind, axis=0)) is not None]
    down, up = (factor.values(kind) for factor in packed)
    spec = SessionSpec(threads=1)
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        paths = Path(work) / "plain.onnx", Path(work) / "form.onnx"
        onnx.save(_chain([down, up], "plain"), paths[0])
        onnx.save(_chain(packed, form), paths[1])
        inputs = [
            np.random.default_rng(1).standard_normal((n, len(factors[0]))).astype(np.float32)
            for n in (1, 128)
        ]
        times = [
            benchmark(*paths, {"x": x}, spec, warmup=20, iterations=400, seed=0).speedup
            for x in inputs
        ]
        expected = inputs[1].astype(np.float64) @ Term(down, up).product()
        found = run(open_session(paths[1], spec), {"x": inputs[1]})["y1"]
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


def _chain(factors: Sequence[Array | Packed], form: str) -> onnx.ModelProto:
    """``y = x·A·B`` with both factors written in ``form``."""
    nodes, initializers, current = [], [], "x"
    for index, factor in enumerate(factors):
        name = f"w{index}"
        decode, tensors = _decoded(name, factor, form)
        nodes += [*decode, helper.make_node("MatMul", [current, name], [f"y{index}"])]
        initializers += tensors
        current = f"y{index}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", None])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["n", None])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _decoded(
    name: str, factor: Array | Packed, form: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes that make ``name`` and the initializers that they read."""
    if not isinstance(factor, Packed):
        return [], [numpy_helper.from_array(factor, name)]
    numbers = factor.numbers.astype(int4) if factor.storage == "int4" else factor.numbers
    tensors = [numpy_helper.from_array(numbers, f"{name}.n")]
    if factor.scale is None:
        return [helper.make_node("Cast", [f"{name}.n"], [name], to=TensorProto.FLOAT)], tensors
    scales = [f"{name}.n", f"{name}.s"]
    if form == "DequantizeLinear":
        tensors.append(numpy_helper.from_array(factor.scale[0], f"{name}.s"))
        return [helper.make_node("DequantizeLinear", scales, [name], axis=1)], tensors
    tensors.append(numpy_helper.from_array(factor.scale, f"{name}.s"))
    return [
        helper.make_node("Cast", [f"{name}.n"], [f"{name}.f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.f", f"{name}.s"], [name]),
    ], tensors


INTRODUCTION = """# Stages, and factors that the file holds rounded

`--store float16|int8|int4` rounds factors in the file, for every method; `svdlora`, `asvd` and
`gauss-newton` build `stages=N`, each from what the earlier ones *as stored* left over.

**Where stages cannot help.** What a factorization of rank r leaves is at least the tail of the
spectrum (Eckart–Young), and one exact stage leaves no more than that. With `same`, N stages are
therefore one stage of the summed rank, and float16 rounds so finely that they are too, to four
digits. The property tests say so, and so do the rows below.

**Where they help.** Rounding adds an error of its own: about the energy that the factors hold,
times the squared relative error of a rounded number (2e-4 for float16, 0.01 for int8, 0.13 for
int4). A later stage sees that as a part of its target. But rounding errors point into all
directions alike, so a stage of rank r repairs about r of min(K, N) of them, and the tail stays. So
stages pay for int4, the more the less tail there is (in the metric of the activations it is
short), and for int8 only where next to nothing is cut off. They pay most around full rank: one
stage ends at min(K, N), while the next can still factor its rounding (mixed storage, 8 bits).

**What helps far more** is the storage itself: at equal bytes, many rounded ranks beat few exact
ones by far.
"""

TABLES = """## Through the whole pipeline

Ranks are uniform, all stages merged into one chain. *Site error* is the mean relative error of the
factored sites, in the weights for `svdlora` and in their outputs for `asvd`; *output error* that of
the model's outputs on held-out data (of MiniLM's sentences, the first 128). Only linear layers are
rounded: what is left of a file is embeddings, norms and the graph.
"""

MIXED = """## Stages of mixed storage at equal bytes

Mean relative error in the weights of all linear layers, the bytes shared evenly among stages (the
scales, one for each rank index, are not counted). 32 bits a weight is the dense model.
"""

FORMS = """## What ONNX Runtime makes of rounded factors

A chain 384 → 152 → 1536 on one CPU thread, with one row (a token being decoded) and with 128;
*speed* is against float32 factors. *Error* is the distance of the outputs from what the stored
numbers stand for. This project writes `Cast, Mul`: ONNX Runtime folds it when it loads the model,
so that a session needs the memory of float32 factors, and computes what the plan says, as fast as
with float32. `DequantizeLinear` stays small in memory and is faster for a single row; but ONNX
Runtime then rounds the *activations* to 8 bits too, of which the plan's errors know nothing, and it
is slower at 128 rows. (The session option `session.disable_quant_qdq` makes it fold that as well.)
"""


def main() -> None:
    """Measure, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = environment()
    parts, mixtures = [INTRODUCTION, TABLES], [MIXED]
    for case in CASES:
        with prepared(case) as bench:
            parts += pipeline_tables(bench)
            sites = bench.experiment.learned.original.table.sites
            mixtures += [f"### {case.recipe}\n", mixture_table(sites, (4, 8))]
    parts += [*mixtures, FORMS, form_table()]
    parts.append(f"{found.processor}, {found.cores} cores; `make stages` measures all this again.")
    with atomic_file(arguments.output) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
