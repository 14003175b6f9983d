"""What a run's figures were measured with: versions and the machine, without importing anything."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from compress_onnx.pipeline.results import Environment
from compress_onnx.pipeline.runtime.threads import available_cores

PACKAGES = (
    "numpy",
    "scipy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
)


def environment() -> Environment:
    """Describe this interpreter, this machine, and those of ``PACKAGES`` that are installed."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        cores=available_cores(),
        packages={name: found for name in PACKAGES if (found := _version(name)) is not None},
    )


def adds_int8_exactly() -> bool:
    """Whether this CPU adds products of uint8 and int8 up in 32 bits.

    x86 without VNNI adds pairs of them up in 16 bits, which weights beyond 7 bits overflow.
    """
    if platform.machine().lower() in {"aarch64", "arm64"}:
        return True
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(f" {flag}" in known for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The model name of the CPU; Linux keeps it in ``/proc``, others in ``platform``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
