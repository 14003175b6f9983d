"""Model cards: the ``README.md`` of bundles in the hub's layout.

The front matter says what the hub reads: the library, what the model was made from, and what was
measured, in the form ``model-index``. The text below has the same figures beside the original's.

Nothing from a model or a report is markup there: names and reasons are escaped, as in the summary.
A card that the package already has stays, as ``README-original.md``; its licence and language are
those of ours too, for they are the weights'. Where it names no licence, another file may
(:mod:`pipeline.deploy.licence`); else the text says that it is not known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compress_onnx.pipeline.deploy.licence import Licence, told_licence
from compress_onnx.pipeline.deploy.package import Package, copy_file
from compress_onnx.pipeline.export.hub import CARD_NAME
from compress_onnx.pipeline.export.huggingface import licence_files
from compress_onnx.pipeline.report.markdown import Markdown, printable, template
from compress_onnx.pipeline.results import ExportReport, RunReport, ValidationReport

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


@dataclass(frozen=True)
class Source:
    """What a model was made from.

    Attributes:
        export: how it became a graph; None where nobody knows.
        hub_id: its name on the hub; None where that is not known.
        card: its model card; None where there is none.
        licence: what tells its licence besides the card.
    """

    export: ExportReport | None
    hub_id: str | None
    card: Path | None
    licence: Licence | None

    @property
    def name(self) -> str:
        """In words; never a place on the machine that compressed it."""
        known = self.hub_id or (self.export.source if self.export else "")
        is_path = known.endswith(".onnx") or known.startswith(("/", "~"))
        return known.replace("\\", "/").rpartition("/")[2] if is_path else known


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
    report = package.report if isinstance(package.report, RunReport) else None
    task = _task(package)
    head: dict[str, object] = {} if task is None else {"pipeline_tag": task}
    source = _source(package)
    if source.hub_id is not None:
        head["base_model"] = source.hub_id
        if report is not None and _holds_integers(report):
            head["base_model_relation"] = "quantized"
    fill_card(
        "card.md.jinja",
        folder,
        source,
        library,
        name=package.name,
        head=head,
        results=_results(report, task or "other"),
        loading=loading,
        report=report,
    )


def fill_card(
    file: str,
    folder: Path,
    source: Source,
    library: Library,
    *,
    name: str,
    head: Mapping[str, object],
    results: Iterable[Mapping[str, Any]],
    loading: str,
    report: object,
) -> None:
    """Write the card, and that of the source beside it.

    Args:
        file: the template of the text.
        folder: the bundle's.
        source: what the model was made from.
        library: who loads it.
        name: of the model.
        head: front matter of this card's own.
        results: those of ``model-index``.
        loading: the lines that load it.
        report: for the template.

    Raises:
        OutputError: the source's card cannot be copied.
    """
    if source.card is not None:
        copy_file(source.card, folder / ORIGINAL_CARD_NAME)
    told = _kept(source.card) if source.card is not None else {}
    licence = source.licence if "license" not in told else None
    index = list(results)
    front = {
        "library_name": library.name,
        **(licence.fields if licence else {}),
        **told,
        **head,
        "tags": ["onnx", "compress-onnx", *library.tags],
        **({"model-index": [{"name": name, "results": index}]} if index else {}),
    }
    text = template(file, "compress_onnx.pipeline.deploy").render(
        name=name,
        head=Markdown(_dumped(front)),
        report=report,
        source=source,
        licence=licence,
        licensed="license" in front,
        fence=Markdown(library.fence),
        loading=Markdown(loading),
        original=ORIGINAL_CARD_NAME if source.card is not None else "",
    )
    (folder / CARD_NAME).write_text(text, encoding="utf-8")


def _source(package: Package) -> Source:
    export = package.report.export if package.report else None
    cards = (package.folder / name for name in (ORIGINAL_CARD_NAME, CARD_NAME))
    return Source(
        export,
        package.base_model or (export.hub_id if export else None),
        next((card for card in cards if card.is_file()), None),
        told_licence(
            package.config if package.has_config else {},
            licence_files(package.folder),
            package.structure,
        ),
    )


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
                # The hub's library tells sets of one type apart by this.
                **({"config": printable(name)} if name else {}),
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
