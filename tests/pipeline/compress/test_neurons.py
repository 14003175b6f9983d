"""Networks lose neurons by plan: on their own, beside factors, within every kind of budget."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import Cli, error_line
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.planning.plan import MethodSpec, read_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

NEURONS = MethodSpec(name="neurons")
FEATURES, HIDDEN, OUTPUTS = 6, 32, 5


@pytest.fixture
def learned(tmp_path) -> Learned:
    path = saved(tmp_path, two_layers((FEATURES, HIDDEN, OUTPUTS))[0])
    return learn(path, samples(FEATURES, 200))


@pytest.fixture
def cli(capsys, monkeypatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def perceptron(tmp_path):
    return small.save(small.perceptron(), tmp_path / "model.onnx")


def outputs(model, x):
    return run(open_session(model), {"x": x})["y"]


def error(learned: Learned, compressed, tmp_path) -> float:
    """Relative squared error of the output on inputs that nothing was learned from."""
    compressed.write(tmp_path / "small.onnx")
    x = samples(FEATURES, 64, seed=9).inputs["x"]
    right = outputs(learned.original.path, x)
    return float(
        np.square(outputs(tmp_path / "small.onnx", x) - right).sum() / right.var() / x.size
    )


@pytest.mark.parametrize("sequential", [False, True])
def test_the_plan_says_what_the_file_has(learned, tmp_path, sequential):
    request = CompressionSpec(method=NEURONS, params=0.5, rank_multiple=4, sequential=sequential)
    compressed = learned.compress(request)
    plan = compressed.write(tmp_path / "small.onnx")
    first, second = plan.sites
    assert [site.decision for site in plan.sites] == ["neurons", "neurons"]
    assert first.neurons == second.neurons == HIDDEN // 2
    assert first.ffn == second.ffn == second.site
    assert plan.parameters_after * 2 == plan.parameters_before
    shapes = {t.name: tuple(t.dims) for t in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert sorted(shapes.values()) == sorted([(FEATURES, 16), (16,), (16, OUTPUTS), (OUTPUTS,)])
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    before = FEATURES * HIDDEN + HIDDEN + HIDDEN * OUTPUTS + OUTPUTS
    assert plan.file_parameters_added == size - before
    assert plan.file_bytes_added == 4 * (size - before)


def test_more_neurons_lose_less(learned, tmp_path):
    errors = [
        error(learned, learned.compress(CompressionSpec(method=NEURONS, params=share)), tmp_path)
        for share in (0.25, 0.5, 0.75)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize(
    ("budget", "allocation"),
    [
        *product(
            ["params", "bytes", "flops"], ["uniform", "energy", "sensitivity", "gauss-newton"]
        ),
        ("latency", "uniform"),
    ],
)
def test_every_budget_and_allocation_reaches_networks(learned, budget, allocation):
    request = CompressionSpec(
        method=NEURONS, **{budget: 0.6}, allocation=allocation, rank_multiple=1, sequential=False
    )
    plan = learned.compress(request).plan
    (network,) = plan.thinned
    if budget != "latency":
        assert network.neurons == pytest.approx(0.6 * HIDDEN, abs=1)
    assert 1 <= network.neurons < HIDDEN


def test_others_are_factored_beside_networks(perceptron, tmp_path):
    x = np.random.default_rng(0).standard_normal((300, small.FEATURES)).astype(np.float32)
    known = learn(perceptron, Samples({"x": x}))
    plan = known.compress(CompressionSpec(ffns="neurons", params=0.4)).write(tmp_path / "s.onnx")
    by_name = {site.site: site for site in plan.sites}
    assert by_name["encoder.fc1"].decision == by_name["encoder.attention.query"].decision
    assert by_name["encoder.fc1"].decision == "neurons"
    assert by_name["head"].decision == "factor"
    alone = known.compress(CompressionSpec(method=NEURONS, params=0.4)).plan
    by_name = {site.site: site for site in alone.sites}
    assert by_name["head"].decision == "dense"
    assert "shares a layer" in by_name["head"].reason


def test_a_plan_comes_back_from_its_file(perceptron, tmp_path, cli):
    data = small.save_rows(tmp_path / "data.npz")
    plan, one, two = (tmp_path / name for name in ("plan.json", "one.onnx", "two.onnx"))
    shared = ["compress", perceptron, "-c", data]
    printed = cli(*shared, "--method", "neurons", "-p", "0.5", "--save-plan", plan, "-o", one).out
    assert "networks with fewer neurons" in printed
    assert read_plan(plan).thinned
    cli(*shared, "--plan", plan, "-o", two)
    assert one.read_bytes() == two.read_bytes()
    assert "give calibration data" in error_line(
        cli("compress", perceptron, "--plan", plan, "-o", two, "--force", code=2)
    )
    read = read_plan(plan)
    sites = [site.model_copy(update={"neurons": 999}) for site in read.sites]
    plan.write_text(read.model_copy(update={"sites": tuple(sites)}).model_dump_json())
    assert "neurons, which is not between" in error_line(
        cli(*shared, "--plan", plan, "-o", two, "--force", code=2)
    )
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "neurons"], "give calibration data"),
        (["--ffns", "neurons", "--method", "svd"], "give calibration data"),
        (["--method", "neurons", "-c", "DATA", "--rank", "4"], "not by a rank"),
    ],
)
def test_what_cannot_be_is_one_line(perceptron, tmp_path, cli, options, message):
    data = small.save_rows(tmp_path / "data.npz")
    given = [data if option == "DATA" else option for option in options]
    shown = cli("compress", perceptron, *given, "-o", tmp_path / "out.onnx", code=2)
    assert message in error_line(shown)
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_without_networks_has_nothing_to_lose(tmp_path, cli):
    path = saved(tmp_path, two_layers(activation="Softmax")[0])
    np.savez(tmp_path / "data.npz", **samples(6, 40).inputs)
    given = ["compress", path, "-c", tmp_path / "data.npz", "-m", "neurons"]
    shown = cli(*given, "-o", tmp_path / "out.onnx", code=3)
    assert "nothing can be compressed" in shown.err
