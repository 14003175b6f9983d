"""Validation on small models: identical ones agree exactly, every damage shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from compress_onnx.graph_passes.errors import DataError, ModelFileError, RequestError
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import AccuracyMetric, EmbeddingMetric
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session

WIDTH, TOKENS, COUNT, VOCABULARY = 16, 12, 24, 50
EMBEDDING = EmbeddingMetric(kind="embedding", neighbours=3)
ACCURACY = AccuracyMetric(kind="accuracy", output="logits")

ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[{batch}, {length}] input_ids, int64[{batch}, {length}] attention_mask)
     => (float[{batch}, {length}, 16] {hidden}, float[{batch}, 10] logits)
{{
    embedded = Gather(table, input_ids)
    mixed = MatMul(embedded, weight)
    one = Constant<value_int = 1>()
    padding = Sub(one, attention_mask)
    axes = Constant<value_ints = [2]>()
    per_position = Unsqueeze(padding, axes)
    real = Cast<to = 1>(per_position)
    noise = Mul(real, garbage)
    {hidden} = Add(mixed, noise)
    first = Constant<value_int = 0>()
    sentence = Gather<axis = 1>({hidden}, first)
    logits = MatMul(sentence, head)
}}
"""


def save_encoder(
    path: Path, *, batch="b", length="s", hidden="hidden", garbage=0.0, **weights
) -> Path:
    rng = np.random.default_rng(0)
    model = parser.parse_model(ENCODER.format(batch=batch, length=length, hidden=hidden))
    initial = {
        "table": rng.normal(size=(VOCABULARY, WIDTH)),
        "weight": rng.normal(size=(WIDTH, WIDTH)),
        "head": rng.normal(size=(WIDTH, 10)),
        "garbage": np.full(1, garbage),
    }
    for name, array in (initial | weights).items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, path)
    return path


def weight_of(path: Path, name: str) -> np.ndarray:
    initializers = onnx.load(path).graph.initializer
    return next(numpy_helper.to_array(i) for i in initializers if i.name == name).copy()


@pytest.fixture
def reference(tmp_path) -> Path:
    return save_encoder(tmp_path / "reference.onnx")


@pytest.fixture
def samples() -> Samples:
    rng = np.random.default_rng(5)
    lengths = rng.integers(2, TOKENS + 1, COUNT)
    mask = (np.arange(TOKENS) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, VOCABULARY, (COUNT, TOKENS)) * mask
    return Samples({"input_ids": ids, "attention_mask": mask}, "attention_mask", origin="made up")


def with_labels(reference: Path, samples: Samples) -> Samples:
    """Labels that the reference gets right."""
    session = open_session(reference)
    logits = session.run(["logits"], dict(samples.inputs))[0]
    return Samples(samples.inputs, samples.mask_name, logits.argmax(axis=1), samples.origin)


def test_identical_models_agree_exactly(reference, samples, tmp_path):
    report = validate(
        reference,
        save_encoder(tmp_path / "same.onnx"),
        samples,
        metric=EMBEDDING,
        batch_size=5,
    )
    assert report.samples == COUNT
    assert report.origin == "made up"
    assert [o.output for o in report.outputs] == ["hidden", "logits"]
    for output in report.outputs:
        assert (output.max_abs, output.relative_l2, output.cosine) == (0.0, 0.0, 1.0)
    real = int(samples.inputs["attention_mask"].sum())
    assert [o.elements for o in report.outputs] == [real * WIDTH, COUNT * 10]
    assert set(report.metrics.values()) == {1.0}


def test_identical_classifiers_have_no_drop(reference, samples):
    report = validate(reference, reference, with_labels(reference, samples), metric=ACCURACY)
    assert report.metrics["accuracy"] == report.metrics["agreement"] == 1.0
    assert report.metrics["accuracy_drop"] == 0.0


def test_a_perturbed_weight_shows_everywhere(reference, samples, tmp_path):
    weight = weight_of(reference, "weight")
    weight += np.random.default_rng(6).normal(size=weight.shape).astype(np.float32)
    candidate = save_encoder(tmp_path / "candidate.onnx", weight=weight)
    report = validate(
        reference, candidate, with_labels(reference, samples), metric=EMBEDDING, batch_size=7
    )
    assert all(o.relative_l2 > 0.3 and o.cosine < 0.95 for o in report.outputs)
    assert all(value < 0.95 for value in report.metrics.values())


def test_permuted_features_show(reference, samples, tmp_path):
    weight = np.roll(weight_of(reference, "weight"), 1, axis=1)
    candidate = save_encoder(tmp_path / "candidate.onnx", weight=weight)
    report = validate(reference, candidate, samples, metric=EMBEDDING)
    assert report.outputs[0].relative_l2 > 0.5
    assert report.metrics["cosine"] < 0.5


def test_swapped_classes_show(reference, samples, tmp_path):
    head = np.roll(weight_of(reference, "head"), 1, axis=1)
    candidate = save_encoder(tmp_path / "candidate.onnx", head=head)
    report = validate(reference, candidate, with_labels(reference, samples), metric=ACCURACY)
    assert report.outputs[0].relative_l2 == 0.0
    assert report.outputs[1].relative_l2 > 0.5
    assert report.metrics["accuracy_drop"] == 1.0
    assert report.metrics["agreement"] == 0.0


