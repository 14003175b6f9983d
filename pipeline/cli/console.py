"""What the commands print: progress, tables, verdicts. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from compress_onnx.graph_passes.planning.plan import CompressionPlan, PlanError, SitePlan
from compress_onnx.graph_passes.sites.find import SkippedNode
from compress_onnx.pipeline.measure.domains import by_set
from compress_onnx.pipeline.measure.operator_kinds import LABELS
from compress_onnx.pipeline.recipe import MAIN_SET, WORST
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.ci import add_to_step_summary, github_annotations, write_junit
from compress_onnx.pipeline.report.formats import significant
from compress_onnx.pipeline.results import (
    Benchmark,
    Change,
    GateResult,
    InnerComparison,
    Loading,
    OptimizeReport,
    Outcome,
    Potential,
    RecoveryReport,
    RuntimeChecks,
    SearchReport,
    SearchStep,
    SizeReport,
    TranslationReport,
    Trial,
    ValidationReport,
)
from compress_onnx.pipeline.runtime.progress import Update

_LOG_WIDTH = 160
_SPEED_PERIOD_S = 60.0


def console_for(*, stderr: bool) -> Console:
    """As wide as the terminal; in a log or a pipe so wide that names stay in one piece."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _LOG_WIDTH
    return console


out = console_for(stderr=False)
errors = console_for(stderr=True)
notes = console_for(stderr=True)
"""Progress and remarks: what ``--quiet`` leaves out."""


def note(text: object) -> None:
    """A remark that a reader of the result should know of."""
    notes.print(f"note: {text}", markup=False, highlight=False)


class ProgressBars:
    """Shows each step as a bar on stderr while it runs: how far, since when, the time left.

    A step inside another has its bar below that one's, and leaves nothing behind.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Update]:
        """Show one step."""
        if self._bars is not None:
            task = self._bars.add_task(description, total=total)
            try:
                yield partial(_complete, self._bars, task)
            finally:
                self._bars.remove_task(task)
            return
        what = TextColumn("{task.description:<18}")
        columns = [SpinnerColumn(), what, BarColumn(), _Counts(), TimeElapsedColumn(), _Left()]
        with Bars(*columns, console=notes, speed_estimate_period=_SPEED_PERIOD_S) as bars:
            self._bars = bars
            try:
                task = bars.add_task(description, total=total)
                yield partial(_complete, bars, task)
                bars.update(task, completed=total or 1, total=total or 1)
            finally:
                self._bars = None


class _Counts(MofNCompleteColumn):
    """How much of how much, where that is known."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None or task.total == 1 else super().render(task)


class _Left(TimeRemainingColumn):
    """How long it will go on at the pace of the last minute; nothing where that is not known."""

    def render(self, task: Task) -> Text:
        if task.finished or task.time_remaining is None:
            return Text("")
        return super().render(task) + Text(" left", style="progress.remaining")


def _complete(bars: Bars, task: TaskID, done: int) -> None:
    bars.update(task, completed=done)


class TrialTable:
    """Shows each trial of a search on stderr as soon as it is measured: a line in a table."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, trial: Trial) -> None:
        """Show one more."""
        if not self._begun:
            self._line("drop", "size", "within", "trial", style="bold")
            self._begun = True
        self._line(
            significant(trial.drop.value) if trial.drop else formats.MISSING,
            formats.MISSING if trial.size_bytes is None else formats.size(trial.size_bytes),
            "yes" if trial.within else "no",
            trial.name if trial.problem is None else f"{trial.name}: {trial.problem}",
        )

    @staticmethod
    def _line(drop: str, size: str, within: str, trial: str, style: str = "") -> None:
        text = f"{drop:>9}  {size:>8}  {within:<6}  {trial}"
        notes.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class Name:
    """A module path in a table: lines break behind its dots and slashes, never inside a word."""

    def __init__(self, name: str) -> None:
        self._parts = re.split(r"(?<=[./])", name)

    @property
    def longest_part(self) -> int:
        """The least width in which no word breaks."""
        return max(map(cell_len, self._parts))

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        """From the longest part to the whole name on one line."""
        whole = sum(map(cell_len, self._parts))
        return Measurement(self.longest_part, whole).with_maximum(options.max_width)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """As many parts on each line as fit."""
        lines = [""]
        for part in self._parts:
            if lines[-1] and cell_len(lines[-1] + part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines))


def print_plan(plan: CompressionPlan) -> None:
    """The plan as a table, one row a site, then the skipped nodes and the sums.

    A plan knows parameters only; what the files take in bytes is for :func:`print_size`.
    """
    shown = table("site", "shape", "rank", "parameters", "error", "bound", "decision", "reason")
    names = [Name(site.site) for site in plan.sites]
    shown.columns[0].min_width = max((name.longest_part for name in names), default=0)
    for name, site in zip(names, plan.sites, strict=True):
        shown.add_row(name, *_plan_row(site))
    out.print(shown, crop=False)
    print_skipped(plan.skipped)
    for line in _plan_sums(plan):
        out.print(line, markup=False, highlight=False)
    if (cost := plan.cost) is not None:
        out.print(
            f"predicted {cost.unit} {significant(cost.before)} -> {significant(cost.after)} "
            f"({cost.after / cost.before:.1%})",
            highlight=False,
        )
    if plan.error is not None:
        print_plan_error(plan.error)


def print_skipped(skipped: Sequence[SkippedNode]) -> None:
    """The products that are no sites, and why: one line for all that share operator and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for node in skipped:
        groups.setdefault((node.op_type, node.reason), []).append(node.node)
    for (op_type, reason), nodes in groups.items():
        which = f"{op_type} {nodes[0]}"
        if len(nodes) > 1:
            which = f"{len(nodes)} {op_type}, first {nodes[0]}"
        out.print(f"skipped {which}: {reason}", style="dim", markup=False)


