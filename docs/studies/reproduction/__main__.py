"""Run the experiments and write the document: ``python -m studies.reproduction``."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.runtime.environment import environment
from studies.reproduction import (
    attention,
    classification,
    fine_tuning,
    future_work,
    translation,
)
from studies.reproduction.page import keep, kept, write_page
from studies.reproduction.section import Section
from studies.reproduction.workplace import Workplace

EXPERIMENTS: Mapping[str, Callable[[Workplace], Section]] = {
    "svdlora-classification": classification.run,
    "svdlora-translation": translation.run,
    "vit-attention": attention.run_vit,
    "vit-fine-tuning": fine_tuning.run_vit,
    "bert-attention": attention.run_bert,
    "bert-fine-tuning": fine_tuning.run_bert,
    "future-work": future_work.run,
}
"""In the order of the document; each section has the name that it has here."""

logger = logging.getLogger(__name__)


def main() -> None:
    """Run what was asked for; the document is written after each experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/reproduction.md"))
    parser.add_argument("--only", choices=EXPERIMENTS, nargs="+", help="the others stay as kept")
    parser.add_argument("--quick", action="store_true", help="fewer rows, less data: no results")
    parser.add_argument(
        "--published", action="store_true", help="the published set-ups, from the hub, not twins"
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("studies").setLevel(logging.INFO)
    page: Path = arguments.output
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    cache = ArrayCache(default_folder())
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        place = Workplace(Path(work), folder, arguments.quick, arguments.published, cache)
        for name in arguments.only or EXPERIMENTS:
            try:
                keep(_measured(name, place), folder)
            except CompressOnnxError as error:
                parser.exit(error.exit_code, f"error: {name}: {error}\n")
            write_page(kept(tuple(EXPERIMENTS), folder), page, folder)


def _measured(name: str, place: Workplace) -> Section:
    logger.info("%s", name)
    begun = time.perf_counter()
    section = EXPERIMENTS[name](place)
    seconds = round(time.perf_counter() - begun, 1)
    measured = {
        "quick": place.quick,
        "as_published": place.published,
        "seconds": seconds,
        "environment": environment(),
    }
    return section.model_copy(update=measured)


if __name__ == "__main__":
    main()
