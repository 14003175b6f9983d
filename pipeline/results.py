"""What the steps hand to one another and ``report.json`` is made of: data only, no behaviour.

The JSON schema is versioned: a field may be added within a version, never renamed or removed.
Units are in the names (``_ms``, ``_bytes``); ratios are candidate over reference unless the name
says otherwise (``speedup`` is reference time over candidate time).
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from compress_onnx.graph_passes.planning.plan import CompressionPlan, PlanError
from compress_onnx.graph_passes.planning.request import CompressionSpec

REPORT_SCHEMA_VERSION: Literal[1] = 1


class Result(BaseModel):
    """Base of all results: immutable, no unknown fields.

    JSON has no infinity: what a damaged model measures is written as ``"Infinity"`` and read back
    as the number, so that it can never be mistaken for "not measured" (null).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in the JSON files."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


class OutputComparison(Result):
    """One model output, reference against candidate, over all validation samples.

    ``relative_l2`` is ``‖c − r‖ / ‖r‖``, with its 95 % interval over samples where there is one;
    ``cosine`` that of the flattened outputs; ``snr_db`` is ``−20·log10(relative_l2)`` (None where
    they are equal). ``problem`` says why two outputs cannot be compared (shape, type, NaN); the
    figures are then the worst there are. ``outside`` counts the elements that are farther off than
    a tolerance allows; None without one.
    """

    output: str
    elements: int
    max_abs: float
    relative_l2: float
    cosine: float
    snr_db: float | None
    relative_l2_low: float | None = None
    relative_l2_high: float | None = None
    problem: str | None = None
    outside: int | None = None


class RuntimeChecks(Result):
    """A model against itself: relative differences that a runtime should not make.

    Attributes:
        runs: between runs of one session.
        threads: between one thread and as many as were asked for.
        levels: between no optimization and each level of ONNX Runtime's.
        evaluator: between ONNX's own evaluator and ONNX Runtime without optimizations; None where
            ``no_evaluator`` says why it cannot run the model.
    """

    runs: float
    threads: float
    levels: dict[str, float]
    evaluator: float | None = None
    no_evaluator: str | None = None


class DivergentNode(Result):
    """A node of a graph: the tensor that it computes, its operator, name and module's path."""

    tensor: str
    operator: str
    node: str
    module: str


class Divergence(Result):
    """The first tensor at which a candidate parts from its reference.

    Attributes:
        output: the wrong output that led there.
        candidate: the node that errs: what it reads is as in the reference.
        reference: what stands there in the reference; None where nothing could be told.
        error_before, error_after: the largest relative error of what the node reads, and that of
            what it computes; None where it cannot be compared.
        cause: the likely cause, in words.
    """

    output: str
    candidate: DivergentNode
    reference: DivergentNode | None
    error_before: float
    error_after: float | None
    cause: str

    def __str__(self) -> str:
        """One line for each graph, and the cause."""
        after = "not comparable" if self.error_after is None else f"{self.error_after:.3g}"
        lines = [
            f"first divergence on the way to {self.output}: {_node(self.candidate)}",
            f"relative error {self.error_before:.3g} before, {after} after",
        ]
        if self.reference is not None:
            lines.append(f"in the reference: {_node(self.reference)}")
        return "\n".join([*lines, f"likely cause: {self.cause}"])


class DepthError(Result):
    """The relative error of one value inside the candidate; None where it cannot be compared.

    ``node`` is the name of what computes it, and ``place`` the position of that in the original;
    both are of profiles.
    """

    tensor: str
    operator: str
    module: str
    error: float | None
    node: str = ""
    place: int | None = None


class DepthProfile(Result):
    """How far the values inside a compressed model are from the original's, along its depth.

    Attributes:
        origin: of the samples; they are of those that report, never of those that chose.
        samples: so many, each by itself.
        values: the means of their relative errors, in the order of the original's nodes. What has
            no like of its size in the compressed model is left out; where there are very many, they
            are some of them, evenly along the depth.
        unmeasured: why there are none, such as a model that is too large.
    """

    origin: str
    samples: int = 0
    values: tuple[DepthError, ...] = ()
    unmeasured: str | None = None