def print_potential(potential: Potential) -> None:
    """Where bytes and time go, what could be gained at most, and the verdict."""
    shown = table("where", "bytes of weights", "share", "share of the time")
    for row in potential.kinds:
        time = "" if row.share_of_time is None else f"{row.share_of_time:.1%}"
        weight_bytes = formats.size(row.weight_bytes) if row.weight_bytes else ""
        share = f"{row.share_of_bytes:.1%}" if row.weight_bytes else ""
        shown.add_row(escape(LABELS[row.kind]), weight_bytes, share, time)
    out.print(shown)
    changeable = any(row.kind == "linear" for row in potential.kinds)
    if changeable and potential.speedup_bound is not None:
        out.print(
            f"at most {formats.times(potential.speedup_bound)} as fast, if linear layers took no "
            f"time; {formats.times(potential.speedup_at_half)} if they took half of it (kernels of "
            f"ONNX Runtime on the CPU, inputs {potential.inputs})",
            markup=False,
            highlight=False,
        )
    for text in potential.notes:
        note(text)
    out.print(f"verdict: {potential.verdict}", style="bold", markup=False, highlight=False)


def _plan_sums(plan: CompressionPlan) -> Iterator[str]:
    before, after = plan.parameters_before, plan.parameters_after
    share = f" ({after / before:.1%})" if before else ""
    thinned = f", {len(plan.thinned)} networks with fewer neurons" if plan.thinned else ""
    yield (
        f"{len(plan.factored)} of {len(plan.sites)} sites factored{thinned}; parameters of the "
        f"selected sites {before:,} -> {after:,}{share}"
    )
    added = plan.file_parameters_added
    change = f"{abs(added):,} {'more' if added > 0 else 'fewer'} than before"
    if not added:
        change = "as many as before"
    stores = sorted({site.store for site in plan.factored} - {"same"})
    stored = f"; factors are stored as {', '.join(stores)}" if stores else ""
    yield f"parameters of the whole model, with biases and scales: {change}{stored}"


def print_size(size: SizeReport) -> None:
    """Bytes and parameters of the files that were written, beside the original's."""
    reference, candidate = size.reference_parameters, size.candidate_parameters
    out.print(
        f"files {formats.size(size.reference_bytes)} -> {formats.size(size.candidate_bytes)} "
        f"({formats.ratio(size.candidate_bytes, size.reference_bytes)}), parameters "
        f"{reference:,} -> {candidate:,} ({formats.ratio(candidate, reference)})",
        markup=False,
        highlight=False,
    )


