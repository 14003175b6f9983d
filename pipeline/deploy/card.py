"""Model cards: the ``README.md`` of bundles in the hub's layout.

The front matter says what the hub reads: the library, what the model was made from, and what was
measured, in the form ``model-index``. The text below has the same figures beside the original's.

Nothing from a model or a report is markup there: names and reasons are escaped, as in the summary.
A card that the package already has stays, as ``README-original.md``; its licence and language are
those of ours too, for they are the weights'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compress_onnx.pipeline.deploy.package import Package, copy_file
from compress_onnx.pipeline.report.markdown import Markdown, printable, template
from compress_onnx.pipeline.results import RunReport, ValidationReport

CARD_NAME = "README.md"
ORIGINAL_CARD_NAME = "README-original.md"

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_KEPT_KEYS = ("license", "license_name", "license_link", "language")
# What says how sure a figure is, or is the original's, is in the text alone.
_BESIDE = ("_reference", "_low", "_high", "_p")
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForImageClassification": "image-classification",
}


@dataclass(frozen=True)
class Library:
    """Who loads a bundle with a card.

    Attributes:
        name: as the hub calls it.
        fence: the language of the lines that load it.
        tags: what the hub finds the model by, besides ``onnx``.
    """

    name: str
    fence: str
    tags: tuple[str, ...] = ()


def write_card(package: Package, library: Library, loading: str, folder: Path) -> None:
    """Write the card of ``package`` into ``folder``.

    Args:
        package: with the report that has the figures; without one, the card has none.
        library: who loads it.
        loading: the lines that do.
        folder: the bundle's.

    Raises:
        OutputError: a card that was there cannot be copied.
    """
    theirs = package.folder / CARD_NAME
    if theirs.is_file():
        copy_file(theirs, folder / ORIGINAL_CARD_NAME)
    head = _dumped(_front_matter(package, library, _kept(theirs)))
    text = template("card.md.jinja", "compress_onnx.pipeline.deploy").render(
        name=package.name,
        head=Markdown(head),
        report=_report(package),
        base=_base(package),
        hub=_hub_id(package),
        fence=Markdown(library.fence),
        loading=Markdown(loading),
        original=ORIGINAL_CARD_NAME if theirs.is_file() else "",
    )
    (folder / CARD_NAME).write_text(text, encoding="utf-8")


def _report(package: Package) -> RunReport | None:
    return package.report if isinstance(package.report, RunReport) else None


def _hub_id(package: Package) -> str | None:
    """The hub's name of what the model was made from, where that is known."""
    export = package.report.export if package.report else None
    return package.base_model or (export.hub_id if export else None)


def _base(package: Package) -> str:
    """What the model was made from, in words; never a place on the machine that made it."""
    export = package.report.export if package.report else None
    known = _hub_id(package) or (export.source if export else "")
    return known.replace("\\", "/").rpartition("/")[2] if known.endswith(".onnx") else known


def _front_matter(
    package: Package, library: Library, kept: Mapping[str, object]
) -> dict[str, object]:
    found: dict[str, object] = {"library_name": library.name, **kept}
    task = _task(package)
    if task is not None:
        found["pipeline_tag"] = task
    base, report = _hub_id(package), _report(package)
    if base is not None:
        found["base_model"] = base
        if report is not None and _holds_integers(report):
            found["base_model_relation"] = "quantized"
    found["tags"] = ["onnx", "compress-onnx", *library.tags]
    results = list(_results(report, task or "other"))
    if results:
        found["model-index"] = [{"name": package.name, "results": results}]
    return found


def _task(package: Package) -> str | None:
    """What the hub calls what the model does; None where nothing tells."""
    if package.is_sentence_encoder:
        return "sentence-similarity"
    names = package.config.get("architectures") if package.has_config else None
    for name in names if isinstance(names, list) else ():
        for ending, task in _TASKS.items():
            if str(name).endswith(ending):
                return task
    return None


def _holds_integers(report: RunReport) -> bool:
    layers = report.plan.layers if report.plan else ()
    return any("int" in layer.numbers for layer in layers)


def _results(report: RunReport | None, task: str) -> Iterator[dict[str, Any]]:
    """One result for each set of samples that has figures."""
    if report is None or report.validation is None:
        return
    sets = {"": report.validation, **report.validation.domains}
    for name, validation in sets.items():
        metrics = list(_metrics(validation))
        if not metrics:
            continue
        origin = printable(validation.origin)
        yield {
            "task": {"type": task},
            "dataset": {
                "type": "custom",
                "name": f"{printable(name)}: {origin}" if name else origin,
                "args": {"samples": validation.samples},
            },
            "metrics": metrics,
        }


def _metrics(validation: ValidationReport) -> Iterator[dict[str, Any]]:
    for name, value in validation.metrics.items():
        if math.isfinite(value) and not name.endswith(_BESIDE):
            yield {"type": name, "value": value, "name": name.replace("_", " ")}


def _kept(card: Path) -> dict[str, object]:
    """The licence and the language in the front matter of somebody's card."""
    if not card.is_file():
        return {}
    found = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    try:
        values = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: values[key] for key in _KEPT_KEYS if _plain(values.get(key))}


def _plain(value: object) -> bool:
    """Whether it is a text, or a list of such."""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(one, str) for one in value)
    )


def _dumped(values: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
