"""The parts that pages have in common: figures of a result, as tables and charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.measure.domains import by_set
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.page import charts
from compress_onnx.pipeline.report.page.blocks import Chart, Column, Scalar, Section, Table
from compress_onnx.pipeline.results import (
    Benchmark,
    DepthError,
    DepthProfile,
    Environment,
    GateResult,
    InnerComparison,
    OptimizeReport,
    Report,
    SizeReport,
    ValidationReport,
)

NUMBER = formats.significant
_BEFORE_AFTER = (
    Column("figure"),
    Column("before"),
    Column("after"),
    Column("ratio"),
)


def size_rows(size: SizeReport) -> list[tuple[str, str, str, str]]:
    """Of the table that compares before and after: the file, and its parameters."""
    pairs = {
        "file": (size.reference_bytes, size.candidate_bytes, formats.size),
        "parameters": (size.reference_parameters, size.candidate_parameters, formats.count),
    }
    return [
        (name, show(before), show(after), formats.ratio(after, before))
        for name, (before, after, show) in pairs.items()
    ]


def before_after(
    size: SizeReport,
    benchmarks: Sequence[Benchmark] = (),
    validation: ValidationReport | None = None,
) -> Section:
    """What changed, in a table that fits on a screen."""
    rows = size_rows(size)
    for row in benchmarks:
        interval = f"{formats.times(row.speedup_low)} to {formats.times(row.speedup_high)}"
        rows.append(
            (
                f"latency (median), {row.name}",
                formats.milliseconds(row.reference.p50_ms),
                formats.milliseconds(row.candidate.p50_ms),
                f"{formats.times(row.speedup)} as fast ({interval})",
            )
        )
    known = validation.metrics if validation else {}
    for name, value in known.items():
        if name.endswith(("_reference", "_low", "_high")):
            continue
        before = known.get(f"{name}_reference")
        interval = ""
        if f"{name}_low" in known and f"{name}_high" in known:
            interval = f"{NUMBER(known[f'{name}_low'])} to {NUMBER(known[f'{name}_high'])}"
        rows.append((name, NUMBER(before), NUMBER(value), interval))
    return Section(
        "Before and after",
        ["Intervals are of 95 %. Latencies of both models were measured in turn."]
        if benchmarks
        else (),
        [Table("Before and after", _BEFORE_AFTER, rows)],
    )


def gates_section(gates: Sequence[GateResult]) -> Section:
    """The limits, and what became of them."""
    rows: list[tuple[Scalar, ...]] = []
    for gate in gates:
        value, threshold = formats.distinct(gate.value, gate.threshold)
        sign = "at least" if gate.limit == "min" else "at most"
        verdict = "passed" if gate.passed else "failed"
        rows.append((gate.quantity, f"{sign} {threshold}", value, verdict, gate.reason or ""))
    columns = [Column("quantity", is_name=True), *map(Column, ("limit", "value", "verdict", "why"))]
    return Section("Limits", (), [Table("Limits", columns, rows)] if rows else ())


def latency_section(benchmarks: Sequence[Benchmark], unmeasured: Mapping[str, str]) -> Section:
    """Distributions of latency, and where it was not measured."""
    rows: list[tuple[Scalar, ...]] = []
    for row in benchmarks:
        pair = (
            ("original", row.reference, row.reference_samples_per_s),
            ("compressed", row.candidate, row.candidate_samples_per_s),
        )
        rows += [
            (row.name, model, s.p50_ms, s.p90_ms, s.p99_ms, s.mean_ms, per_s, s.iterations)
            for model, s, per_s in pair
        ]
    columns = [Column("where"), Column("model")]
    columns += [Column(name, formats.milliseconds) for name in ("p50", "p90", "p99", "mean")]
    columns += [Column("samples a second", NUMBER), Column("runs", formats.count)]
    blocks: list[Table | Chart] = [charts.latency_chart(row) for row in benchmarks]
    if rows:
        blocks.append(Table("Latency", columns, rows))
    texts = [f"Not measured on {place}: {reason}" for place, reason in unmeasured.items()]
    texts += [
        f"{row.name}: {', '.join(row.providers)}, {row.threads} threads, "
        + ", ".join(f"{name} {'×'.join(map(str, s))}" for name, s in row.input_shapes.items())
        for row in benchmarks
    ]
    return Section("Latency", texts, blocks)


def accuracy_section(validation: ValidationReport | None) -> Section:
    """Outputs against the original's, a column a set of samples, and the spread over samples."""
    if validation is None:
        return Section("Accuracy")
    places = [validation, *validation.elsewhere]
    rows: list[tuple[Scalar, ...]] = [
        (
            out.output,
            place.provider,
            out.relative_l2,
            out.relative_l2_low,
            out.relative_l2_high,
            out.max_abs,
            out.cosine,
            out.problem or "",
        )
        for place in places
        for out in place.outputs
    ]
    columns = [Column("output", is_name=True), Column("provider")]
    heads = ("relative L2", "from", "to", "max abs", "cosine")
    columns += [Column(name, NUMBER) for name in heads]
    blocks: list[Table | Chart] = []
    if (table := _domains(validation)) is not None:
        blocks.append(table)
    found = (charts.score_chart(validation, name) for name in validation.per_sample)
    blocks += [chart for chart in found if chart is not None]
    blocks.append(Table("Outputs against the original's", [*columns, Column("problem")], rows))
    texts = [f"On {validation.samples:,} samples of {validation.origin}."]
    texts += [
        f"{name}: {each.samples:,} samples of {each.origin}."
        for name, each in validation.domains.items()
    ]
    if validation.batch_invariance is not None:
        texts.append(
            "The least cosine between a sample's answer alone and in a padded batch is "
            f"{validation.batch_invariance:.6g}."
        )
    texts += [f"Not measured, {name}: {why}" for name, why in validation.unmeasured.items()]
    return Section("Accuracy", texts, blocks)


