"""The same measurement on each execution provider that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from compress_onnx.graph_passes.errors import ProviderError
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS, Provider

T = TypeVar("T")
Requested = Literal["auto"] | Provider
"""A provider by name, or ``auto``: each that works here."""


def measure_on(
    requested: Sequence[Requested], measure: Callable[[Provider], T]
) -> tuple[tuple[T, ...], dict[str, str]]:
    """Measure once on each provider, in the order in which they were asked for.

    Args:
        requested: providers, or ``auto``.
        measure: measures on one provider.

    Returns:
        What was measured, and for each provider that ``auto`` could not measure the reason.

    Raises:
        ProviderError: a provider that was asked for by name does not work here.
    """
    measured: dict[str, T] = {}
    unmeasured: dict[str, str] = {}
    for name in requested:
        for provider in EXECUTION_PROVIDERS if name == "auto" else (name,):
            if provider in measured:
                continue
            try:
                measured[provider] = measure(provider)
            except ProviderError as error:
                if provider in requested:
                    raise
                unmeasured[provider] = str(error)
    return tuple(measured.values()), unmeasured
