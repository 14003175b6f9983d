"""Sites by the weight that they share: weights, not sites, are what is factored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress_onnx.graph_passes.sites.linear_site import LinearSite

WeightGroups = Mapping[str, Sequence[LinearSite]]
"""The sites of each weight, by its key."""


def group_by_weight(sites: Sequence[LinearSite]) -> WeightGroups:
    """Sites by weight key, in graph order."""
    groups: dict[str, list[LinearSite]] = {}
    for site in sites:
        groups.setdefault(site.weight.key, []).append(site)
    return groups