def print_outcome(outcome: Outcome) -> None:
    """What was written beside its original: size, speed, drop, and whether to deploy it."""
    print_size(outcome.size)
    if (timed := outcome.benchmark) is not None:
        shapes = (
            f"{name} {'x'.join(map(str, shape)) or 'scalar'}"
            for name, shape in timed.input_shapes.items()
        )
        out.print(
            f"latency p50 {formats.milliseconds(timed.reference.p50_ms)} -> "
            f"{formats.milliseconds(timed.candidate.p50_ms)}: {timed.speedup:.2f}x "
            f"[{timed.speedup_low:.2f}, {timed.speedup_high:.2f}] on {timed.provider} with "
            f"{timed.threads} threads, inputs {', '.join(shapes)} (quickly: bench is surer)",
            markup=False,
            highlight=False,
        )
    if (drop := outcome.drop) is not None:
        interval = ""
        if drop.low is not None and drop.high is not None:
            interval = f" [{significant(drop.low)}, {significant(drop.high)}]"
        out.print(
            f"outputs: {drop.quantity} {significant(drop.value)}{interval} on {outcome.drop_on}",
            markup=False,
            highlight=False,
        )
    for text in outcome.notes:
        note(text)
    for warning in outcome.warnings:
        out.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    out.print(f"verdict: {outcome.verdict}", style="bold", markup=False, highlight=False)


def print_plan_error(error: PlanError) -> None:
    """The error of all weights together beside its bounds, and what these are about."""
    what = "all weights together"
    if error.metric == "activation":
        what = "all site outputs together (not the model's), on the original's inputs"
    out.print(
        f"{what}: error {significant(error.reached)}, least at these ranks "
        f"{significant(error.bound)}, at any ranks of as many parameters "
        f"{significant(error.allocation_bound)}",
        highlight=False,
    )
    if error.left_out:
        out.print(f"left out of that: {error.left_out} weights without statistics", style="dim")


def _plan_row(site: SitePlan) -> Sequence[str]:
    error = site.error
    return (
        f"{site.in_features}x{site.out_features}",
        str(site.neurons or site.rank or ""),
        f"{site.parameters_before:,} -> {site.parameters_after:,}",
        significant(error.reached) if error else "",
        significant(error.bound) if error else "",
        site.decision,
        escape(site.reason),
    )


def print_recovery(report: RecoveryReport) -> None:
    """What training changed, on one line."""
    change = f"{report.start_loss:.4g} -> {report.end_loss:.4g}"
    if not report.improved:
        change = f"{report.start_loss:.4g}, nothing was better: the model stays as it was"
    out.print(
        f"recovery: distance on held-out batches {change} "
        f"({report.steps} steps, {report.seconds:.0f} s; {report.stopped})",
        highlight=False,
    )


def print_search(search: SearchReport) -> None:
    """The shares that were tried, and how sure the answer is."""
    print_steps(search.steps)
    out.print(search.answer, markup=False, highlight=False)


def print_steps(steps: Sequence[SearchStep]) -> None:
    """The shares that were tried, with their drops."""
    shown = table("share", "drop", "95 % interval", "within")
    for step in sorted(steps, key=lambda step: -step.share):
        value, interval = step.problem or "", ""
        if step.drop is not None:
            value = significant(step.drop.value)
            interval = f"{significant(step.drop.low)} to {significant(step.drop.high)}"
        shown.add_row(f"{step.share:.1%}", value, interval, "yes" if step.within else "no")
    out.print(shown)


def print_optimized(report: OptimizeReport) -> None:
    """All trials, those that were timed with their speed, and the verdict."""
    shapes = [f"at {shape}" for shape in report.shapes]
    domains = list(dict.fromkeys(name for trial in report.trials for name in trial.domains))
    drops = ("drop", "reported", *map(escape, domains))
    shown = table("trial", *drops, "within", "size", "speed-up", *shapes, "in a batch")
    for trial in report.trials:
        speed = ""
        if trial.speedup is not None:
            interval = f"[{trial.speedup_low:.2f}, {trial.speedup_high:.2f}]"
            speed = f"{trial.speedup:.2f}x {interval}"
        each = (trial.speedup_at.get(shape) for shape in report.shapes)
        shown.add_row(
            trial.name,
            significant(trial.drop.value) if trial.drop else trial.problem or "",
            significant(trial.reported.value) if trial.reported else "",
            *(significant(d.value) if (d := trial.domains.get(n)) else "" for n in domains),
            "yes" if trial.within else "no",
            "" if trial.size_bytes is None else formats.size(trial.size_bytes),
            speed,
            *("" if value is None else f"{value:.2f}x" for value in each),
            "" if trial.batch_invariance is None else f"{trial.batch_invariance:.5f}",
            style="bold" if trial.name == report.winner else "",
        )
    out.print(shown, crop=False, highlight=False)
    if report.shapes:
        mean = f"speed-ups are geometric means over {report.inputs}"
        out.print(mean, markup=False, highlight=False)
    out.print(report.verdict, markup=False, highlight=False)


