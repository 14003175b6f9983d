"""Gradients of strangers' graphs: that there are some, and that they are right."""

import numpy as np
import onnx
import pytest
from gradient_collection import EXPORTS, of_export, of_stranger
from stranger_graphs import STRANGERS

from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence.adjoint import Adjoint, prepared
from compress_onnx.pipeline.evidence.backward import backward
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import self_contained, shift_outputs
from compress_onnx.pipeline.evidence.value_shapes import declare_sizes, shapes_of
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

ONE_THREAD = SessionSpec(threads=1)

WITHOUT = {
    "multi-head-attention": "MultiHeadAttention",
    "rotary-embedding": "RotaryEmbedding",
    "average-pool-padded": "AveragePool with padding",
    "gather-nd-batch": "batch_dims",
    "sequence": "ConcatFromSequence",
    "classes-only": "no output is a float",
}

# A layer whose output is rounded to whole numbers, or to a choice, has no gradient.
ROUNDED = ("quantized-between", "experts-by-nonzero")


@pytest.fixture
def subject(tmp_path):
    def opened(name):
        path = tmp_path / "model.onnx"
        onnx.save(STRANGERS[name].build(), path)
        return open_original(path)

    return opened


@pytest.mark.parametrize("name", sorted(STRANGERS))
def test_a_construct_has_gradients_or_a_reason(name):
    found = of_stranger(name)
    if name in WITHOUT:
        assert WITHOUT[name] in found.reason
        return
    assert not found.reason
    assert found.reached == found.sites - (name in ROUNDED) > 0


@pytest.mark.slow
@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: "-".join(map(str, export)))
def test_what_exporters_write_has_gradients(export):
    found = of_export(*export)
    assert not found.reason
    # A matrix that is on the left of its input cannot be shifted.
    assert 0 < found.sites - (export[0] == "llama") <= found.reached


def test_the_collection_is_what_was_promised():
    assert len(STRANGERS) + len(EXPORTS) >= 60
    assert len(STRANGERS) - len(WITHOUT) + len(EXPORTS) >= 55


EXACT = [
    "fast-gelu-bias",
    "bias-gelu",
    "quick-gelu",
    "skip-layer-norm",
    "skip-rms-norm",
    "rms-norm",
    "fused-matmul",
    "constant-weights-11",
    "first-token-11",
    "softmax-over-the-rest-12",
    "conv-open-batch",
    "conv-auto-pad",
    "conv-auto-pad-lower",
    "average-pool",
    "concat-with-a-past",
    "tile",
    "gather-nd",
    "slice-to-the-length",
    "every-other",
    "roll-open-axis",
    "relative-positions",
    "experts-by-nonzero",
    "attention-23",
    "double",
    "half",
]


@pytest.mark.parametrize("name", EXACT)
def test_gradients_are_finite_differences(name, subject):
    """Along a random direction at each site, for a random linear function of the outputs."""
    opened, samples = subject(name), STRANGERS[name].samples(3)
    # A step at a router changes who is chosen, which no gradient tells.
    sites = [site for site in opened.table.sites if site.weight.key != "router"]
    folder = opened.data_folder
    half = STRANGERS[name].dtype == "float16"

    def seeding(value, batch):
        return np.cos(np.arange(value.size, dtype=np.float32)).reshape(value.shape)

    proto = self_contained(opened.model, folder)
    shifts = shift_outputs(proto, sites)
    session = open_session(proto.SerializeToString(), ONE_THREAD)
    outputs = [v.name for v in session.get_outputs()]
    rng, step = np.random.default_rng(0), 0.05 if half else 1e-3
    for batch, found in backward(opened, sites, samples, seeding, RunSettings(ONE_THREAD, 2)):
        for site in sites:
            gradient = found[site.name].gradient.astype(np.float64)
            direction = rng.standard_normal(gradient.shape)
            sums = []
            for sign in (1, -1):
                kind = site.weight.array().dtype
                shift = (sign * step * direction).astype(kind)
                values = run(session, {**batch.feeds, shifts[site.name]: shift}, outputs)
                sums.append(
                    sum(
                        float(np.sum(seeding(v, batch).astype(np.float64) * v.astype(np.float64)))
                        for v in values.values()
                    )
                )
            expected = (sums[0] - sums[1]) / (2 * step)
            scale = np.linalg.norm(gradient) + 1e-3
            assert gradient.any()
            tolerance = 0.1 if half else 0.02
            assert np.sum(gradient * direction) == pytest.approx(expected, abs=tolerance * scale)


