"""The command line: what each command prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import error_line, python, start

from compress_onnx.pipeline.runtime.session import open_session, run

COMMANDS = ("run", "export", "analyze", "compress", "validate", "bench", "report")


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {banned!r}:
            raise AssertionError("imported " + name)

sys.meta_path.insert(0, Refuse())
from compress_onnx.pipeline.cli import main

for command in {commands!r}:
    sys.argv = ["compress-onnx", *command.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
"""


def outputs(path, seed=3):
    x = np.random.default_rng(seed).normal(size=(5, small.FEATURES)).astype(np.float32)
    return run(open_session(Path(path)), {"x": x})["y"]


def relative_error(path):
    reference = outputs("model.onnx")
    return float(np.linalg.norm(outputs(path) - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_tells_what_it_does(cli, command):
    text = cli(command, "--help").out
    assert f"compress-onnx {command}" in text
    assert f"compress-onnx help {command}" in text


def test_help_teaches_the_exit_codes_and_lists_the_commands(cli):
    text = " ".join(cli("--help").out.split())
    assert "3 nothing could be compressed" in text
    assert all(command in text for command in COMMANDS)


def test_the_version_is_printed(cli):
    assert cli("--version").out.startswith("compress-onnx 0.")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["compress", "model.onnx", "--nope"], "--nope"),
        (["bench", "model.onnx"], "candidate"),
        (["compress", "model.onnx"], "--dry-run"),
        (["bench", "model.onnx", "model.onnx", "--provider", "tpu"], "--provider"),
        (["compress", "model.onnx", "-o", "o.onnx", "--batch-size", "0"], "--batch-size"),
        (["compress", "model.onnx", "-o", "o.onnx", "--params", "half"], "--params"),
    ],
)
def test_a_wrong_command_line_names_what_is_wrong(cli, files, arguments, named):
    before = small.listing(files)
    assert named in cli(*arguments, code=2).err
    assert small.listing(files) == before


def test_as_a_process_it_analyzes_and_refuses(files):
    assert "encoder.attention.query" in start("analyze", "model.onnx").stdout
    refused = start("analyze", "missing.onnx", code=2)
    assert refused.stdout == ""
    assert refused.stderr == "error: there is no model file missing.onnx\n"


def test_analyze_lists_sites_with_their_bounds(cli, files):
    before = small.listing(files)
    weights = cli("analyze", "model.onnx", "--json", "spectra.json").out
    calibrated = cli("analyze", "model.onnx", "-c", "data.npz", "--no-cache").out
    for name, shape in zip(small.SITES, ("48x64", "64x64", "64x24"), strict=True):
        assert name in weights
        assert shape in weights
    assert "all weights together: error" in weights
    assert "all site outputs together (not the model's)" in calibrated
    spectra = json.loads((files / "spectra.json").read_text())
    assert [s["site"] for s in spectra] == list(small.SITES)
    assert len(spectra[0]["weight_tail"]) == small.FEATURES + 1
    (files / "spectra.json").unlink()
    assert small.listing(files) == before


def test_compress_writes_a_smaller_model_that_computes_nearly_the_same(cli, files):
    before = small.listing(files)
    text = cli("compress", "model.onnx", "-o", "small.onnx", "--calibration", "data.npz")
    assert "2 of 3 sites factored" in text.out
    assert "worth more to it" in text.out
    assert "at any ranks of as many parameters" in text.out
    assert "written: small.onnx" in text.out
    after = small.listing(files)
    small_bytes = len(after.pop("small.onnx"))
    assert after == before
    assert small_bytes < 0.7 * len(before["model.onnx"])
    assert relative_error("small.onnx") < 0.3


def test_without_data_compress_says_what_is_missing(cli, files):
    text = cli("compress", "model.onnx", "-o", "small.onnx", "--params", "0.6")
    assert "no --calibration" in text.err
    assert "svd" not in text.err.replace("asvd", "")
    assert 0 < relative_error("small.onnx") < 1


