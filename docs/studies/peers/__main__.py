"""Measure all methods and write the document: ``python -m studies.peers``."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.runtime.environment import environment
from studies.peers.course import COURSES, QUICK, CourseReport, run_course
from studies.peers.page import render


def main() -> None:
    """Run the courses; the document is written after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/peers.md"))
    parser.add_argument("--only", choices=COURSES, help="one model instead of all")
    parser.add_argument("--no-recovery", action="store_true", help="leave recovery out")
    parser.add_argument("--quick", action="store_true", help="the digits only, few samples")
    parser.add_argument(
        "--cached",
        action="store_true",
        help="take activations and gradients from the cache, and leave their seconds out",
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("studies").setLevel(logging.INFO)
    cache = ArrayCache(default_folder()) if arguments.cached else None
    courses = [COURSES[arguments.only]] if arguments.only else list(COURSES.values())
    command = " ".join(["python -m studies.peers", *sys.argv[1:]])
    reports: list[CourseReport] = []
    for course in [QUICK] if arguments.quick else courses:
        shares = () if arguments.no_recovery else course.recovered
        reports.append(run_course(replace(course, recovered=shares), cache=cache))
        text = render(reports, environment(), command=command, cached=arguments.cached)
        with atomic_file(arguments.output) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