class InnerComparison(Result):
    """Two graphs of one model, value by value.

    Attributes:
        tolerance: the largest relative difference of values that counted as equal.
        divergence: where they part; None where their outputs agree.
        depth: the values of the candidate that have their like in the reference, in the order in
            which they are computed.
    """

    tolerance: float
    divergence: Divergence | None
    depth: tuple[DepthError, ...]


def _node(node: DivergentNode) -> str:
    where = f" in {node.module}" if node.module and node.module != node.node else ""
    return f"{node.tensor} of {node.operator} {node.node}{where}"


class ValidationReport(Result):
    """Reference against candidate on the same samples, both on one provider.

    Attributes:
        sizes: at which other sizes both run.
        batch_invariance: the least cosine between a sample's outputs alone and in a padded batch,
            of the candidate; None where nobody asked, or with a reason in ``unmeasured``.
        batch_invariance_reference: the same of the reference.
        elsewhere: the same comparison on further providers.
        domains: the same comparison on further sets of samples, by name.
        worst: of each figure, the worst of this set and of all domains; empty without domains.
        digest: of the samples, so that two reports can be known to be of the same.
        per_sample: the candidate's score of each sample, by the name of the score.
        unmeasured: for each quantity or provider that was asked for and not measured, the reason.
    """

    samples: int
    origin: str
    outputs: tuple[OutputComparison, ...]
    metrics: dict[str, float] = Field(default_factory=dict)
    sizes: str | None = None
    provider: str = "cpu"
    batch_invariance: float | None = None
    batch_invariance_reference: float | None = None
    elsewhere: tuple[ValidationReport, ...] = ()
    domains: dict[str, ValidationReport] = Field(default_factory=dict)
    worst: dict[str, float] = Field(default_factory=dict)
    unmeasured: dict[str, str] = Field(default_factory=dict)
    digest: str | None = None
    per_sample: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    def __str__(self) -> str:
        """One line an output, one for the metrics; the same for each provider and domain."""
        lines = [
            f"{row.output}: {row.problem or f'relative L2 {row.relative_l2:.4g}'}, "
            f"cosine {row.cosine:.6g}"
            for row in self.outputs
        ]
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        alone = ""
        if self.batch_invariance is not None:
            alone = f"batch invariance {self.batch_invariance:.6g}"
        data = f"{self.samples} samples of {self.origin}, on {self.provider}"
        reasons = (f"{name}: not measured, {reason}" for name, reason in self.unmeasured.items())
        further = map(str, (*self.elsewhere, *self.domains.values()))
        return "\n".join(filter(None, (*lines, metrics, alone, data, *reasons, *further)))


class LatencyStats(Result):
    """Latency of one model under one session, over ``iterations`` timed runs.

    ``quantiles_ms`` are those of equal shares of the runs, from the fastest to the slowest.
    """

    iterations: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    min_ms: float
    quantiles_ms: tuple[float, ...] = ()


class Benchmark(Result):
    """Reference against candidate, interleaved, on one provider and at one size.

    Attributes:
        case: which of a grid this is: ``8x128`` of batch and length, ``8x128.t2`` with two threads
            where several counts are measured; empty where there is no grid.
        providers: what the sessions really had, in order.
        input_shapes: the shape of each input that was fed.
        speedup: reference p50 over candidate p50.
        speedup_low, speedup_high: a 95 % bootstrap interval of ``speedup``.
        reference_samples_per_s, candidate_samples_per_s: the samples of one run over its p50, so
            that their ratio is ``speedup``.
        linear_share: the part of the reference's time that its factored sites take (profiled);
            None where the profile could not attribute it.
        ideal_speedup: what ``speedup`` would be if the sites' time scaled with their FLOPs.
        settings: provider settings that change what is measured (threads, TF32, …).
    """

    provider: str
    case: str = ""
    providers: tuple[str, ...]
    threads: int
    optimization: str
    input_shapes: dict[str, tuple[int, ...]]
    reference: LatencyStats
    candidate: LatencyStats
    speedup: float
    speedup_low: float
    speedup_high: float
    reference_samples_per_s: float | None = None
    candidate_samples_per_s: float | None = None
    linear_share: float | None = None
    ideal_speedup: float | None = None
    settings: dict[str, str] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """``cpu``; of a grid ``cpu.8x128``."""
        return f"{self.provider}.{self.case}" if self.case else self.provider