def test_compress_at_full_rank_changes_no_output(cli, files):
    cli("compress", "model.onnx", "-o", "full.onnx", "--rank", "999", "--allow-larger")
    assert relative_error("full.onnx") < 1e-5
    nodes = [node.op_type for node in onnx.load("full.onnx").graph.node]
    assert nodes.count("MatMul") + nodes.count("Gemm") == 6


def test_a_dry_run_prints_the_plan_with_errors_and_writes_nothing(cli, files):
    before = small.listing(files)
    text = cli("compress", "model.onnx", "--dry-run", "--method", "svd", "--rank", "8").out
    row = next(line for line in text.splitlines() if line.startswith("encoder.fc1"))
    site, shape, rank, was, _, now, error, bound, decision, *reason = row.split()
    assert (site, shape, rank, was, now) == ("encoder.fc1", "48x64", "8", "3,072", "896")
    assert 0 < float(error) < 1
    assert float(error) == pytest.approx(float(bound), rel=1e-3)
    assert (decision, " ".join(reason)) == ("factor", "rank 8")
    assert small.listing(files) == before


def test_a_saved_plan_can_be_edited_and_applied(cli, files):
    cli("compress", "model.onnx", "--dry-run", "--save-plan", "plan.json")
    cli("compress", "model.onnx", "-o", "one.onnx")
    cli("compress", "model.onnx", "-o", "two.onnx", "--plan", "plan.json")
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()
    plan = json.loads(Path("plan.json").read_text())
    plan["sites"][0] |= {"rank": 5, "parameters_after": 5 * (48 + 64)}
    Path("plan.json").write_text(json.dumps(plan))
    cli("compress", "model.onnx", "-o", "three.onnx", "--plan", "plan.json")
    shapes = {i.name: tuple(i.dims) for i in onnx.load("three.onnx").graph.initializer}
    assert shapes["w1.lowrank.down"] == (48, 5)


@pytest.mark.parametrize(
    ("selection", "factored"),
    [
        (["--include", "encoder.*"], {"w1", "w2"}),
        (["--include", "head", "--include", "*fc1"], {"w1", "w3"}),
        (["--exclude", "*.query"], {"w1", "w3"}),
        (["--group", "attention"], {"w2"}),
        (["--group", "mlp"], {"w1"}),
    ],
)
def test_only_selected_sites_are_factored(cli, files, selection, factored):
    cli("compress", "model.onnx", "-o", "small.onnx", "--rank", "4", *selection)
    names = {i.name for i in onnx.load("small.onnx").graph.initializer}
    assert {name.split(".")[0] for name in names if ".lowrank.down" in name} == factored
    assert names & {"w1", "w2", "w3"} == {"w1", "w2", "w3"} - factored


def test_method_settings_reach_the_method(cli, files):
    arguments = ("compress", "model.onnx", "--rank", "9", "--method")
    cli(*arguments, "svdlora:stages=3,layout=branches", "-o", "branches.onnx")
    cli(*arguments, "svdlora:stages=3", "-o", "merged.onnx")
    graph = onnx.load("branches.onnx").graph
    assert sum(".lowrank.down" in i.name for i in graph.initializer) == 9
    assert sum(node.op_type == "Add" for node in graph.node) == 2 + 3 * 2
    np.testing.assert_allclose(outputs("branches.onnx"), outputs("merged.onnx"), atol=1e-4)


def test_nothing_to_compress_is_exit_code_3(cli, files):
    text = cli("compress", "model.onnx", "-o", "o.onnx", "--rank", "60", code=3)
    assert "would not be smaller" in error_line(text)
    assert not Path("o.onnx").exists()


def test_external_data_can_be_asked_for(cli, files):
    cli("compress", "model.onnx", "-o", "small.onnx", "--external-data")
    (data,) = files.glob("small.onnx.*.data")
    assert data.stat().st_size > 10_000 > Path("small.onnx").stat().st_size
    assert 0 < relative_error("small.onnx") < 1