def test_nan_shows(reference, samples, tmp_path):
    table = weight_of(reference, "table")
    table[samples.inputs["input_ids"][3, 0]] = math.nan
    candidate = save_encoder(tmp_path / "candidate.onnx", table=table)
    report = validate(reference, candidate, samples, metric=EMBEDDING)
    assert all(o.relative_l2 == math.inf and o.cosine == 0.0 for o in report.outputs)
    assert all(math.isnan(value) for value in report.metrics.values())


def test_padding_may_hold_anything(reference, samples, tmp_path):
    candidate = save_encoder(tmp_path / "candidate.onnx", garbage=1e6)
    report = validate(reference, candidate, samples, metric=EMBEDDING)
    assert report.outputs[0].relative_l2 == 0.0
    assert set(report.metrics.values()) == {1.0}
    unmasked = Samples(samples.inputs, None)
    assert validate(reference, candidate, unmasked).outputs[0].relative_l2 > 1e3


def test_logits_are_never_taken_for_positions(reference, samples, tmp_path):
    """Ten classes and batches trimmed to ten tokens: the mask must not hide any logit."""
    cut = {name: array[:, :10] for name, array in samples.inputs.items()}
    cut["attention_mask"][0] = 1
    head = weight_of(reference, "head")
    head[:, -1] += 1
    candidate = save_encoder(tmp_path / "candidate.onnx", head=head)
    report = validate(reference, candidate, Samples(cut, "attention_mask"), batch_size=COUNT)
    assert report.outputs[1].elements == COUNT * 10


@pytest.mark.parametrize("length", [TOKENS, "s"])
@pytest.mark.parametrize("batch", [4, "b"])
def test_graphs_with_fixed_sizes_get_batches_that_they_take(tmp_path, samples, batch, length):
    model = save_encoder(tmp_path / "fixed.onnx", batch=batch, length=length)
    session = open_session(model)
    batches = list(model_batches(session, samples, 8))
    assert {len(b.index) for b in batches} == {4 if batch == 4 else 8}
    widths = {b.feeds["input_ids"].shape[1] for b in batches}
    assert (widths == {TOKENS}) == (length == TOKENS)
    for b in batches:
        np.testing.assert_array_equal(b.mask, b.feeds["attention_mask"].astype(bool))
    assert sorted(np.concatenate([b.index for b in batches])) == list(range(COUNT))
    assert validate(model, model, samples, metric=EMBEDDING).metrics["cosine"] == 1.0


def test_progress_counts_samples(reference, samples):
    calls: list[int] = []
    validate(reference, reference, samples, batch_size=10, progress=calls.append)
    assert calls == [10, 20, COUNT]


def test_models_with_other_outputs_are_refused(reference, samples, tmp_path):
    other = save_encoder(tmp_path / "other.onnx", hidden="something")
    with pytest.raises(ModelFileError, match="outputs differ: hidden, logits in the reference"):
        validate(reference, other, samples)


def test_models_with_other_inputs_are_refused(reference, samples, tmp_path):
    model = onnx.load(reference)
    model.graph.input.append(onnx.helper.make_tensor_value_info("extra", 1, ["b"]))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=r"inputs differ: .* extra \(float32\)"):
        validate(reference, tmp_path / "other.onnx", samples)


def test_a_metric_that_does_not_fit_is_refused(reference, samples):
    with pytest.raises(RequestError, match="use one of hidden, logits"):
        validate(
            reference, reference, samples, metric=EMBEDDING.model_copy(update={"output": "pooled"})
        )
    with pytest.raises(DataError, match="needs labels"):
        validate(reference, reference, samples, metric=ACCURACY)


IDS = np.zeros((4, TOKENS), np.int64)
MASK = np.ones((4, TOKENS), np.int64)


@pytest.mark.parametrize(
    ("inputs", "mask_name", "message"),
    [
        ({"input_ids": IDS}, None, r"'attention_mask' \(int64 \[b, s\]\) is missing"),
        ({"ids": IDS, "attention_mask": MASK}, None, "'ids' is no input of the model: it takes"),
        (
            {"input_ids": IDS, "attention_mask": MASK, "mask": MASK},
            "mask",
            "the padding mask 'mask' is no input",
        ),
        (
            {"input_ids": IDS.astype(np.int32), "attention_mask": MASK},
            None,
            r"'input_ids' must be int64 \[b, s\], found int32 \[4, 12\]: nothing is cast silently",
        ),
        (
            {"input_ids": IDS[..., None], "attention_mask": MASK},
            None,
            "3 axes instead of 2",
        ),
    ],
    ids=["missing", "unknown", "unknown mask", "dtype", "rank"],
)
def test_samples_that_do_not_fit_are_refused(reference, inputs, mask_name, message):
    with pytest.raises(DataError, match=message):
        check_samples(open_session(reference), Samples(inputs, mask_name))
    with pytest.raises(DataError, match=message):
        validate(reference, reference, Samples(inputs, mask_name))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"length": 8}, "axis 1 is 12 instead of 8"),
        ({"batch": 3}, "give a multiple of 3 samples"),
    ],
)
def test_fixed_dimensions_are_checked(tmp_path, sizes, message):
    session = open_session(save_encoder(tmp_path / "fixed.onnx", **sizes))
    with pytest.raises(DataError, match=message):
        check_samples(session, Samples({"input_ids": IDS, "attention_mask": MASK}))


def test_samples_that_fit_pass(reference, samples):
    check_samples(open_session(reference), samples)