class Loading(Result):
    """What it takes until both models can answer, each in a fresh process, in turn.

    Ratios are candidate over reference, of medians over ``rounds``, with 95 % bootstrap intervals.

    Attributes:
        reference_load_ms, candidate_load_ms: from the file to an open session.
        reference_resident_bytes, candidate_resident_bytes: by how much the memory of the process
            grew with the session and one run; None where that cannot be told, for
            ``not_resident``.
        not_resident: why.
    """

    provider: str
    threads: int
    rounds: int
    reference_load_ms: float
    candidate_load_ms: float
    load_ratio: float
    load_ratio_low: float
    load_ratio_high: float
    reference_resident_bytes: int | None = None
    candidate_resident_bytes: int | None = None
    resident_ratio: float | None = None
    resident_ratio_low: float | None = None
    resident_ratio_high: float | None = None
    not_resident: str | None = None


class SizeReport(Result):
    """Bytes on disk (external data included) and parameters (elements of all weights)."""

    reference_bytes: int
    candidate_bytes: int
    reference_parameters: int
    candidate_parameters: int


class GateResult(Result):
    """One limit and whether it held.

    ``value`` is None where the quantity was not measured; ``reason`` says why, where it is known.
    """

    quantity: str
    limit: Literal["min", "max"]
    threshold: float
    value: float | None
    passed: bool
    reason: str | None = None


class Change(Result):
    """One quantity in two reports.

    Attributes:
        direction: which way is better.
        tolerance: relative to the base, what it may move without being worse.
        test: what decided, with its figure.
        verdict: of the candidate.
    """

    quantity: str
    base: float
    candidate: float
    direction: Literal["higher", "lower"]
    tolerance: float
    test: str
    verdict: Literal["better", "worse", "same"]


class Environment(Result):
    """What the figures were measured with.

    ``instruction_sets`` are those of the CPU that speed up products; empty where nobody says.
    """

    python: str
    platform: str
    processor: str
    cores: int
    instruction_sets: tuple[str, ...] = ()
    packages: dict[str, str]


class ExtraState(Result):
    """The packages of an extra; ``missing`` are those that are absent or of another version."""

    packages: tuple[str, ...]
    missing: tuple[str, ...]


class Diagnosis(Result):
    """What ``doctor`` finds.

    Attributes:
        providers: by provider, why it does not work here; None where it does.
        exact_int8: whether products of 8 bits are added up exactly.
        extras: by name, without those that bring a runtime.
    """

    schema_version: Literal[1] = REPORT_SCHEMA_VERSION
    tool_version: str
    environment: Environment
    providers: dict[str, str | None]
    exact_int8: bool
    extras: dict[str, ExtraState]


class ComparisonReport(Result):
    """What ``validate --json`` writes.

    ``inside`` is there where the two differ by more than they may, or where it was asked for;
    ``runtime`` where it was asked for, of reference and candidate.
    """

    schema_version: Literal[1] = REPORT_SCHEMA_VERSION
    validation: ValidationReport
    inside: InnerComparison | None = None
    runtime: dict[str, RuntimeChecks] = Field(default_factory=dict)
    size: SizeReport
    gates: tuple[GateResult, ...]
    environment: Environment


