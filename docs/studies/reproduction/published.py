"""What the two documents report, as data.

The first is "SVDLoRA"; the second the study of SVD and ASVD for ViT and BERT. Where they draw
curves without figures there is nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Classified(NamedTuple):
    """Accuracy on CIFAR-10, and the run time in the document's unit."""

    accuracy: float
    run_time: float


class Translated(NamedTuple):
    """Means over five languages; the rank is the one that is printed with the share."""

    rank: int | None
    bleu: float
    chrf: float


class FineTuned(NamedTuple):
    """ViT-B/16 on ImageNet, all linear layers: largest rank, share, accuracy without and with."""

    rank: int
    share: float
    untrained: float
    trained: float


BASELINE = Classified(0.9769, 131.2)

BY_STAGES: Mapping[int, Classified] = {
    1: Classified(0.9571, 129.3),
    2: Classified(0.9620, 128.7),
    3: Classified(0.9617, 129.0),
    4: Classified(0.9622, 129.3),
    5: Classified(0.9619, 129.3),
    6: Classified(0.9611, 129.4),
    7: Classified(0.9588, 129.4),
    8: Classified(0.9613, 129.3),
    9: Classified(0.9612, 130.2),
}
"""SVDLoRA with so many sub-matrices at fixed parameters."""

BY_SHARE: Mapping[float, Classified] = {
    0.1: Classified(0.9617, 130.5),
    0.2: Classified(0.9746, 129.0),
    0.3: Classified(0.9766, 129.0),
    0.4: Classified(0.9763, 129.1),
    0.5: Classified(0.9767, 129.1),
    0.6: Classified(0.9767, 129.3),
    0.7: Classified(0.9768, 129.5),
    0.8: Classified(0.9764, 129.5),
    0.9: Classified(0.9759, 129.4),
    1.0: Classified(0.9759, 129.7),
}
"""SVDLoRA with three sub-matrices."""

TRANSLATION_BASELINE = Translated(None, 30.07, 58.50)

TRANSLATION: Mapping[float, Translated] = {
    0.3: Translated(102, 19.86, 41.03),
    0.4: Translated(136, 31.08, 55.93),
    0.5: Translated(170, 30.44, 58.78),
    0.6: Translated(204, 29.85, 58.44),
    0.7: Translated(238, 28.73, 57.97),
    0.8: Translated(272, 28.39, 57.79),
    0.9: Translated(306, 29.42, 58.40),
    1.0: Translated(340, 29.61, 58.35),
}

VIT_ORIGINAL = 0.86
"""Accuracy of the original ViT-B/16 on ImageNet."""

FINE_TUNING: tuple[FineTuned, ...] = (
    FineTuned(244, 0.48, 0.376, 0.79),
    FineTuned(192, 0.33, 0.14, 0.79),
    FineTuned(96, 0.19, 0.01, 0.65),
)
