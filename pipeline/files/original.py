"""The model as it was: its file, its canonical graph, and the linear sites of that.

Nobody changes an :class:`Original`. Who rewrites a graph takes a :meth:`~Original.copy`, which
shares the weights and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.rewriting.canonicalize import CanonicalizePass
from compress_onnx.graph_passes.rewriting.join_siblings import JoinSiblingsPass
from compress_onnx.graph_passes.sites.find import SiteTable, find_sites
from compress_onnx.pipeline.files.model_file import content_digest, load_model, save_model

ModelLike = Path | str | onnx.ModelProto | ir.Model
"""A model: the path of an ``.onnx`` file, or the model itself."""


_SOURCE = "compress_onnx.source"


@dataclass(frozen=True, eq=False)
class Original:
    """A model on which everything stands that is learned about it.

    Attributes:
        path: its file; never changed.
        model: its graph, canonical; never changed.
        table: its linear sites, and the matrix products that are none.
        folder: the temporary folder of the file, for a model that came without one.
    """

    path: Path
    model: ir.Model
    table: SiteTable
    folder: TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def data_folder(self) -> Path:
        """Where its external data lies."""
        return self.path.parent

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file and its external data."""
        return content_digest(self.path, self.model)

    def copy(self) -> ir.Model:
        """The graph once more, to be rewritten; the weights are shared.

        A temporary file that they lie in stays as long as the copy does.
        """
        return kept(self.model.clone(), self)

    def joined(self, groups: Sequence[Collection[str]]) -> Original:
        """The same with ``groups`` of siblings, by name, written as one site each.

        Raises:
            RequestError: a group is not of siblings.
        """
        model = self.copy()
        JoinSiblingsPass(groups)(model)
        return replace(self, model=model, table=find_sites(model))


def kept(model: ir.Model, source: Original) -> ir.Model:
    """``model``, which from now on keeps the file of ``source`` from being deleted."""
    model.meta[_SOURCE] = source
    return model


def open_original(model: ModelLike) -> Original:
    """Load a model and find its sites.

    Args:
        model: the path of an ``.onnx`` file; or a model in memory, which is written to a temporary
            file first, as ONNX Runtime takes models above 2 GB from files only.

    Raises:
        ModelFileError: the file is missing, damaged or unsafe.
    """
    folder = None
    if not isinstance(model, Path | str):
        folder = TemporaryDirectory(prefix="compress-onnx-")
        path = Path(folder.name) / "model.onnx"
        save_model(
            ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model.clone(), path
        )
        model = path
    path = Path(model)
    loaded = load_model(path)
    CanonicalizePass()(loaded)
    return Original(path, loaded, find_sites(loaded), folder)
