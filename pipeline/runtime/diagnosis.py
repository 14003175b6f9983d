"""What works on this machine: providers, extras, instruction sets. Nothing is changed."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

from compress_onnx.pipeline.results import Diagnosis, ExtraState
from compress_onnx.pipeline.runtime.environment import adds_int8_exactly, environment
from compress_onnx.pipeline.runtime.session import provider_problems

_DISTRIBUTION = "compress-onnx"
_RUNTIMES = {"cpu", "gpu", "openvino"}
"""Extras of which one is installed at a time."""


def diagnosis() -> Diagnosis:
    """Try every provider, and look for the packages of every extra."""
    return Diagnosis(
        tool_version=metadata.version(_DISTRIBUTION),
        environment=environment(),
        providers={str(name): problem for name, problem in provider_problems().items()},
        exact_int8=adds_int8_exactly(),
        extras=_extras(),
    )


def _extras() -> dict[str, ExtraState]:
    """By extra, what it needs and what of that is missing; those for runtimes are left out."""
    needed: dict[str, list[Requirement]] = {}
    for text in metadata.requires(_DISTRIBUTION) or ():
        requirement = Requirement(text)
        for extra in metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or ():
            marker = requirement.marker
            if extra in _RUNTIMES or marker is None or marker.evaluate({"extra": ""}):
                continue
            if marker.evaluate({"extra": extra}):
                needed.setdefault(extra, []).append(requirement)
    return {
        extra: ExtraState(
            packages=tuple(str(one.name) for one in requirements),
            missing=tuple(filter(None, map(_problem, requirements))),
        )
        for extra, requirements in needed.items()
    }


def _problem(requirement: Requirement) -> str | None:
    """What is wrong with an installed package, or that there is none."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return requirement.name
    fits = requirement.specifier.contains(found, prereleases=True)
    return None if fits else f"{requirement.name} is {found}, not {requirement.specifier}"
