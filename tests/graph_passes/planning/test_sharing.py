"""Which siblings share a factor: those that lose less that way, measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import Cli, error_line
from graphs import canonical, model

from compress_onnx.graph_passes.factorization import ActivationStats, GradientStats, make_method
from compress_onnx.graph_passes.planning.damage import damage_curve
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.planning.sharing import (
    MARGIN,
    SharedGroup,
    shared_groups,
    why_apart,
)
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.runtime.session import open_session, run

K, N = 40, 32
EXACT = ("-p", "0.5", "--rank-multiple", "1", "--siblings", "auto")
THREE = """g (float[B,40] x) => (float[B,32] q, float[B,32] k, float[B,32] v) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
}"""
QUERY, KEY, VALUE = "MatMul_q", "MatMul_k", "MatMul_v"
IDENTITY = ActivationStats(100, np.zeros(K), np.ones(K), np.eye(K))


def on_inputs(rng: np.random.Generator, first: int, count: int = 14) -> np.ndarray:
    """``[K, N]`` a weight that reads the inputs from ``first`` on only, and hardly the others."""
    weight = 0.02 * rng.standard_normal((K, N))
    weight[first : first + count] += rng.standard_normal((count, N))
    return weight.astype(np.float32)


def three(*first: int) -> onnx.ModelProto:
    rng = np.random.default_rng(7)
    arrays = [on_inputs(rng, place) for place in first]
    return model(THREE, dict(zip(("wq", "wk", "wv"), arrays, strict=True)))


def decided(
    proto: onnx.ModelProto,
    method: str = "svd",
    stats: dict[str, ActivationStats] | None = None,
    damage: str = "none",
    **settings: object,
) -> tuple[list[SharedGroup], tuple[LinearSite, ...], CompressionPlan]:
    table = find_sites(canonical(proto))
    spec = {"method": MethodSpec(name=method), "params": 0.5, "rank_multiple": 1, **settings}
    kind = make_method(method, {})
    curve = damage_curve(damage, kind, Decompositions(stats)) if damage == "gauss-newton" else None
    plan = make_plan(table, CompressionSpec.model_validate(spec), stats or {}, curve)
    groups = shared_groups(table.sites, plan, kind, Decompositions(stats), damage=damage)
    return groups, table.sites, plan


def test_siblings_that_look_at_the_same_inputs_share():
    groups, sites, plan = decided(three(0, 0, 0))
    assert [group.sites for group in groups] == [(QUERY, KEY, VALUE)]
    # The ratio is that of the squared errors at the plan's parameters.
    weights = [site.weight.array().astype(np.float64) for site in sites]
    rank = plan.parameters_after // (K + 3 * N)
    apart = sum(_lost(w, site.rank or 0) for w, site in zip(weights, plan.sites, strict=True))
    assert groups[0].ratio == pytest.approx(_lost(np.hstack(weights), rank) / apart, rel=1e-6)
    assert groups[0].ratio < 0.25


def _lost(weight: np.ndarray, rank: int) -> float:
    return float(np.sum(np.linalg.svd(weight, compute_uv=False)[rank:] ** 2))


def test_siblings_that_look_at_different_inputs_do_not():
    assert decided(three(0, 13, 26))[0] == []


def test_a_pair_shares_and_the_third_stays_alone():
    groups, *_ = decided(three(0, 26, 0))
    assert [group.sites for group in groups] == [(QUERY, VALUE)]


def test_the_inputs_decide_where_they_are_known():
    # Half of the inputs never vary: what the weights do with the others is all that matters.
    variance = np.where(np.arange(K) < 13, 1.0, 1e-6)
    rng = np.random.default_rng(3)
    arrays = {name: rng.standard_normal((K, N)).astype(np.float32) for name in ("wq", "wk", "wv")}
    proto = model(THREE, arrays)
    seen = replace(IDENTITY, centred=np.diag(variance))
    stats = dict.fromkeys((QUERY, KEY, VALUE), seen)
    assert decided(proto)[0] == []
    groups, *_ = decided(proto, "asvd", stats)
    assert [group.sites for group in groups] == [(QUERY, KEY, VALUE)]


def with_gradients(first: int, strength: float) -> ActivationStats:
    """A site whose outputs matter where the inputs from ``first`` on are large."""
    moment = np.full(K, 0.01)
    moment[first : first + 14] = 1.0
    inputs = replace(IDENTITY, centred=np.diag(moment))
    return replace(IDENTITY, gradients=GradientStats(inputs, strength * np.eye(N)))


def test_a_sibling_that_matters_far_more_at_other_positions_stays_alone():
    rng = np.random.default_rng(3)
    arrays = {name: rng.standard_normal((K, N)).astype(np.float32) for name in ("wq", "wk", "wv")}
    proto = model(THREE, arrays)
    alike = dict.fromkeys((QUERY, KEY, VALUE), with_gradients(0, 1.0))
    groups, *_ = decided(proto, "gauss-newton", alike, "gauss-newton")
    assert [group.sites for group in groups] == [(QUERY, KEY, VALUE)]
    apart = alike | {VALUE: with_gradients(26, 5.0)}
    groups, *_ = decided(proto, "gauss-newton", apart, "gauss-newton")
    assert [group.sites for group in groups] == [(QUERY, KEY)]


def test_a_group_has_to_save_the_margin():
    assert all(group.ratio < 1 - MARGIN for group in decided(three(0, 6, 12), params=0.6)[0])


def test_only_sites_that_are_factored_share():
    chosen = {"select": {"exclude": [VALUE]}}
    groups, *_ = decided(three(0, 0, 0), **chosen)
    assert [group.sites for group in groups] == [(QUERY, KEY)]
    assert decided(three(0, 0, 0), select={"include": [KEY]})[0] == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"params": 0.3, "allocation": "gauss-newton"}, None),
        ({"allocation": "sensitivity"}, "sensitivity is measured one site at a time"),
        ({"rank": 8}, "one rank is asked for everywhere"),
        ({"bytes": 0.5}, "the budget is one of bytes, not of parameters"),
        ({"flops": 0.5}, "the budget is one of FLOPs, not of parameters"),
        ({"latency": 0.5}, "the budget is one of latency, not of parameters"),
        ({"store": "int8"}, "factors are stored as int8"),
    ],
    ids=str,
)
def test_what_keeps_all_siblings_apart(settings, reason):
    request = CompressionSpec.model_validate({"allocation": "uniform", **settings})
    assert why_apart(request) == reason


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path)
    small.save(attention(), tmp_path / "model.onnx")
    np.savez("data.npz", **sentences())
    return Cli(capsys, monkeypatch)


def attention() -> onnx.ModelProto:
    """:func:`small_models.encoder` with a query and a key that look at the same inputs."""
    proto = small.encoder()
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((small.WIDTH, small.WIDTH)))[0]
    spectrum = 3 * 0.8 ** np.arange(small.WIDTH)
    for tensor in proto.graph.initializer:
        if tensor.name in {"wq", "wk"}:
            mixed = np.linalg.qr(rng.standard_normal((small.WIDTH, small.WIDTH)))[0]
            array = ((basis * spectrum) @ mixed).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return proto


def sentences() -> dict[str, np.ndarray]:
    return small.sentences(count=60)


def error(path: str) -> float:
    feeds = small.sentences(count=40, seed=9)
    reference, ours = (run(open_session(Path(p)), feeds) for p in ("model.onnx", path))
    real = feeds["attention_mask"].astype(bool)
    return float(np.linalg.norm((ours["hidden"] - reference["hidden"])[real]))


@pytest.mark.parametrize("options", [[], ["-m", "asvd"], ["-m", "svd"], ["--one-shot"]], ids=str)
def test_sharing_loses_less_at_the_same_size(cli, options):
    common = ("compress", "model.onnx", "-c", "data.npz", *EXACT)
    text = cli(*common, *options, "-o", "shared.onnx", "--save-plan", "plan.json")
    cli(*common, *options, "-o", "apart.onnx", "--siblings", "never")
    assert "layer.0.query, layer.0.key share one down" in text.err
    assert "one down for 2 siblings" in text.out
    assert "layer.0.{query,key}" in text.out
    assert Path("shared.onnx").stat().st_size < 1.02 * Path("apart.onnx").stat().st_size
    assert error("shared.onnx") < 0.9 * error("apart.onnx")
    # The plan says so, and applied again it gives the same model.
    plan = json.loads(Path("plan.json").read_text())
    assert list(plan["sites"][0]["siblings"]) == ["layer.0.query", "layer.0.key"]
    cli(*common[:4], *options[2:], "-o", "again.onnx", "--plan", "plan.json")
    assert Path("again.onnx").read_bytes() == Path("shared.onnx").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["--bytes", "0.5"],
        ["--flops", "0.5"],
        ["--rank", "8"],
        ["-p", "0.5", "--store", "int8"],
        ["-p", "0.5", "--allocation", "sensitivity", "-c", "data.npz"],
    ],
    ids=str,
)
def test_siblings_that_stay_apart_say_why(cli, options):
    common = ("compress", "model.onnx", "--rank-multiple", "1", "--siblings", "auto", *options)
    text = cli(*common, "-o", "ours.onnx", "--save-plan", "plan.json")
    assert "note: siblings share no factor: " in text.err
    plan = json.loads(Path("plan.json").read_text())
    assert not any(site["siblings"] for site in plan["sites"])
    text = cli(*common, "-o", "never.onnx", "--siblings", "never")
    assert "siblings" not in text.err
    assert Path("ours.onnx").read_bytes() == Path("never.onnx").read_bytes()


def test_a_plan_that_rounds_a_shared_factor_is_refused(cli):
    cli("compress", "model.onnx", "--dry-run", *EXACT, "--save-plan", "plan.json")
    plan = json.loads(Path("plan.json").read_text())
    assert plan["sites"][0]["siblings"]
    plan["sites"][0]["store"] = "int8"
    Path("plan.json").write_text(json.dumps(plan))
    text = cli("compress", "model.onnx", "-o", "o.onnx", "--plan", "plan.json", code=2)
    assert "cannot be stored as int8" in error_line(text)
    assert not Path("o.onnx").exists()


@pytest.mark.parametrize("options", [["-m", "asvd"], ["-m", "svd"], []], ids=str)
def test_the_bounds_of_a_plan_are_those_of_sharing(cli, options):
    def error_of(siblings: str) -> dict[str, float]:
        data = ("-c", "data.npz", "--one-shot")
        cli("compress", "model.onnx", "--dry-run", *EXACT, *data, *options, "--siblings", siblings,
            "--save-plan", "plan.json")  # fmt: skip
        plan = json.loads(Path("plan.json").read_text())
        assert any(site["siblings"] for site in plan["sites"]) == (siblings == "auto")
        error: dict[str, float] = plan["error"]
        return error

    shared, apart = error_of("auto"), error_of("never")
    assert shared["allocation_bound"] <= shared["bound"] * (1 + 1e-9)
    assert shared["bound"] <= shared["reached"] * (1 + 1e-6)
    if options == ["-m", "asvd"]:
        assert shared["reached"] == pytest.approx(shared["bound"], rel=1e-3)
        # Chains of one weight each cannot get there: bounds of the sites apart would not hold.
        assert shared["reached"] < apart["bound"]
        assert shared["reached"] < apart["allocation_bound"]


def test_a_bench_knows_the_nodes_behind_a_shared_site(cli):
    cli("compress", "model.onnx", "-o", "s.onnx", *EXACT, "--save-plan", "plan.json")
    assert json.loads(Path("plan.json").read_text())["sites"][0]["siblings"]
    bench = (
        "bench",
        "model.onnx",
        "s.onnx",
        "--iterations",
        "5",
        "--provider",
        "cpu",
        "--loads",
        "0",
    )
    cli(*bench, "--plan", "plan.json", "--json", "b.json")
    (found,) = json.loads(Path("b.json").read_text())["benchmarks"]
    assert 0 < found["linear_share"] < 1
    assert found["ideal_speedup"] > 1


def test_a_run_reports_and_recovers_shared_sites(cli):
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "calibration": {"kind": "npz", "path": "data.npz"},
        "validation": {"kind": "npz", "path": "data.npz"},
        "mask": "attention_mask",
        "compression": {"rank_multiple": 1, "siblings": "auto"},
        "recovery": {"budget": None, "steps": 200},
        "benchmark": None,
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    cli("run", "recipe.yaml", "-o", "bundle")
    report = json.loads(Path("bundle/report.json").read_text())
    site = report["plan"]["sites"][0]
    assert site["site"] == "layer.0.{query,key}"
    assert site["error"]["activation"] >= 0.99 * site["error"]["bound"]
    assert report["recovery"]["end_loss"] < report["recovery"]["start_loss"]
    assert "one down for 2 siblings" in Path("bundle/summary.md").read_text()


def test_a_plan_whose_siblings_the_model_lacks_is_refused(cli):
    cli("compress", "model.onnx", "--dry-run", *EXACT, "--save-plan", "plan.json")
    small.save(small.perceptron(), Path("other.onnx"))
    text = cli("compress", "other.onnx", "-o", "o.onnx", "--plan", "plan.json", code=2)
    assert "no siblings that could share a factor" in error_line(text)


def test_siblings_stay_apart_unless_asked(cli):
    text = cli("compress", "model.onnx", "-o", "o.onnx", "-p", "0.5", "--rank-multiple", "1")
    assert "one down" not in text.out
    assert "siblings" not in text.err


def test_siblings_must_be_auto_or_never(cli):
    text = cli("compress", "model.onnx", "-o", "o.onnx", "--siblings", "always", code=2)
    assert "siblings" in error_line(text)
