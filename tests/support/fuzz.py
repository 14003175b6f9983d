"""Damaged files of strangers: ``python tests/support/fuzz.py SECONDS [SEED]``.

Valid files are damaged (bytes flipped, cut, doubled, spliced with others) and read. A reader
either reads them or raises a ``CompressOnnxError``; anything else is a defect, and the file that
shows it is kept.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import small_models as small  # noqa: E402

from compress_onnx.graph_passes.errors import CompressOnnxError  # noqa: E402
from compress_onnx.graph_passes.planning.plan import read_plan  # noqa: E402
from compress_onnx.graph_passes.planning.planner import make_plan  # noqa: E402
from compress_onnx.graph_passes.planning.request import CompressionSpec  # noqa: E402
from compress_onnx.graph_passes.sites.find import find_sites  # noqa: E402
from compress_onnx.pipeline.data.npz import load_npz  # noqa: E402
from compress_onnx.pipeline.files.bundle import verify_manifest, write_manifest  # noqa: E402
from compress_onnx.pipeline.files.model_file import load_model, referred_files  # noqa: E402
from compress_onnx.pipeline.recipe import read_recipe  # noqa: E402
from compress_onnx.pipeline.report import read_report  # noqa: E402

RECIPE = """name: tiny
source: {model: model.onnx, opset: 23}
calibration: {kind: npz, path: data.npz, limit: 40}
domains: {other: {kind: text, path: words.txt}}
compression: {params: 0.5, method: {name: svdlora, stages: 3}}
gates: [{quantity: cosine, min: 0.99}]
benchmark: {batch: [1, 8], length: 128}
"""


def seeds(folder: Path) -> dict[str, bytes]:
    """A valid file for each reader."""
    model = small.save(small.perceptron(), folder / "model.onnx")
    encoder = small.save_external(small.encoder(), folder / "encoder.onnx")
    data = small.save_rows(folder / "data.npz", count=4)
    loaded = load_model(model)
    plan = make_plan(find_sites(loaded), CompressionSpec(method={"name": "svd"}, params=0.5))
    (folder / "bundle").mkdir()
    (folder / "bundle" / "a.txt").write_text("a")
    manifest = write_manifest(folder / "bundle")
    return {
        "model": model.read_bytes(),
        "external": encoder.read_bytes(),
        "archive": data.read_bytes(),
        "plan": plan.model_dump_json().encode(),
        "recipe": RECIPE.encode(),
        "manifest": manifest.model_dump_json().encode(),
        "report": json.dumps({"schema_version": 1, "kind": "run", "gates": []}).encode(),
    }


def _read_model(path: Path) -> None:
    referred_files(path)
    find_sites(load_model(path))


def _read_manifest(path: Path) -> None:
    folder = path.parent / "bundle"
    (folder / "manifest.json").write_bytes(path.read_bytes())
    verify_manifest(folder)


READERS: Mapping[str, Callable[[Path], object]] = {
    "model": _read_model,
    "external": _read_model,
    "archive": load_npz,
    "plan": read_plan,
    "recipe": read_recipe,
    "manifest": _read_manifest,
    "report": read_report,
}


def damaged(content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """``content`` with one to four changes."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(len(out) + 1))
        end = min(len(out), start + int(rng.integers(1, 64)))
        match rng.integers(6):
            case 0:
                out[start:end] = rng.bytes(end - start)
            case 1:
                del out[start:end]
            case 2:
                out[start:start] = out[start:end]
            case 3:
                other = others[rng.integers(len(others))]
                place = int(rng.integers(len(other)))
                out[start:end] = other[place : place + end - start]
            case 4:
                out[start:end] = bytes([rng.choice([0, 127, 128, 255])]) * (end - start)
            case _:
                del out[start:]
    return bytes(out)


def fuzz(seconds: float, seed: int = 0, keep: Path = Path("build/fuzz")) -> dict[str, int]:
    """Damage and read for so long; returns how often each reader was tried.

    Raises:
        AssertionError: a reader raised something else than it may.
    """
    # What onnx_ir warns of while it reads, the reader checks and refuses.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="onnx_ir")
    rng, tried = np.random.default_rng(seed), dict.fromkeys(READERS, 0)
    deadline = time.monotonic() + seconds
    with TemporaryDirectory() as place:
        folder = Path(place)
        valid = seeds(folder)
        contents = list(valid.values())
        while time.monotonic() < deadline:
            for kind, reader in READERS.items():
                content = damaged(valid[kind], contents, rng)
                path = folder / f"damaged.{'onnx' if kind in {'model', 'external'} else kind}"
                path.write_bytes(content)
                tried[kind] += 1
                try:
                    reader(path)
                except CompressOnnxError:
                    continue
                except BaseException as error:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{kind}-{tried[kind]}").write_bytes(content)
                    raise AssertionError(f"{kind}, number {tried[kind]} of seed {seed}") from error
    return tried


if __name__ == "__main__":
    print(fuzz(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))  # noqa: T201
