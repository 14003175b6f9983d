"""``bench``: grids, and what fresh processes take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_models as small
from cli_runner import error_line

BENCH = ("bench", "model.onnx", "model.onnx", "--provider", "cpu", "--iterations", "5")


def test_a_grid_is_a_table_with_a_row_a_shape(cli, files):
    small.save(small.encoder(), Path("model.onnx"))
    grid = ("--batch", "1,3", "--length", "4,6", "--threads", "1,2", "--loads", "0")
    gates = ("--gate", "speedup.cpu.3x6.t2>=0", "--gate", "samples_per_s.cpu<=0")
    text = cli(*BENCH, *grid, *gates, "--json", "b.json", code=1).out
    names = [f"{batch}x{length}.t{t}" for batch in (1, 3) for length in (4, 6) for t in (1, 2)]
    assert [line.split()[0] for line in text.splitlines() if line.startswith("cpu.")][:8] == [
        f"cpu.{name}" for name in names
    ]
    assert "candidate [1/s]" in text
    report = json.loads(Path("b.json").read_text())
    assert [row["case"] for row in report["benchmarks"]] == names
    assert report["benchmarks"][-1]["input_shapes"]["input_ids"] == [3, 6]
    assert report["benchmarks"][-1]["threads"] == 2
    assert [gate["passed"] for gate in report["gates"]] == [True, False]
    assert report["environment"]["instruction_sets"] is not None
    assert report["loadings"] == []


def test_fresh_processes_tell_start_up_and_memory(cli, files):
    text = cli(*BENCH, "--loads", "1", "--json", "b.json", "--gate", "load_ms.cpu>=0").out
    assert "open session" in text
    assert "gate load_ms.cpu" in text
    (loading,) = json.loads(Path("b.json").read_text())["loadings"]
    assert loading["rounds"] == 1
    assert loading["reference_load_ms"] > 0 < loading["load_ratio"]


@pytest.mark.parametrize("option", ["--batch", "--length", "--threads"])
@pytest.mark.parametrize("text", ["0", "1,", "x", "1,-2", "1.5"])
def test_what_is_no_number_is_refused(cli, files, option, text):
    refused = error_line(cli(*BENCH, f"{option}={text}", code=2))
    assert option in refused
    assert "no number above zero" in refused


@pytest.mark.parametrize(
    "gate", ["speedup.cpu.1x128>=1", "speedup.cpu.8x64>=1", "load_ms.cpu<=1", "p50_ms.cpu.t2<=1"]
)
def test_a_gate_on_another_case_is_refused_before_anything_runs(cli, files, gate):
    sizes = () if gate.startswith("speedup.cpu.1x128") else ("--batch", "1,8")
    refused = cli(*BENCH, *sizes, "--loads", "0", "--gate", gate, code=2)
    assert "which is not measured here" in error_line(refused)