def test_validate_returns_the_verdict_of_its_gates(cli, files):
    cli("compress", "model.onnx", "-o", "small.onnx", "-c", "data.npz")
    compare = ("validate", "model.onnx", "small.onnx", "--inputs", "data.npz")
    text = cli(*compare, "--gate", "relative_l2<=0.9", "--gate", "size_ratio<=0.8").out
    assert "40 samples of npz file data.npz" in text
    assert text.count("passed") == 2
    text = cli(*compare, "--gate", "relative_l2<=0.9", "--gate", "max_abs<=0", code=1).out
    assert "gate max_abs <= 0: " in text
    assert text.count("FAILED") == 1
    assert "gate relative_l2 <= 0.9: " in text


def test_validate_makes_up_inputs_and_says_so(cli, files):
    text = cli("validate", "model.onnx", "model.onnx", "--gate", "max_abs<=0")
    assert "made-up inputs" in text.err
    assert "16 samples of made-up inputs" in text.out


def test_bench_writes_what_it_measured(cli, files):
    cli("compress", "model.onnx", "-o", "small.onnx", "--save-plan", "plan.json")
    common = ("bench", "model.onnx", "small.onnx", "--iterations", "5", "--loads", "0")
    text = cli(*common, "--plan", "plan.json", "--json", "b.json", "--gate", "speedup.cpu>=0").out
    assert "speed-up" in text
    report = json.loads(Path("b.json").read_text())
    (cpu,) = (b for b in report["benchmarks"] if b["provider"] == "cpu")
    assert cpu["reference"]["iterations"] == 5
    assert cpu["input_shapes"] == {"x": [1, small.FEATURES]}
    assert report["size"]["candidate_bytes"] == Path("small.onnx").stat().st_size
    assert [gate["passed"] for gate in report["gates"]] == [True]
    cli(*common, "--provider", "cpu", "--gate", "p50_ms.cpu<=0", code=1)


def test_run_and_report_repeat_the_verdict(cli, files):
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "calibration": {"kind": "npz", "path": "data.npz"},
        "validation": {"kind": "npz", "path": "data.npz"},
        "gates": [{"quantity": "relative_l2", "max": 0.5}],
        "benchmark": None,
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    text = cli("run", "recipe.yaml", "-o", "bundle", "--params", "0.6").out
    assert "gate relative_l2 <= 0.5" in text
    assert "bundle: bundle" in text
    assert "relative_l2" in cli("report", "bundle").out
    strict = recipe | {"gates": [{"quantity": "relative_l2", "max": 0.0}]}
    Path("recipe.yaml").write_text(json.dumps(strict))
    cli("run", "recipe.yaml", "-o", "bundle", code=1)
    cli("report", "bundle", code=1)
    Path("bundle/model.onnx").write_bytes(b"changed")
    assert "'model.onnx' has changed" in error_line(cli("report", "bundle", code=2))
    cli("report", "bundle", "--no-check", code=1)


def test_one_rank_for_every_layer_instead_of_the_recipes_share(cli, files):
    data = {"kind": "npz", "path": "data.npz"}
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "calibration": data,
        "validation": data,
        "compression": {"params": 0.9},
        "benchmark": None,
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    cli("run", "recipe.yaml", "-o", "bundle", "-m", "svd", "--rank", "6")
    plan = json.loads(Path("bundle/plan.json").read_text())
    ranks = {site["rank"] for site in plan["sites"] if site["decision"] == "factor"}
    assert ranks == {6}
    table = cli("sweep", "recipe.yaml", "-m", "svd", "--rank", "4", "--rank", "6").out
    assert [f"rank {rank}" in table for rank in (4, 5, 6)] == [True, False, True]
    refused = cli("run", "recipe.yaml", "-o", "other", "--rank", "6", "-p", "0.5", code=2)
    assert "params and rank exclude each other" in error_line(refused)