class BenchmarkReport(Result):
    """What ``bench --json`` writes."""

    schema_version: Literal[1] = REPORT_SCHEMA_VERSION
    benchmarks: tuple[Benchmark, ...]
    unmeasured: dict[str, str]
    size: SizeReport
    gates: tuple[GateResult, ...]
    loadings: tuple[Loading, ...] = ()
    environment: Environment | None = None

    def __str__(self) -> str:
        """One line a provider and size, one for the files."""
        lines = [
            f"{row.name}: p50 {row.reference.p50_ms:.3f} -> {row.candidate.p50_ms:.3f} ms, "
            f"{row.speedup:.2f}x [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"
            for row in self.benchmarks
        ]
        lines += [
            f"{row.provider}: session {row.reference_load_ms:.1f} -> {row.candidate_load_ms:.1f} ms"
            for row in self.loadings
        ]
        lines += [f"{name}: not measured, {reason}" for name, reason in self.unmeasured.items()]
        size = self.size
        return "\n".join([*lines, f"{size.reference_bytes:,} -> {size.candidate_bytes:,} bytes"])


class Drop(Result):
    """What a candidate loses against its reference, with a 95 % interval where there is one."""

    quantity: str
    value: float
    low: float | None = None
    high: float | None = None


class SearchStep(Result):
    """One share that was tried; ``within`` goes by the measured value of the drop."""

    share: float
    within: bool
    parameters_after: int | None = None
    drop: Drop | None = None
    problem: str | None = None


class SearchReport(Result):
    """The search for the smallest model within a drop, in the order of its steps.

    ``measured_on`` says which samples chose the share; ``reported`` is the drop of the answer on
    other samples, ``reported_on``, which chose nothing.
    """

    max_drop: float
    steps: tuple[SearchStep, ...]
    found: SearchStep
    measured_on: str = ""
    reported: Drop | None = None
    reported_on: str = ""

    @property
    def sure(self) -> bool:
        """Whether the whole interval of the drop that was found is within the limit."""
        drop = self.reported or self.found.drop
        return drop is not None and drop.high is not None and drop.high <= self.max_drop

    @property
    def answer(self) -> str:
        """The share that was found, how sure that is, and what it was measured on."""
        sure = "its whole interval is" if self.sure else "not sure: its interval is not"
        text = (
            f"smallest share within a drop of {self.max_drop:g}: {self.found.share:.1%}, "
            f"chosen on {self.measured_on}"
        )
        if self.reported is None:
            return f"{text} ({sure} within)"
        return (
            f"{text}; its {self.reported.quantity} on {self.reported_on} is "
            f"{self.reported.value:.4g} ({sure} within)"
        )


class Trial(Result):
    """One model that ``optimize`` tried: what it is, what it loses, and what it takes.

    ``drop`` is measured on the samples that choose, ``reported`` on others that chose nothing.
    ``family`` is what it has in common with others of other shares. ``speedup`` is over the
    original, from interleaved runs; those that were out of the running early have none. Of several
    shapes of inputs it is the geometric mean; ``speedup_at`` then has that of each, by its name.
    ``timed_at`` says on what, and at which shapes. ``on_front`` says that no other is better in
    both the drop and what is to be least.
    ``batch_invariance`` is the least cosine between a sample alone and in a batch; ``domains`` has
    the drop on further sets of samples, by name.
    """

    name: str
    rival: bool = False
    family: str | None = None
    share: float | None = None
    drop: Drop | None = None
    within: bool = False
    size_bytes: int | None = None
    problem: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_at: dict[str, float] = Field(default_factory=dict)
    timed_at: str = ""
    batch_invariance: float | None = None
    reported: Drop | None = None
    domains: dict[str, Drop] = Field(default_factory=dict)
    on_front: bool = False


class OptimizeReport(Result):
    """What ``optimize`` tried, what won, and over what.

    ``inputs`` are the shapes that latency was measured at; ``verdict`` says in words what won, by
    how much, over what. ``plan`` is the winner's, with the numbers, damage, time and bytes of each
    layer; None where a rival won, or where it stands elsewhere in a report. ``depth`` is how far
    the winner's values are from the original's; None where it was not asked for, or stands
    elsewhere too.
    """

    max_drop: float
    objective: Literal["latency", "size"]
    provider: str
    inputs: str
    trials: tuple[Trial, ...]
    winner: str
    verdict: str
    chosen_on: str
    reported_on: str
    plan: CompressionPlan | None = None
    depth: DepthProfile | None = None
    notes: tuple[str, ...] = ()

    @property
    def shapes(self) -> tuple[str, ...]:
        """The names of the shapes, where there are several."""
        return next((tuple(trial.speedup_at) for trial in self.trials if trial.speedup_at), ())


