"""A model in segments tells what it tells in one piece."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import graph_collection
import numpy as np
import onnx
import pytest
import small_models as small
from gradient_collection import BATCH, COUNT, EXPORTS
from graphs import model as parsed
from graphs import weights
from stranger_graphs import STRANGERS

from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence import calibrate as calibration
from compress_onnx.pipeline.evidence import segments as module
from compress_onnx.pipeline.evidence.calibrate import calibrate
from compress_onnx.pipeline.evidence.gradients import output_gradients
from compress_onnx.pipeline.evidence.segments import Segments
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import referring, weights_outside
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.model_file import weight_bytes
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.files.shelf import Shelved
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

SPEC = SessionSpec(threads=1)
SETTINGS = RunSettings(SPEC, batch_size=BATCH)


@pytest.fixture
def cut(monkeypatch):
    """Cuts a model into about so many segments."""

    def in_parts(original, count=4):
        monkeypatch.setattr(module, "LARGE_BYTES", 0)
        monkeypatch.setattr(module, "SEGMENT_BYTES", weight_bytes(original.model) / count)

    return in_parts


@pytest.fixture
def encoder(tmp_path):
    path = small.save(small.encoder(), tmp_path / "model.onnx")
    return open_original(path), Samples(small.sentences(), "attention_mask")


def assert_close(ours, theirs, exact=2e-5):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=exact * scale if scale else 0)


def assert_the_same(ours, theirs, exact=2e-5):
    """Statistics of the same sites, close to each other."""
    assert ours.keys() == theirs.keys()
    assert list(ours) == list(theirs)
    for name, stats in theirs.items():
        assert_close(ours[name].covariance, stats.covariance, exact)
        assert_close(ours[name].mean, stats.mean, exact)
        assert ours[name].count == stats.count


def assert_same_gradients(ours, theirs):
    assert_the_same(*({n: s.inputs for n, s in f.stats.items()} for f in (ours, theirs)))
    for name, stats in theirs.stats.items():
        assert_close(ours.stats[name].moment, stats.moment)
    for name, batches in theirs.weights.items():
        assert len(ours.weights[name]) == len(batches)
        for one, other in zip(ours.weights[name], batches, strict=True):
            assert_close(one, other)


def test_segments_compute_what_the_model_does(encoder, cut):
    original, samples = encoder
    cut(original)
    expected = run(open_session(original.path, SPEC), samples.inputs)
    proto = referring(original.model, original.data_folder)
    with weights_outside(proto, original.data_folder) as (proto, folder):
        parts = Segments(proto, folder, [samples.inputs], SPEC, kept=expected)
        assert len(parts) >= 3
        assert sum(1 for _, ran in parts.run() for _ in ran) == len(parts)
        found = parts.values(0, expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_a_segment_has_about_as_many_bytes_and_all_nodes_have_one(encoder, cut):
    original, samples = encoder
    cut(original)
    proto = referring(original.model, original.data_folder)
    parts = [*Segments(proto, original.data_folder, [samples.inputs], SPEC).backwards()][::-1]
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, len(proto.graph.node))
    sizes = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in proto.graph.initializer}
    largest = max(sizes.values())
    for part in parts:
        names = {name for node in part.nodes(proto.graph) for name in node.input}
        assert sum(sizes.get(name, 0) for name in names) <= max(module.SEGMENT_BYTES, 1.5 * largest)


def test_statistics_are_the_same_and_wait_in_a_file(encoder, cut):
    original, samples = encoder
    whole = calibrate(original, samples, SETTINGS), output_gradients(original, samples, SETTINGS)
    cut(original)
    parts = calibrate(original, samples, SETTINGS), output_gradients(original, samples, SETTINGS)
    assert_the_same(parts[0].stats, whole[0].stats)
    assert parts[0].notes == whole[0].notes
    assert_same_gradients(parts[1], whole[1])
    assert all(isinstance(s.centred.correlations, Shelved) for s in parts[0].stats.values())
    assert all(isinstance(s.outer.correlations, Shelved) for s in parts[1].stats.values())
    assert not any(isinstance(s.centred.correlations, Shelved) for s in whole[0].stats.values())


class Elsewhere:
    """As workers on other machines, who get what can be sent."""

    remote = True

    def map(self, work, items):
        yield from (pickle.loads(pickle.dumps(work))(item) for item in items)  # noqa: S301


@pytest.mark.parametrize("sent", ["inside", "outside"])
def test_workers_tell_the_same_to_the_bit(encoder, cut, monkeypatch, tmp_path, sent):
    original, samples = encoder
    if sent == "outside":
        proto = onnx.load(original.path)
        path = tmp_path / "outside.onnx"
        onnx.save_model(proto, path, save_as_external_data=True, location="w.bin")
        original = open_original(path)
    cut(original)
    monkeypatch.setattr(calibration, "SHARD_BATCHES", 1)
    here = calibrate(original, samples, SETTINGS)
    there = calibrate(original, samples, replace(SETTINGS, backend=Elsewhere()))
    assert len(samples) > 2 * BATCH
    assert here.stats.keys() == there.stats.keys()
    for name, stats in here.stats.items():
        np.testing.assert_array_equal(there.stats[name].covariance, stats.covariance)
        np.testing.assert_array_equal(there.stats[name].mean, stats.mean)


def test_what_was_learned_is_found_again(encoder, cut, tmp_path):
    original, samples = encoder
    cut(original)
    settings = RunSettings(SPEC, batch_size=BATCH, cache=ArrayCache(tmp_path / "cache"))
    first, again = (
        (calibrate(original, samples, settings), output_gradients(original, samples, settings))
        for _ in range(2)
    )
    assert again[0].cached
    for name, stats in first[0].stats.items():
        np.testing.assert_array_equal(again[0].stats[name].covariance, stats.covariance)
    for name, found in first[1].stats.items():
        np.testing.assert_array_equal(again[1].stats[name].moment, found.moment)


def test_a_model_is_compressed_alike_in_segments(encoder, cut):
    original, samples = encoder
    request = CompressionSpec(method={"name": "auto"}, params=0.5, rank_multiple=1)
    whole = learn(original.path, samples).compress(request).evaluated()
    cut(original)
    parts = learn(original.path, samples).compress(request).evaluated()
    assert [(site.site, site.rank) for site in parts.sites] == [
        (site.site, site.rank) for site in whole.sites
    ]
    assert parts.error == pytest.approx(whole.error, rel=1e-3)


def test_a_layer_that_leads_to_no_float_is_compressed_as_in_one_piece(tmp_path, cut):
    """It has no gradient; in segments nobody even asks for it."""
    numbers = weights(a=(24, 40), b=(40, 24), c=(40, 30))
    text = (
        "g (float[N,24] x) => (float[N,24] y, int64[N,1] z) "
        "{ h = MatMul(x, a)  t = Tanh(h)  y = MatMul(t, b) "
        "s = MatMul(t, c)  z = ArgMax <axis = 1> (s) }"
    )
    path = tmp_path / "model.onnx"
    onnx.save(parsed(text, numbers), path)
    samples, original = Samples(weights(3, x=(200, 24))), open_original(path)
    request = CompressionSpec(method={"name": "auto"}, params=0.5, rank_multiple=1)
    whole = learn(path, samples).compress(request).evaluated()
    cut(original, 3)
    parts = learn(path, samples).compress(request).evaluated()
    assert [(s.site, s.rank, s.method) for s in parts.sites] == [
        (s.site, s.rank, s.method) for s in whole.sites
    ]
    assert parts.error == pytest.approx(whole.error, rel=1e-3)


def test_padding_everywhere_is_refused_in_segments(encoder, cut):
    original, samples = encoder
    cut(original)
    inputs = {**samples.inputs, "attention_mask": np.zeros_like(samples.inputs["attention_mask"])}
    with pytest.raises(Exception, match="every position is padding"):
        calibrate(original, Samples(inputs, "attention_mask"), SETTINGS)


def compared(path, samples, cut, exact=2e-5):
    """Statistics of the model in ``path``, in one piece and in segments."""
    original = open_original(path)
    found = []
    for count in (1, 4):
        if count > 1:
            cut(original, count)
        stats = calibrate(original, samples, SETTINGS).stats
        try:
            found.append((stats, output_gradients(original, samples, SETTINGS)))
        except NotDifferentiableError:
            found.append((stats, None))
    (whole, gradients), (parts, in_parts) = found
    assert_the_same(parts, whole, exact)
    assert (gradients is None) == (in_parts is None)
    if gradients is not None:
        assert_same_gradients(in_parts, gradients)


@pytest.mark.parametrize("name", sorted(STRANGERS))
def test_a_construct_tells_the_same_in_segments(name, tmp_path, cut):
    stranger = STRANGERS[name]
    onnx.save(stranger.build(), tmp_path / "model.onnx")
    # ONNX Runtime rounds to half floats at other places where a model is cut.
    exact = 5e-4 if name.startswith("half") else 2e-5
    compared(tmp_path / "model.onnx", stranger.samples(COUNT), cut, exact)


@pytest.mark.slow
@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: "-".join(map(str, export)))
def test_what_exporters_write_tells_the_same_in_segments(export, cut):
    name, exporter, opset = export
    with tempfile.TemporaryDirectory() as folder:
        graph_collection.export(name, exporter, opset, Path(folder))
        path = Path(folder) / "model.onnx"
        graph = graph_collection.Graph(name, exporter, path=path)
        compared(path, Samples(dict(graph.feeds(batch=COUNT)[0])), cut)