def test_run_shows_each_domain_and_the_worst(cli, files):
    small.save_rows(Path("other.npz"), count=7, seed=5)
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "calibration": {"kind": "npz", "path": "data.npz"},
        "validation": {"kind": "npz", "path": "data.npz"},
        "domains": {"other": {"kind": "npz", "path": "other.npz"}},
        "benchmark": None,
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    lines = [line.split() for line in cli("run", "recipe.yaml", "-o", "b").out.splitlines()]
    assert ["figure", "validation", "other", "worst"] in lines
    (row,) = (line for line in lines if line[:1] == ["relative_l2"])
    assert row[3] == max(row[1:3], key=float)
    assert ["other:", "7", "samples", "of", "npz", "file", "other.npz"] in lines


@pytest.mark.parametrize("place", ["domains", "broader"])
def test_code_of_a_further_set_needs_permission(cli, files, place):
    loader = {"kind": "python", "loader": "rows.py:rows"}
    Path("rows.py").write_text("def rows(): raise SystemExit('was run')")
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "validation": {"kind": "npz", "path": "data.npz"},
        "calibration": {"kind": "npz", "path": "data.npz"},
        "compression": {"shrinkage": "identity:0.1"},
        place: {"other": loader},
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    assert "rows.py:rows" in error_line(cli("run", "recipe.yaml", "-o", "b", code=2))


def test_run_takes_the_method_from_the_command_line(cli, files):
    recipe = {"name": "tiny", "source": {"model": "model.onnx"}, "benchmark": None}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    cli("run", "recipe.yaml", "-o", "b", "-m", "svdlora:stages=2")
    site = json.loads(Path("b/plan.json").read_text())["sites"][0]
    assert site["method"] == {"name": "svdlora", "options": {"stages": 2}}
    cli("run", "recipe.yaml", "-o", "b", "-m", "asvd", code=2)


def test_run_takes_another_budget_from_the_command_line(cli, files):
    recipe = {"name": "tiny", "source": {"model": "model.onnx"}, "benchmark": None}
    Path("recipe.yaml").write_text(json.dumps(recipe | {"compression": {"params": 0.6}}))
    text = cli("run", "recipe.yaml", "-o", "b", "--flops", "0.5").out
    assert "predicted FLOPs" in text
    plan = json.loads(Path("b/plan.json").read_text())
    assert plan["budget"] == "50% of FLOPs, uniform"
    assert 0.4 < plan["cost"]["after"] / plan["cost"]["before"] <= 0.5
    assert "Selected linear layers, predicted FLOPs" in Path("b/summary.md").read_text()
    for limits in (("--bytes", "0.5"), ("--max-drop", "0.1")):
        refused = cli("run", "recipe.yaml", "-o", "c", "--flops", "0.5", *limits, code=2)
        assert "flops" in error_line(refused)
        assert "exclude each other" in error_line(refused)


def test_store_rounds_the_factors_in_the_file(cli, files):
    for store in ("same", "int8"):
        cli("compress", "model.onnx", "-o", f"{store}.onnx", "-p", "0.5", "--store", store)
    same, rounded = (Path(f"{store}.onnx").stat().st_size for store in ("same", "int8"))
    assert rounded < 0.6 * same
    refused = cli("compress", "model.onnx", "-o", "x.onnx", "--store", "int3", code=2)
    assert "'int3' is none of 'same'" in error_line(refused)
    assert not Path("x.onnx").exists()


def test_run_stores_as_the_command_line_says(cli, files):
    recipe = {"name": "tiny", "source": {"model": "model.onnx"}, "benchmark": None}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    cli("run", "recipe.yaml", "-o", "b", "--store", "float16")
    plan = json.loads(Path("b/plan.json").read_text())
    assert {site["store"] for site in plan["sites"] if site["rank"]} == {"float16"}


