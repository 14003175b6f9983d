"""Folders of sentence-transformers: which part of one is the transformer, and how it is pooled.

``modules.json`` lists what a sentence goes through, each with a folder of its own::

    Transformer  ''  or 0_Transformer   tokens -> last_hidden_state [batch, tokens, D]
    Pooling      1_Pooling              -> one vector a sentence
    Normalize    2_Normalize            -> of length 1

The transformer is what an export holds, for the task feature-extraction, whatever task its own
configuration names. What follows it stays with the user, who is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.export.exported import SentencePooling

MODULES_NAME = "modules.json"

_OWN_FILES = (MODULES_NAME, "config_sentence_transformers.json", "sentence_bert_config.json")
_TRANSFORMER, _POOLING, _NORMALIZE = "Transformer", "Pooling", "Normalize"
_FLAG = "pooling_mode_"
# What older configurations call the modes that newer ones have by name.
_MODES = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}


class _Module(BaseModel):
    """An entry of ``modules.json``: a class, and its folder relative to the encoder's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: str
    type: str

    @property
    def kind(self) -> str:
        """The class without its package, which differs between versions."""
        return self.type.rpartition(".")[2]


class _PoolingConfig(BaseModel):
    """``1_Pooling/config.json``: a flag for each mode, or the modes by name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    pooling_mode: str | tuple[str, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes; the vectors of several are put side by side, in this order."""
        if self.pooling_mode:
            return (self.pooling_mode,) if isinstance(self.pooling_mode, str) else self.pooling_mode
        flags = self.model_extra or {}
        return tuple(mode for name, mode in _MODES.items() if flags.get(f"{_FLAG}{name}") is True)


@dataclass(frozen=True)
class SentenceEncoder:
    """A folder of sentence-transformers.

    Attributes:
        transformer: the checkpoint's folder; that of ``modules.json`` or one inside it.
        pooling: how sentences become vectors; None where no module pools.
        left_out: modules after the transformer that are neither pooling nor normalization.
        files: what describes all of it: configurations, no weights.
    """

    transformer: Path
    pooling: SentencePooling | None
    left_out: tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def notes(self) -> Iterator[str]:
        """What a user of the exported model has to do after it."""
        if self.pooling is not None:
            yield f"a sentence encoder: pool the exported model's output by {self.pooling}"
        if self.left_out:
            yield (
                f"the modules {', '.join(self.left_out)} of the sentence encoder are not in the "
                "exported model: apply them to its pooled output"
            )


def read_sentence_encoder(folder: Path) -> SentenceEncoder | None:
    """Read ``modules.json``; None where ``folder`` has none, and is an ordinary checkpoint.

    Raises:
        ModelFileError: it, or the configuration of the pooling, is damaged or leads outside.
        RequestError: the first module is no transformer.
    """
    if not (folder / MODULES_NAME).is_file():
        return None
    first, *others = modules = read_modules(folder)
    if first.kind != _TRANSFORMER:
        raise RequestError(
            f"{folder} is a sentence encoder that begins with {first.kind}: only those that begin "
            "with a Transformer can be exported"
        )
    pooling = next((module for module in others if module.kind == _POOLING), None)
    normalized = any(module.kind == _NORMALIZE for module in others)
    return SentenceEncoder(
        transformer=folder / first.path,
        pooling=None if pooling is None else _pooling(folder / pooling.path, normalized),
        left_out=tuple(m.kind for m in others if m.kind not in {_POOLING, _NORMALIZE}),
        files=tuple(_described(folder, modules)),
    )


def _described(folder: Path, modules: Sequence[_Module]) -> Iterator[Path]:
    """The configurations of the encoder and of its modules, as far as there are any."""
    transformer = folder / modules[0].path
    named = [place / name for place in {folder: None, transformer: None} for name in _OWN_FILES]
    named += [folder / module.path / "config.json" for module in modules]
    yield from (path for path in named if path.is_file())


def read_modules(folder: Path) -> list[_Module]:
    """The modules that ``modules.json`` lists, at least one, each inside ``folder``.

    Raises:
        ModelFileError: it is damaged, or names a folder elsewhere.
    """
    path = folder / MODULES_NAME
    try:
        modules = TypeAdapter(list[_Module]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, error) from error
    if not modules:
        raise ModelFileError(f"{path} lists no modules: get the model again")
    for module in modules:
        inside = PurePosixPath(module.path)
        if inside.is_absolute() or ".." in inside.parts:
            raise ModelFileError(
                f"{path} names the folder {module.path!r} outside of its own: it is not safe to use"
            )
    return modules


def _pooling(folder: Path, normalized: bool) -> SentencePooling:
    path = folder / "config.json"
    try:
        config = _PoolingConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, error) from error
    if not config.modes:
        raise ModelFileError(f"{path} names no pooling mode: get the model again")
    return SentencePooling(config.modes, normalized)


def _damaged(path: Path, error: OSError | ValidationError) -> ModelFileError:
    problem = error.strerror if isinstance(error, OSError) else first_problem(error)
    return ModelFileError(f"cannot read {path}: {problem}; get the model again")
