"""A page for each kind of result: its verdict in a sentence, then the parts that bear it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.ci import gate_line
from compress_onnx.pipeline.report.page import charts, sections
from compress_onnx.pipeline.report.page.blocks import Column, Page, Section, State, Table
from compress_onnx.pipeline.report.sweep import asked, method_text, metric, metric_names
from compress_onnx.pipeline.results import (
    Change,
    ComparisonReport,
    DepthProfile,
    Environment,
    GateResult,
    OptimizeReport,
    Report,
    RunReport,
    SizeReport,
    SweepReport,
    TranslationReport,
    ValidationReport,
)

_NO_DEPTH = (
    "There are no errors along the depth here, as a sweep chooses no variant and keeps no model: "
    "run the recipe with the method and the budget of a row to have them."
)


def report_page(
    report: RunReport | TranslationReport, spectra: Sequence[SiteSpectrum] = ()
) -> Page:
    """The page of ``run``.

    Args:
        report: the run.
        spectra: of the sites that may be drawn; those without a rank are not.
    """
    if isinstance(report, TranslationReport):
        return _translation_page(report)
    return _run_page(report, spectra)


def _run_page(report: RunReport, spectra: Sequence[SiteSpectrum]) -> Page:
    told = [_smaller(report.size)]
    told += [
        f"{formats.times(row.speedup)} as fast on {row.name} "
        f"({formats.times(row.speedup_low)} to {formats.times(row.speedup_high)})"
        for row in report.benchmarks
    ]
    told += [f"{name} {formats.significant(value)}" for name, value in _merit(report.validation)]
    plans = [report.plan] if report.plan else []
    return Page(
        report.name,
        f"{_limits(report.gates)} {', '.join(told)}.",
        _state(report.gates),
        [
            sections.before_after(report.size, report.benchmarks, report.validation),
            sections.gates_section(report.gates),
            *([sections.trials_section(report.optimize)] if report.optimize else []),
            sections.accuracy_section(report.validation),
            sections.depth_section(report.depth),
            sections.latency_section(report.benchmarks, report.unmeasured),
            sections.layers_section(report.plan, spectra),
            sections.skipped_section(plans),
            sections.operators_section(report.op_counts),
            *_ending(report),
        ],
    )


def _translation_page(report: TranslationReport) -> Page:
    before, after = report.reference.mean, report.candidate.mean
    told = [_smaller(report.size)]
    if report.timing is not None:
        told.append(f"{formats.times(report.timing.speedup)} as fast on {report.timing.provider}")
    told.append(f"BLEU {formats.significant(before.bleu)} → {formats.significant(after.bleu)}")
    columns = [Column("language"), Column("sentences", formats.count)]
    heads = ("BLEU before", "BLEU after", "chrF before", "chrF after")
    columns += [Column(head, formats.significant) for head in heads]
    rows = []
    for language, was in report.reference.languages.items():
        now = report.candidate.languages[language]
        rows.append((language, was.sentences, was.bleu, now.bleu, was.chrf, now.chrf))
    parts = {"encoder": report.encoder, "decoder": report.decoder}
    return Page(
        report.name,
        f"{_limits(report.gates)} {', '.join(told)}.",
        _state(report.gates),
        [
            sections.before_after(report.size),
            sections.gates_section(report.gates),
            Section("Translations", [report.validation], [Table("Languages", columns, rows)]),
            *(sections.layers_section(plan, of=part) for part, plan in parts.items()),
            sections.skipped_section(list(parts.values())),
            *_ending(report),
        ],
    )


def optimize_page(
    report: OptimizeReport,
    size: SizeReport,
    environment: Environment,
    name: str,
    command: str = "",
) -> Page:
    """The page of ``optimize``: what won, over what, and what it is made of.

    Args:
        report: all trials.
        size: of the original, and of what was written.
        environment: of the machine.
        name: of the model.
        command: that made it.
    """
    winner = next(trial for trial in report.trials if trial.name == report.winner)
    told = winner.reported or winner.drop
    lost = "" if told is None else f" It loses {formats.significant(told.value)} ({told.quantity})."
    return Page(
        name,
        f"{report.verdict}.{lost}",
        "told",
        [
            sections.before_after(size),
            sections.trials_section(report),
            sections.depth_section(report.depth),
            sections.layers_section(report.plan),
            sections.skipped_section([report.plan] if report.plan else []),
            Section("Notes", report.notes),
            _reproduce([command]),
            sections.environment_section(environment, {}),
        ],
    )


def sweep_page(report: SweepReport) -> Page:
    """The page of ``sweep``: every variant, best first by the first figure."""
    names = metric_names(report)
    figures = {name: [metric(row, name) for row in report.rows] for name in names}
    best = max(
        (row for row in report.rows if row.size is not None),
        key=lambda row: metric(row, names[0]) or 0.0,
        default=None,
    )
    verdict = "no variant could be measured"
    if best is not None:
        verdict = (
            f"{len(report.rows)} variants; the highest {names[0]} is "
            f"{formats.significant(metric(best, names[0]))}, of {method_text(best.variant.method)} "
            f"at {asked(best.variant)}"
        )
    providers = list(dict.fromkeys(b.name for row in report.rows for b in row.benchmarks))
    columns = [Column("method"), Column("ranks"), Column("budget"), Column("file", formats.size)]
    columns += [Column(name, formats.significant) for name in names]
    columns += [Column(f"speed-up, {name}", formats.times) for name in providers]
    rows = []
    for place, row in enumerate(report.rows):
        speeds = {benchmark.name: benchmark.speedup for benchmark in row.benchmarks}
        rows.append(
            (
                method_text(row.variant.method),
                row.variant.allocation,
                asked(row.variant),
                row.size.candidate_bytes if row.size else None,
                *(figures[name][place] for name in names),
                *(speeds.get(name) for name in providers),
                row.problem or "",
            )
        )
    table = Table("Variants", [*columns, Column("problem")], rows)
    pictures = [charts.sweep_chart(report, name, values) for name, values in figures.items()]
    return Page(
        report.name,
        f"{verdict}.",
        "told",
        [
            Section("Variants", [_NO_DEPTH], [*pictures[:2], table]),
            sections.environment_section(
                report.environment,
                {"made by": f"compress-onnx {report.tool_version}", "created": report.created},
            ),
        ],
    )


def comparison_page(report: ComparisonReport, name: str, command: str = "") -> Page:
    """The page of ``validate``: whether two graphs agree, and where they part.

    Args:
        report: as ``--json`` writes it.
        name: of the two graphs.
        command: that made it.
    """
    validation = report.validation
    outside = sum(out.outside or 0 for out in validation.outputs)
    failed = [gate for gate in report.gates if not gate.passed]
    bounded = any(out.outside is not None for out in validation.outputs)
    worst = max(validation.outputs, key=lambda out: out.relative_l2)
    verdict = (
        f"The largest relative difference of an output is {formats.significant(worst.relative_l2)} "
        f"({worst.output})."
    )
    if outside:
        verdict = f"They differ: {outside:,} numbers are beyond the tolerance. {verdict}"
    elif bounded:
        verdict = f"They agree within the tolerance. {verdict}"
    state: State = "told"
    if report.gates or bounded:
        state = "failed" if failed or outside else "passed"
    checks = [
        (model, check, value)
        for model, found in report.runtime.items()
        for check, value in (
            ("between runs", found.runs),
            ("between threads", found.threads),
            *((f"no optimization against {level}", v) for level, v in found.levels.items()),
            ("ONNX's evaluator", found.evaluator),
        )
    ]
    columns = [Column("model"), Column("check"), Column("relative difference", _exponent)]
    runtime = [Table("Each graph against itself", columns, checks)] if checks else []
    return Page(
        name,
        f"{_limits(report.gates)} {verdict}".strip() if report.gates else verdict,
        state,
        [
            sections.before_after(report.size, (), validation),
            sections.gates_section(report.gates),
            sections.inside_section(report.inside),
            sections.accuracy_section(validation),
            Section("The runtime", (), runtime),
            _reproduce([command]),
            sections.environment_section(report.environment, {}),
        ],
    )


def changes_page(
    name: str,
    found: Sequence[Change],
    command: str = "",
    depths: Mapping[str, DepthProfile | None] | None = None,
) -> Page:
    """The page of ``compare``: what became worse.

    Args:
        name: of the recipe.
        found: a change a quantity.
        command: that made it.
        depths: the profiles of both reports, as far as they have one.
    """
    worse = [one for one in found if one.verdict == "worse"]
    names = ", ".join(one.quantity for one in worse)
    verdict = f"{len(worse)} of {len(found)} quantities became worse: {names}."
    columns = [
        Column("quantity", is_name=True),
        Column("base", formats.significant),
        Column("now", formats.significant),
        Column("better is"),
        Column("verdict"),
        Column("decided by"),
    ]
    rows = [(c.quantity, c.base, c.candidate, c.direction, c.verdict, c.test) for c in found]
    rows.sort(key=lambda row: ("worse", "better", "same").index(str(row[4])))
    return Page(
        name,
        verdict if worse else f"None of {len(found)} quantities became worse.",
        "failed" if worse else "passed",
        [
            Section("Quantities", (), [Table("Quantities", columns, rows)]),
            sections.depths_section(depths or {}),
            _reproduce([command]),
        ],
    )


def _ending(report: Report) -> list[Section]:
    recovery = getattr(report, "recovery", None)
    trained = []
    if recovery is not None:
        trained.append(
            f"Training took the loss on held-out batches from "
            f"{formats.significant(recovery.start_loss)} to "
            f"{formats.significant(recovery.end_loss)}, in {recovery.steps:,} steps and "
            f"{formats.significant(recovery.seconds, 3)} s ({recovery.stopped})."
        )
    return [
        Section("Recovery", trained),
        Section("Notes", report.notes),
        _reproduce([report.command]),
        sections.environment_section(report.environment, sections.heading_facts(report)),
    ]


def _reproduce(commands: Sequence[str]) -> Section:
    return Section("To reproduce", (), (), [command for command in commands if command])


def _smaller(size: SizeReport) -> str:
    share = formats.ratio(size.candidate_bytes, size.reference_bytes)
    return (
        f"{share} the file ({formats.size(size.reference_bytes)} → "
        f"{formats.size(size.candidate_bytes)})"
    )


def _merit(validation: ValidationReport | None) -> list[tuple[str, float]]:
    """The first metric of the task, and its worst over all sets."""
    if validation is None or not validation.metrics:
        return []
    name, value = next(iter(validation.metrics.items()))
    found = [(name, value)]
    if name in validation.worst:
        found.append((f"{name} on the worst set", validation.worst[name]))
    return found


def _limits(gates: Sequence[GateResult]) -> str:
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        return f"Failed: {'; '.join(map(gate_line, failed))}."
    if gates:
        return f"Passed: {len(gates)} limit{'s' if len(gates) > 1 else ''} held."
    return "No limits were set."


def _state(gates: Sequence[GateResult]) -> State:
    if not gates:
        return "told"
    return "passed" if all(gate.passed for gate in gates) else "failed"


def _exponent(value: float) -> str:
    return f"{value:.1e}"