def _domains(validation: ValidationReport) -> Table | None:
    found = by_set(validation)
    if not found:
        return None
    sets = list(next(iter(found.values())))
    return Table(
        "Figures by set of samples",
        [Column("figure", is_name=True), *(Column(name, NUMBER) for name in sets)],
        [(figure, *values.values()) for figure, values in found.items()],
    )


def trials_section(report: OptimizeReport) -> Section:
    """Everything that was tried, and what there is without us."""
    rows: list[tuple[Scalar, ...]] = []
    for trial in report.trials:
        drop, told = trial.drop, trial.reported
        rows.append(
            (
                trial.name,
                "rival" if trial.rival else "ours",
                drop.value if drop else None,
                told.value if told else None,
                trial.speedup,
                trial.speedup_low,
                trial.speedup_high,
                trial.size_bytes,
                trial.batch_invariance,
                "yes" if trial.within else "no",
                trial.problem or ("taken" if trial.name == report.winner else ""),
            )
        )
    columns = [
        Column("form"),
        Column("whose"),
        Column("drop, choosing", NUMBER),
        Column("drop, reporting", NUMBER),
        Column("speed-up", formats.times),
        Column("from", formats.times),
        Column("to", formats.times),
        Column("file", formats.size),
        Column("in a batch", lambda value: f"{value:.5f}"),
        Column("within"),
        Column("remark"),
    ]
    texts = [
        f"{report.verdict}.",
        f"Chosen on {report.chosen_on}; reported on {report.reported_on}.",
        f"Speed-ups are over the original, on {report.provider}: {report.inputs}.",
    ]
    blocks: list[Table | Chart] = [charts.front_chart(report), Table("Trials", columns, rows)]
    return Section("What was tried", texts, blocks)


