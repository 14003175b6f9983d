"""Instruction sets, from what operating systems print."""

from __future__ import annotations

import pytest

from compress_onnx.pipeline.runtime import environment as environment_module
from compress_onnx.pipeline.runtime.environment import adds_int8_exactly, environment
from compress_onnx.pipeline.runtime.processor import (
    instruction_sets,
    on_linux,
    on_macos,
    processor_name,
)

X86 = """processor\t: 0
model name\t: Some CPU
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_int8 avx_vnni

processor\t: 1
flags\t\t: fpu sse2 amx_fp16
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp sve i8mm bf16\nCPU part\t: 0xd40\n"


def test_of_x86_on_linux():
    assert on_linux(X86) == (
        "AVX2",
        "AVX-512",
        "AVX-512 VNNI",
        "AVX-VNNI",
        "AVX-512 bf16",
        "AVX-512 fp16",
        "AMX int8",
        "AMX bf16",
    )


def test_of_arm_on_linux():
    assert on_linux(ARM) == ("dotprod", "i8mm", "bf16", "fp16", "SVE")


@pytest.mark.parametrize("text", ["", "processor : 0\n", "flags\t: fpu avx2x xavx2\n"])
def test_what_is_not_listed_is_not_there(text):
    assert on_linux(text) == ()


def test_of_macos():
    intel = "machdep.cpu.leaf7_features: BMI1 AVX2 AVX512F AVX512VNNI\n"
    assert on_macos(intel) == ("AVX2", "AVX-512", "AVX-512 VNNI")
    apple = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    assert on_macos(apple + "hw.optional.arm.FEAT_FP16: 1\n") == ("dotprod", "fp16")


def test_this_machine_is_described():
    found = environment()
    assert found.instruction_sets == instruction_sets()
    assert found.processor == processor_name() != ""


@pytest.mark.parametrize(
    ("machine", "sets", "exact"),
    [
        ("x86_64", ("AVX2", "AVX-512"), False),
        ("x86_64", ("AVX2", "AVX-VNNI"), True),
        ("x86_64", ("AVX2", "AVX-512 VNNI"), True),
        ("x86_64", ("AMX int8",), True),
        ("x86_64", (), False),
        ("arm64", (), True),
    ],
)
def test_who_adds_int8_exactly(monkeypatch, machine, sets, exact):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(environment_module, "instruction_sets", lambda: sets)
    assert adds_int8_exactly() is exact