BUDGETS = {"share": {"params": 0.7, "rank_multiple": 1}, "rank": {"rank": 2}}


@pytest.mark.parametrize("budget", sorted(BUDGETS))
@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_auto_falls_back_and_says_so(name, budget, subject):
    opened = subject(name)
    learned = learn(opened, STRANGERS[name].samples(), RunSettings(ONE_THREAD, batch_size=2))
    made = learned.compress(CompressionSpec.model_validate(BUDGETS[budget]))
    plan = made.plan
    assert made.basis.request.method.name == "asvd"
    assert "sensitivity is measured instead" in plan.notes[0]
    assert WITHOUT[name] in plan.notes[0]
    assert made.repaired.factors


@pytest.mark.parametrize("name", ["multi-head-attention", "reshape-through-shape-11"])
def test_sensitivity_needs_no_rank(name, subject):
    opened = subject(name)
    learned = learn(opened, STRANGERS[name].samples(), RunSettings(ONE_THREAD, batch_size=2))
    request = CompressionSpec.model_validate(
        {"method": {"name": "asvd"}, "allocation": "sensitivity", "params": 0.6}
    )
    slopes = learned.basis(request).slopes
    assert slopes
    assert all(slope > 0 for slope in slopes.values())


def test_an_adjoint_follows_the_sizes_that_it_is_fed(subject):
    opened = subject("roll-open-axis")
    graph = prepared(self_contained(opened.model, opened.data_folder))
    adjoint = Adjoint(graph, ["a"], ["y"], advice="give up", spec=ONE_THREAD)
    rng = np.random.default_rng(0)
    w2 = next(s for s in opened.table.sites if s.out_features == 4).weight.array()
    for batch, length in ((2, 5), (1, 3), (2, 5), (3, 4), (1, 7), (2, 2), (1, 3)):
        x = rng.standard_normal((batch, length, 8)).astype(np.float32)
        seed = rng.standard_normal((batch, length, 4)).astype(np.float32)
        gradients, _ = adjoint.run({"x": x}, {"y": seed})
        back = seed @ w2.T
        expected = back + np.roll(back, -1, axis=1)
        np.testing.assert_allclose(gradients["a"], expected, rtol=1e-4, atol=1e-5)


def test_a_shape_that_depends_on_the_data_stays_open(subject):
    opened = subject("experts-by-nonzero")
    proto = self_contained(opened.model, opened.data_folder)
    samples = STRANGERS["experts-by-nonzero"].samples(3)
    declare_sizes(proto, dict(samples.inputs))
    shapes = shapes_of(proto)
    assert shapes["rows"] == (15, 8)
    assert shapes["y"] == (3, 5, 4)
    assert len(shapes["a"]) == 2
    assert shapes["a"][0] is None


def test_gradients_that_are_zero_everywhere_are_none(subject, tmp_path):
    proto = STRANGERS["fast-gelu"].build()
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(onnx.helper.make_node("Sign", ["z"], ["y"]))
    path = tmp_path / "sign.onnx"
    onnx.save(proto, path)
    opened = open_original(path)
    learned = learn(opened, STRANGERS["fast-gelu"].samples(), RunSettings(ONE_THREAD))
    with pytest.raises(NotDifferentiableError, match="no output has a gradient"):
        learned.evidence.gradients("positions")


def test_a_graph_in_half_precision_has_gradients_in_single(subject):
    opened, samples = subject("half"), STRANGERS["half"].samples(3)
    (batch, found), *_ = backward(
        opened,
        opened.table.sites,
        samples,
        lambda value, _: np.ones(value.shape, np.float32),
        RunSettings(ONE_THREAD),
    )
    assert all(values.gradient.dtype == np.float32 for values in found.values())
    assert len(batch.index) == 3
