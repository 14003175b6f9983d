"""The model card of an encoder–decoder that translates: BLEU and chrF of each language.

Such a model is two graphs, and what a run leaves is already laid out as optimum loads it, so that
its card stands there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress_onnx.pipeline.deploy.card import Library, Source, fill_card
from compress_onnx.pipeline.deploy.licence import told_licence
from compress_onnx.pipeline.deploy.package import copy_file
from compress_onnx.pipeline.export.hub import CARD_NAME
from compress_onnx.pipeline.export.huggingface import licence_files
from compress_onnx.pipeline.report.markdown import printable
from compress_onnx.pipeline.results import TranslationReport, TranslationScore

TASK = "translation"

_OPTIMUM = Library("optimum", "python")
_LOADING = (
    "from optimum.onnxruntime import ORTModelForSeq2SeqLM\n"
    'model = ORTModelForSeq2SeqLM.from_pretrained("{name}")'
)
_METRICS = {"bleu": "BLEU", "chrf": "chrF"}


def write_translation_card(report: TranslationReport, checkpoint: Path, folder: Path) -> None:
    """Write the card of a translation model into ``folder``, with what its licence demands.

    Args:
        report: of the run.
        checkpoint: what the model was made from, in the hub's layout.
        folder: has both graphs.

    Raises:
        OutputError: a file of the checkpoint cannot be copied.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    licences = licence_files(checkpoint)
    for file in licences:
        copy_file(file, folder / file.name)
    card = checkpoint / CARD_NAME
    hub_id = report.export.hub_id if report.export else None
    source = Source(
        report.export, hub_id, card if card.is_file() else None, told_licence(config, licences)
    )
    head = {"pipeline_tag": TASK}
    if hub_id is not None:
        head["base_model"] = hub_id
    fill_card(
        "translation_card.md.jinja",
        folder,
        source,
        _OPTIMUM,
        name=report.name,
        head=head,
        results=_results(report),
        loading=_LOADING.format(name=report.name),
        report=report,
    )


def _results(report: TranslationReport) -> Iterator[dict[str, Any]]:
    """One for each language."""
    for language, score in report.candidate.languages.items():
        code = printable(language)
        yield {
            "task": {"type": TASK},
            "dataset": {
                "type": "custom",
                "name": f"{code}: {printable(report.validation)}",
                "config": code,
                "args": {"samples": score.sentences},
            },
            "metrics": list(_metrics(score)),
        }


def _metrics(score: TranslationScore) -> Iterator[dict[str, Any]]:
    for field, name in _METRICS.items():
        value = getattr(score, field)
        if math.isfinite(value):
            yield {"type": field, "value": value, "name": name}