def layers_section(
    plan: CompressionPlan | None, spectra: Sequence[SiteSpectrum] = (), of: str = ""
) -> Section:
    """What every linear layer became, and why; ``of`` a part of the model, such as the encoder."""
    part = f" of the {of}" if of else ""
    title = f"Layers{part}"
    if plan is None:
        return Section(title)
    time_ms = {layer.layer: layer.time_ms for layer in plan.layers}
    rows: list[tuple[Scalar, ...]] = [
        (
            site.site,
            site.decision,
            f"{site.in_features}×{site.out_features}",
            site.neurons or site.rank,
            site.damage,
            site.error.reached if site.error else None,
            site.error.bound if site.error else None,
            site.bytes_before,
            site.bytes_after,
            time_ms.get(site.site),
            site.reason,
        )
        for site in plan.sites
    ]
    columns = [
        Column("site", is_name=True),
        Column("form"),
        Column("K×N"),
        Column("rank or neurons", formats.count),
        Column("predicted damage", NUMBER),
        Column("measured error", NUMBER),
        Column("least error", NUMBER),
        Column("bytes before", formats.size),
        Column("after", formats.size),
        Column("time", formats.milliseconds),
        Column("reason"),
    ]
    blocks: list[Table | Chart] = [Table(f"Linear layers{part}", columns, rows)]
    if (chart := charts.site_chart(plan)) is not None:
        blocks.append(chart)
    if any(spectrum.rank is not None for spectrum in spectra):
        blocks.append(charts.rank_chart([s for s in spectra if s.rank is not None]))
    if plan.layers:
        blocks.append(_numbers(plan, part))
    texts = [f"Budget: {plan.budget}; ranks shared out: {plan.allocation}."]
    if plan.error is not None:
        texts.append(
            f"All sites' outputs together: error {NUMBER(plan.error.reached)}, the least at these "
            f"ranks {NUMBER(plan.error.bound)}, at any ranks of as many parameters "
            f"{NUMBER(plan.error.allocation_bound)}."
        )
    if plan.held_out_error is not None:
        texts.append(f"On held-out samples: {NUMBER(plan.held_out_error.reached)}.")
    return Section(title, texts, blocks)


def _numbers(plan: CompressionPlan, part: str) -> Table:
    columns = [
        Column("layer", is_name=True),
        Column("numbers"),
        Column("damage", NUMBER),
        Column("time", formats.milliseconds),
        Column("weight", formats.size),
        Column("reason"),
    ]
    rows = [
        (one.layer, one.numbers, one.damage, one.time_ms, one.weight_bytes, one.reason)
        for one in plan.layers
    ]
    return Table(f"Layers{part}, as the finished model holds them", columns, rows)


def skipped_section(plans: Sequence[CompressionPlan]) -> Section:
    """Products that are no linear layers, with the reason."""
    rows = [(one.node, one.op_type, one.reason) for plan in plans for one in plan.skipped]
    columns = [Column("node", is_name=True), Column("operator"), Column("reason")]
    return Section(
        "Products that were left alone",
        (),
        [Table("Products that were left alone", columns, rows)] if rows else (),
    )


def operators_section(counts: Mapping[str, Mapping[str, int]]) -> Section:
    """What ONNX Runtime executes of both models."""
    before, after = counts.get("reference", {}), counts.get("candidate", {})
    names = sorted(before.keys() | after.keys())
    rows = [(name, before.get(name, 0), after.get(name, 0)) for name in names]
    columns = [Column("operator"), *(Column(n, formats.count) for n in ("before", "after"))]
    table = Table("Operators after ONNX Runtime's own optimization", columns, rows)
    return Section("Executed operators", (), [table] if rows else ())


def inside_section(inside: InnerComparison | None) -> Section:
    """Where two graphs part, and the errors along the depth."""
    if inside is None:
        return Section("Inside the graphs")
    texts = ["No value differs by more than the tolerance."]
    if inside.divergence is not None:
        texts = str(inside.divergence).splitlines()
    texts.append(f"Values that differ by at most {inside.tolerance:.2g}, relative, count as equal.")
    chart = charts.depth_chart(inside)
    found = {"relative error": inside.depth}
    table = _depth_table("Values that have their like in the reference", found)
    return Section("Inside the graphs", texts, [table] if chart is None else [chart, table])


