"""Strangers' model files, broken in every way: one clear error or a sound result, never both."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import error_line
from onnx import TensorProto, helper

from graph_passes.errors import CompressOnnxError, ModelFileError
from graph_passes.factorization import METHODS
from graph_passes.request import CompressionSpec
from pipeline.compress import apply_plan, open_subject, plan_subject, spectra_of
from pipeline.model_file import load_model, save_model
from pipeline.session import open_session

REQUEST = CompressionSpec(rank=4)
SECONDS_PER_FILE = 20.0
BYTES_IN_ALL = 2**30


def squeeze(path: Path, output: Path) -> None:
    """What ``analyze`` and then ``compress`` do."""
    subject = open_subject(path)
    plan = plan_subject(subject, REQUEST, None)
    spectra_of(subject, plan, None)
    apply_plan(subject, plan, None)
    save_model(subject.model, output)


def loads(path: Path) -> bool:
    try:
        open_session(path)
    except ModelFileError:
        return False
    return True


def outcome(path: Path, output: Path) -> str:
    """``sound``, ``error``, or ``as bad as it was``; anything else fails the test."""
    folder, before = output.parent, small.listing(output.parent)
    start = time.monotonic()
    try:
        squeeze(path, output)
        result = "sound" if loads(output) else "as bad as it was"
    except CompressOnnxError as error:
        assert "\n" not in str(error)
        result = "error"
    assert time.monotonic() - start < SECONDS_PER_FILE
    if result == "error":
        assert small.listing(folder) == before
    if result == "as bad as it was":
        assert not loads(path), "a model that runs became one that does not"
    output.unlink(missing_ok=True)
    return result


def mutated(content: bytes, kind: str, rng: random.Random) -> bytes:
    changed = bytearray(content)
    if kind == "truncate":
        return content[: rng.randrange(len(content))]
    if kind == "random":
        return rng.randbytes(rng.randrange(2000))
    for _ in range(rng.choice((1, 1, 3, 20))):
        position = rng.randrange(len(changed))
        if kind == "flip":
            changed[position] ^= 1 << rng.randrange(8)
        elif kind == "structure":  # where names, shapes and lengths are, not the weights
            changed[rng.choice((position % 1500, -1 - position % 1500))] ^= 1 << rng.randrange(8)
        else:
            del changed[position : position + rng.choice((1, 4, 100))]
    return bytes(changed)


KINDS = ("truncate", "flip", "structure", "delete", "random")
COUNT = 120  # of each kind, for each of the two models


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_no_mutation_breaks_anything(tmp_path, kind, external):
    rng = random.Random(f"{kind} {external}")
    save = small.save_external if external else small.save
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = save(small.perceptron(), tmp_path / "in" / "model.onnx")
    sound = path.read_bytes()
    found = Counter()
    for _ in range(COUNT):
        path.write_bytes(mutated(sound, kind, rng))
        found[outcome(path, tmp_path / "out" / "small.onnx")] += 1
    assert sum(found.values()) == COUNT
    assert found["error"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 4 * BYTES_IN_ALL
