"""Everything that running a model on samples tells about it, each kind collected once.

Activations are collected at once; gradients and sensitivities cost several times as much, and are
collected when somebody first asks for them. Both are then known for good: also that a model has no
gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.graph_passes.factorization import ActivationStats, Method
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.pipeline.evidence.calibrate import Calibration, calibrate
from compress_onnx.pipeline.evidence.gradients import OutputGradients, output_gradients
from compress_onnx.pipeline.evidence.objective import Objective
from compress_onnx.pipeline.evidence.sensitivity import measure_slopes, probing_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.samples import Samples

PROBED_SHARE = 0.5
"""The share of parameters at which sensitivities are measured, once for all budgets."""


class Evidence:
    """What is known about ``original`` on ``samples``.

    Args:
        original: the model.
        samples: what it is run on.
        settings: how.

    Raises:
        DataError: the samples do not fit the model.
    """

    def __init__(self, original: Original, samples: Samples, settings: RunSettings) -> None:
        self.samples = samples
        self._original = original
        self._settings = settings
        self._gradients: dict[Objective, OutputGradients | NotDifferentiableError] = {}
        self._slopes: dict[tuple[Method, Objective, Decompositions], dict[str, float]] = {}
        self.calibration: Calibration = calibrate(original, samples, settings)

    @property
    def stats(self) -> Mapping[str, ActivationStats]:
        """Activation statistics by matrix name, without gradients."""
        return self.calibration.stats

    def gradients(self, objective: Objective) -> OutputGradients:
        """Gradients of what ``objective`` says of the outputs, at all sites.

        Raises:
            NotDifferentiableError: the model has none.
        """
        if objective not in self._gradients:
            self._gradients[objective] = self._differentiate(objective)
        found = self._gradients[objective]
        if isinstance(found, NotDifferentiableError):
            raise found
        return found

    def slopes(
        self, method: Method, objective: Objective, decompositions: Decompositions
    ) -> Mapping[str, float]:
        """Squared change of the outputs for a unit of the squared error of ``method``, by weight.

        Args:
            method: how weights are going to be factored.
            objective: what about the outputs matters.
            decompositions: of the model's weights.
        """
        key = method, objective, decompositions
        if key not in self._slopes:
            self._slopes[key] = measure_slopes(
                self._original,
                method,
                decompositions,
                probing_samples(self.samples),
                self._settings,
                share=PROBED_SHARE,
                objective=objective,
            )
        return self._slopes[key]

    def _differentiate(self, objective: Objective) -> OutputGradients | NotDifferentiableError:
        try:
            return output_gradients(self._original, self.samples, self._settings, objective)
        except NotDifferentiableError as error:
            return error
