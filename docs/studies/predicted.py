"""Predicted damage against measured: ``python -m studies.predicted``.

MiniLM by its recipe, one change at a time: one weight of low rank, one network with fewer neurons,
one layer of integers. Each has a predicted damage in the unit that budgets are shared out by, the
squared change of the pooled, normalized outputs; it is measured on held-out samples. Prints the
rank correlation and the ratio of measured to predicted, by kind and over all.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from scipy import stats

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton
from compress_onnx.graph_passes.planning.damage import damage_curve
from compress_onnx.graph_passes.planning.ffns import neuron_curves
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.pipeline.compress.integers import round_model
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.evidence.objective import Objective, change
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.runtime.batches import model_batches
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import open_session, run
from compress_onnx.pipeline.runtime.threads import limited
from studies.performance.subject import prepared

SAMPLES = 192
SHARES = 0.75, 0.5, 0.25
OBJECTIVE: Objective = "pooled"


class Change(NamedTuple):
    """One change; ``build`` makes the model."""

    kind: str
    name: str
    predicted: float
    build: Callable[[], ir.Model]


def changes(learned: Learned) -> Iterator[Change]:
    """All single changes of the three kinds."""
    table = learned.original.table
    method = MethodSpec(name="gauss-newton")
    basis = learned.basis(CompressionSpec(method=method, objective=OBJECTIVE))
    truncation = damage_curve("gauss-newton", GaussNewton(), basis.decompositions)
    selection = neuron_curves("gauss-newton", basis.decompositions)
    assert truncation is not None
    assert selection is not None
    assert basis.gradients is not None
    for index, sites in enumerate(group_by_weight(table.sites).values()):
        (curve,), share = truncation([sites]), SHARES[index % len(SHARES)]
        assert curve is not None
        request = _one(sites[0].name, share).model_copy(update={"method": method})
        plan = learned.compress(request).plan
        rank = next(site.rank for site in plan.factored)
        assert rank is not None
        build = _compressed(learned, request)
        yield Change("low rank", f"{sites[0].name}, rank {rank}", float(curve[rank]), build)
    for ffn in find_ffns(table.sites).ffns:
        (damage,) = selection([ffn])
        assert damage is not None
        for share in SHARES:
            names = tuple(site.name for site in ffn.sites)
            request = CompressionSpec(
                method=MethodSpec(name="neurons"),
                params=share,
                sequential=False,
                objective=OBJECTIVE,
                select=Selection(include=names),
            )
            kept = next(site.neurons for site in learned.compress(request).plan.thinned)
            assert kept is not None
            build = _compressed(learned, request)
            yield Change("neurons", f"{ffn.name}, {kept} kept", float(damage[kept]), build)
    moments = {str(site.node.name): basis.gradients.stats[site.name].moment for site in table.sites}
    assert learned.samples is not None
    few = learned.samples.select(np.arange(min(len(learned.samples), 256)))
    for site in table.sites:
        rounded = round_model(
            learned.original, few, learned.settings, moments=moments, only={site.name}
        )
        build = _given(rounded.model)
        yield Change("integers", site.name, rounded.damage[site.name], build)


def _one(name: str, share: float) -> CompressionSpec:
    return CompressionSpec(
        params=share,
        allocation="uniform",
        sequential=False,
        objective=OBJECTIVE,
        select=Selection(include=(name,)),
    )


def _compressed(learned: Learned, request: CompressionSpec) -> Callable[[], ir.Model]:
    return lambda: learned.compress(request).model


def _given(model: ir.Model) -> Callable[[], ir.Model]:
    return lambda: model


def measured(
    model: ir.Model, reference: list[tuple[Batch, Mapping[str, Array]]], samples: int, folder: Path
) -> float:
    """The mean squared change of the outputs of ``reference`` by ``model``."""
    path = folder / "changed.onnx"
    save_model(model, path)
    session = open_session(path)
    total = 0.0
    for batch, outputs in reference:
        made = run(session, batch.feeds)
        total += sum(change(outputs[name], made[name], batch, OBJECTIVE) for name in outputs)
    return total / samples


def references(model: Path, samples: Samples) -> list[tuple[Batch, Mapping[str, Array]]]:
    """What the original answers, batch by batch."""
    session = open_session(model)
    return [(batch, run(session, batch.feeds)) for batch in model_batches(session, samples, 32)]


def lines(found: list[tuple[Change, float]]) -> Iterator[str]:
    """The table."""
    yield "| change | how many | rank correlation | measured / predicted, median [10 %, 90 %] |"
    yield "|:---|---:|---:|---:|"
    kinds = [*dict.fromkeys(change.kind for change, _ in found), "all"]
    for kind in kinds:
        rows = [(c.predicted, m) for c, m in found if kind in {c.kind, "all"}]
        predicted, real = np.array(rows).T
        correlation = float(stats.spearmanr(predicted, real).statistic)
        low, middle, high = np.quantile(real / predicted, [0.1, 0.5, 0.9])
        yield (
            f"| {kind} | {len(rows)} | {correlation:.3f} | {middle:.2f} [{low:.2f}, {high:.2f}] |"
        )
    yield ""
    ratios = sorted(found, key=lambda pair: abs(np.log(pair[1] / pair[0].predicted)))
    yield "Furthest from what was predicted:"
    yield ""
    for worst, value in ratios[-6:]:
        yield f"- {worst.kind}, {worst.name}: {worst.predicted:.3g} predicted, {value:.3g} measured"


def main() -> None:
    """Measure, and print the table."""
    logging.basicConfig(level=logging.WARNING)
    with TemporaryDirectory() as name, limited():
        folder = Path(name)
        (folder / "export").mkdir()
        subject = prepared(folder / "export")
        assert subject.held_out is not None
        held_out = subject.held_out.select(np.arange(SAMPLES))
        reference = references(subject.learned.original.path, held_out)
        found = []
        progress = subject.learned.settings.progress
        with progress.step("changes") as update:
            for done, single in enumerate(changes(subject.learned), start=1):
                found.append((single, measured(single.build(), reference, len(held_out), folder)))
                update(done)
        for line in lines(found):
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
