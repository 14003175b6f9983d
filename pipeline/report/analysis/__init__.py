"""What a model looks like to low-rank methods: spectra, densities, and a test about LayerNorm."""

from compress_onnx.pipeline.report.analysis.layernorm import NormalizationTest
from compress_onnx.pipeline.report.analysis.site_profiles import (
    Analysis,
    AnalysisReport,
    InputProfile,
    SiteProfile,
    analyze,
)

__all__ = [
    "Analysis",
    "AnalysisReport",
    "InputProfile",
    "NormalizationTest",
    "SiteProfile",
    "analyze",
]
