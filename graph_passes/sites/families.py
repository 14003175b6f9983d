"""Families of sites that read one value, such as query and key, and could share a factor.

Siblings are MatMuls at the top level that read the same value, each with a plain matrix on its
right that nobody else reads, of the same type, and with biases that have as many axes, or none.
"""

from __future__ import annotations

from collections.abc import Sequence

from compress_onnx.graph_passes.sites.linear_site import LinearSite

Siblings = Sequence[LinearSite]


def families(sites: Sequence[LinearSite]) -> list[Siblings]:
    """The sites that may be joined, in graph order; no family has only one member."""
    keys = [site.weight.key for site in sites]
    found: dict[object, list[LinearSite]] = {}
    for site in sites:
        plain = site.node.op_type == "MatMul" and not (site.on_left or site.nested)
        if plain and not site.weight.stacked and keys.count(site.weight.key) == 1:
            kind = (site.input, site.group, site.weight.initializer.dtype, bias_axes(site))
            found.setdefault(kind, []).append(site)
    return [members for members in found.values() if len(members) > 1]


def joined_name(names: Sequence[str]) -> str:
    """``a.{b,c}`` for ``a.b`` and ``a.c``."""
    parts = [name.split(".") for name in names]
    common = 0
    while len({tuple(p[: common + 1]) for p in parts}) == 1 and common + 1 < min(map(len, parts)):
        common += 1
    ends = ",".join(".".join(p[common:]) for p in parts)
    return ".".join([*parts[0][:common], f"{{{ends}}}"])


def bias_axes(site: LinearSite) -> int | None:
    """How many axes the bias has (one that is a scalar acts like one axis); None without."""
    if site.bias is None:
        return None
    assert site.bias.value.const_value is not None
    return max(1, len(site.bias.value.const_value.shape))
