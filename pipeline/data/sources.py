"""From a recipe's data to samples.

``limit`` keeps a random subset in its original order, the same for the same seed, so that sorted
data does not turn into one-sided samples. A kind of data is added as a class in
:mod:`pipeline.recipe` and a loader in ``_LOADERS``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data import hub
from compress_onnx.pipeline.data.general_text import general_text
from compress_onnx.pipeline.data.masking import mask_one_word
from compress_onnx.pipeline.data.npz import load_npz
from compress_onnx.pipeline.data.parallel import load_pairs, origin_of
from compress_onnx.pipeline.data.preprocessing import process_images, read_vocabulary, tokenize
from compress_onnx.pipeline.data.python import Arrays, LabelledTexts, call_loader, described
from compress_onnx.pipeline.data.text import read_lines
from compress_onnx.pipeline.recipe import (
    DataSpec,
    GeneralTextData,
    HubData,
    MaskedData,
    NpzData,
    ParallelData,
    PythonData,
    TextData,
)
from compress_onnx.pipeline.runtime.inputs import ModelInput
from compress_onnx.pipeline.runtime.samples import Samples

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_npz", "load_samples"]


@dataclass(frozen=True)
class _Request:
    """What the loaders need to know besides the specification."""

    base_dir: Path
    tokenizer_dir: Path | None
    mask: str | None
    input_names: tuple[str, ...]
    seed: int
    allow_code: bool
    declared: tuple[ModelInput, ...] = ()

    def rows(self, count: int, limit: int | None) -> list[int]:
        """Which of ``count`` samples to keep, ascending."""
        if limit is None or limit >= count:
            return list(range(count))
        chosen = np.random.default_rng(self.seed).choice(count, size=limit, replace=False)
        return [int(row) for row in np.sort(chosen)]

    def limited(self, samples: Samples, limit: int | None) -> Samples:
        """At most ``limit`` of the samples."""
        return samples.select(np.asarray(self.rows(len(samples), limit)))

    def tokenized(
        self,
        texts: list[str],
        spec: TextData | ParallelData | PythonData,
        origin: str,
        labels: Array | None = None,
    ) -> Samples:
        """At most ``spec.limit`` of the texts as samples, with their labels ``[texts, ...]``."""
        rows = self.rows(len(texts), spec.limit)
        inputs = self.tokens([texts[row] for row in rows], None, spec.max_tokens)
        return Samples(inputs, self.mask, None if labels is None else labels[rows], origin)

    def tokens(
        self, texts: list[str], pairs: list[str] | None, max_tokens: int
    ) -> dict[str, Array]:
        """The texts (or pairs of texts) as model inputs."""
        return tokenize(
            texts,
            pairs,
            tokenizer_dir=self.tokenizer_dir,
            input_names=self.input_names,
            max_tokens=max_tokens,
        )


def load_samples(
    spec: DataSpec,
    *,
    base_dir: Path,
    tokenizer_dir: Path | None,
    mask: str | None,
    input_names: Sequence[str],
    seed: int = 0,
    allow_code: bool = False,
    declared: Sequence[ModelInput] = (),
) -> Samples:
    """Load the samples that ``spec`` describes, ready to be fed to a model.

    Args:
        spec: the recipe's ``calibration`` or ``validation``.
        base_dir: the recipe's folder, which relative paths start from.
        tokenizer_dir: where the model's tokenizer or image processor is (a folder, or a name on
            the hub); only needed for texts and images.
        mask: the model input that is the padding mask.
        input_names: the model's inputs; the samples have exactly these.
        seed: chooses the samples where ``spec.limit`` is less than there are.
        allow_code: whether Python code that ``spec`` names may run.
        declared: the model's inputs as it declares them: which have no axis of samples.

    Raises:
        RequestError: ``spec`` names code that may not run, or is not there.
        DataError: the data is missing, damaged, or lacks one of the inputs or has others.
        MissingDependencyError: an optional library is needed and not installed.
    """
    request = _Request(
        base_dir, tokenizer_dir, mask, tuple(input_names), seed, allow_code, tuple(declared)
    )
    samples = _LOADERS[type(spec)](spec, request)
    if set(samples.inputs) != set(input_names):
        raise DataError(
            f"{samples.origin}: the data has inputs {', '.join(sorted(samples.inputs))}, "
            f"the model wants {', '.join(sorted(input_names))}"
        )
    return samples


def _from_npz(spec: NpzData, request: _Request) -> Samples:
    samples = load_npz(request.base_dir / spec.path, spec.labels, request.mask, request.declared)
    return request.limited(samples, spec.limit)


def _from_masked(spec: MaskedData, request: _Request) -> Samples:
    sentences = _LOADERS[type(spec.sentences)](spec.sentences, request)
    return mask_one_word(sentences, read_vocabulary(request.tokenizer_dir), request.seed)


def _from_text(spec: TextData, request: _Request) -> Samples:
    return request.tokenized(
        read_lines(request.base_dir / spec.path), spec, f"text file {spec.path.name}"
    )


def _from_parallel(spec: ParallelData, request: _Request) -> Samples:
    pairs = load_pairs(spec, base_dir=request.base_dir, seed=request.seed)
    return request.tokenized([pair.source for pair in pairs], spec, origin_of(spec, pairs))


def _from_python(spec: PythonData, request: _Request) -> Samples:
    found = call_loader(spec, base_dir=request.base_dir, allow_code=request.allow_code)
    if isinstance(found, Arrays):
        samples = Samples(found.inputs, request.mask, found.labels, described(spec))
        return request.limited(samples, spec.limit)
    if isinstance(found, LabelledTexts):
        return request.tokenized(found.texts, spec, described(spec), found.labels)
    texts = [text if isinstance(text, str) else text.source for text in found]
    return request.tokenized(texts, spec, described(spec))


def _from_general_text(spec: GeneralTextData, request: _Request) -> Samples:
    found = general_text(spec, request.seed)
    counts = Counter(found.values())
    parts = ", ".join(f"{counts[source]} {source}" for source in spec.taken)
    inputs = request.tokens(list(found), None, spec.max_tokens)
    return Samples(inputs, request.mask, origin=f"general text ({parts}; {spec.split})")


def _from_hub(spec: HubData, request: _Request) -> Samples:
    table = hub.load_table(
        spec.path, spec.name, spec.split, files=spec.files, base_dir=request.base_dir
    )
    table = table.select(request.rows(len(table), spec.limit))
    labels = None if spec.label is None else hub.label_column(table, spec.label)
    origin = f"data set {spec.path}, {spec.split} split"
    return Samples(_hub_inputs(spec, table, request), request.mask, labels, origin)


def _hub_inputs(spec: HubData, table: Dataset, request: _Request) -> dict[str, Array]:
    if spec.text is not None:
        pairs = None if spec.text_pair is None else hub.text_column(table, spec.text_pair)
        return request.tokens(hub.text_column(table, spec.text), pairs, spec.max_tokens)
    images = hub.image_column(table, str(spec.image))
    return process_images(images, processor_dir=request.tokenizer_dir)


_LOADERS: dict[type, Callable[[Any, _Request], Samples]] = {
    NpzData: _from_npz,
    TextData: _from_text,
    ParallelData: _from_parallel,
    HubData: _from_hub,
    PythonData: _from_python,
    GeneralTextData: _from_general_text,
    MaskedData: _from_masked,
}
