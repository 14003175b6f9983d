"""The ways in which the numbers of a model are held, whatever its structure.

====================  ==============================================================================
floats                as they are
integers              products of integers with static scales (:mod:`pipeline.compress.integers`)
half floats           float16, with what it cannot hold in float32 (:mod:`pipeline.compress.half`)
weights of few bits   products of floats (:mod:`pipeline.compress.weight_only`)
====================  ==============================================================================

All but half floats can be trained before they are rounded, through that rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import onnx_ir as ir

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.graph_passes.factorization import GradientStats
from compress_onnx.graph_passes.factorization.rounding import LIMIT, LIMIT_WITHOUT_VNNI
from compress_onnx.graph_passes.factorization.weight_only import Bits
from compress_onnx.graph_passes.planning.plan import LayerPlan
from compress_onnx.graph_passes.planning.request import CompressionSpec, Objective
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.embeddings import EmbeddingsPass
from compress_onnx.graph_passes.rewriting.integers import IntegerForm
from compress_onnx.graph_passes.sites.linear_site import unmark_factors
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.form_times import FormTimes, Speedups, measure_form_times
from compress_onnx.pipeline.compress.half import half_model
from compress_onnx.pipeline.compress.integers import Thresholds, prepare_integers
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.moments import output_moments
from compress_onnx.pipeline.compress.weight_only import (
    WeightOnlyModel,
    prepare_weights,
    round_weights,
)
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.recipe import OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons, recover_in_memory
from compress_onnx.pipeline.runtime.environment import adds_int8_exactly
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec

Numbers = Literal[
    "floats",
    "half floats",
    "integers",
    "8-bit weights",
    "4-bit weights",
    "4-bit weights and embeddings",
]
OBJECTIVE: Objective = "positions"
"""What forms are chosen by, whatever the metric: pooled gradients choose worse neurons."""

_NO_FEW_BITS = "no layer can keep its weights in few bits"

LARGEST_RESIDUAL = 0.25
"""Of min(K, N): the rank at which 4-bit weights and an int8 residual take what 8-bit weights do."""


class Held(NamedTuple):
    """A model in its numbers, and its layers as a plan tells of them."""

    model: ir.Model
    layers: tuple[LayerPlan, ...] = ()


@dataclass(frozen=True, eq=False)
class NumberForms:
    """Holds the numbers of what one model is compressed to.

    Attributes:
        learned: the model, from calibration data.
        spec: which forms may be taken.
        provider: where it is to run.
        lessons: what candidates are trained on; the calibration data where that is None.
        speedups: times models where they are to run; without, nothing that costs time has to be
            worth it.
    """

    learned: Learned
    spec: OptimizeSpec
    provider: Provider = "cpu"
    lessons: Lessons | None = None
    speedups: Speedups | None = None

    def held(
        self,
        model: ir.Model | Original,
        compressed: Compressed,
        numbers: Numbers,
        recovery: RecoverySpec | None = None,
    ) -> Held:
        """What becomes of ``model``, which ``compressed`` made.

        Args:
            model: its graph; changed in place where it is not the original.
            compressed: the plan, and what it stands on.
            numbers: how they are held.
            recovery: how the model is trained before; None for not at all.

        Raises:
            NothingToCompressError: no layer can hold numbers so.
            CompressOnnxError: the model cannot be run, or not be trained.
        """
        if numbers == "floats":
            return self._floats(model, recovery)
        if numbers == "integers":
            return self._integers(model, compressed, recovery)
        if numbers == "half floats":
            settings = replace(self.learned.settings, session=self.session)
            halved = half_model(model, self.learned.samples, settings)
            return Held(halved.model, halved.layers)
        bits: Bits = 8 if numbers == "8-bit weights" else 4
        found = (
            self._rounded(model, bits)
            if recovery is None
            else self._trained_weights(model, bits, recovery)
        )
        of_tables: Bits = 4 if numbers == "4-bit weights and embeddings" else 8
        return Held(_small_tables(found.model, of_tables), found.layers)

    def with_residual(self, share: float) -> Held:
        """The original in 4 bits, with factors of ``share`` of the largest rank."""
        rounded = self._rounded(self.learned.original, 4, share * LARGEST_RESIDUAL)
        return Held(_small_tables(rounded.model, 8), rounded.layers)

    @property
    def session(self) -> SessionSpec:
        """How accuracy is measured: as learned, where the model is to run."""
        return self.learned.settings.session.model_copy(update={"provider": self.provider})

    @property
    def limit(self) -> int:
        """The largest integer of a weight."""
        seven_bits = self.spec.seven_bits
        if seven_bits is None:
            seven_bits = not adds_int8_exactly()
        return LIMIT_WITHOUT_VNNI if seven_bits else LIMIT

    @cached_property
    def gradients(self) -> Mapping[str, GradientStats]:
        """By site name; none where the model has none."""
        basis = self.learned.basis(
            CompressionSpec(sequential=False, objective=OBJECTIVE, shrinkage=self.spec.shrinkage)
        )
        return {} if basis.gradients is None else basis.gradients.stats

    @cached_property
    def times(self) -> FormTimes | None:
        """What parts of rounded models take; None where nothing has to be worth its time."""
        if self.speedups is None or self.spec.objective != "latency":
            return None
        return measure_form_times(self.learned.original, self.speedups, self._integer_form)

    def _floats(self, model: ir.Model | Original, recovery: RecoverySpec | None) -> Held:
        if isinstance(model, Original):
            return Held(model.copy())
        if recovery is not None:
            original = self.learned.original
            recover_in_memory(
                original.path,
                model,
                self._lessons,
                recovery,
                self.learned.settings,
                data_folder=original.data_folder,
            )
        return Held(model)

    def _integers(
        self, model: ir.Model | Original, compressed: Compressed, recovery: RecoverySpec | None
    ) -> Held:
        samples, settings = self.learned.samples, self.learned.settings
        assert samples is not None
        if not isinstance(model, Original):
            unmark_factors(model)
        prepared = prepare_integers(
            model,
            samples,
            settings,
            limit=self.limit,
            moments=output_moments(model, compressed, self.gradients),
            thresholds=self._thresholds(compressed.plan.multiplier),
        )
        if not prepared.scales:
            raise NothingToCompressError("no layer can multiply integers")
        if recovery is not None:
            prepared.recover(self.learned.original.path, self._lessons, recovery, settings)
        rounded = prepared.rounded(self._integer_form)
        return Held(_small_tables(rounded.model, 8), rounded.layers)

    @property
    def _integer_form(self) -> IntegerForm:
        # OpenVINO knows QDQ for what it is, and no operators of ONNX Runtime.
        return "qdq" if self.provider == "openvino" else "fused"

    def _thresholds(self, multiplier: float | None) -> Thresholds | None:
        """What has to be saved by what takes time; None where no allocation set a multiplier."""
        if multiplier is None or self.times is None:
            return None
        return self.times.thresholds(multiplier)

    def _trained_weights(
        self, model: ir.Model | Original, bits: Bits, recovery: RecoverySpec
    ) -> WeightOnlyModel:
        """``model`` with weights of so many ``bits``, trained through their rounding."""
        samples, settings = self.learned.samples, self.learned.settings
        prepared = prepare_weights(model, samples, settings, bits=bits, gradients=self.gradients)
        if not prepared.found:
            raise NothingToCompressError(_NO_FEW_BITS)
        prepared.recover(self.learned.original.path, self._lessons, recovery, settings)
        return prepared.rounded()

    def _rounded(
        self, model: ir.Model | Original, bits: Bits, residual: float = 0.0
    ) -> WeightOnlyModel:
        """``model`` with weights of so many ``bits``."""
        rounded = round_weights(
            model,
            self.learned.samples,
            self.learned.settings,
            bits=bits,
            residual=residual,
            gradients=self.gradients,
        )
        if not rounded.damage:
            raise NothingToCompressError(_NO_FEW_BITS)
        return rounded

    @property
    def _lessons(self) -> Lessons:
        if self.lessons is not None:
            return self.lessons
        assert self.learned.samples is not None
        return Lessons(self.learned.samples)


def _small_tables(model: ir.Model, bits: Bits) -> ir.Model:
    """``model`` with embedding tables of so many ``bits``, in place."""
    EmbeddingsPass(bits)(model)
    CleanupPass()(model)
    return model
