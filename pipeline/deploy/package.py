"""A model and what belongs to it: what every target is laid out from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from compress_onnx.graph_passes.errors import ModelFileError, OutputError, RequestError
from compress_onnx.pipeline.export.exported import SentencePooling
from compress_onnx.pipeline.export.sentence_encoder import read_modules, read_sentence_encoder
from compress_onnx.pipeline.export.source import is_hub_id
from compress_onnx.pipeline.files.bundle import MANIFEST_NAME, SIGNATURE_NAME, verify_manifest
from compress_onnx.pipeline.files.model_file import load_model, referred_files, save_model
from compress_onnx.pipeline.report import read_report
from compress_onnx.pipeline.report.page import PAGE_NAME
from compress_onnx.pipeline.report.trials import PARETO_NAME
from compress_onnx.pipeline.report.writer import REPORT_NAME, SUMMARY_NAME
from compress_onnx.pipeline.results import Report
from compress_onnx.pipeline.runtime.inputs import Dimension, declared_shape, load_structure

MODEL_NAME = "model.onnx"
PLAN_NAME = "plan.json"
DEPLOY_FOLDER = "deploy"
"""Where ``run`` puts the targets of its recipe."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ABOUT_THE_RUN = {
    REPORT_NAME,
    PAGE_NAME,
    PLAN_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    PARETO_NAME,
    SUMMARY_NAME,
}
_FOLDERS_ABOUT_THE_RUN = {"pictures", DEPLOY_FOLDER}


@dataclass(frozen=True)
class Value:
    """An input or output of a graph; a dimension is a size, a symbol, or None when anonymous."""

    name: str
    dtype: int
    shape: tuple[Dimension, ...]

    @property
    def type_name(self) -> str:
        """What ONNX calls its elements: ``FLOAT``, ``INT64``."""
        return str(onnx.TensorProto.DataType.Name(self.dtype))


@dataclass(frozen=True)
class Serving:
    """How a server runs the model.

    Attributes:
        threads: for one inference; None leaves it to the runtime.
        instances: copies of the model that answer at the same time.
        max_batch: at most so many samples at a time.
        dynamic_batching: put requests together; None does where answers do not depend on it.
    """

    threads: int | None = None
    instances: int = 1
    max_batch: int = 32
    dynamic_batching: bool | None = None


