"""Where the weights came from: a CycloneDX record, and what the run wrote about itself.

The record (CycloneDX 1.6, a machine-learning bill of materials) has the model with the SHA-256 of
its file, and as its ancestor what it was made from, by the name that the report has for it.
"""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, UUID, uuid5

from compress_onnx.graph_passes.errors import MissingDependencyError
from compress_onnx.pipeline.deploy.package import (
    MODEL_NAME,
    PLAN_NAME,
    Package,
    copy_file,
)
from compress_onnx.pipeline.files.model_file import file_digest, referred_files
from compress_onnx.pipeline.report.writer import REPORT_NAME

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

FOLDER = "provenance"
RECORD_NAME = "model.cdx.json"


def write_provenance(package: Package, folder: Path) -> None:
    """Write the record, the report and the plan into ``folder``/provenance.

    Raises:
        MissingDependencyError: cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise MissingDependencyError(
            'a record of where weights came from needs more: pip install "compress-onnx[deploy]"'
        ) from error
    place = folder / FOLDER
    place.mkdir()
    text = JsonV1Dot6(_record(package)).output_as_string(indent=2)
    (place / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
    for name in (REPORT_NAME, PLAN_NAME):
        if (package.folder / name).is_file():
            copy_file(package.folder / name, place / name)


def _record(package: Package) -> Bom:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    report = package.report
    ancestors = []
    if package.original is not None:
        ancestors.append(_model("original", package.original))
    if report is not None and report.export is not None:
        ancestors.append(
            Component(type=ComponentType.MACHINE_LEARNING_MODEL, name=report.export.source)
        )
    model = _model(package.name, package.model)
    model.pedigree = Pedigree(ancestors=ancestors, notes=report.command if report else None)
    tool = Component(
        type=ComponentType.APPLICATION, name="compress-onnx", version=version("compress-onnx")
    )
    record = Bom(serial_number=_serial(package))
    record.metadata.component = model
    record.metadata.tools.components.add(tool)
    # The time of the run, not of this copy: the same package gives the same record.
    if report is not None:
        record.metadata.timestamp = datetime.fromisoformat(report.created)
    return record


def _model(name: str, path: Path) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    found = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        bom_ref=name,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file_digest(path))],
    )
    for file in referred_files(path):
        found.properties.add(Property(name=f"sha256 of {file.name}", value=file_digest(file)))
    return found


def _serial(package: Package) -> UUID:
    return uuid5(NAMESPACE_URL, f"{package.name} {file_digest(package.folder / MODEL_NAME)}")
