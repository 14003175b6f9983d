"""Which sites the user asked for: glob patterns on module paths, and a group.

A site that several siblings were joined into is seen by the names of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.request import Selection
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.validation_text import suggestion


def check_patterns(select: Selection, sites: Sequence[LinearSite]) -> None:
    """Make sure that every pattern is about something.

    Raises:
        RequestError: one matches no site.
    """
    names = [name for site in sites for name in _names(site)]
    for pattern in (*select.include, *select.exclude):
        if names and not any(fnmatchcase(name, pattern) for name in names):
            like = suggestion(pattern, names) or f"; the first is {sites[0].name!r}"
            raise RequestError(
                f"the pattern {pattern!r} matches no linear site{like} "
                "(compress-onnx analyze lists them all)"
            )


def why_unselected(site: LinearSite, select: Selection) -> str | None:
    """Why nobody asked for ``site``; None where somebody did."""
    if select.group not in {"all", site.group}:
        return f"not in the group {select.group}"
    for name in _names(site):
        if not any(fnmatchcase(name, pattern) for pattern in select.include):
            return "not included by any pattern"
        for pattern in select.exclude:
            if fnmatchcase(name, pattern):
                return f"excluded by {pattern!r}"
    return None


def _names(site: LinearSite) -> tuple[str, ...]:
    return tuple(site.siblings) or (site.name,)
