"""Profiles of sites: explained variance, densities, and the test about normalizations."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import Cli, error_line
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from onnx import TensorProto, helper

from compress_onnx.graph_passes.factorization import MomentAccumulator
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.planning.spectra import spectrum
from compress_onnx.graph_passes.sites.naming import kind_of
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.spectra import spectra_of
from compress_onnx.pipeline.evidence.calibrate import taps_of
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.report.analysis import analyze
from compress_onnx.pipeline.report.analysis.conclusion import conclude
from compress_onnx.pipeline.report.analysis.densities import (
    MagnitudeHistogram,
    deviation_density,
    magnitudes,
)
from compress_onnx.pipeline.report.analysis.labels import drawn_kinds, joined, labels
from compress_onnx.pipeline.report.analysis.layernorm import (
    DIAGONAL,
    EXACT,
    METHODS,
    SVD,
    SiteComparison,
)
from compress_onnx.pipeline.report.analysis.page import render_analysis, write_analysis
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

WIDTH, HIDDEN, LAYERS = 24, 32, 3


def blocks(normalized: bool = True, seed: int = 0) -> onnx.ModelProto:
    """``LAYERS`` times: (normalize,) query and key, up, Relu, down, residual."""
    rng = np.random.default_rng(seed)
    nodes, named, x = [], {}, "x"

    def add(op, inputs, output, name=""):
        nodes.append(helper.make_node(op, inputs, [output], name=name))

    def product(value, role, layer, output):
        add("MatMul", [value, f"{role}{layer}"], output, f"/layer.{layer}/{role}/MatMul")

    for layer in range(LAYERS):
        shapes = {"query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "up": (WIDTH, HIDDEN)}
        for role, (k, n) in {**shapes, "down": (HIDDEN, WIDTH)}.items():
            named[f"{role}{layer}"] = small.weight(rng, k, n)
        named[f"scale{layer}"], named[f"shift{layer}"] = np.ones(WIDTH), rng.normal(size=WIDTH)
        norm = "LayerNormalization" if normalized else "Identity"
        operands = [x, f"scale{layer}", f"shift{layer}"] if normalized else [x]
        add(norm, operands, f"n{layer}")
        for role in ("query", "key"):
            add(
                "MatMul",
                [f"n{layer}", f"{role}{layer}"],
                f"{role}.out{layer}",
                f"/layer.{layer}/{role}/MatMul",
            )
        add("Add", [f"query.out{layer}", f"key.out{layer}"], f"both{layer}")
        add("Sigmoid", [f"both{layer}"], f"s{layer}")
        product(f"s{layer}", "up", layer, f"u{layer}")
        add("Relu", [f"u{layer}"], f"r{layer}")
        product(f"r{layer}", "down", layer, f"d{layer}")
        x = f"d{layer}"
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", WIDTH]) for name in ("x", x)
    ]
    used = {name for node in nodes for name in node.input}
    return small.model_of(
        nodes, value[:1], value[1:], {k: v for k, v in named.items() if k in used}
    )


def samples(count: int = 400, seed: int = 1) -> Samples:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(WIDTH, WIDTH)) * np.geomspace(3, 0.05, WIDTH)
    return Samples({"x": (rng.normal(size=(count, WIDTH)) @ mixing.T + 0.3).astype(np.float32)})


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return open_original(small.save(blocks(), tmp_path_factory.mktemp("model") / "model.onnx"))


def analysis_of(subject):
    request = CompressionSpec(method=MethodSpec(name="svd"), params=0.5, rank_multiple=1)
    plan = make_plan(subject.table, request)
    learned = learn(subject, samples())
    spectra = spectra_of(learned.basis(request), plan)
    return analyze(learned, "small", plan, spectra, samples(200, 2))


@pytest.fixture(scope="module")
def analysis(subject):
    return analysis_of(subject)


def inputs_of(subject, data):
    """The inputs of all sites as arrays, by tap."""
    taps = taps_of(subject.table.sites)
    proto = onnx.load(subject.path)
    known = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    names = sorted({tap.value for tap in taps.values()} - known)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = run(open_session(proto.SerializeToString()), data.inputs)
    return {tap.key: {**data.inputs, **values}[tap.value] for tap in taps.values()}


# Explained variance


def test_explained_variance_agrees_with_numpy(subject):
    x = inputs_of(subject, samples())
    taps = taps_of(subject.table.sites)
    for site in subject.table.sites:
        rows, w = x[taps[site.name].key].astype(np.float64), site.weight.array().astype(np.float64)
        accumulator = MomentAccumulator(rows.shape[1])
        accumulator.update(rows)
        found = spectrum(site, [accumulator.result()])
        centred = rows - rows.mean(axis=0)
        for tail, matrix in (
            (found.weight_tail, w),
            (found.input_tail, centred),
            (found.activation_tail, centred @ w),
        ):
            values = np.linalg.svd(matrix, compute_uv=False) ** 2
            kept = np.cumsum(values) / values.sum()
            np.testing.assert_allclose(1 - tail[1:], kept[: len(tail) - 1], atol=1e-6)
            assert tail[0] == pytest.approx(1)
            assert tail[-1] == 0
            assert (np.diff(tail) <= 1e-12).all()


def test_without_statistics_only_the_weight_is_known(subject):
    found = spectrum(subject.table.sites[0], [None])
    assert found.input_tail is None
    assert found.activation_tail is None


# Densities


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([np.float32, np.float16, float]))
def test_magnitudes_match_a_histogram_in_memory_and_integrate_to_one(seed, batches, dtype):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(60, 7)) * np.geomspace(1e-3, 1e3, 7)).astype(dtype)
    x[rng.random(x.shape) < 0.1] = 0
    histogram = MagnitudeHistogram()
    for part in np.array_split(x, batches):
        histogram.update(part)
    found = histogram.result()
    size = np.abs(x.astype(np.float32)).astype(np.float64).ravel()
    assert found.zeros == np.mean(size == 0)
    # numpy closes its last bin on both sides.
    counts, _ = np.histogram(size[size > 0], [*found.edges, np.inf])
    assert counts[-1] == 0
    np.testing.assert_allclose(found.share, counts[:-1] / size.size, rtol=0, atol=1e-15)
    integral = float(found.density @ np.diff(np.log10(found.edges)))
    assert integral + found.zeros == pytest.approx(1)


def test_quantiles_are_those_of_the_numbers_to_a_bin():
    x = np.abs(np.random.default_rng(0).normal(size=5000)).astype(np.float32)
    histogram = MagnitudeHistogram()
    histogram.update(x)
    for q in (0.05, 0.5, 0.99, 1.0):
        assert np.quantile(x, q) <= histogram.result().quantile(q) <= 1.13 * np.quantile(x, q)


def test_what_is_not_finite_is_left_out_and_the_largest_numbers_are_not():
    largest = np.finfo(np.float32).max
    histogram = MagnitudeHistogram()
    histogram.update(np.array([[np.inf, -np.inf, np.nan, 1.0, -largest]], np.float32))
    found = histogram.result()
    assert found.share.sum() == pytest.approx(1)
    assert found.share[0] == found.share[-1] == 0.5
    assert np.isfinite(found.density).all()


def test_nothing_but_zeros_is_a_density_too():
    histogram = MagnitudeHistogram()
    histogram.update(np.zeros((3, 2)))
    assert (histogram.result().zeros, histogram.result().quantile(0.5)) == (1, 0)
    assert deviation_density(np.zeros(4)).zeros == 1


def test_streamed_densities_are_those_of_the_activations(subject):
    found = magnitudes(subject, samples(), RunSettings(batch_size=64))
    for key, x in inputs_of(subject, samples()).items():
        size = np.abs(x).ravel()
        counts, _ = np.histogram(size[size > 0], [*found[key].edges, np.inf])
        # A batch of another size may round numbers into the next bin.
        assert np.abs(found[key].share - counts[:-1] / size.size).sum() < 1e-3
        assert found[key].zeros == pytest.approx(np.mean(size == 0), abs=1e-3)


@pytest.mark.parametrize("spread", [0.0, 1e-9, 0.5])
def test_deviations_match_numpy_and_integrate_to_one(spread):
    deviations = 0.7 + spread * np.random.default_rng(0).random(64)
    found = deviation_density(deviations)
    assert found.density @ np.diff(np.log10(found.edges)) == pytest.approx(1)
    counts, _ = np.histogram(deviations, found.edges)
    np.testing.assert_allclose(found.share * 64, counts)


# The test about normalizations


def comparison(site, normalized, figures, value=None):
    """A site with the ratios ``(diagonal, exact)`` to plain SVD and the variation of its units."""
    diagonal, exact, spread = figures
    errors = {SVD: 0.4, DIAGONAL: 0.4 * diagonal, EXACT: 0.4 * exact}
    return SiteComparison(
        site=site,
        input=value or site,
        fed_by="LayerNormalization" if normalized else "Gelu",
        normalized=normalized,
        rank=8,
        variation=spread,
        errors={**dict.fromkeys(METHODS, 0.3), **errors},
    )


def made_up(after, elsewhere):
    """Six sites in either group, with a little noise on their figures."""
    rng = np.random.default_rng(0)

    def noisy(figures):
        return np.array(figures) * (1 + 0.02 * rng.normal(size=3))

    return [
        comparison(f"{normalized} {i}", normalized, noisy(figures))
        for normalized, figures in ((True, after), (False, elsewhere))
        for i in range(6)
    ]


def test_the_verdict_follows_the_numbers():
    for after, elsewhere, words in (
        ((0.99, 0.5, 0.1), (0.8, 0.5, 0.6), ("more uniform", "helps less", "what scaling lacks")),
        ((0.7, 0.71, 0.6), (0.9, 0.5, 0.1), ("less uniform", "helps more", "no difference")),
        ((0.8, 0.9, 0.3), (0.8, 0.9, 0.3), ("no difference", "no difference", "does worse")),
    ):
        verdict = conclude(made_up(after, elsewhere)).verdict
        assert len(verdict) == 3
        for sentence, word in zip(verdict, words, strict=True):
            assert word in sentence


def test_ratios_are_geometric_means_with_student_intervals():
    sites = [comparison(str(i), True, (r, r, 0.2)) for i, r in enumerate((0.5, 0.8, 0.9))]
    ratio = conclude(sites).groups[0].ratios[DIAGONAL]
    logs = np.log([0.5, 0.8, 0.9])
    width = 4.302652729911275 * logs.std(ddof=1) / np.sqrt(3)  # t(0.975, 2)
    found = np.log([ratio.value, ratio.low, ratio.high])
    np.testing.assert_allclose(found, [logs.mean(), logs.mean() - width, logs.mean() + width])


def test_sites_that_share_an_input_count_once():
    alone = [comparison("a", True, (0.5, 0.5, 0.2)), comparison("b", True, (0.8, 0.5, 0.2))]
    thrice = alone + [comparison(f"a{i}", True, (0.5, 0.5, 0.2), "a") for i in range(2)]
    one, other = conclude(alone).groups[0], conclude(thrice).groups[0]
    assert (other.sites, other.inputs) == (4, 2)
    assert other.ratios == one.ratios


def test_sites_without_an_error_are_left_out():
    sites = made_up((0.9, 0.5, 0.1), (0.9, 0.5, 0.1))
    exact = sites[0].model_copy(
        update={"site": "exact", "errors": {**sites[0].errors, EXACT: 1e-8}}
    )
    found = conclude([*sites, exact])
    assert found.left_out == 1
    assert found.groups == conclude(sites).groups


def test_no_normalization_yields_no_group(tmp_path):
    plain = open_original(small.save(blocks(normalized=False), tmp_path / "model.onnx"))
    test = analysis_of(plain).report.test
    assert [group.normalized for group in test.groups] == [False]
    assert test.verdict == (
        "No site is fed by a normalization that was recognized: nothing can be tested.",
    )


def test_groups_follow_what_feeds_the_sites(analysis):
    fed_by = {kind_of(site.site)[0]: site.fed_by for site in analysis.report.test.sites}
    assert fed_by == {
        "layer.*.query": "LayerNormalization",
        "layer.*.key": "LayerNormalization",
        "layer.*.up": "Sigmoid",
        "layer.*.down": "Relu",
    }
    after, elsewhere = analysis.report.test.groups
    assert (after.sites, after.inputs) == (2 * LAYERS, LAYERS)
    assert (elsewhere.sites, elsewhere.inputs) == (2 * LAYERS, 2 * LAYERS)


def test_held_out_errors_are_those_of_the_outputs(subject, analysis):
    x = inputs_of(subject, samples(200, 2))
    site = subject.table.sites[0]
    found = analysis.report.test.sites[0]
    assert found.site == site.name
    w = site.weight.array().astype(np.float64)
    rows = x[found.input].astype(np.float64)
    centred = rows - rows.mean(axis=0)
    left, values, right = np.linalg.svd(w)
    kept = (left[:, : found.rank] * values[: found.rank]) @ right[: found.rank]
    expected = np.linalg.norm(centred @ (w - kept)) / np.linalg.norm(centred @ w)
    assert found.errors[SVD] == pytest.approx(expected, rel=1e-4)
    assert found.errors[EXACT] < found.errors[SVD]


# The report


def test_the_page_shows_pictures_and_tables(analysis, tmp_path):
    write_analysis(analysis, tmp_path / "new" / "page")
    names = {path.name for path in (tmp_path / "new" / "page").iterdir()}
    pictures = {"explained-variance.png", "densities.png", "layernorm.png"}
    assert names == {"analysis.md", "analysis.json", *pictures}
    page = (tmp_path / "new" / "page" / "analysis.md").read_text("utf-8")
    for name in pictures:
        assert image.imread(tmp_path / "new" / "page" / name).std() > 0.01
        assert f"]({name})" in page
    assert f"| `query` | {LAYERS} | {WIDTH}×{WIDTH} |" in page
    assert "| query, key | 0 | `LayerNormalization` |" in page
    report = json.loads((tmp_path / "new" / "page" / "analysis.json").read_text("utf-8"))
    assert len(report["sites"]) == 4 * LAYERS
    assert len(report["inputs"]) == 3 * LAYERS


def test_hostile_names_cannot_break_the_page(analysis):
    site = analysis.report.sites[0].model_copy(update={"kind": "a|b\n<script>", "layer": None})
    report = analysis.report.model_copy(update={"sites": (site,), "inputs": ()})
    page = render_analysis(report)
    assert "<script>" not in page.replace("\\<script>", "")
    assert "| a\\|b" in page


def test_nothing_to_show_is_no_empty_section(analysis, tmp_path):
    test = analysis.report.test.model_copy(update={"sites": (), "groups": ()})
    changes = {"sites": (), "inputs": (), "test": test}
    write_analysis(replace(analysis, report=analysis.report.model_copy(update=changes)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"analysis.md", "analysis.json"}
    assert "![" not in (tmp_path / "analysis.md").read_text("utf-8")


def test_labels_tell_kinds_apart():
    kinds = ["m.layer.*.attention.q", "m.layer.*.attention.k", "m.layer.*.up", "head"]
    assert list(labels(kinds).values()) == ["attention.q", "attention.k", "up", "head"]
    assert joined(["attention.q", "attention.k"]) == "attention.q, k"
    assert joined(["a.q", "b.k"]) == "a.q, b.k"
    many = [f"kind {i}" for i in range(20)] + ["kind 19", "kind 18"]
    assert drawn_kinds(many)[-2:] == ["kind 18", "kind 19"]
    assert len(drawn_kinds(many)) == 8


# The command line


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    small.save(blocks(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **samples(80).inputs)
    np.savez(tmp_path / "other.npz", **samples(40, 2).inputs)
    return Cli(capsys, monkeypatch)


def read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.mark.slow
def test_analyze_writes_a_page(cli, tmp_path):
    text = cli("analyze", "model.onnx", "-c", "data.npz", "-o", "page").out
    assert "after a normalization" in text
    report = read(tmp_path / "page" / "analysis.json")
    assert (report["calibration"][:10], report["held_out"][:10]) == ("60 samples", "20 samples")
    cli("analyze", "model.onnx", "-c", "data.npz", "--held-out", "other.npz", "-o", "page")
    report = read(tmp_path / "page" / "analysis.json")
    assert (report["calibration"][:10], report["held_out"][:10]) == ("80 samples", "40 samples")


@pytest.mark.slow
def test_analyze_takes_a_recipe(cli, tmp_path):
    recipe = "name: r\nsource: {model: model.onnx}\ncalibration: {kind: npz, path: data.npz}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert "linear sites" in cli("analyze", "recipe.yaml").out
    refused = cli("analyze", "recipe.yaml", "-o", "page", code=2)
    assert "validation" in error_line(refused)
    recipe += "validation: {kind: npz, path: other.npz}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    cli("analyze", "recipe.yaml", "-o", "page")
    assert read(tmp_path / "page" / "analysis.json")["held_out"].startswith("40 samples")


@pytest.mark.parametrize(
    "arguments",
    [
        ("model.onnx", "-o", "page"),
        ("model.onnx", "--held-out", "other.npz"),
        ("recipe.yaml", "-c", "data.npz"),
    ],
)
def test_data_that_is_missing_or_too_much_is_refused(cli, tmp_path, arguments):
    (tmp_path / "recipe.yaml").write_text("name: r\nsource: {model: model.onnx}\n")
    error_line(cli("analyze", *arguments, code=2))
    assert not (tmp_path / "page").exists()


def test_too_few_samples_to_hold_out_are_refused(cli, tmp_path):
    np.savez(tmp_path / "few.npz", **samples(3).inputs)
    assert "too few" in error_line(cli("analyze", "model.onnx", "-c", "few.npz", "-o", "p", code=2))
