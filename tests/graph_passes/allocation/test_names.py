"""Names of options are types, and these hold all there are."""

from __future__ import annotations

from typing import get_args

from compress_onnx.graph_passes.allocation import ALLOCATORS, AllocatorName
from compress_onnx.graph_passes.planning.request import BUDGETS, QUANTITIES, Allocation


def test_every_allocator_has_a_name_and_auto_is_one_more() -> None:
    assert set(get_args(AllocatorName)) == set(ALLOCATORS)
    assert set(get_args(Allocation)) == {"auto", *ALLOCATORS}


def test_every_budget_says_what_it_is_a_share_of() -> None:
    assert set(QUANTITIES) == set(BUDGETS)
