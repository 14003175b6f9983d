"""What a model looks like to low-rank methods: spectra, densities, and a test about LayerNorm."""

from pipeline.analysis.layernorm import NormalizationTest
from pipeline.analysis.profile import (
    Analysis,
    AnalysisReport,
    CalibrationData,
    InputProfile,
    SiteProfile,
    analyze,
)

__all__ = [
    "Analysis",
    "AnalysisReport",
    "CalibrationData",
    "InputProfile",
    "NormalizationTest",
    "SiteProfile",
    "analyze",
]
