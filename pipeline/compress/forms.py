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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.graph_passes.planning.plan import LayerPlan, MethodSpec
from compress_onnx.graph_passes.planning.planner import whole_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.embeddings import tables
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.form_times import Speedups
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.number_forms import OBJECTIVE, NumberForms, Numbers
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.recipe import OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons
from compress_onnx.pipeline.runtime.session import Provider

Structure = Literal["neurons", "both"]
Build = Callable[[float, Path], Compressed]
LOW_RANK = "low rank"
"""In the name of every family that has factors."""


@dataclass(frozen=True)
class Family:
    """A structure and numbers.

    Attributes:
        name: in words.
        whole: the name of the model that keeps all weights.
        numbers: how weights are held.
        build: writes the model of a share, 1 for all of the weights; returns the plan and what it
            stands on.
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
    lessons: Lessons | None = None
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
            partial(self._damage, structure) if self.numbers.gradients else None,
        )

    def _builder(
        self, structure: Structure, numbers: Numbers, recovery: RecoverySpec | None = None
    ) -> Build:
        def build(share: float, output: Path) -> Compressed:
            compressed = self._whole() if share == 1 else self._thinned(structure, share)
            model = self.learned.original if share == 1 else compressed.model
            held = self.numbers.held(model, compressed, numbers, recovery)
            self.save(held.model, output)
            return _noting(compressed, numbers, held.layers)

        return build

    @cached_property
    def numbers(self) -> NumberForms:
        """How numbers are held."""
        return NumberForms(self.learned, self.spec, self.provider, self.lessons, self.speedups)

    def _with_residual(self, share: float, output: Path) -> Compressed:
        held = self.numbers.with_residual(share)
        self.save(held.model, output)
        return _noting(self._whole(), "4-bit weights", held.layers)

    def _whole(self) -> Compressed:
        """All weights."""
        basis = self.learned.basis(
            CompressionSpec(sequential=False, objective=OBJECTIVE, shrinkage=self.spec.shrinkage)
        )
        return Compressed(basis, whole_plan(basis.original.table))

    def _thinned(self, structure: Structure, share: float) -> Compressed:
        return self.learned.compress(self._request(structure, share))

    def _damage(self, structure: Structure, share: float) -> float:
        """What the allocation predicts; sites that share a weight share its damage."""
        if (structure, share) not in self._damages:
            try:
                sites = self.learned.plan(self._request(structure, share)).sites
            except NothingToCompressError:  # so large a share leaves all as it is
                sites = ()
            by_weight = {site.weight: site.damage or 0.0 for site in sites}
            self._damages[structure, share] = sum(by_weight.values())
        return self._damages[structure, share]

    def _request(self, structure: Structure, share: float) -> CompressionSpec:
        request = CompressionSpec(
            params=share,
            sequential=False,
            objective=OBJECTIVE,
            shrinkage=self.spec.shrinkage,
            ffns="neurons",
        )
        if structure == "both":
            return request
        return request.model_copy(update={"method": MethodSpec(name="neurons")})


def _noting(compressed: Compressed, numbers: Numbers, layers: tuple[LayerPlan, ...]) -> Compressed:
    """With what its plan does not say yet."""
    plan = compressed.plan
    notes = plan.notes
    if numbers != "floats":
        notes += (f"of this plan's model, weights are then held as {numbers}",)
    return replace(compressed, plan=plan.model_copy(update={"notes": notes, "layers": layers}))