def print_validation(report: ValidationReport) -> None:
    """Outputs, metrics and batch invariance as tables, for each provider."""
    for place in (report, *report.elsewhere):
        where = f" on {place.provider}" if report.elsewhere else ""
        shown = table(f"output{where}", "max abs", "relative L2", "cosine", "SNR [dB]")
        for row in place.outputs:
            snr = "equal" if row.snr_db is None else significant(row.snr_db)
            numbers = (row.max_abs, row.relative_l2, row.cosine)
            shown.add_row(escape(row.output), *(significant(number) for number in numbers), snr)
        out.print(shown)
        for row in place.outputs:
            if row.problem is not None:
                out.print(f"output {row.output}: {row.problem}", style="red", markup=False)
        if place.metrics:
            shown = table(f"metric{where}", "value")
            for name, value in place.metrics.items():
                shown.add_row(escape(name), significant(value))
            out.print(shown)
        if place.batch_invariance is not None or place.batch_invariance_reference is not None:
            shown = table(f"alone and in a batch{where}", "reference", "candidate")
            cosines = (place.batch_invariance_reference, place.batch_invariance)
            shown.add_row("least cosine", *(significant(cosine, 6) for cosine in cosines))
            out.print(shown)
    out.print(f"{report.samples} samples of {report.origin}", markup=False, highlight=False)
    _print_domains(report)
    if report.sizes is not None:
        out.print(report.sizes, markup=False, highlight=False)
    print_unmeasured(report.unmeasured)


def _print_domains(report: ValidationReport) -> None:
    """Each figure by set of samples, and what the sets are."""
    if rows := by_set(report):
        shown = table("figure", MAIN_SET, *map(escape, report.domains), WORST)
        for figure, values in rows.items():
            shown.add_row(escape(figure), *map(significant, values.values()))
        out.print(shown)
    for name, domain in report.domains.items():
        told = f"{name}: {domain.samples} samples of {domain.origin}"
        out.print(told, markup=False, highlight=False)


def print_unmeasured(reasons: Mapping[str, str]) -> None:
    """Quantities and providers that were asked for and not measured, each with the reason."""
    for name, reason in reasons.items():
        out.print(f"{name} not measured: {reason}", style="yellow", markup=False)


def print_translations(report: TranslationReport) -> None:
    """BLEU and chrF of both models by language, and how fast they came."""
    shown = table("language", "sentences", "BLEU", "candidate", "chrF", "candidate")
    rows = {**report.reference.languages, "mean": report.reference.mean}
    candidates = {**report.candidate.languages, "mean": report.candidate.mean}
    for language, before in rows.items():
        after = candidates[language]
        scores = (before.bleu, after.bleu, before.chrf, after.chrf)
        shown.add_row(escape(language), str(before.sentences), *map(significant, scores))
    out.print(shown)
    out.print(f"{report.validation}; {report.beams} beams", markup=False, highlight=False)
    if (timing := report.timing) is not None:
        out.print(
            f"{timing.reference_texts_per_s:.1f} -> {timing.candidate_texts_per_s:.1f} texts a "
            f"second: {timing.speedup:.2f}x [{timing.speedup_low:.2f}, {timing.speedup_high:.2f}], "
            f"texts {timing.length_ratio:.3g} times as long",
            highlight=False,
            markup=False,
        )


def print_benchmarks(benchmarks: Sequence[Benchmark], unmeasured: dict[str, str]) -> None:
    """Latencies and throughput before and after, one row a provider and size."""
    shown = table(
        "provider",
        "threads",
        "reference p50",
        "candidate p50",
        "speed-up",
        "ideal",
        "reference [1/s]",
        "candidate [1/s]",
    )
    for row in benchmarks:
        ideal = "" if row.ideal_speedup is None else f"{row.ideal_speedup:.2f}x"
        shown.add_row(
            row.name,
            str(row.threads),
            f"{row.reference.p50_ms:.3f} ms",
            f"{row.candidate.p50_ms:.3f} ms",
            f"{row.speedup:.2f}x [{row.speedup_low:.2f}, {row.speedup_high:.2f}]",
            ideal,
            significant(row.reference_samples_per_s),
            significant(row.candidate_samples_per_s),
        )
    out.print(shown)
    for row in benchmarks:
        if "doubts" in row.settings:
            out.print(f"{row.name}: {row.settings['doubts']}", style="yellow", markup=False)
    print_unmeasured(unmeasured)


