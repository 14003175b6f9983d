"""Sample pages of each kind, and a name that is markup."""

from report_factory import make_optimize, make_output, make_plan, make_report, make_spectra

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.measure.domains import with_domains
from compress_onnx.pipeline.report.page import (
    changes_page,
    comparison_page,
    optimize_page,
    report_page,
    sweep_page,
)
from compress_onnx.pipeline.results import (
    Change,
    ComparisonReport,
    DepthError,
    DepthProfile,
    Divergence,
    DivergentNode,
    InnerComparison,
    SweepReport,
    SweepRow,
    TranslationReport,
    TranslationScores,
    ValidationReport,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def inner(name="hidden"):
    node = DivergentNode(tensor=name, operator="Add", node=f"/layer/{name}", module="layer")
    return InnerComparison(
        tolerance=1e-3,
        divergence=Divergence(
            output="y",
            candidate=node,
            reference=node,
            error_before=1e-7,
            error_after=0.5,
            cause=f"a lost bias ({name})",
        ),
        depth=tuple(
            DepthError(tensor=f"{name}{i}", operator="Add", module="layer", error=error)
            for i, error in enumerate((0.0, 1e-6, 0.2, None))
        ),
    )


def profile(scale=1.0, name="encoder.layer", **changes):
    """A profile of six layers, the first value of which is equal."""
    parts = ("attention.query", "attention.key", "attention.value", "attention.output", "output")
    values = [
        DepthError(
            tensor=f"{name}.{layer}.{part}.{operator}",
            operator=operator,
            node=f"node_{name}.{layer}.{part}.{operator}",
            module=f"{name}.{layer}.{part}",
            place=20 * layer + 4 * place + step,
            error=0.0
            if layer == place == step == 0
            else scale * (0.01 + 0.01 * layer) * (1 + step),
        )
        for layer in range(6)
        for place, part in enumerate(parts)
        for step, operator in enumerate(("Add", "LayerNormalization", "MatMul", "Softmax"))
    ]
    found = {"origin": "held-out sentences", "samples": 8, "values": tuple(values)}
    return DepthProfile(**found | changes)


def comparison(**changes):
    report = make_report()
    values = {
        "validation": report.validation,
        "inside": inner(),
        "size": report.size,
        "gates": report.gates,
        "environment": report.environment,
    }
    return ComparisonReport(**values | changes)


def change(quantity="cosine", verdict="worse"):
    return Change(
        quantity=quantity,
        base=0.99,
        candidate=0.9,
        direction="higher",
        tolerance=0.001,
        test="bootstrap",
        verdict=verdict,
    )


def full_report():
    scores = ValidationReport(
        samples=4,
        origin="verses",
        outputs=(make_output(),),
        metrics={"cosine": 0.75},
        per_sample={"cosine": (0.7, 0.8)},
    )
    scored = make_report().validation.model_copy(
        update={"per_sample": {"cosine": (0.9, 0.95, 0.99, 1.0)}}
    )
    validation = with_domains(scored, {"verses": scores})
    return make_report(validation=validation, optimize=make_optimize(), depth=profile())


def sweep_report():
    run = make_report()
    rows = [
        SweepRow(
            variant=CompressionSpec(method=MethodSpec(name=method), params=share),
            size=run.size,
            metrics={"cosine": share},
            benchmarks=run.benchmarks,
            parameters_before=100,
            parameters_after=int(100 * share),
        )
        for method in ("svd", "asvd")
        for share in (0.3, 0.5)
    ]
    broken = SweepRow(variant=CompressionSpec(params=0.9), problem="nothing | to gain")
    return SweepReport(
        tool_version="0",
        created="now",
        name="tiny",
        environment=run.environment,
        rows=(*rows, broken),
    )


def translation_report():
    run = make_report()
    fields = set(TranslationReport.model_fields) - {"encoder", "decoder", "validation"}
    shared = {name: getattr(run, name) for name in run.model_fields_set & fields}
    score = {"sentences": 3, "bleu": 20.0, "chrf": 40.0}
    scores = TranslationScores.model_validate({"languages": {"de": score}, "mean": score})
    return TranslationReport(
        **shared,
        encoder=run.plan,
        decoder=run.plan,
        validation="three sentences",
        beams=1,
        reference=scores,
        candidate=scores,
    )


PAGES = {
    "sweep": lambda: sweep_page(sweep_report()),
    "translation": lambda: report_page(translation_report()),
    "run": lambda: report_page(full_report(), make_spectra()),
    "optimize": lambda: optimize_page(
        make_optimize(plan=make_plan(), depth=profile()),
        make_report().size,
        make_report().environment,
        "model.onnx",
        "compress-onnx optimize model.onnx",
    ),
    "validate": lambda: comparison_page(comparison(), "b.onnx against a.onnx"),
    "compare": lambda: changes_page(
        "minilm",
        [change(), change("recall", "same")],
        depths={"base": profile(), "now": profile(3.0)},
    ),
}