def test_compress_recovers_for_as_long_as_it_is_told(cli, files):
    cli("compress", "model.onnx", "-o", "plain.onnx", "-m", "svd", "-p", "0.4")
    recovered = ("-o", "better.onnx", "-m", "svd", "-p", "0.4", "-c", "data.npz", "--recover", "9s")
    text = cli("compress", "model.onnx", *recovered).out
    assert "recovery: distance on held-out batches" in text
    with np.load("data.npz") as data:
        feeds = {"x": data["x"]}
    plain, better, reference = (
        run(open_session(Path(f"{name}.onnx")), feeds)["y"] for name in ("plain", "better", "model")
    )
    assert np.linalg.norm(better - reference) < 0.8 * np.linalg.norm(plain - reference)


def test_compress_recovers_neurons_and_factors(cli, files):
    half = ("-c", "data.npz", "-m", "neurons", "-p", "0.5", "--recover", "2s")
    text = cli("compress", "model.onnx", "-o", "neurons.onnx", *half).out
    assert "recovery: distance on held-out batches" in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["-o", "x.onnx", "--recover", "10min"], "give --calibration"),
        (["-c", "data.npz", "--dry-run", "--recover", "10min"], "--dry-run does not write"),
        (["-o", "x.onnx", "-c", "data.npz", "--recover", "soon"], "write 90s, 10min or 1h"),
        (
            ["-o", "x.onnx", "-c", "data.npz", "--recover", "9s", "--store", "int8"],
            "--store int8 rounds them",
        ),
    ],
)
def test_what_recover_refuses(cli, files, options, problem):
    assert problem in error_line(cli("compress", "model.onnx", *options, code=2))
    assert not (files / "x.onnx").exists()


def test_run_recovers_as_the_command_line_says(cli, files):
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "calibration": {"kind": "npz", "path": "data.npz"},
        "recovery": {"budget": None, "steps": 3, "train": "factors"},
        "benchmark": None,
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    assert "(3 steps" in cli("run", "recipe.yaml", "-o", "bundle", "--recover", "1h").out
    report = json.loads(Path("bundle/report.json").read_text())
    assert report["recovery"]["steps"] == 3
    assert "recovery" in Path("bundle/summary.md").read_text().lower()


EXTRAS = {"torch", "transformers", "optimum", "datasets", "sklearn", "onnxscript", "matplotlib"}


WORK_ON_A_FILE = (
    "analyze model.onnx",
    "compress model.onnx -o small.onnx -c data.npz --no-cache",
    "validate model.onnx small.onnx --inputs data.npz --gate relative_l2<=0.5",
    "bench model.onnx small.onnx --iterations 5 --provider cpu --loads 0",
)


def test_work_on_an_onnx_file_imports_no_optional_package(files):
    python("-c", WITHOUT.format(banned=EXTRAS, commands=WORK_ON_A_FILE))
    assert (files / "small.onnx").exists()


def test_the_proof_above_would_notice_an_import(files):
    script = WITHOUT.format(banned={"scipy"}, commands=WORK_ON_A_FILE)
    with pytest.raises(AssertionError, match="imported scipy"):
        python("-c", script)


@pytest.mark.slow
def test_export_writes_the_onnx_model_of_a_factory(files):
    (files / "factory.py").write_text(
        "import torch\n"
        "def build():\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU())\n"
        "    return model, {'input': torch.zeros(2, 6)}\n"
    )
    done = start("export", "factory:build", "--allow-code", "-o", "exported.onnx")
    assert "relative L2 to PyTorch" in done.stdout
    written = {path.name for path in files.iterdir()} - {"__pycache__"}
    assert written == {"data.npz", "exported.onnx", "factory.py", "model.onnx"}
    (value,) = onnx.load("exported.onnx").graph.input
    assert value.type.tensor_type.shape.dim[1].dim_value == 6