@dataclass(frozen=True)
class Package:
    """A folder with ``model.onnx``, and perhaps the original that it was made from.

    Attributes:
        name: what servers call the model.
        folder: as ``run`` leaves it, or one that somebody else filled.
        original: the uncompressed model, to stand beside it.
        serving: how servers run it.
        base_model: the hub's name of what it was made from, where the report does not say.
    """

    name: str
    folder: Path
    original: Path | None = None
    serving: Serving = Serving()
    base_model: str | None = None

    @property
    def model(self) -> Path:
        """The model that goes out."""
        return self.folder / MODEL_NAME

    @property
    def versions(self) -> tuple[Path, ...]:
        """The original, where there is one, and the model: in this order."""
        return (self.model,) if self.original is None else (self.original, self.model)

    @cached_property
    def report(self) -> Report | None:
        """What the run said; None in a folder of somebody else's."""
        return read_report(self.folder) if (self.folder / REPORT_NAME).is_file() else None

    @cached_property
    def structure(self) -> onnx.ModelProto:
        """The graph without its external weights."""
        return load_structure(self.model)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What a caller must feed."""
        defaults = {tensor.name for tensor in self.structure.graph.initializer}
        return tuple(_value(v) for v in self.structure.graph.input if v.name not in defaults)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the model answers."""
        return tuple(map(_value, self.structure.graph.output))

    @cached_property
    def assets(self) -> tuple[Path, ...]:
        """Tokenizer, configuration and the like: paths relative to :attr:`folder`, sorted."""
        models = {self.model, *referred_files(self.model)}
        return tuple(
            sorted(
                path.relative_to(self.folder)
                for path in _files(self.folder)
                if path not in models and not _about_the_run(path.relative_to(self.folder))
            )
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The transformer's ``config.json``.

        Raises:
            RequestError: there is none.
            ModelFileError: it is damaged.
        """
        path = self.require(self.transformer / "config.json", "tells the model's architecture")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelFileError(f"{path} is not valid JSON: get the model again") from error
        if not isinstance(config, dict):
            raise ModelFileError(f"{path} holds no object: get the model again")
        return config

    @property
    def has_config(self) -> bool:
        """Whether there is a :attr:`config`."""
        return (self.folder / self.transformer / "config.json").is_file()

    @property
    def is_sentence_encoder(self) -> bool:
        """Whether sentence-transformers' description of a pipeline is there."""
        return (self.folder / "modules.json").is_file()

    @property
    def transformer(self) -> Path:
        """The folder of the tokenizer and the configuration, relative to :attr:`folder`."""
        if not self.is_sentence_encoder:
            return Path()
        return Path(read_modules(self.folder)[0].path)

    @property
    def pooling(self) -> SentencePooling:
        """How tokens become a sentence.

        Raises:
            RequestError: nothing says.
        """
        encoder = read_sentence_encoder(self.folder)
        if encoder is None or encoder.pooling is None:
            raise RequestError(
                f"{self.folder} does not say how tokens are pooled to a sentence: add modules.json "
                "and 1_Pooling/config.json of the sentence encoder"
            )
        return encoder.pooling

    @property
    def width(self) -> int:
        """Numbers in an embedding: of the first output, or the configuration's ``hidden_size``.

        Raises:
            RequestError: neither says.
        """
        shape = self.outputs[0].shape
        width = shape[-1] if shape else None
        width = width if isinstance(width, int) else self.config.get("hidden_size")
        if not isinstance(width, int):
            raise RequestError("neither the graph nor config.json says how wide an embedding is")
        return width

    def pooled_by(self, known: Mapping[str, str], who: str) -> str:
        """What ``who`` calls the way in which this encoder pools.

        Args:
            known: its names, by those of sentence-transformers.
            who: the target.

        Raises:
            RequestError: it does not pool like that, or nothing says how to.
        """
        modes = self.pooling.modes
        if len(modes) != 1 or modes[0] not in known:
            raise RequestError(
                f"{who} pools by {', '.join(sorted(known))}, and this encoder by {self.pooling}"
            )
        return known[modes[0]]

    def require(self, name: Path | str, why: str) -> Path:
        """The file ``name`` of the package.

        Raises:
            RequestError: there is none; the message says what it is for.
        """
        path = self.folder / name
        if not path.is_file():
            raise RequestError(f"{self.folder} has no {name}, which {why}: add it to the folder")
        return path

    def copy_assets(self, folder: Path, *, below: Path | None = None) -> None:
        """Copy the assets into ``folder``, as they lie here, or as they lie ``below`` a folder."""
        for asset in self.assets:
            if below is not None and not asset.is_relative_to(below):
                continue
            inner = asset if below is None else asset.relative_to(below)
            copy_file(self.folder / asset, folder / inner)


def read_package(
    folder: Path,
    name: str | None = None,
    *,
    original: Path | None = None,
    serving: Serving | None = None,
    base_model: str | None = None,
) -> Package:
    """The package in ``folder``; a manifest that is there must hold.

    Args:
        folder: with ``model.onnx``.
        name: what servers call the model; what the report calls it, or the folder, unless given.
        original: the uncompressed model.
        serving: how servers run it.
        base_model: the hub's name of what it was made from.

    Raises:
        ModelFileError: there is no model, or the folder is not as its manifest says.
        RequestError: a name does not do, or original and model do not take and give the same.
    """
    if base_model is not None and not is_hub_id(base_model):
        raise RequestError(
            f"{base_model!r} is no model of the hub: give --base-model as ORGANIZATION/NAME"
        )
    if not (folder / MODEL_NAME).is_file():
        raise ModelFileError(
            f"{folder} has no {MODEL_NAME}: give the folder that `compress-onnx run` wrote, or one "
            "with the model under that name"
        )
    if (folder / MANIFEST_NAME).is_file():
        verify_manifest(folder)
    for model in filter(None, (folder / MODEL_NAME, original)):
        load_model(model)  # refuses data files elsewhere
    package = Package("", folder, original, serving or Serving(), base_model)
    if original is not None:
        _check_same_interface(package, original)
    if name is None:
        name = package.report.name if package.report else folder.resolve().name
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"a server cannot call a model {name!r}: give a --name of letters, digits, '.', '_' "
            "and '-'"
        )
    return replace(package, name=name)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, with the folders above it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"cannot copy {source} to {target}: {error.strerror}") from error


def place_model(source: Path, target: Path, *, inline: bool = False) -> None:
    """Put the model ``source`` to ``target``, with its data files beside it.

    The bytes stay what they are, so that checksums can be compared, but where weights in data files
    have to move ``inline``.

    Raises:
        ModelFileError: with its weights inside, the model is too large for one file.
        OutputError: it cannot be written.
    """
    data = referred_files(source)
    if inline and data:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_model(load_model(source), target, external_data=False)
        return
    copy_file(source, target)
    for file in data:
        copy_file(file, target.parent / file.relative_to(source.parent))


def _check_same_interface(package: Package, original: Path) -> None:
    theirs = load_structure(original)
    for what, ours, others in (
        ("inputs", package.structure.graph.input, theirs.graph.input),
        ("outputs", package.structure.graph.output, theirs.graph.output),
    ):
        if [(v.name, _value(v).dtype) for v in ours] != [(v.name, _value(v).dtype) for v in others]:
            raise RequestError(
                f"the {what} of {original} are not those of {package.model}: give the model that "
                "it was made from"
            )


def _value(value: onnx.ValueInfoProto) -> Value:
    return Value(value.name, value.type.tensor_type.elem_type, declared_shape(value))


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _about_the_run(path: Path) -> bool:
    return path.name in _ABOUT_THE_RUN or path.parts[0] in _FOLDERS_ABOUT_THE_RUN
