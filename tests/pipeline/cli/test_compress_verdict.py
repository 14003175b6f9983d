"""``compress`` ends with what the result is worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models as small
from cli_runner import error_line

import compress_onnx


def verdict(text):
    (line,) = (line for line in text.splitlines() if line.startswith("verdict: "))
    return line.removeprefix("verdict: ")


def test_compress_prints_size_speed_held_out_error_and_a_verdict(cli, files):
    text = cli("compress", "model.onnx", "-o", "small.onnx", "-c", "data.npz").out
    assert "files 35.8 kB -> " in text
    assert "latency p50 " in text
    assert f"inputs x 1x{small.FEATURES}" in text
    assert "outputs: relative_l2 0." in text
    assert "every 5th, held out of calibration" in text
    assert verdict(text).startswith("deploy: ")


def test_without_data_it_says_to_validate_first(cli, files):
    text = cli("compress", "model.onnx", "-o", "small.onnx", "--no-benchmark").out
    assert verdict(text).startswith("validate first: ")
    assert "speed not measured" in verdict(text)
    assert "latency p50" not in text


def test_a_larger_result_is_a_warning_and_not_worth_it(cli, files):
    larger = ("--rank", "999", "--allow-larger", "--no-benchmark")
    text = cli("compress", "model.onnx", "-o", "large.onnx", *larger).out
    assert "warning: larger than the original: " in text
    assert verdict(text).startswith("not worth it: ")


def test_what_loses_most_of_the_outputs_is_not_worth_it(cli, files):
    lossy = ("--method", "svd", "--rank", "1", "-c", "data.npz", "--no-benchmark")
    text = cli("compress", "model.onnx", "-o", "small.onnx", *lossy).out
    assert verdict(text).startswith("not worth it: it loses ")


def test_a_dry_run_has_nothing_to_judge(cli, files):
    text = cli("compress", "model.onnx", "--dry-run").out
    assert "verdict" not in text


def test_the_verdict_of_a_search_goes_by_its_drop_on_samples_that_chose_nothing(cli, files):
    search = ("--validation", "data.npz", "--max-drop", "0.3", "--no-benchmark")
    text = cli("compress", "model.onnx", "-o", "small.onnx", *search).out
    assert "outputs: relative_l2 " in text
    assert "on 20 samples of npz file data.npz, the half that chose nothing" in text
    assert verdict(text).split(":")[0] in {"deploy", "not worth it"}


def test_a_search_that_fails_shows_what_it_measured(cli, files):
    search = ("-o", "x.onnx", "--validation", "data.npz", "--max-drop", "0")
    said = cli("compress", "model.onnx", *search, code=3)
    header, *rows = said.out.strip().splitlines()
    assert header.split() == ["share", "drop", "95", "%", "interval", "within"]
    assert [row.split()[0] for row in rows] == [
        "98.4%",
        "96.9%",
        "93.8%",
        "87.5%",
        "75.0%",
        "50.0%",
    ]
    assert all(float(row.split()[1]) > 0 for row in rows)
    least = min(float(row.split()[1]) for row in rows)
    assert f"has {least:.4g} of relative_l2" in error_line(said)
    assert not Path("x.onnx").exists()


@pytest.mark.parametrize("timed", [True, False])
def test_the_api_judges_two_models(files, timed):
    compress_onnx.compress("model.onnx", "small.onnx", "data.npz")
    found = compress_onnx.judge("model.onnx", "small.onnx", "data.npz", timed=timed)
    assert found.advice == "deploy"
    assert (found.benchmark is not None) == timed
    assert found.drop.quantity == "relative_l2"
    assert found.size.candidate_bytes == Path("small.onnx").stat().st_size
    assert compress_onnx.judge("model.onnx", "model.onnx", timed=False).advice == "not worth it"
