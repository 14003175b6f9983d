"""``--max-drop`` finds the smallest model within a drop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_models as small
from cli_runner import error_line

from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run


def error_on(rows, path):
    reference, ours = (run(open_session(Path(p)), {"x": rows})["y"] for p in ("model.onnx", path))
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def classes_of(path, rows):
    return run(open_session(Path(path)), {"x": rows})["y"].argmax(axis=1)


def test_max_drop_holds_samples_out_and_finds_the_smallest_share(cli, files):
    arguments = ("-c", "data.npz", "--max-drop", "0.2", "-o", "small.onnx")
    text = cli("compress", "model.onnx", *arguments, "--save-plan", "plan.json")
    held_out = "npz file data.npz, every 5th, held out of calibration"
    assert f"chosen on 4 samples of {held_out}, the half that chose the share" in text.out
    assert f"on 4 samples of {held_out}, the half that chose nothing, is" in " ".join(
        text.out.split()
    ).replace("nothing is", "nothing, is")
    share = float(text.out.split("within a drop of 0.2: ")[1].split("%")[0]) / 100
    plan = json.loads(Path("plan.json").read_text())
    assert "smallest share within a drop of 0.2" in plan["notes"][-1]
    assert plan["budget"].startswith(f"{share:.0%}")
    with np.load("data.npz") as data:
        rows = data["x"][4::5]
        rest = Samples({"x": np.delete(data["x"], np.s_[4::5], axis=0)})
    chosen, reported = rows[1::2], rows[::2]
    assert 0.05 < error_on(chosen, "small.onnx") <= 0.2
    assert f"{error_on(reported, 'small.onnx'):.4g}"[:5] in text.out
    # A sixty-fourth less is too much.
    less = learn(Path("model.onnx"), rest).compress(CompressionSpec(params=share - 1 / 64))
    less.write("less.onnx")
    assert error_on(chosen, "less.onnx") > 0.2


def test_max_drop_with_labels_is_one_of_accuracy(cli, files):
    with np.load(small.save_rows(files / "heldout.npz", count=100, seed=5)) as data:
        rows = data["x"]
    labels = classes_of("model.onnx", rows)
    np.savez("heldout.npz", x=rows, labels=labels)
    searched = ("--validation", "heldout.npz", "--max-drop", "0.1", "-o", "small.onnx")
    text = cli("compress", "model.onnx", "-c", "data.npz", "--no-cache", *searched).out
    assert "chosen on 50 samples of npz file heldout.npz, the half that chose the share" in text
    lost = np.mean(classes_of("small.onnx", rows[1::2]) != labels[1::2])
    assert 0.02 < lost <= 0.1


def test_max_drop_needs_no_calibration_where_there_is_validation(cli, files):
    searched = ("--validation", "data.npz", "--max-drop", "0.7", "-o", "small.onnx")
    text = cli("compress", "model.onnx", *searched)
    assert "chosen on 20 samples of npz file data.npz, the half that chose the share" in text.out
    assert "no --calibration" in text.err
    with np.load("data.npz") as data:
        assert 0.5 < error_on(data["x"][1::2], "small.onnx") <= 0.7


def test_max_drop_on_a_pooled_output_is_one_of_cosine(cli, files):
    small.save(small.encoder(), files / "encoder.onnx")
    np.savez("sentences.npz", **small.sentences(40))
    searched = ("-c", "sentences.npz", "--max-drop", "0.05", "--objective", "pooled")
    text = cli("compress", "encoder.onnx", "-o", "small.onnx", *searched).out
    assert "chosen on 4 samples of npz file sentences.npz" in text
    assert "within a drop of 0.05" in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--max-drop", "0.1"], "give --validation, or --calibration"),
        (["--max-drop", "0.1", "-c", "data.npz", "-p", "0.5"], "--params and --max-drop exclude"),
        (
            ["--max-drop", "0.1", "-c", "data.npz", "--bytes", "0.5"],
            "--bytes and --max-drop exclude",
        ),
        (["--max-drop", "0.1", "-c", "data.npz", "--rank", "8"], "--rank and --max-drop exclude"),
        (["--max-drop", "0.1", "-c", "data.npz", "--plan", "p"], "--plan and --max-drop exclude"),
        (["--max-drop", "0.1", "-c", "few.npz"], "9 samples are too few to hold every 5th out"),
        (["--validation", "data.npz"], "what --max-drop is measured on"),
    ],
)
def test_what_max_drop_refuses(cli, files, options, problem):
    small.save_rows(files / "few.npz", count=9)
    command = ("compress", "model.onnx", "-o", "x.onnx")
    assert problem in error_line(cli(*command, *options, code=2))
    assert not (files / "x.onnx").exists()


def test_no_share_within_the_drop_is_exit_code_3(cli, files):
    searched = ("-o", "x.onnx", "--validation", "data.npz", "--max-drop", "0")
    assert "no share up to 98%" in error_line(cli("compress", "model.onnx", *searched, code=3))
    assert not (files / "x.onnx").exists()
