"""The page of bundles: ``python -m studies.deploy PACKAGE ORIGINAL PAGE``.

Each target's tree, as it was laid out, and the lines that load it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.pipeline.deploy.package import read_package
from compress_onnx.pipeline.deploy.targets import TARGETS, bundle, loading_lines
from compress_onnx.pipeline.files.atomic import atomic_file

NAME = "minilm"

SHOWN: Mapping[str, str] = {
    "sentence-transformers": "Loaded by `make load-test`: the embeddings are as close to the "
    "original pipeline's as the report says.",
    "tei": "Not run here: its server comes as a container. Names, types and pooling are checked "
    "against what its ONNX backend reads.",
    "fastembed": "Loaded by `make load-test`.",
    "transformers-js": "Loaded by `make load-test` in Node.",
    "optimum": "Loaded by `make load-test`.",
    "triton": "Not run here: its server comes as a container. `config.pbtxt` is written and read "
    "back by Triton's own message.",
    "kserve": "Not run here: its runtime for ONNX is Triton, which gets the same repository.",
    "mlserver": "Served by `make serve-test`; figures in [serving.md](serving.md).",
    "vespa": "Not run here: its server comes as a container.",
    "opensearch": "Not run here: its server comes as a container.",
    "ort": "Run by `make load-test` in Node, in headless Chromium and by ONNX's own evaluator.",
}
"""By what each bundle was shown to load."""


def page(folder: Path, original: Path) -> Iterator[str]:
    """The page, of bundles that are laid out for it."""
    yield "# Bundles"
    yield ""
    yield (
        "Written by `make deploy-page`. `compress-onnx bundle DIR --target NAME -o OUT` lays a "
        "model out for the place that serves it; `deploy: [triton, …]` in a recipe does it with "
        "every run. Every bundle has a manifest of SHA-256 sums, and in `provenance/` the report, "
        "the plan and a CycloneDX record of where the weights came from. Bundles in the hub's "
        "layout have a model card, `README.md`, with the figures in the form `model-index`; what "
        "the model was made from is the report's hub id, or `--base-model ORGANIZATION/NAME`. The "
        "licence is the one that the original's card, its `config.json`, the model's metadata or a "
        "file LICENSE names; where none does, the card says that it has to be asked for. What "
        "`run` leaves of a translation model has a card too, with BLEU and chrF of each language. "
        "With `--original`, the uncompressed model stands beside it where the target knows "
        "versions."
    )
    yield ""
    yield (
        "Requests share a batch in Triton only where answers do not depend on the batch: the "
        "report's `batch_invariance`, or one that is measured then, has to be 0.99999. A model "
        "that ONNX Runtime quantized dynamically has less, and is served without."
    )
    for name, target in TARGETS.items():
        package = read_package(folder, NAME, original=original if target.versions else None)
        with TemporaryDirectory(prefix="compress-onnx-") as place:
            out = Path(place) / "OUT"
            notes = bundle(package, name, out)
            yield ""
            yield f"## {name}"
            yield ""
            yield SHOWN[name]
            yield ""
            yield "```text"
            yield from tree(out)
            yield "```"
            yield ""
            yield "```text"
            yield loading_lines(package, name, Path("OUT"))
            yield "```"
            for note in notes:
                yield ""
                yield f"{note[0].upper()}{note[1:]}."


def tree(folder: Path) -> Iterator[str]:
    """Files by path, models with their size."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        told = f"  ({size / 1e6:.0f} MB)" if size > 1e6 else ""
        yield f"{path.relative_to(folder).as_posix()}{told}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("original", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    with atomic_file(given.page) as temporary:
        temporary.write_text("\n".join(page(given.package, given.original)) + "\n")


if __name__ == "__main__":
    main()