class KindShare(Result):
    """What operators of one kind take of a model: bytes of weights, and time.

    ``kind`` is one of :data:`pipeline.measure.operator_kinds.KINDS`; ``share_of_time`` is None
    where time was not measured.
    """

    kind: str
    weight_bytes: int
    share_of_bytes: float
    share_of_time: float | None = None


class Potential(Result):
    """What compressing the linear layers of a model can gain at most, and whether it is worth it.

    Attributes:
        kinds: by share of the time, or of the bytes where time is not known.
        inputs: the shapes that time was measured at; empty where it was not.
        speedup_bound: if the linear layers took no time at all (Amdahl).
        speedup_at_half: if they took half of their time.
        worth: the verdict in one word.
        verdict: the same in words, with the reason.
        notes: what a reader must know, such as why time was not measured.
    """

    kinds: tuple[KindShare, ...]
    inputs: str = ""
    speedup_bound: float | None = None
    speedup_at_half: float | None = None
    worth: Literal["yes", "hardly", "no"]
    verdict: str
    notes: tuple[str, ...] = ()


class Analysis(CompressionPlan):
    """The linear layers of a model, the least error that factors can have, and its potential."""

    potential: Potential


class Outcome(Result):
    """A candidate against its original: size, speed, what it loses, and whether to deploy it.

    Attributes:
        benchmark: None where speed was not measured.
        drop: None where the outputs were not compared; ``drop_on`` says on which samples.
        advice: the verdict in a word or two.
        verdict: the same in words, with the reasons.
        warnings: where the candidate is worse than its original.
        notes: why something that was asked for was not measured.
    """

    size: SizeReport
    benchmark: Benchmark | None = None
    drop: Drop | None = None
    drop_on: str = ""
    advice: Literal["deploy", "validate first", "not worth it"]
    verdict: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ExportParity(Result):
    """The exported graph against the PyTorch module, at one input size."""

    input_shapes: dict[str, tuple[int, ...]]
    outputs: tuple[OutputComparison, ...]


class ExportReport(Result):
    """Where the ONNX model came from; ``parity`` is empty for a model that came as ONNX.

    ``hub_id`` is its name on the Hugging Face hub, where it was fetched from there.
    """

    source: str
    exporter: str
    opset: int
    parity: tuple[ExportParity, ...] = ()
    hub_id: str | None = None


class RecoveryReport(Result):
    """What training against the original's outputs changed.

    Attributes:
        start_loss, end_loss: distance from the original on the held-out batches, before and after;
            equal where nothing was better than the start and the model stays as it was.
        steps: taken in all, also before a kill.
        seconds: likewise.
        learning_rate: the largest step size, relative to the weights.
        stopped: why training ended.
        parameters: trained.
        compared: the values that the loss compares, by name in the graph.
        batches, held_out_batches: trained on, and measured on only.
        device: of PyTorch, where it trained.
        products: what gradients were computed in.
    """

    start_loss: float
    end_loss: float
    steps: int
    seconds: float
    learning_rate: float
    stopped: str
    parameters: int
    compared: tuple[str, ...]
    batches: int
    held_out_batches: int
    device: str = "cpu"
    products: str = "float32"

    @property
    def improved(self) -> bool:
        """Whether the model is closer to the original now; if not, it is as it was."""
        return self.end_loss < self.start_loss