def depth_section(profile: DepthProfile | None) -> Section:
    """How far the values inside a compressed model are from the original's."""
    title = "Along the depth"
    if profile is None:
        return Section(title)
    if profile.unmeasured is not None:
        return Section(title, [f"Not measured: {profile.unmeasured}."])
    texts = [
        f"The means over {profile.samples:,} samples of {profile.origin}, each run by itself, both "
        "models without ONNX Runtime's optimizations.",
        "A loss is an error that stays. A value that is far off while those behind it are not was "
        "divided on purpose, to be rounded more finely: what reads it multiplies.",
    ]
    return Section(title, texts, _profiles({"relative error": profile}))


def depths_section(profiles: Mapping[str, DepthProfile | None]) -> Section:
    """Two profiles in one picture, where both reports have one; else who has none, and why."""
    title = "Along the depth"
    found = {name: one for name, one in profiles.items() if one is not None and one.values}
    if not found:
        return Section(title)
    if len(found) < len(profiles):
        missing = next(name for name in profiles if name not in found)
        profile = profiles[missing]
        why = (profile.unmeasured if profile else None) or "its report has none"
        return Section(title, [f"No two profiles to compare: {missing}, {why}."])
    texts = [f"{name}: {one.samples:,} samples of {one.origin}." for name, one in found.items()]
    return Section(title, texts, _profiles(found))


def _profiles(profiles: Mapping[str, DepthProfile]) -> list[Table | Chart]:
    chart = charts.profile_chart(profiles)
    errors = {name: profile.values for name, profile in profiles.items()}
    table = _depth_table("Values inside, in the order of the original's nodes", errors)
    return [table] if chart is None else [chart, table]


def _depth_table(caption: str, errors: Mapping[str, Sequence[DepthError]]) -> Table:
    """A row a value, a column of errors for each of ``errors`` by its name."""
    found: dict[str, dict[str, float | None]] = {}
    values: dict[str, tuple[int, DepthError]] = {}
    for name, those in errors.items():
        for index, one in enumerate(those):
            place = index if one.place is None else one.place
            values.setdefault(one.tensor, (place, one))
            found.setdefault(one.tensor, {})[name] = one.error
    columns = [
        Column("place", formats.count),
        Column("value", is_name=True),
        Column("operator"),
        Column("module", is_name=True),
        *(Column(name, lambda value: f"{value:.2e}") for name in errors),
    ]
    rows = [
        (place, tensor, one.operator, one.module, *(found[tensor].get(name) for name in errors))
        for tensor, (place, one) in sorted(values.items(), key=lambda item: item[1][0])
    ]
    return Table(caption, columns, rows)


def environment_section(environment: Environment, facts: Mapping[str, str]) -> Section:
    """What the figures were measured with."""
    rows = list(facts.items())
    rows += [
        ("machine", f"{environment.processor}, {environment.cores} cores"),
        ("platform", environment.platform),
        ("instruction sets", ", ".join(environment.instruction_sets) or "not known"),
        ("Python", environment.python),
        *environment.packages.items(),
    ]
    table = Table("Environment", [Column("what"), Column("which")], rows)
    return Section("Environment", (), [table])


def heading_facts(report: Report) -> dict[str, str]:
    """What made a report, and from what."""
    facts = {"made by": f"compress-onnx {report.tool_version}", "created": report.created}
    if report.export is not None:
        source = report.export
        facts["source"] = f"{source.source} ({source.exporter}, opset {source.opset})"
    if report.calibration:
        facts["calibrated on"] = report.calibration
    return facts | {"seed": str(report.seed)} | dict(_times(report.timings_s))


def _times(timings_s: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for step, seconds in timings_s.items():
        yield f"time: {step}", f"{NUMBER(seconds, 3)} s"
