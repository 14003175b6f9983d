"""What recovery compares, and how that is named among the feeds of a :mod:`.distillation`."""

from __future__ import annotations

from dataclasses import dataclass

_OWN = "recovery."


def target_of(value: str) -> str:
    """Where the feeds have the original's ``value``."""
    return f"{_OWN}target.{value}"


def weight_of(value: str) -> str:
    """Where the feeds have ``[..., 1]`` weights of the positions of ``value``."""
    return f"{_OWN}weight.{value}"


def share_of(value: str) -> str:
    """Where the feeds have ``[B, T, 1]`` shares of the positions of ``value``."""
    return f"{_OWN}share.{value}"


def label_of(value: str) -> str:
    """Where the feeds have ``[B, C]`` weights of the logarithms of the classes' probabilities."""
    return f"{_OWN}label.{value}"


@dataclass(frozen=True)
class Compared:
    """A value that both models compute.

    Attributes:
        name: in the graph.
        rank: its number of axes.
        pooled: adds the term of its pooled positions.
        labelled: adds the term of the labels; its axes are samples and classes.
    """

    name: str
    rank: int
    pooled: bool
    labelled: bool = False
