"""Bundles of a real encoder, loaded by the real thing: ``make load-test`` and ``make serve-test``.

These run in environments of their own (requirements/targets.txt, requirements/mlserver.txt), so
they import nothing of this project; so do those of ``make olive-test``, which need no bundles.
``COMPRESS_ONNX_BUNDLES`` is the folder that the Makefile made:

    minilm/          what `compress-onnx run models/minilm.yaml` left, with its report
    original.onnx    the same encoder, uncompressed
    digits-vit/      what `compress-onnx run models/digits-vit.yaml` left: layers of low rank
    digits-vit.onnx  the same classifier, uncompressed
    sentences.json   what the report was measured on
    nodes.json       what the nodes of its model tell, for Model Explorer
    TARGET/          one folder for each target
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

WHERE = "COMPRESS_ONNX_BUNDLES"


@pytest.fixture(scope="session")
def bundles() -> Path:
    """The folder with everything."""
    if WHERE not in os.environ:
        pytest.skip("needs bundles and environments of their own: make load-test, make serve-test")
    return Path(os.environ[WHERE]).resolve()


@pytest.fixture(scope="session")
def sentences(bundles: Path) -> list[str]:
    """The validation sentences, of which a half chose the form and the other reported."""
    return json.loads((bundles / "sentences.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def report(bundles: Path) -> dict:
    """What the run said about its model."""
    return json.loads((bundles / "minilm" / "report.json").read_text(encoding="utf-8"))