def print_loadings(loadings: Sequence[Loading]) -> None:
    """Time to open a session, and memory, before and after, two rows a provider."""
    if not loadings:
        return
    shown = table("provider", "fresh process", "reference", "candidate", "ratio")
    for row in loadings:
        opened = (f"{ms:.1f} ms" for ms in (row.reference_load_ms, row.candidate_load_ms))
        interval = f"[{row.load_ratio_low:.2f}, {row.load_ratio_high:.2f}]"
        shown.add_row(row.provider, "open session", *opened, f"{row.load_ratio:.2f} {interval}")
        if row.resident_ratio is None:
            continue
        taken = (row.reference_resident_bytes or 0, row.candidate_resident_bytes or 0)
        interval = f"[{row.resident_ratio_low:.2f}, {row.resident_ratio_high:.2f}]"
        memory = f"{row.resident_ratio:.2f} {interval}"
        shown.add_row(row.provider, "memory", *map(formats.size, taken), memory)
    out.print(shown)
    for row in loadings:
        if row.not_resident is not None:
            out.print(f"{row.provider}, memory not measured: {row.not_resident}", style="yellow")


def print_gates(gates: Sequence[GateResult]) -> bool:
    """The verdict on each gate; True when all passed."""
    for gate in gates:
        sign = ">=" if gate.limit == "min" else "<="
        value = f"not measured{f' ({gate.reason})' if gate.reason else ''}"
        if gate.value is not None:
            value = f"{gate.value:.6g}"
        verdict = "passed" if gate.passed else "FAILED"
        out.print(
            f"gate {gate.quantity} {sign} {gate.threshold:g}: {value}: {verdict}",
            style="green" if gate.passed else "bold red",
            markup=False,
            highlight=False,
        )
    return all(gate.passed for gate in gates)


def table(*headers: str) -> Table:
    """An empty table that fits a terminal and a CI log."""
    empty = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        # Names and reasons wrap; numbers never do.
        wraps = header.partition(" ")[0] in {"site", "reason", "output"}
        empty.add_column(header, no_wrap=not wraps, overflow="fold")
    return empty


def print_tolerances(report: ValidationReport) -> bool:
    """What is farther off than it may be, on each provider and set; returns whether nothing is."""
    within = True
    places = {place.provider: place for place in (report, *report.elsewhere)} | report.domains
    for where, place in places.items():
        for row in place.outputs:
            if row.outside:
                within = False
                told = row.problem or f"{row.outside:,} of {row.elements:,} elements are"
                text = f"tolerance of {row.output} ({where}): {told} outside: FAILED"
                out.print(text, style="red", markup=False, highlight=False)
            elif row.outside is not None:
                text = f"tolerance of {row.output} ({where}): passed"
                out.print(text, markup=False, highlight=False)
    return within


def print_inside(inside: InnerComparison) -> None:
    """Where two graphs part, or that they do not."""
    if inside.divergence is None:
        out.print("value by value, the graphs agree", markup=False, highlight=False)
    else:
        out.print(str(inside.divergence), markup=False, highlight=False, soft_wrap=True)


def print_runtime(checks: Mapping[str, RuntimeChecks]) -> None:
    """Each graph against itself, as relative differences."""
    levels = [f"optimization {level}" for level in next(iter(checks.values())).levels]
    shown = table("against itself", "runs", "threads", *levels, "ONNX's evaluator")
    for name, found in checks.items():
        figures = (found.runs, found.threads, *found.levels.values())
        evaluator = "–" if found.evaluator is None else significant(found.evaluator)
        shown.add_row(name, *map(significant, figures), evaluator)
    out.print(shown)
    for name, found in checks.items():
        if found.no_evaluator is not None:
            told = f"ONNX's evaluator does not run the {name}: {found.no_evaluator}"
            out.print(told, style="yellow", markup=False, highlight=False)


def print_changes(found: Sequence[Change]) -> None:
    """What became of each quantity, the worse first."""
    shown = table("quantity", "base", "now", "better is", "verdict", "by")
    order = ("worse", "better", "same")
    styles = {"worse": "bold red", "better": "green", "same": ""}
    for one in sorted(found, key=lambda one: order.index(one.verdict)):
        shown.add_row(
            escape(one.quantity),
            significant(one.base),
            significant(one.candidate),
            one.direction,
            one.verdict,
            one.test,
            style=styles[one.verdict],
        )
    out.print(shown)


def tell_ci(name: str, cases: Mapping[str, str | None], markdown: str, junit: Path | None) -> None:
    """Say what failed in the ways that continuous integration reads."""
    if junit is not None:
        write_junit(junit, name, cases)
    add_to_step_summary(markdown)
    for line in github_annotations(cases):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
