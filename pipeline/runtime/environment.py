"""What a run's figures were measured with: versions and the machine, without importing anything."""

from __future__ import annotations

import platform
from importlib import metadata

from compress_onnx.pipeline.results import Environment
from compress_onnx.pipeline.runtime.processor import instruction_sets, processor_name
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
        processor=processor_name(),
        cores=available_cores(),
        instruction_sets=instruction_sets(),
        packages={name: found for name in PACKAGES if (found := _version(name)) is not None},
    )


def adds_int8_exactly() -> bool:
    """Whether this CPU adds products of uint8 and int8 up in 32 bits.

    x86 without VNNI adds pairs of them up in 16 bits, which weights beyond 7 bits overflow.
    """
    if platform.machine().lower() in {"aarch64", "arm64"}:
        return True
    return not {"AVX-512 VNNI", "AVX-VNNI", "AMX int8"}.isdisjoint(instruction_sets())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
