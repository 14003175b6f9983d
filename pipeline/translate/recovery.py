"""Recovery of an encoder–decoder: its graphs are trained as one.

Encoder and decoder (without past key values) are joined into one graph for the length of the
training, with m the mask of the translations::

    encoder.input_ids, encoder.attention_mask [B, L]  →  encoder_hidden_states [B, L, D]
    decoder.input_ids [B, L]                          →  logits · m [B, L, V]

The decoder is given the beginnings of translations; a decoder looks back only, so what it makes of
a beginning does not depend on what follows. Where translations are padded, the logits of both
models are nothing, and there is no label. Sources and translations are padded to one length L and
cut back together.

What was trained goes back into the encoder by name. The merged decoder has the same weights under
other names: there it goes by content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
from onnx import compose, helper, numpy_helper

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.graph_passes.rewriting.trainable import array_of, set_array
from compress_onnx.pipeline.data.masking import UNLABELLED
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import self_contained
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons, recover_in_memory
from compress_onnx.pipeline.results import RecoveryReport
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.translate.generation import DECODER, DECODER_MERGED, ENCODER

_ENCODER, _DECODER = "encoder.", "decoder."
_TRANSLATED = "translated"
"""``[B, L]`` 1 where a translation has a token."""
_USED = "used"
"""``[B, L]`` 1 where the source or its translation has a token; what batches are cut back to."""
_LOGITS = "logits"


def sentence_lessons(
    sources: Mapping[str, Array], targets: Sequence[Sequence[int]], start_token: int
) -> Samples:
    """What the joined graph is trained on.

    Args:
        sources: ``input_ids`` and ``attention_mask`` ``[n, S]`` of what the encoder reads.
        targets: the tokens of the translation of each.
        start_token: what the decoder starts with.

    Raises:
        DataError: not as many targets as sources, or an empty one.
    """
    mask = sources["attention_mask"]
    lengths = np.array([len(row) for row in targets])
    if len(mask) != len(lengths):
        raise DataError(f"{len(mask)} texts with {len(lengths)} translations: give one for each")
    if not lengths.all():
        raise DataError(f"the translation of text {lengths.argmin() + 1} is empty: leave it out")
    length = max(mask.shape[1], int(lengths.max()))
    translated = (np.arange(length) < lengths[:, None]).astype(np.int64)  # [n, L]
    tokens = np.zeros_like(translated)
    tokens[translated > 0] = np.concatenate([np.asarray(row, np.int64) for row in targets])
    start = np.full((len(tokens), 1), start_token, np.int64)
    padding = ((0, 0), (0, length - mask.shape[1]))
    read = np.pad(mask, padding)
    return Samples(
        {
            f"{_ENCODER}input_ids": np.pad(sources["input_ids"], padding),
            f"{_ENCODER}attention_mask": read,
            f"{_DECODER}encoder_attention_mask": read,
            # A position sees the tokens in front of it.
            f"{_DECODER}input_ids": np.concatenate([start, tokens[:, :-1]], axis=1),
            _TRANSLATED: translated,
            _USED: np.maximum(read, translated),
        },
        _USED,
        labels=np.where(translated > 0, tokens, UNLABELLED),
        origin="texts with their translations",
    )


def recover_parts(
    reference: Path,
    candidate: Path,
    decoder: ir.Model,
    *,
    lessons: Samples,
    recovery: RecoverySpec,
    settings: RunSettings,
) -> RecoveryReport:
    """Train the compressed encoder and merged decoder in the folder ``candidate``.

    Args:
        reference: the folder of the original, as exported.
        candidate: has :data:`ENCODER` and :data:`DECODER_MERGED`; both are replaced, if at all.
        decoder: the compressed decoder without past key values.
        lessons: of :func:`sentence_lessons`.
        recovery: budget, learning rate, what is trained and compared.
        settings: how graphs are run.

    Raises:
        RequestError: biases should be trained, of which two in the decoder are equal.
        CompressOnnxError: as :func:`~pipeline.recover.recover.recover` raises.
    """
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        original = Path(work) / "joined.onnx"
        encoder = load_model(reference / ENCODER)
        whole = load_model(reference / DECODER)
        save_model(
            joined(self_contained(encoder, reference), self_contained(whole, reference)), original
        )
        encoder = load_model(candidate / ENCODER)
        model = joined(self_contained(encoder, candidate), self_contained(decoder, reference))
        before = dict(_weights(model))
        report = recover_in_memory(
            original, model, Lessons(lessons), recovery, settings, data_folder=Path(work)
        )
    if report.improved:
        changed = {
            name: after
            for name, after in _weights(model)
            if not np.array_equal(after, before[name])
        }
        merged = load_model(candidate / DECODER_MERGED)
        _put_by_name(encoder, changed, _ENCODER)
        _put_by_content(
            merged,
            [(before[name], changed[name]) for name in changed if name.startswith(_DECODER)],
        )
        save_model(encoder, candidate / ENCODER)
        save_model(merged, candidate / DECODER_MERGED)
    return report


def joined(encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> ir.Model:
    """One graph from both texts to masked logits.

    Args:
        encoder: its first output is what the decoder reads; unchanged, like ``decoder``.
        decoder: has the output ``logits``; all others are left out.
    """
    parts = [onnx.ModelProto(), onnx.ModelProto()]
    for part, given in zip(parts, (encoder, decoder), strict=True):
        part.CopyFrom(given)
        del part.metadata_props[:]  # of the two exports: they need not agree
    model = compose.merge_models(
        parts[0],
        parts[1],
        io_map=[(encoder.graph.output[0].name, "encoder_hidden_states")],
        outputs=[_DECODER + _LOGITS],
        prefix1=_ENCODER,
        prefix2=_DECODER,
    )
    _mask_logits(model)
    return ir.serde.deserialize_model(model)


def _mask_logits(model: onnx.ModelProto) -> None:
    """Give ``model`` the inputs and the output of the module's docstring."""
    graph = model.graph
    axes = numpy_helper.from_array(np.array([2], np.int64), "translated.axes")
    graph.initializer.append(axes)
    for name in (_TRANSLATED, _USED):
        value = helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"])
        graph.input.append(value)
    real, column = "translated.real", "translated.column"
    graph.node.extend(
        [
            helper.make_node("Cast", [_TRANSLATED], [real], to=onnx.TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [real, axes.name], [column]),  # [B, L, 1]
            helper.make_node("Mul", [_DECODER + _LOGITS, column], [_LOGITS]),
        ]
    )
    shape = ["batch", "length", "tokens"]
    output = helper.make_tensor_value_info(_LOGITS, onnx.TensorProto.FLOAT, shape)
    del graph.output[:]
    graph.output.append(output)


def _weights(model: ir.Model) -> Iterator[tuple[str, Float32]]:
    """The float32 weights of the main graph, by name."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            yield name, array_of(value)


def _put_by_name(model: ir.Model, changed: Mapping[str, Float32], prefix: str) -> None:
    for name, value in model.graph.initializers.items():
        if prefix + name in changed:
            set_array(value, changed[prefix + name])


def _put_by_content(model: ir.Model, changes: Sequence[tuple[Float32, Float32]]) -> None:
    """Replace each weight that equals the first of a pair by the second.

    Raises:
        RequestError: a weight is to become two different ones.
    """
    after: dict[str, Float32] = {}
    for old, new in changes:
        key = content_key({"": old})
        if not np.array_equal(after.setdefault(key, new), new):
            raise RequestError(
                "two vectors of the decoder are equal, and training makes them differ: have "
                "recovery train the factors only (train: factors)"
            )
    for name, old in _weights(model):
        if (key := content_key({"": old})) in after:
            set_array(model.graph.initializers[name], after[key])
