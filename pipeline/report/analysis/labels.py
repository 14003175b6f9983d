"""What kinds of sites are called, and which of them are drawn, where there are many."""

from __future__ import annotations

from collections.abc import Sequence

MOST_PANELS = 8
"""Kinds of sites in one picture; those with the most layers are drawn."""


def labels(kinds: Sequence[str]) -> dict[str, str]:
    """What tells ``kinds`` apart: the dotted paths without the parts that all layers begin with."""
    layered = [kind.split(".") for kind in kinds if "*" in kind]
    common = 0
    if len(layered) > 1:
        shortest = min(len(path) for path in layered) - 1
        while common < shortest and len({path[common] for path in layered}) == 1:
            common += 1
    return {kind: ".".join(kind.split(".")[common:]) if "*" in kind else kind for kind in kinds}


def joined(paths: Sequence[str]) -> str:
    """``a.query, key, value`` for ``a.query``, ``a.key`` and ``a.value``."""
    first, *others = (path.split(".") for path in paths)
    same = all(path[:-1] == first[:-1] for path in others)
    return ", ".join([".".join(first), *(path[-1] if same else ".".join(path) for path in others)])


def drawn_kinds(kinds: Sequence[str]) -> list[str]:
    """At most :data:`MOST_PANELS` of ``kinds``, one for each site: the most frequent, in order."""
    distinct = list(dict.fromkeys(kinds))
    chosen = sorted(distinct, key=lambda kind: -list(kinds).count(kind))[:MOST_PANELS]
    return [kind for kind in distinct if kind in chosen]
