"""The forms that a model can take: a structure, a way to hold numbers, and a share.

======================  ============================================================================
structure               all of the weights; networks with fewer neurons; these and low-rank factors
numbers                 floats; integers with static scales; for size, 8- or 4-bit weights
share                   of the parameters of the linear layers; 1 keeps all of the weights
======================  ============================================================================

A family is a structure and numbers, at any share. Floats and integers can be trained to do what the
original does, integers through their rounding.

On the CPU, ONNX Runtime may be kept from a fusion that costs more than it saves
(:mod:`graph_passes.rewriting.unfused_norms`): ``unfused`` says whether it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.graph_passes.factorization.rounding import LIMIT, LIMIT_WITHOUT_VNNI
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, Objective
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.integers import prepare_integers
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.rivals import weight_only
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.recipe import OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import recover_in_memory
from compress_onnx.pipeline.runtime.environment import adds_int8_exactly
from compress_onnx.pipeline.runtime.samples import Samples

Structure = Literal["neurons", "both"]
Numbers = Literal["floats", "integers", "8-bit weights", "4-bit weights"]
Build = Callable[[float, Path], Compressed | None]
LOW_RANK = "low rank"
"""In the name of every family that has factors."""


@dataclass(frozen=True)
class Family:
    """A structure and numbers.

    Attributes:
        name: in words.
        numbers: how weights are held.
        build: writes the model of a share, 1 for all of the weights; returns the plan and what it
            stands on, None where there is no plan.
        recover: the same, trained; None where that cannot be.
    """

    name: str
    numbers: Numbers
    build: Build
    recover: Build | None = None

    def named(self, share: float) -> str:
        """``neurons, integers, 50.0%``; of all weights, ``all neurons, integers``."""
        return f"all {self.name}" if share == 1 else f"{self.name}, {share:.1%}"


@dataclass(frozen=True, eq=False)
class Forms:
    """The forms of one model.

    Attributes:
        learned: the model, from calibration data.
        spec: which forms may be taken.
        objective: what about the outputs matters.
        unfused: whether sums and norms are kept apart.
        recovery: how candidates are trained, where they are.
        lessons: what they are trained on; the calibration data where that is None.
    """

    learned: Learned
    spec: OptimizeSpec
    objective: Objective = "positions"
    unfused: bool = False
    recovery: RecoverySpec | None = None
    lessons: Samples | None = None

    def families(self) -> Iterator[Family]:
        """In the order in which they are worth the time."""
        if self.spec.integers:
            yield self._family("neurons", "integers")
        yield self._family("neurons", "floats")
        yield self._family("both", "floats")
        if self.spec.objective == "size" and self.spec.integers:
            yield self._family("neurons", "4-bit weights")
            yield self._family("neurons", "8-bit weights")

    def save(self, model: ir.Model, output: Path) -> None:
        """Write ``model``, its sums and norms apart where that is faster."""
        if self.unfused:
            UnfuseNormsPass()(model)
        save_model(model, output)

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
        if self.recovery is not None and numbers in {"floats", "integers"}:
            trained = self._builder(structure, numbers, self.recovery)
        return Family(f"{name}{held}", numbers, self._builder(structure, numbers), trained)

    def _builder(
        self, structure: Structure, numbers: Numbers, recovery: RecoverySpec | None = None
    ) -> Build:
        original, settings = self.learned.original, self.learned.settings

        def build(share: float, output: Path) -> Compressed | None:
            samples = self.learned.samples
            assert samples is not None
            lessons = self.lessons or samples
            compressed = None if share == 1 else self._thinned(structure, share)
            model = original.copy() if compressed is None else compressed.model
            if numbers == "integers":
                prepared = prepare_integers(model, samples, settings, limit=self.limit)
                if not prepared.scales:
                    raise NothingToCompressError("no layer can multiply integers")
                if recovery is not None:
                    prepared.recover(original.path, lessons, recovery, settings)
                model = prepared.rounded().model
            elif recovery is not None:
                recover_in_memory(
                    original.path,
                    model,
                    lessons,
                    recovery,
                    settings,
                    data_folder=original.data_folder,
                )
            self.save(model, output)
            if numbers in {"8-bit weights", "4-bit weights"}:
                weight_only(output, output, 4 if numbers == "4-bit weights" else 8)
            return compressed if numbers == "floats" else _noting(compressed, numbers)

        return build

    def _thinned(self, structure: Structure, share: float) -> Compressed:
        request = CompressionSpec(params=share, sequential=False, objective=self.objective)
        method = MethodSpec(name="neurons") if structure == "neurons" else request.method
        ffns: Literal["neurons"] = "neurons"
        request = request.model_copy(update={"method": method, "ffns": ffns})
        return self.learned.compress(request)


def _noting(compressed: Compressed | None, numbers: Numbers) -> Compressed | None:
    """With a note of what its plan does not say."""
    if compressed is None:
        return None
    note = f"of this plan's model, weights are then held as {numbers}"
    plan = compressed.plan
    return replace(compressed, plan=plan.model_copy(update={"notes": (*plan.notes, note)}))
