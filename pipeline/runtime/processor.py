"""What the CPU is: its model name, and the instruction sets that low-precision products can use.

The operating system is asked: Linux has both in ``/proc/cpuinfo``, macOS in ``sysctl``. Of other
systems no instruction set is known.
"""

from __future__ import annotations

import functools
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

# As Linux calls them; on macOS `sysctl` has the same names without underscores, or ARM's own.
_X86 = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_fp16": "AVX-512 fp16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "amx_fp16": "AMX fp16",
}
_ARM = {
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "asimdhp": "fp16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}
_ARM_ON_MACOS = {
    "FEAT_DotProd": "dotprod",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_FP16": "fp16",
    "FEAT_SME": "SME",
}
_X86_ON_MACOS = {flag.replace("_", "").upper(): name for flag, name in _X86.items()}


@functools.cache
def processor_name() -> str:
    """The CPU's model name, or the best that the platform says about it."""
    named = re.search(r"^model name\s*:\s*(.*\S)", _cpuinfo(), re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Those of this CPU that speed up products of floats or integers; none where nobody says."""
    if sys.platform == "darwin":
        return on_macos(_sysctl("machdep.cpu.leaf7_features", "hw.optional.arm"))
    return on_linux(_cpuinfo())


def on_linux(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets that ``/proc/cpuinfo`` lists for the first core."""
    line = re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if line is None:
        return ()
    return _known(line[2].split(), _X86 if line[1] == "flags" else _ARM)


def on_macos(sysctl: str) -> tuple[str, ...]:
    """The instruction sets in lines ``machdep.cpu.…: AVX2 …`` and ``hw.optional.arm.…: 1``."""
    flags = re.findall(r"^hw\.optional\.arm\.(\w+): 1$", sysctl, re.MULTILINE)
    words = re.findall(r"^machdep\.cpu\.\w+: (.*)$", sysctl, re.MULTILINE)
    return _known([*flags, *" ".join(words).split()], {**_ARM_ON_MACOS, **_X86_ON_MACOS})


def _known(flags: Collection[str], names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for flag, name in names.items() if flag in flags)


@functools.cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(*names: str) -> str:
    """What macOS says about ``names``; it leaves out what this machine does not have."""
    try:
        done = subprocess.run(  # noqa: S603  # fixed words
            ["/usr/sbin/sysctl", *names], check=False, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
