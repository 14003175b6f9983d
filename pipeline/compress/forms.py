"""The forms that a model can take: a structure, a way to hold numbers, and a share.

======================  ============================================================================
structure               all of the weights; networks with fewer neurons; these and low-rank factors
numbers                 floats; integers with static scales; for size, weights of 8 or 4 bits; on
                        CUDA, which has no fast product of integers, half floats instead of integers
share                   of the parameters of the linear layers; 1 keeps all of the weights
======================  ============================================================================

A family is a structure and numbers, at any share. All but half floats can be trained to do what the
original does, integers and weights of few bits through their rounding. One more family is for size:
all weights in 4 bits with a low-rank residual, whose share is that of the largest rank. Where
weights are integers, embedding tables have 8 bits; in one family they have 4.

On the CPU, ONNX Runtime may be kept from a fusion that costs more than it saves
(:mod:`graph_passes.rewriting.unfused_norms`): ``unfused`` says whether it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple

import onnx_ir as ir

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.graph_passes.factorization import GradientStats
from compress_onnx.graph_passes.factorization.rounding import LIMIT, LIMIT_WITHOUT_VNNI
from compress_onnx.graph_passes.factorization.weight_only import Bits
from compress_onnx.graph_passes.planning.plan import LayerPlan, MethodSpec
from compress_onnx.graph_passes.planning.planner import whole_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec, Objective
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.embeddings import EmbeddingsPass, tables
from compress_onnx.graph_passes.rewriting.integers import IntegerForm
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
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
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.recipe import OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import recover_in_memory
from compress_onnx.pipeline.runtime.environment import adds_int8_exactly
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec

Structure = Literal["neurons", "both"]
Numbers = Literal[
    "floats",
    "half floats",
    "integers",
    "8-bit weights",
    "4-bit weights",
    "4-bit weights and embeddings",
]
Build = Callable[[float, Path], Compressed | None]
LOW_RANK = "low rank"
"""In the name of every family that has factors."""

OBJECTIVE: Objective = "positions"
"""What forms are chosen by, whatever the metric: pooled gradients choose worse neurons."""

_NO_FEW_BITS = "no layer can keep its weights in few bits"

LARGEST_RESIDUAL = 0.25
"""Of min(K, N): the rank at which 4-bit weights and an int8 residual take what 8-bit weights do."""


class _Held(NamedTuple):
    """A model in its numbers, and its layers as a plan tells of them."""

    model: ir.Model
    layers: tuple[LayerPlan, ...] = ()


@dataclass(frozen=True)
class Family:
    """A structure and numbers.

    Attributes:
        name: in words.
        whole: the name of the model that keeps all weights.
        numbers: how weights are held.
        build: writes the model of a share, 1 for all of the weights; returns the plan and what it
            stands on, None where there is no plan.
        recover: the same, trained; None where that cannot be.
        damage: of a share's structure, as the allocation predicts it; None where nothing does.
    """

    name: str
    whole: str
    numbers: Numbers
    build: Build
    recover: Build | None = None
    damage: Callable[[float], float] | None = None

    def named(self, share: float) -> str:
        """``neurons, integers, 50.0%``; of all weights, what is the same for each structure."""
        return self.whole if share == 1 else f"{self.name}, {share:.1%}"


@dataclass(frozen=True, eq=False)
class Forms:
    """The forms of one model.

    Attributes:
        learned: the model, from calibration data.
        spec: which forms may be taken.
        provider: where the model is to run.
        unfused: whether sums and norms are kept apart.
        recovery: how candidates are trained, where they are.
        lessons: what they are trained on; the calibration data where that is None.
        speedups: times models where they are to run; without, nothing that costs time has to be
            worth it.
    """

    learned: Learned
    spec: OptimizeSpec
    provider: Provider = "cpu"
    unfused: bool = False
    recovery: RecoverySpec | None = None
    lessons: Samples | None = None
    speedups: Speedups | None = None
    _damages: dict[tuple[Structure, float], float] = field(default_factory=dict, repr=False)

    def families(self) -> Iterator[Family]:
        """In the order in which they are worth the time."""
        if self.spec.objective == "size" and self.spec.integers:
            if None in tables(self.learned.original.model, 4).values():
                yield self._family("neurons", "4-bit weights and embeddings")
            yield self._family("neurons", "4-bit weights")
            yield self._family("neurons", "8-bit weights")
            name = "4-bit weights and residual"
            yield Family(name, f"{name}, 100.0%", "4-bit weights", self._with_residual)
        if self.provider == "cuda":
            yield self._family("neurons", "half floats")
            yield self._family("both", "half floats")
        elif self.spec.integers:
            yield self._family("neurons", "integers")
            yield self._family("both", "integers")
        yield self._family("neurons", "floats")
        yield self._family("both", "floats")

    def save(self, model: ir.Model, output: Path) -> None:
        """Write ``model``, its sums and norms apart where that is faster."""
        if self.unfused:
            UnfuseNormsPass()(model)
        save_model(model, output)

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

    def _family(self, structure: Structure, numbers: Numbers) -> Family:
        name = "neurons" if structure == "neurons" else f"neurons and {LOW_RANK}"
        held = "" if numbers == "floats" else f", {numbers}"
        trained = None
        if self.recovery is not None and numbers != "half floats":
            trained = self._builder(structure, numbers, self.recovery)
        return Family(
            f"{name}{held}",
            f"all neurons{held}",
            numbers,
            self._builder(structure, numbers),
            trained,
            partial(self._damage, structure) if self._gradients else None,
        )

    def _builder(
        self, structure: Structure, numbers: Numbers, recovery: RecoverySpec | None = None
    ) -> Build:
        def build(share: float, output: Path) -> Compressed | None:
            compressed = self._whole() if share == 1 else self._thinned(structure, share)
            model = self.learned.original if share == 1 else compressed.model
            if numbers == "floats":
                held = self._floats(model, recovery)
            elif numbers == "integers":
                held = self._integers(model, compressed, recovery)
            else:
                held = self._held(model, numbers, recovery)
            self.save(held.model, output)
            return _noting(compressed, numbers, held.layers)

        return build

    def _floats(self, model: ir.Model | Original, recovery: RecoverySpec | None) -> _Held:
        if isinstance(model, Original):
            return _Held(model.copy())
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
        return _Held(model)

    def _integers(
        self, model: ir.Model | Original, compressed: Compressed, recovery: RecoverySpec | None
    ) -> _Held:
        samples, settings = self.learned.samples, self.learned.settings
        assert samples is not None
        if not isinstance(model, Original):
            unmark_factors(model)
        prepared = prepare_integers(
            model,
            samples,
            settings,
            limit=self.limit,
            moments=output_moments(model, compressed, self._gradients),
            thresholds=self._thresholds(compressed.plan.multiplier),
        )
        if not prepared.scales:
            raise NothingToCompressError("no layer can multiply integers")
        if recovery is not None:
            prepared.recover(self.learned.original.path, self._lessons, recovery, settings)
        rounded = prepared.rounded(self._integer_form)
        return _Held(_small_tables(rounded.model, 8), rounded.layers)

    @property
    def _integer_form(self) -> IntegerForm:
        # OpenVINO knows QDQ for what it is, and no operators of ONNX Runtime.
        return "qdq" if self.provider == "openvino" else "fused"

    def _thresholds(self, multiplier: float | None) -> Thresholds | None:
        """What has to be saved by what takes time; None where no allocation set a multiplier."""
        if multiplier is None or self.times is None:
            return None
        return self.times.thresholds(multiplier)

    @cached_property
    def times(self) -> FormTimes | None:
        """What parts of rounded models take; None where nothing has to be worth its time."""
        if self.speedups is None or self.spec.objective != "latency":
            return None
        return measure_form_times(self.learned.original, self.speedups, self._integer_form)

    def _held(
        self, model: ir.Model | Original, numbers: Numbers, recovery: RecoverySpec | None
    ) -> _Held:
        if numbers == "half floats":
            settings = replace(self.learned.settings, session=self.session)
            halved = half_model(model, self.learned.samples, settings)
            return _Held(halved.model, halved.layers)
        bits: Bits = 8 if numbers == "8-bit weights" else 4
        found = (
            self._rounded(model, bits)
            if recovery is None
            else self._trained_weights(model, bits, recovery)
        )
        of_tables: Bits = 4 if numbers == "4-bit weights and embeddings" else 8
        return _Held(_small_tables(found.model, of_tables), found.layers)

    def _trained_weights(
        self, model: ir.Model | Original, bits: Bits, recovery: RecoverySpec
    ) -> WeightOnlyModel:
        """``model`` with weights of so many ``bits``, trained through their rounding."""
        samples, settings = self.learned.samples, self.learned.settings
        prepared = prepare_weights(model, samples, settings, bits=bits, gradients=self._gradients)
        if not prepared.found:
            raise NothingToCompressError(_NO_FEW_BITS)
        prepared.recover(self.learned.original.path, self._lessons, recovery, settings)
        return prepared.rounded()

    @property
    def _lessons(self) -> Samples:
        lessons = self.lessons or self.learned.samples
        assert lessons is not None
        return lessons

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
            gradients=self._gradients,
        )
        if not rounded.damage:
            raise NothingToCompressError(_NO_FEW_BITS)
        return rounded

    def _with_residual(self, share: float, output: Path) -> Compressed:
        rounded = self._rounded(self.learned.original, 4, share * LARGEST_RESIDUAL)
        self.save(_small_tables(rounded.model, 8), output)
        return _noting(self._whole(), "4-bit weights", rounded.layers)

    @cached_property
    def _gradients(self) -> Mapping[str, GradientStats]:
        """By site name; none where the model has none."""
        basis = self.learned.basis(CompressionSpec(sequential=False, objective=OBJECTIVE))
        return {} if basis.gradients is None else basis.gradients.stats

    def _whole(self) -> Compressed:
        """All weights."""
        basis = self.learned.basis(CompressionSpec(sequential=False, objective=OBJECTIVE))
        return Compressed(basis, whole_plan(basis.original.table))

    def _thinned(self, structure: Structure, share: float) -> Compressed:
        return self.learned.compress(_request(structure, share))

    def _damage(self, structure: Structure, share: float) -> float:
        """What the allocation predicts; sites that share a weight share its damage."""
        if (structure, share) not in self._damages:
            try:
                sites = self.learned.plan(_request(structure, share)).sites
            except NothingToCompressError:  # so large a share leaves all as it is
                sites = ()
            by_weight = {site.weight: site.damage or 0.0 for site in sites}
            self._damages[structure, share] = sum(by_weight.values())
        return self._damages[structure, share]


def _request(structure: Structure, share: float) -> CompressionSpec:
    request = CompressionSpec(params=share, sequential=False, objective=OBJECTIVE, ffns="neurons")
    if structure == "both":
        return request
    return request.model_copy(update={"method": MethodSpec(name="neurons")})


def _small_tables(model: ir.Model, bits: Bits) -> ir.Model:
    """``model`` with embedding tables of so many ``bits``, in place."""
    EmbeddingsPass(bits)(model)
    CleanupPass()(model)
    return model


def _noting(compressed: Compressed, numbers: Numbers, layers: tuple[LayerPlan, ...]) -> Compressed:
    """With what its plan does not say yet."""
    plan = compressed.plan
    notes = plan.notes
    if numbers != "floats":
        notes += (f"of this plan's model, weights are then held as {numbers}",)
    return replace(compressed, plan=plan.model_copy(update={"notes": notes, "layers": layers}))
