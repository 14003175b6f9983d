"""Attention layers only, SVD against activation-aware SVD, without training: ViT and BERT."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.pipeline.compress.spectra import spectra_of
from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.report.analysis import NormalizationTest, analyze
from compress_onnx.pipeline.report.analysis.layernorm import DIAGONAL, EXACT, as_text
from compress_onnx.pipeline.report.analysis.pictures import (
    DENSITIES_NAME,
    VARIANCE_NAME,
    draw_analysis,
)
from compress_onnx.pipeline.results import SweepRow
from studies.reproduction.drawing import Panel, draw
from studies.reproduction.full_size import (
    LATENCY_HEADER,
    latency_cells,
    measure_full_size,
    vit_base,
)
from studies.reproduction.measuring import (
    accuracy,
    drop,
    logit_error,
    measure,
    site_error,
)
from studies.reproduction.section import Claim, Picture, Section, Table, claim, table
from studies.reproduction.workplace import Case, Models, Workplace

SHARES = (0.1, 0.2, 0.33, 0.5, 0.7, 0.9)
SVD, SCALED, EXACT_ASVD = "svd", "asvd-diagonal", "asvd"
METHODS: Mapping[str, str] = {
    SVD: "SVD",
    SCALED: "ASVD by scaling",
    EXACT_ASVD: "ASVD, exact",
}
ATTENTION = Selection(group="attention")

Rows = Mapping[tuple[str, float], SweepRow]


def run_vit(place: Workplace) -> Section:
    """Experiment 3, with the latency of a graph of full size."""
    section = _run(place, _VIT)
    experiment, note = vit_base(place)
    shares = place.some(sorted(SHARES, reverse=True))
    rows = [
        [f"{share:.0%}", *latency_cells(measure_full_size(experiment, share, ATTENTION))]
        for share in shares
    ]
    latency = table(f"Latency of attention layers at full size. {note}", LATENCY_HEADER, rows)
    return section.model_copy(update={"tables": (*section.tables, latency)})


def run_bert(place: Workplace) -> Section:
    """Experiment 5."""
    return _run(place, _BERT)


def _run(place: Workplace, case: Case) -> Section:
    experiment = place.experiment(case.models)
    shares = place.some(SHARES)
    rows = {
        (method, share): measure(
            experiment, method, params=share, select=ATTENTION, rank_multiple=1
        )
        for method in METHODS
        for share in shares
    }
    folder = place.pictures / case.name
    test = _analysis(experiment, place)
    curves = folder.with_name(f"{case.name}-curves.png")
    original = rows[SVD, shares[0]].metrics["accuracy_reference"]
    draw(curves, _panels(rows, original))
    for name, drawn in (VARIANCE_NAME, "explained-variance"), (DENSITIES_NAME, "densities"):
        (place.work / "analysis" / name).replace(folder.with_name(f"{case.name}-{drawn}.png"))
    return Section(
        name=case.name,
        title=case.title,
        published=case.published,
        recipes=(case.models.hub,),
        twin=f"{place.description(case.models, experiment, original)}; attention layers, the same "
        "share of each.",
        tables=(_table(rows), _test_table(test)),
        pictures=(
            Picture(file=curves.name, caption="Accuracy and the error of the logits by share."),
            Picture(
                file=f"{case.name}-explained-variance.png",
                caption="Explained variance of weights, of inputs and of outputs, a line a layer.",
            ),
            Picture(
                file=f"{case.name}-densities.png",
                caption="Densities of the size of pre-activations and of the standard deviations "
                "of their units, a line a layer.",
            ),
        ),
        claims=tuple(_claims(rows, test)),
    )


def _analysis(experiment: ModelExperiment, place: Workplace) -> NormalizationTest:
    """The study's pictures, drawn into a folder of the workplace; the test of its explanation."""
    assert experiment.held_out is not None
    learned = experiment.learned
    half = CompressionSpec(method=MethodSpec(name=SVD), params=0.5, rank_multiple=1)
    plan = make_plan(learned.original.table, half)
    spectra = spectra_of(learned.basis(half), plan)
    analysis = analyze(learned, experiment.recipe.name, plan, spectra, experiment.held_out)
    draw_analysis(analysis, place.work / "analysis")
    return analysis.report.test


