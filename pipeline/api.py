"""The face of the project: a verb for everything that the command line can do.

Models are paths, ``onnx.ModelProto`` or ``onnx_ir.Model``; data is an ``.npz`` file, arrays by
input name, or an iterable of feeds. Results are typed, print as text, and have ``to_dict()``.
Nothing here prints by itself; ``RunSettings(progress=Calls(callback))`` tells a callback about the
steps. Errors are subclasses of :class:`~graph_passes.errors.CompressOnnxError`, one line each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import parse_method
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.holdout import hold_out, hold_out_if_enough
from compress_onnx.pipeline.compress.integers import prepare_integers
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.learn import learn as learn_original
from compress_onnx.pipeline.compress.meter import Meter
from compress_onnx.pipeline.compress.optimize import optimize as optimize_learned
from compress_onnx.pipeline.compress.outcome import measure_outcome
from compress_onnx.pipeline.data.feeds import DataLike, as_samples
from compress_onnx.pipeline.deploy.package import Serving, read_package
from compress_onnx.pipeline.deploy.targets import bundle as bundle_for
from compress_onnx.pipeline.divergence.find import compare_inside as find_divergence
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.export import export as export_source
from compress_onnx.pipeline.files.model_file import load_model, model_size, save_model
from compress_onnx.pipeline.files.original import ModelLike, Original, open_original
from compress_onnx.pipeline.measure.domains import with_domains
from compress_onnx.pipeline.measure.latency import measure_latency
from compress_onnx.pipeline.measure.loading import measure_loadings
from compress_onnx.pipeline.measure.providers import Requested
from compress_onnx.pipeline.measure.regression import changes
from compress_onnx.pipeline.measure.validate import validate as validate_files
from compress_onnx.pipeline.measure.validate import validate_on
from compress_onnx.pipeline.recipe import (
    BenchmarkSpec,
    MetricSpec,
    OptimizeSpec,
    Recipe,
    RecoverySpec,
    SourceSpec,
    read_recipe,
)
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.recover.recover import Lessons, recover_in_memory
from compress_onnx.pipeline.report import read_report
from compress_onnx.pipeline.results import (
    Analysis,
    BenchmarkReport,
    Change,
    ExportReport,
    InnerComparison,
    OptimizeReport,
    Outcome,
    RecoveryReport,
    Report,
    ValidationReport,
)
from compress_onnx.pipeline.runtime.backend import open_backend
from compress_onnx.pipeline.runtime.batches import model_batches
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.progress import Calls
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, open_session, require_provider


def learn(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    broader: Mapping[str, DataLike] | None = None,
    mask: str | None = None,
    settings: RunSettings | None = None,
) -> Learned:
    """Find the linear layers of ``model`` and run it over ``data``, once for all budgets.

    Args:
        model: never changed.
        data: calibration data, a few hundred real samples, of which every fifth is held out to
            measure plans on; None looks at the weights alone.
        broader: further data by name, that ``shrinkage="broader:0.3"`` pulls towards.
        mask: the input that is the padding mask; ``attention_mask`` is found by itself.
        settings: how the model is run, and who is told about progress.

    Raises:
        ModelFileError: the model is missing, damaged or unsafe, or cannot be run.
        DataError: the data does not fit the model.
    """
    original = open_original(model)
    samples = held_out = None
    if data is not None:
        samples, held_out = hold_out_if_enough(_samples(original.path, data, mask))
    further = _sets(original.path, broader, mask)
    return learn_original(original, samples, settings, held_out=held_out, broader=further)


def compress(
    model: ModelLike,
    output: Path | str | None = None,
    data: DataLike | None = None,
    *,
    broader: Mapping[str, DataLike] | None = None,
    mask: str | None = None,
    settings: RunSettings | None = None,
    **request: Any,  # noqa: ANN401
) -> Compressed:
    """Compress ``model``, and write the result to ``output`` where one is given.

    Args:
        model: never changed.
        output: the ``.onnx`` file to write.
        data: as for :func:`learn`.
        broader: likewise.
        mask: likewise.
        settings: likewise.
        **request: the fields of :class:`~graph_passes.planning.request.CompressionSpec`, such as
            ``params=0.5`` or ``method="svdlora:stages=3"``; without any, half of the parameters.

    Raises:
        RequestError: the request makes no sense for this model.
        NothingToCompressError: no weight can be factored with a gain.
        CompressOnnxError: as for :func:`learn`, or the output cannot be written.
    """
    spec = request_of(**request)
    learned = learn(model, data, broader=broader, mask=mask, settings=settings)
    compressed = learned.compress(spec)
    if output is not None:
        compressed.write(Path(output))
    return compressed


def optimize(
    model: ModelLike,
    output: Path | str,
    data: DataLike,
    *,
    broader: Mapping[str, DataLike] | None = None,
    domains: Mapping[str, DataLike] | None = None,
    mask: str | None = None,
    metric: MetricSpec | None = None,
    how: BenchmarkSpec | None = None,
    settings: RunSettings | None = None,
    log: Path | str | None = None,
    recovery: RecoverySpec | None = None,
    **spec: Any,  # noqa: ANN401
) -> OptimizeReport:
    """Write the fastest (or smallest) form of ``model`` within a drop to ``output``.

    Args:
        model: never changed.
        output: the ``.onnx`` file to write.
        data: real samples, some hundreds; every fifth is held out to choose and to report on.
        broader: as for :func:`learn`.
        domains: further data by name, on which the best are told too; they decide nothing.
        mask: as for :func:`learn`.
        metric: of the drop; None compares raw outputs.
        how: provider, sizes of inferences, and repetitions; of several sizes, the geometric mean
            of the speed-ups counts.
        settings: as for :func:`learn`.
        log: a file of trials, read and added to.
        recovery: how the best candidates just beyond the drop are trained; None trains none.
        **spec: the fields of :class:`~pipeline.recipe.OptimizeSpec`, such as
            ``max_drop=0.01`` or ``objective="size"``.

    Raises:
        RequestError: an unknown field, or a value out of range.
        CompressOnnxError: as for :func:`learn`, or the output cannot be written.
    """
    try:
        wanted = OptimizeSpec.model_validate(spec)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error
    require_provider((how or BenchmarkSpec()).device)
    original = open_original(model)
    samples, held_out = hold_out(_samples(original.path, data, mask))
    return optimize_learned(
        learn_original(original, samples, settings, broader=_sets(original.path, broader, mask)),
        held_out,
        Path(output),
        wanted,
        benchmark=how,
        metric=metric,
        log=None if log is None else Path(log),
        recovery=recovery,
        domains=_sets(original.path, domains, mask),
    ).report


def recover(
    reference: ModelLike,
    candidate: ModelLike,
    output: Path | str,
    data: DataLike,
    *,
    held_out: DataLike | None = None,
    integers: bool = False,
    mask: str | None = None,
    settings: RunSettings | None = None,
    **spec: Any,  # noqa: ANN401
) -> RecoveryReport:
    """Train what compression changed until ``candidate`` does what ``reference`` does.

    Args:
        reference: the original; never changed.
        candidate: what compression made of it, in floats; never changed.
        output: the ``.onnx`` file to write.
        data: real samples, unlabelled; not those that the result is judged by.
        held_out: what decides when to stop and which weights are kept; None holds a batch in ten
            of ``data`` out, at most 512 samples.
        integers: whether layers of the result multiply integers; they are trained through that
            rounding.
        mask: as for :func:`learn`.
        settings: likewise.
        **spec: the fields of :class:`~pipeline.recipe.RecoverySpec`, such as ``budget="5min"``.

    Raises:
        RequestError: an unknown field, or no weight that could be trained.
        NotDifferentiableError: an operator has no gradient.
        CompressOnnxError: as for :func:`learn`, or the output cannot be written.
    """
    try:
        recovery = RecoverySpec.model_validate(spec)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error
    ours, theirs = open_original(reference), open_original(candidate)
    samples, settings = _samples(ours.path, data, mask), settings or RunSettings()
    deciding = None if held_out is None else _samples(ours.path, held_out, mask)
    lessons = Lessons(samples, deciding)
    if integers:
        prepared = prepare_integers(theirs, samples, settings)
        if not prepared.scales:
            raise RequestError("no layer of the model can multiply integers: leave integers out")
        report = prepared.recover(ours.path, lessons, recovery, settings)
        save_model(prepared.rounded().model, Path(output))
        return report
    model = theirs.copy()
    report = recover_in_memory(
        ours.path, model, lessons, recovery, settings, data_folder=theirs.data_folder
    )
    save_model(model, Path(output))
    return report


def request_of(**request: Any) -> CompressionSpec:  # noqa: ANN401
    """A request of its fields; ``method`` may be a text, such as ``"svdlora:stages=3"``.

    Raises:
        RequestError: an unknown field, or a value out of range.
    """
    if isinstance(request.get("method"), str):
        request["method"] = parse_method(request["method"])
    try:
        return CompressionSpec.model_validate(request)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error


def validate(
    reference: ModelLike,
    candidate: ModelLike,
    data: DataLike,
    *,
    domains: Mapping[str, DataLike] | None = None,
    mask: str | None = None,
    metric: MetricSpec | None = None,
    batch_invariance: bool = False,
    providers: Sequence[Requested] | None = None,
    settings: RunSettings | None = None,
) -> ValidationReport:
    """Hold the outputs of ``candidate`` against those of ``reference``.

    Args:
        reference: the original.
        candidate: has the same inputs and outputs.
        data: samples that calibration never saw.
        domains: further data by name; the report has one of each, and the worst of all, measured
            on the first provider.
        mask: as for :func:`learn`.
        metric: of the task; None compares raw outputs only.
        batch_invariance: also run samples alone and in a batch, and compare the two.
        providers: where to compare, or ``auto`` for wherever it works; the report of the first has
            those of the others in ``elsewhere``. None takes that of ``settings``.
        settings: how both are run.

    Raises:
        DataError: the data does not fit the models.
        ModelFileError: a model cannot be loaded or run, or the two are not the same model.
        ProviderError: a provider that was asked for by name is not available.
    """
    ours, theirs = open_original(reference), open_original(candidate)
    samples, how = _samples(ours.path, data, mask), settings or RunSettings()
    further = _sets(ours.path, domains, mask)

    def measure(provider: Provider, on: Samples = samples) -> ValidationReport:
        with how.progress.step("validate", len(on)) as update:
            return validate_files(
                ours.path,
                theirs.path,
                on,
                metric=metric,
                spec=how.session.model_copy(update={"provider": provider}),
                batch_size=how.batch_size,
                batch_invariance=batch_invariance,
                progress=update,
            )

    places = providers or [how.session.provider]
    report = validate_on(places, measure)
    return with_domains(
        report,
        {n: validate_on(places[:1], partial(measure, on=each)) for n, each in further.items()},
    )


def benchmark(
    reference: ModelLike,
    candidate: ModelLike,
    data: DataLike | None = None,
    *,
    mask: str | None = None,
    how: BenchmarkSpec | None = None,
    loads: int = 0,
    settings: RunSettings | None = None,
) -> BenchmarkReport:
    """Time both models in turn, and compare their sizes.

    Args:
        reference: the original.
        candidate: has the same inputs.
        data: rows to feed; made-up inputs without.
        mask: as for :func:`learn`.
        how: provider, sizes of the inputs, and repetitions.
        loads: rounds that open both models in fresh processes, for the time that takes and the
            memory; 0 leaves that out.
        settings: whose seed and progress count.

    Raises:
        ProviderError: a provider that was asked for by name is not available.
        DataError: the data does not fit the models.
    """
    ours, theirs = open_original(reference), open_original(candidate)
    settings = settings or RunSettings()
    how = how or BenchmarkSpec()
    samples = None if data is None else _samples(ours.path, data, mask)
    benchmarks, unmeasured = measure_latency(
        ours.path,
        theirs.path,
        how,
        samples=samples,
        seed=settings.seed,
        progress=settings.progress,
    )
    return BenchmarkReport(
        benchmarks=benchmarks,
        unmeasured=unmeasured,
        size=model_size(ours.path, theirs.path),
        loadings=measure_loadings(
            ours.path,
            theirs.path,
            benchmarks,
            how,
            rounds=loads,
            samples=samples,
            seed=settings.seed,
            progress=settings.progress,
        ),
        gates=(),
        environment=environment(),
    )


def judge(
    reference: ModelLike,
    candidate: ModelLike,
    data: DataLike | None = None,
    *,
    mask: str | None = None,
    metric: MetricSpec | None = None,
    max_drop: float | None = None,
    timed: bool = True,
    settings: RunSettings | None = None,
) -> Outcome:
    """Is ``candidate`` worth deploying in place of ``reference``? As ``compress`` ends.

    Args:
        reference: the original.
        candidate: what was made of it.
        data: samples that calibration never saw; without, nothing is known about the outputs.
        mask: as for :func:`learn`.
        metric: of the drop; None compares raw outputs.
        max_drop: what may be lost; None where nobody said.
        timed: whether to time both for some seconds.
        settings: how both are run.

    Raises:
        CompressOnnxError: as for :func:`validate`.
    """
    ours, theirs = open_original(reference), open_original(candidate)
    samples = None if data is None else _samples(ours.path, data, mask)
    settings = settings or RunSettings()
    meter = Meter(ours, samples=samples, settings=settings)
    return measure_outcome(
        ours.path,
        theirs.path,
        samples,
        settings,
        feeds=meter.feeds_at_several_sizes() if timed else None,
        metric=metric,
        max_drop=max_drop,
    )


def analyze(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    params: float = 0.5,
    mask: str | None = None,
    settings: RunSettings | None = None,
    timed: bool = True,
) -> Analysis:
    """The linear layers of ``model``, with the least error that factors could have.

    And is it worth it: ``potential`` says where bytes and time go, and the verdict.

    Args:
        model: never changed.
        data: as for :func:`learn`; without, errors are those of the weights.
        params: the share of the parameters at which errors are given.
        mask: as for :func:`learn`.
        settings: likewise.
        timed: whether to profile the model as well, for ``potential``.

    Returns:
        A plan by plain SVD: every site with its ``error.bound``, every product that is none with
        the reason.

    Raises:
        CompressOnnxError: as for :func:`learn`.
    """
    learned = learn(model, data, mask=mask, settings=settings)
    request = request_of(method="svd", params=params, rank_multiple=1)
    plan = make_plan(learned.original.table, request)
    basis, progress = learned.basis(request), learned.settings.progress
    plan = Compressed(basis, plan, progress=progress).evaluated()
    return Analysis(**dict(plan), potential=learned.potential(timed=timed))


def export(source: str, output: Path | str, **options: Any) -> ExportReport:  # noqa: ANN401
    """Export a Hugging Face model or folder to ``output``, compared with PyTorch.

    Args:
        source: the name on the hub, or a folder.
        output: the ``.onnx`` file to write.
        **options: the other fields of :class:`~pipeline.recipe.SourceSpec`, such as ``task``.

    Raises:
        RequestError: the source is an ONNX file already, or the options make no sense.
        MissingDependencyError: the ``export`` extra is not installed.
        ModelFileError: the export computes something else than PyTorch.
    """
    try:
        spec = SourceSpec.model_validate({"model": source, **options})
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        exported = export_source(spec, Path(work), base_dir=Path.cwd())
        if not exported.path.is_relative_to(work):
            raise RequestError(f"{source} is an ONNX model already: nothing to export")
        save_model(load_model(exported.path), Path(output))
    return exported.report


def run(
    recipe: Path | str | Recipe,
    output: Path | str,
    *,
    base_dir: Path | None = None,
    settings: RunSettings | None = None,
) -> Report:
    """Carry out a recipe and leave a bundle in ``output``; ``report.passed`` is the verdict.

    Args:
        recipe: a YAML file, or a recipe.
        output: the bundle's folder.
        base_dir: what relative paths in the recipe start from; the file's folder by itself.
        settings: whose cache and progress count, and whether code that the recipe names may run.

    Raises:
        CompressOnnxError: the run could not be carried out; nothing is left behind.
    """
    if not isinstance(recipe, Recipe):
        base_dir, recipe = base_dir or Path(recipe).parent, read_recipe(Path(recipe))
    return run_recipe(recipe, Path(output), base_dir=base_dir or Path.cwd(), settings=settings)


def compare_inside(
    reference: ModelLike,
    candidate: ModelLike,
    data: DataLike,
    *,
    samples: int = 2,
    mask: str | None = None,
    tolerance: float | None = None,
    settings: RunSettings | None = None,
) -> InnerComparison:
    """Find the first tensor in which ``candidate`` differs from ``reference``, and why.

    Args:
        reference: the graph that is right.
        candidate: another one of the same model: from another exporter, say, or in fewer bits.
        data: real samples; the first few are used.
        samples: so many; all values of both graphs are in memory at once.
        mask: as for :func:`learn`.
        tolerance: the largest relative difference of values that count as equal; None takes one
            between what rounding does and the error of the worst output.
        settings: how both are run.

    Raises:
        DataError: the data does not fit the models.
        ModelFileError: a model cannot be loaded or run.
    """
    ours, theirs = open_original(reference), open_original(candidate)
    spec = (settings or RunSettings()).session
    session = open_session(ours.path, spec)
    batches = model_batches(session, _samples(ours.path, data, mask), samples)
    feeds = next(iter(batches)).feeds
    return find_divergence(ours.path, theirs.path, feeds, tolerance=tolerance, spec=spec)


def compare(
    base: Path | str,
    candidate: Path | str,
    tolerances: Mapping[str, float] | None = None,
) -> list[Change]:
    """What became worse from one report of a recipe to another, beyond noise.

    Args:
        base: a ``report.json``, or the folder of a run.
        candidate: likewise.
        tolerances: what a quantity may move, relative to the base, by its name.

    Raises:
        RequestError: a report is missing or damaged, or the two have nothing in common.
    """
    return changes(read_report(Path(base)), read_report(Path(candidate)), tolerances)


def bundle(
    folder: Path | str,
    target: str,
    output: Path | str,
    *,
    name: str | None = None,
    original: Path | str | None = None,
    serving: Serving | None = None,
    base_model: str | None = None,
    force: bool = False,
) -> tuple[str, ...]:
    """Lay out what :func:`run` left in ``folder`` for the place that serves it.

    Args:
        folder: with ``model.onnx``, tokenizer and configuration where the target needs them.
        target: such as ``"triton"`` or ``"sentence-transformers"``.
        output: the folder to write.
        name: what servers call the model; None takes the report's.
        original: the uncompressed model, as a version beside it.
        serving: how servers run it.
        base_model: what it was made from, on the hub, for the model card; None takes the report's.
        force: replace ``output``.

    Returns:
        What whoever deploys it has to know, a sentence each.

    Raises:
        RequestError: the target is unknown, or the package is not for it.
        ModelFileError: there is no model, or the folder is not as its manifest says.
        OutputError: ``output`` is there already, or cannot be written.
    """
    beside = None if original is None else Path(original)
    package = read_package(
        Path(folder), name, original=beside, serving=serving, base_model=base_model
    )
    return bundle_for(package, target, Path(output), force=force)


def _samples(model: Path, data: DataLike, mask: str | None) -> Samples:
    return as_samples(data, model_inputs(load_structure(model)), mask)


def _sets(model: Path, sets: Mapping[str, DataLike] | None, mask: str | None) -> dict[str, Samples]:
    return {name: _samples(model, data, mask) for name, data in (sets or {}).items()}


__all__ = [
    "Calls",
    "Compressed",
    "Learned",
    "Original",
    "RunSettings",
    "Samples",
    "Serving",
    "analyze",
    "benchmark",
    "bundle",
    "compare",
    "compare_inside",
    "compress",
    "export",
    "judge",
    "learn",
    "open_backend",
    "optimize",
    "recover",
    "request_of",
    "run",
    "validate",
]
