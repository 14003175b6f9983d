"""The Python API: what it takes, what it returns, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models as small

import compress_onnx
from compress_onnx.pipeline.api import request_of
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS

HALF = {"params": 0.5, "rank_multiple": 1}


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "data.npz", **small.sentences(60))
    return small.save(small.encoder(), tmp_path / "model.onnx")


def factors(model):
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}


@pytest.mark.parametrize("kind", ["path", "text", "proto", "ir"])
def test_a_model_may_be_a_path_or_in_memory(path, kind):
    models = {"path": path, "text": str(path), "proto": onnx.load(path), "ir": ir.load(path)}
    before = path.read_bytes()
    made = compress_onnx.compress(models[kind], data=small.sentences(60), **HALF)
    expected = compress_onnx.compress(path, data=small.sentences(60), **HALF)

    assert factors(made.model).keys() == factors(expected.model).keys()
    for name, array in factors(made.model).items():
        np.testing.assert_array_equal(array, factors(expected.model)[name])
    assert path.read_bytes() == before


def test_data_may_be_a_file_arrays_or_feeds_of_any_length(path):
    whole = small.sentences(60)
    feeds = [{name: array[row : row + 1] for name, array in whole.items()} for row in range(60)]
    lengths = [int(feed["attention_mask"].sum()) for feed in feeds]
    pairs = zip(feeds, lengths, strict=True)
    short = [{n: a[:, :length] for n, a in feed.items()} for feed, length in pairs]
    plans = [
        compress_onnx.compress(path, data=data, **HALF).plan.parameters_after
        for data in (path.with_name("data.npz"), whole, iter(feeds), short)
    ]
    assert len(set(plans)) == 1


def test_feeds_that_do_not_fit_together_are_one_line(path):
    with pytest.raises(compress_onnx.CompressOnnxError, match="no feeds at all"):
        compress_onnx.learn(path, [])
    with pytest.raises(compress_onnx.CompressOnnxError, match="differ in their inputs"):
        compress_onnx.learn(path, [{"input_ids": np.ones((1, 3), np.int64)}, {}])


def test_results_print_and_are_plain_data(path):
    learned = compress_onnx.learn(path, path.with_name("data.npz"))
    made = learned.compress(request_of(**HALF))
    plan = made.write(path.with_name("small.onnx"))
    report = compress_onnx.validate(path, path.with_name("small.onnx"), small.sentences(9, seed=3))

    assert "3 linear sites" in str(learned)
    assert "of 3 sites factored" in str(made)
    assert "relative L2" in str(report)
    assert json.loads(json.dumps(made.to_dict()))["budget"] == plan.budget
    assert json.loads(json.dumps(report.to_dict()))["samples"] == 9
    assert plan.held_out_error is not None
    assert plan.held_out_error.reached > plan.error.bound


def test_a_damaged_model_is_seen(path):
    same = compress_onnx.validate(path, path, small.sentences(9))
    damaged = onnx.load(path)
    weight = next(i for i in damaged.graph.initializer if i.name == "wq")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), "wq"))
    other = compress_onnx.validate(path, damaged, small.sentences(9))

    assert max(output.relative_l2 for output in same.outputs) == 0
    assert max(output.relative_l2 for output in other.outputs) > 0.1


def test_validate_can_measure_batch_invariance_and_other_providers(path):
    data = small.sentences(9)
    report = compress_onnx.validate(path, path, data, batch_invariance=True, providers=["auto"])
    assert report.batch_invariance == report.batch_invariance_reference
    assert "batch invariance" in str(report)
    places = {report.provider, *(other.provider for other in report.elsewhere)}
    assert places | report.unmeasured.keys() == set(EXECUTION_PROVIDERS)


def test_benchmark_measures_a_grid_and_what_opening_takes(path):
    how = BenchmarkSpec(provider="cpu", batch=(1, 2), length=4, warmup=0, iterations=5)
    report = compress_onnx.benchmark(path, path, how=how, loads=1)
    assert [row.name for row in report.benchmarks] == ["cpu.1x4", "cpu.2x4"]
    (loading,) = report.loadings
    assert loading.load_ratio > 0
    assert report.environment.instruction_sets is not None
    assert "cpu.2x4: p50" in str(report)
    assert "session" in str(report)


def test_a_callback_hears_of_the_steps(path):
    heard = []
    settings = compress_onnx.RunSettings(
        progress=compress_onnx.Calls(lambda *step: heard.append(step))
    )
    compress_onnx.compress(path, data=small.sentences(60), settings=settings, **HALF)

    steps = dict.fromkeys(name for name, _, _ in heard)
    assert list(steps)[:2] == ["calibrate", "differentiate"]
    done = [(done, total) for name, done, total in heard if name == "calibrate"]
    assert done[0][0] == 0
    assert done[-1][0] == done[-1][1]


def test_analyze_changes_nothing(path):
    plan = compress_onnx.analyze(path, params=0.5)
    assert all(site.error.bound > 0 for site in plan.factored)
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"parms": 0.5}, "parms"),
        ({"params": 2.0}, "between 0 and 1"),
        ({"method": "svdx"}, "svdx"),
        ({"method": "svdlora:stages"}, "KEY=VALUE"),
    ],
)
def test_a_wrong_request_is_one_line(path, request_, said):
    with pytest.raises(compress_onnx.CompressOnnxError, match=said) as caught:
        compress_onnx.compress(path, **request_)
    assert "\n" not in str(caught.value)


def test_everything_public_is_there_and_loads_late():
    for name in compress_onnx.__all__:
        assert getattr(compress_onnx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = compress_onnx.nothing
    program = "import sys, compress_onnx.graph_passes as g; g.find_sites; "
    program += "print('onnxruntime' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_recipe_may_name_code_only_where_the_settings_allow_it(tmp_path):
    small.save(small.perceptron(), tmp_path / "model.onnx")
    (tmp_path / "loaders.py").write_text(
        "import numpy as np\n"
        "def rows(seed: int) -> dict:\n"
        f"    draw = np.random.default_rng(seed).normal(size=(40, {small.FEATURES}))\n"
        "    return {'x': draw.astype(np.float32)}\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\n"
        "source: {model: model.onnx}\n"
        "calibration: {kind: python, loader: 'loaders.py:rows', arguments: {seed: 1}}\n"
        "validation: {kind: python, loader: 'loaders.py:rows', arguments: {seed: 2}}\n"
        "compression: {params: 0.5}\n"
        "benchmark: null\n"
    )
    with pytest.raises(compress_onnx.CompressOnnxError, match=r"loaders\.py"):
        compress_onnx.run(tmp_path / "recipe.yaml", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()

    settings = compress_onnx.RunSettings(allow_code=True)
    report = compress_onnx.run(tmp_path / "recipe.yaml", tmp_path / "bundle", settings=settings)
    assert report.plan.factored


@pytest.mark.parametrize("integers", [False, True])
def test_recover_trains_what_was_compressed(tmp_path, integers):
    path = small.save(small.perceptron(), tmp_path / "model.onnx")
    few, data, unseen = (small.save_rows(tmp_path / f"{n}.npz", n, seed=n) for n in (40, 600, 50))
    # compressed on too few rows, so that there is something to gain
    made = compress_onnx.compress(path, data=few, method="neurons", params=0.4, sequential=False)
    report = compress_onnx.recover(
        path, made.model, tmp_path / "out.onnx", data, integers=integers, budget=None, steps=150
    )
    assert report.improved
    before, after = (
        compress_onnx.validate(path, candidate, np.load(unseen)).outputs[0].relative_l2
        for candidate in (made.model, tmp_path / "out.onnx")
    )
    assert after < 0.9 * before
    kinds = {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert ("MatMulIntegerToFloat" in kinds) == integers


def test_what_recover_refuses(tmp_path):
    path = small.save(small.perceptron(), tmp_path / "model.onnx")
    data, output = small.save_rows(tmp_path / "data.npz", 100), tmp_path / "x.onnx"
    factored = compress_onnx.compress(path, method="svd", params=0.4, rank_multiple=1).model
    with pytest.raises(compress_onnx.CompressOnnxError, match="recovery has to end"):
        compress_onnx.recover(path, factored, output, data, budget=None)
    with pytest.raises(compress_onnx.CompressOnnxError, match="can multiply integers"):
        compress_onnx.recover(path, factored, output, data, integers=True)
    assert not output.exists()


def test_what_went_wrong_inside_is_found(path, tmp_path):
    data = small.sentences(8)
    assert compress_onnx.compare_inside(path, path, data).divergence is None
    damaged = onnx.load(path)
    weight = next(t for t in damaged.graph.initializer if len(t.dims) == 2 and min(t.dims) > 1)
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(array * 2, weight.name))
    found = compress_onnx.compare_inside(path, damaged, data)
    assert found.divergence is not None
    assert "2 times the reference's" in found.divergence.cause


def test_two_reports_are_compared_and_a_run_is_laid_out(path, tmp_path):
    recipe = {
        "name": "tiny",
        "source": {"model": path.name},
        "calibration": {"kind": "npz", "path": "data.npz"},
        "validation": {"kind": "npz", "path": "data.npz"},
        "compression": {"params": 0.5},
        "benchmark": None,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    compress_onnx.run(tmp_path / "recipe.json", tmp_path / "half")
    recipe["compression"] = {"params": 0.2}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    compress_onnx.run(tmp_path / "recipe.json", tmp_path / "fifth")
    found = {
        c.quantity: c.verdict for c in compress_onnx.compare(tmp_path / "half", tmp_path / "fifth")
    }
    assert (found["relative_l2"], found["candidate_bytes"]) == ("worse", "better")

    compress_onnx.bundle(tmp_path / "half", "ort", tmp_path / "served")
    assert list((tmp_path / "served").rglob("model.onnx"))
    with pytest.raises(compress_onnx.CompressOnnxError, match="no target 'floppy'"):
        compress_onnx.bundle(tmp_path / "half", "floppy", tmp_path / "elsewhere")