def _table(rows: Rows) -> Table:
    header = [
        "parameters kept",
        "method",
        "accuracy",
        "loss",
        "logits' error",
        "sites' error ≥ bound",
    ]
    cells = [
        [
            f"{share:.0%}",
            METHODS[method],
            accuracy(row),
            drop(row),
            f"{logit_error(row):.4f}",
            site_error(row),
        ]
        for (method, share), row in sorted(rows.items(), key=lambda item: -item[0][1])
    ]
    return table("Attention layers, no training", header, cells, texts=2)


def _test_table(test: NormalizationTest) -> Table:
    header = [
        "sites fed by",
        "sites",
        "variation of the units' scale",
        METHODS[SCALED],
        METHODS[EXACT_ASVD],
    ]
    rows = [
        [
            "a normalization" if group.normalized else "anything else",
            str(group.sites),
            as_text(group.variation),
            as_text(group.ratios[DIAGONAL]),
            as_text(group.ratios[EXACT]),
        ]
        for group in test.groups
    ]
    title = (
        "What activation-aware SVD leaves of plain SVD's error at a site (all sites at 50 %, on "
        "held-out data; 1 is no gain)"
    )
    return table(title, header, rows)


def _claims(rows: Rows, test: NormalizationTest) -> list[Claim]:
    shares = sorted({share for _, share in rows})
    after = next((group for group in test.groups if group.normalized), None)

    def errors(method: str) -> str:
        return " / ".join(f"{logit_error(rows[method, share]):.3f}" for share in shares)

    def accuracies(method: str) -> str:
        return " / ".join(accuracy(rows[method, share]) for share in shares)

    def gains(method: str) -> int:
        """At how many shares the logits are closer to the original's than SVD's."""
        return sum(logit_error(rows[method, s]) < logit_error(rows[SVD, s]) for s in shares)

    at = " / ".join(f"{share:.0%}" for share in shares)
    found = [
        claim(
            "Activation-aware SVD is not worth it here: it is hardly better than SVD, or worse "
            "(exact solution of the study's own objective).",
            gains(EXACT_ASVD) < len(shares) / 2,
            f"At {at}, the logits' error is {errors(SVD)} with SVD and {errors(EXACT_ASVD)} with "
            f"the exact solution; accuracies are {accuracies(SVD)} and {accuracies(EXACT_ASVD)}.",
        ),
        claim(
            "The same of ASVD by scaling the units, which is what most people mean by the name.",
            gains(SCALED) < len(shares) / 2,
            f"At {at}, its logits' error is {errors(SCALED)}, its accuracy {accuracies(SCALED)}: "
            f"better than SVD at {gains(SCALED)} of {len(shares)} shares.",
        ),
    ]
    if after is not None:
        lasting = after.ratios[EXACT]
        found.append(
            claim(
                "LayerNorm is to blame: behind it nothing is left for activation-aware SVD to use.",
                lasting.high is None or lasting.high >= 1,
                f"At sites behind a normalization the exact solution leaves {as_text(lasting)} of "
                f"plain SVD's error, scaling {as_text(after.ratios[DIAGONAL])}.",
            )
        )
    return found


def _panels(rows: Rows, original: float) -> list[Panel]:
    def lines(value: Callable[[SweepRow], float]) -> dict[str, list[tuple[float, float]]]:
        return {
            label: [(share, value(row)) for (name, share), row in rows.items() if name == method]
            for method, label in METHODS.items()
        }

    share = "share of the attention layers' parameters"
    return [
        Panel("accuracy", share, "", lines(lambda row: row.metrics["accuracy"]), original),
        Panel("error of the logits", share, "", lines(logit_error), logarithmic=True),
    ]


_VIT = Case(
    name="vit-attention",
    title="3. ViT, attention layers only: SVD against ASVD",
    published="ViT-B/16-224 on ImageNet (top 1), attention layers only, no training; curves over "
    "the share, explained variance, densities of pre-activations. The document draws them without "
    "figures, so there is no column of theirs.",
    models=Models("hub/vit-imagenet-attention", "digits-vit", "`digits-vit`"),
)
_BERT = Case(
    name="bert-attention",
    title="5. BERT, attention layers only: SVD against ASVD",
    published="BERT-large-uncased-whole-word-masking on MultiNLI, filling in masked words (top 5), "
    "attention layers only, no training. Curves without figures.",
    models=Models(
        "hub/bert-multinli-attention",
        "mini-bert",
        "`mini-bert`: a BERT of four layers that we trained on public-domain verses, one masked "
        "word in each verse",
    ),
)
