"""Runs in trackers of experiments: ``run --log mlflow:URI``.

MLflow gets a run of the recipe's name with

* parameters: the recipe as it was carried out, a key for each value (``compression.params``);
* metrics: everything that a gate of it could name;
* tags: the verdict, who wrote it, what the model was made from;
* artefacts: the bundle, with its manifest.

The tracker is asked before anything is computed, so that one that cannot be reached is told at
once. Where a bundle is written and logging fails then, the bundle stays. What stands in front of
the ``@`` of a URI is never shown or stored.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_onnx.graph_passes.errors import MissingDependencyError, OutputError, RequestError
from compress_onnx.pipeline.measure.regression import quantities_of
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.results import RunReport, TranslationReport

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "compress-onnx"
"""Where MLflow's own MLFLOW_EXPERIMENT_NAME says nothing else."""

ARTIFACTS = "bundle"

_PREFIX = "mlflow:"
_NAME = re.compile(r"[^\w\-. /]", re.ASCII)
_LONGEST_NAME = 250
_LONGEST_VALUE = 6000
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_MANY = 100  # of parameters in one request


@dataclass(frozen=True)
class Tracker:
    """A place where runs are logged.

    Attributes:
        uri: of MLflow's tracking store: ``http://…``, ``sqlite:///…``, ``file:…``.
    """

    uri: str

    def __str__(self) -> str:
        return without_credentials(self.uri)


def tracker_of(text: str) -> Tracker:
    """The tracker that ``mlflow:URI`` names.

    Raises:
        RequestError: it names none.
    """
    uri = text.removeprefix(_PREFIX)
    if not text.startswith(_PREFIX) or not uri.strip():
        raise RequestError(
            f"--log {without_credentials(text)}: give mlflow:URI of a tracking store, such as "
            "mlflow:http://localhost:5000 or mlflow:sqlite:///runs.db"
        )
    return Tracker(uri)


def without_credentials(text: str) -> str:
    """``text`` with what stands in front of the ``@`` of its URIs replaced."""
    return _CREDENTIALS.sub("***@", text)


def check_tracker(tracker: Tracker) -> None:
    """Make sure that the tracker answers.

    Raises:
        MissingDependencyError: mlflow is not installed.
        OutputError: it does not.
    """
    with _mlflow(tracker) as client:
        client.get_experiment_by_name(_experiment_name())


def log_run(
    tracker: Tracker, recipe: Recipe, report: RunReport | TranslationReport, bundle: Path
) -> str:
    """Log a run that is written.

    Args:
        tracker: where.
        recipe: as it was carried out.
        report: what came of it.
        bundle: the folder.

    Returns:
        The id of the run.

    Raises:
        MissingDependencyError: mlflow is not installed.
        OutputError: the tracker refuses, or does not answer; the run then stands there as failed.
    """
    with _mlflow(tracker) as client:
        run = client.create_run(
            _experiment(client, tracker), run_name=report.name, tags=_tags(report)
        )
        done = False
        try:
            _log(client, run.info.run_id, recipe, report, bundle)
            done = True
        finally:
            client.set_terminated(run.info.run_id, "FINISHED" if done else "FAILED")
        return str(run.info.run_id)


def _log(
    client: MlflowClient,
    run_id: str,
    recipe: Recipe,
    report: RunReport | TranslationReport,
    bundle: Path,
) -> None:
    from mlflow.entities import Metric, Param

    flat = dict(_flat(recipe.model_dump(mode="json", exclude_unset=True)))
    params = [Param(_named(name), value[:_LONGEST_VALUE]) for name, value in flat.items()]
    when = round(1000 * datetime.fromisoformat(report.created).timestamp())
    metrics = [Metric(_named(n), v, when, 0) for n, v in quantities_of(report).items()]
    for start in range(0, len(params), _MANY):
        client.log_batch(run_id, params=params[start : start + _MANY])
    for start in range(0, len(metrics), _MANY):
        client.log_batch(run_id, metrics=metrics[start : start + _MANY])
    client.log_artifacts(run_id, str(bundle), ARTIFACTS)


def _tags(report: RunReport | TranslationReport) -> dict[str, str]:
    found = {
        "compress_onnx.verdict": "passed" if report.passed else "failed",
        "compress_onnx.version": report.tool_version,
        "compress_onnx.command": without_credentials(report.command),
        "compress_onnx.created": report.created,
    }
    if report.export is not None:
        found["compress_onnx.source"] = report.export.source
    return found


def _flat(values: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested data by the keys that lead to it, with dots in between."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list) and any(isinstance(one, Mapping) for one in values):
        for place, value in enumerate(values):
            yield from _flat(value, f"{name}.{place}")
    elif values is not None:
        yield name, ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def _named(name: str) -> str:
    """``name`` with the characters that MLflow takes."""
    return _NAME.sub("_", name)[:_LONGEST_NAME]


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _experiment(client: MlflowClient, tracker: Tracker) -> str:
    """The id of the experiment, which is made where there is none."""
    name = _experiment_name()
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    return str(client.create_experiment(name, artifact_location=_artifact_location(tracker)))


def _artifact_location(tracker: Tracker) -> str | None:
    """Beside a local database: by itself, MLflow puts files below the working folder."""
    scheme, _, path = tracker.uri.partition(":///")
    if scheme != "sqlite" or not path:
        return None
    return (Path(path).resolve().parent / "mlartifacts").as_uri()


@contextmanager
def _mlflow(tracker: Tracker) -> Iterator[MlflowClient]:
    """A client whose failures are one line.

    A store of files is asked for by its own scheme, so that MLflow need not ask back whether it is
    wanted; and nothing is sent to anybody but the tracker, unless the environment says so.
    """
    wanted = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    if tracker.uri.startswith("file:"):
        wanted["MLFLOW_ALLOW_FILE_STORE"] = "true"
    with _environment(wanted), _quiet():
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingDependencyError(
                'logging to MLflow needs more: pip install "compress-onnx[mlflow]"'
            ) from error
        try:
            yield MlflowClient(tracking_uri=tracker.uri)
        except (MlflowException, OSError, ImportError) as error:
            raise OutputError(f"cannot log to MLflow at {tracker}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(without_credentials(str(error)).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """With these variables where nobody set them."""
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow and its database tell of themselves."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels: list[Any] = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