class SweepRow(Result):
    """One variant of a sweep and what it measured; ``problem`` says why there are no figures.

    ``ranks`` are the least and the largest; ``error`` is that of the factors before recovery.
    ``by_set`` are the figures of all sets of samples and their worst, where there are domains.
    """

    variant: CompressionSpec
    problem: str | None = None
    ranks: tuple[int, int] | None = None
    error: PlanError | None = None
    recovery: RecoveryReport | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    size: SizeReport | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    by_set: dict[str, dict[str, float]] = Field(default_factory=dict)
    outputs: tuple[OutputComparison, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()


class SweepReport(Result):
    """All variants of a sweep, in the order that they were asked for."""

    schema_version: Literal[1] = REPORT_SCHEMA_VERSION
    tool_version: str
    created: str
    name: str
    environment: Environment
    rows: tuple[SweepRow, ...]


class Report(Result):
    """What every run says about itself.

    Attributes:
        calibration: the data, in words; None without.
        timings_s: seconds by step.
        notes: what a reader must know: damped matrices, inputs without a mask, skipped pictures.
    """

    schema_version: Literal[1] = REPORT_SCHEMA_VERSION
    tool_version: str
    created: str
    name: str
    command: str
    seed: int
    environment: Environment
    export: ExportReport | None = None
    calibration: str | None = None
    size: SizeReport
    gates: tuple[GateResult, ...] = ()
    timings_s: dict[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True when every gate held; a run without gates passes."""
        return all(gate.passed for gate in self.gates)


class RunReport(Report):
    """Everything about one run of the pipeline on one model.

    Attributes:
        optimize: how the form was found; None where the recipe says what to do.
        plan: what every site becomes; None where ``optimize`` took a model that no plan makes.
        op_counts: nodes by operator type that ONNX Runtime really executes on the CPU after its
            own optimization, for ``reference`` and ``candidate`` (fusions kept or lost).
        depth: how far the values inside are from the original's, on validation samples that report;
            None without such samples, and in reports that are older.
        unmeasured: providers that were asked for with ``auto`` and are absent, with the reason.
    """

    search: SearchReport | None = None
    optimize: OptimizeReport | None = None
    plan: CompressionPlan | None = None
    recovery: RecoveryReport | None = None
    op_counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    validation: ValidationReport | None = None
    depth: DepthProfile | None = None
    benchmarks: tuple[Benchmark, ...] = ()
    unmeasured: dict[str, str] = Field(default_factory=dict)


class TranslationScore(Result):
    """BLEU and chrF, 0 to 100, of ``sentences`` translations."""

    sentences: int
    bleu: float
    chrf: float


class TranslationScores(Result):
    """BLEU and chrF, 0 to 100, by target language, and their means over languages."""

    languages: dict[str, TranslationScore]
    mean: TranslationScore


class GenerationTiming(Result):
    """How long both models took for the same texts, batch by batch in turn.

    Attributes:
        provider, threads: how the graphs ran.
        batch_size: texts at a time, at most.
        reference_s, candidate_s: seconds in all.
        reference_texts_per_s, candidate_texts_per_s: texts a second.
        speedup: ``reference_s`` over ``candidate_s``.
        speedup_low, speedup_high: a 95 % bootstrap interval of ``speedup`` over the batches.
        length_ratio: characters of the candidate's texts over those of the reference's. A model
            that says less takes less time: no merit, unless this is near 1.
    """

    provider: str
    threads: int
    batch_size: int
    reference_s: float
    candidate_s: float
    reference_texts_per_s: float
    candidate_texts_per_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    length_ratio: float


class TranslationReport(Report):
    """Everything about one run of the pipeline on an encoder–decoder that translates.

    Attributes:
        encoder, decoder: what became of the sites of each graph; ``size`` is of both graphs.
        validation: what was translated, in words.
        beams: hypotheses that the search kept.
        reference, candidate: how good the translations of each are.
        timing: None where no latency was asked for.
        recovery: how training went; None without.
    """

    kind: Literal["translation"] = "translation"
    encoder: CompressionPlan
    decoder: CompressionPlan
    validation: str
    beams: int
    reference: TranslationScores
    candidate: TranslationScores
    timing: GenerationTiming | None = None
    recovery: RecoveryReport | None = None
