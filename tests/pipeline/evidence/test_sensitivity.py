"""Measured sensitivity is the sensitivity to what the method really does."""

import numpy as np
import pytest
from graphs import model, weights
from tiny_models import saved

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.graph_passes.factorization import make_method
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.evidence.sensitivity import measure_slopes
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.samples import Samples

LAYER = "g (float[N,8] x) => (float[N,6] y) { y = MatMul(x, w) }"
SHARE = 0.5


@pytest.mark.parametrize("name", ["svd", "svdlora", "asvd-diagonal", "asvd"])
def test_the_slope_is_the_change_for_a_unit_of_error(tmp_path, name):
    """Inputs have a mean of 5: a bias that nobody corrects leaves the error that this makes."""
    path = saved(tmp_path, model(LAYER, weights(w=(8, 6))))
    x = 5 + np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)
    samples, subject = Samples({"x": x}), open_original(path)
    stats = Evidence(subject, samples, RunSettings()).stats
    method = make_method(name)
    groups = group_by_weight(subject.table.sites)
    slopes = measure_slopes(
        subject, method, Decompositions(stats), samples, RunSettings(), share=SHARE
    )
    ((key, (site,)),) = groups.items()
    weight = site.weight.array()
    decomposition = method.decompose(weight, stats[site.name])
    rank = int(SHARE * 8 * 6 / (8 + 6))
    residual = decomposition.factorize(rank).product() - weight.astype(np.float64)
    centred = x - x.mean(axis=0) if method.corrects_bias else x
    change = np.sum((centred @ residual) ** 2) / len(x)
    error = decomposition.energy * decomposition.tail[rank]
    assert slopes[key] == pytest.approx(change / error, rel=1e-3)


@pytest.mark.parametrize("method", ["auto", "gauss-newton", "asvd", "svd"])
@pytest.mark.parametrize("allocation", ["auto", "sensitivity"])
def test_a_model_without_sites_has_nothing_to_compress(tmp_path, method, allocation):
    graph = "g (float[N,8] x, float[8,6] w) => (float[N,6] y) { y = MatMul(x, w) }"
    subject = open_original(saved(tmp_path, model(graph, weights(w=(8, 6)))))
    samples = Samples({"x": np.ones((4, 8), np.float32)})
    request = CompressionSpec.model_validate({"method": {"name": method}, "allocation": allocation})
    assert not subject.table.sites
    with pytest.raises(NothingToCompressError):
        learn(subject, samples).compress(request)
