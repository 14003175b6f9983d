"""The compression plan: what each linear site becomes, and why.

A plan is data. It is made by :mod:`graph_passes.planning.planner`, written as JSON, may be edited
by hand, and is applied by :class:`graph_passes.rewriting.low_rank.LowRankPass`, which counts anew
what the hand may have left behind (:func:`graph_passes.planning.fitting.recounted`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.storage import INTEGERS, Storage, bytes_per_rank
from compress_onnx.graph_passes.sites.find import SkippedNode
from compress_onnx.graph_passes.validation_text import first_problem

PLAN_SCHEMA_VERSION: Literal[1] = 1

INT4_OPSET = 21

Objective = Literal["positions", "pooled"]
OptionValue = bool | int | float | str


class MethodSpec(BaseModel):
    """A factorization method by its registered name, with its hyper-parameters.

    ``auto`` is the best method that the data at hand allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    name: str = "auto"
    options: dict[str, OptionValue] = Field(default_factory=dict)


class Shrinkage(BaseModel):
    """What the metric of the calibration data is pulled towards, and how strongly.

    Also written as one text: ``broader:0.3``, ``identity:0.1``, ``broader:auto``.

    Attributes:
        towards: ``broader``, the moments of further data, of which each set counts alike; or
            ``identity``, which is what the weights alone say.
        strength: 0 leaves the calibration data alone, 1 leaves nothing of them; ``auto`` is chosen
            by leaving one set of the further data out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    towards: Literal["broader", "identity"] = "broader"
    strength: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        towards, colon, strength = value.partition(":")
        return {"towards": towards, **({"strength": strength} if colon else {})}

    def __str__(self) -> str:
        return f"{self.towards}:{self.strength}"


class SiteError(BaseModel):
    """How far a factorization is from its weight, relative to the weight (0 = exact, 1 = all lost).

    Attributes:
        weight: ``‖W − AB‖_F / ‖W‖_F``.
        activation: the same in the metric of the site's inputs, ``‖X(W − AB)‖_F / ‖XW‖_F`` with X
            centred; ``None`` without calibration.
        bound: the least error that any factorization of this rank can have, in the activation
            metric where there is one, else in the weight metric (Eckart-Young).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    weight: float
    activation: float | None = None
    bound: float

    @property
    def reached(self) -> float:
        """The error in the metric in which ``bound`` is given."""
        return self.weight if self.activation is None else self.activation


class PlanError(BaseModel):
    """How far all selected weights together are from what they were, beside the least possible.

    Squared errors of the sites' outputs are summed over all weights and calibrated positions and
    set in relation to the summed squares of the outputs (0 = exact, 1 = all lost); a weight that
    stays dense has none. All three are about the outputs of the sites, each on the inputs that it
    has in the original model: they bound neither what errors do to later sites nor the outputs of
    the model. See :mod:`graph_passes.planning.bound`.

    Attributes:
        metric: of the sites' outputs (``activation``), or without calibration of the weights.
        reached: the error of the factors as stored.
        bound: the least error that factors of the plan's ranks can have (Eckart-Young).
        allocation_bound: the least error that factors with as many parameters can have, however
            the ranks are shared out.
        weights: how many weights it is about.
        left_out: selected weights without statistics, or that no plan may touch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    metric: Literal["activation", "weight"]
    reached: float
    bound: float
    allocation_bound: float
    weights: int
    left_out: int = 0


class SitePlan(BaseModel):
    """One linear site ``y = x·W + b`` with W of shape [in_features, out_features].

    ``decision`` is ``factor`` (rewritten at ``rank`` by ``method``), ``neurons`` (the feed-forward
    network that ends in the site ``ffn`` keeps so many ``neurons``, those that count in the metric
    of ``method``), ``dense`` (selected, but
    better or only possible left as it is) or ``skip`` (not selected); ``reason`` says why.
    Parameters are those of the weight, the same for every site that shares it; ``itemsize`` is how
    many bytes one of them takes, and ``matrices`` is above 1 where it is a stack of matrices
    (experts), each factored on its own. ``bias_parameters`` are what the bias correction adds to
    (or, where merged biases go, takes from) the file, and ``store`` is how that holds the factors.
    ``siblings`` are the sites that it stands for, with the
    names of their nodes, where they share one ``down``: its weight is then theirs side by side
    (:mod:`graph_passes.rewriting.join_siblings`). ``damage`` is what the allocation predicts that
    the weight costs the model's outputs, for a network at its down layer; None where it did not go
    by damage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    site: str
    node: str
    weight: str
    group: str
    in_features: int
    out_features: int
    matrices: int = 1
    itemsize: int = Field(default=4, ge=1)
    decision: Literal["factor", "neurons", "dense", "skip"]
    reason: str
    method: MethodSpec | None = None
    rank: int | None = None
    ffn: str = ""
    neurons: int | None = None
    damage: float | None = None
    store: Storage = "same"
    parameters_before: int
    parameters_after: int
    bias_parameters: int = 0
    error: SiteError | None = None
    siblings: dict[str, str] = Field(default_factory=dict)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of the original graph that it stands for."""
        return tuple(self.siblings.values()) or (self.node,)

    @property
    def kept(self) -> int | None:
        """The rank of what stands for the weight: chosen columns are factors of that rank, too."""
        return self.neurons if self.decision == "neurons" and self.ffn == self.site else self.rank

    @property
    def scale_parameters(self) -> int:
        """Scales of factors that are stored as integers: one for each rank index of each factor."""
        if self.decision != "factor" or self.rank is None or self.store not in INTEGERS:
            return 0
        return 2 * self.matrices * self.rank

    @property
    def bytes_before(self) -> int:
        """What the weight takes in the file."""
        return self.itemsize * self.parameters_before

    @property
    def bytes_after(self) -> int:
        """What it takes then: its factors as stored, their scales included."""
        if self.decision == "neurons":
            return self.itemsize * self.parameters_after
        if self.decision != "factor" or self.rank is None:
            return self.bytes_before
        per_rank = bytes_per_rank(self.in_features + self.out_features, self.store, self.itemsize)
        return math.ceil(self.matrices * self.rank * per_rank)


class LayerPlan(BaseModel):
    """One layer of the finished model: how its numbers are held, and what that comes to.

    Attributes:
        layer: its name; a site that became a chain has a layer for each factor.
        node: the node of the model before its numbers were changed.
        numbers: what it multiplies, such as ``int8``.
        reason: why so.
        damage: what holding them so costs the model's outputs, as predicted, in the unit of the
            allocation where gradients are known; None where nothing predicts it.
        weight_bytes: of the weight as held, with its scales.
        time_ms: of its kernel in one inference, of the first of several sizes; None where nobody
            measured it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    layer: str
    node: str
    numbers: str
    reason: str
    damage: float | None = None
    weight_bytes: int
    time_ms: float | None = None


class PlanCost(BaseModel):
    """What the weights that could be factored take of the budget, before and after, as predicted.

    Those that have to stay dense, whatever the budget, are in neither figure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: Literal["bytes", "FLOPs", "ms"]
    before: float
    after: float


class CompressionPlan(BaseModel):
    """What every MatMul and Gemm of one model becomes.

    ``sequential`` plans are applied with the errors of earlier sites in sight; ``objective`` is
    what gradients are taken of, for methods that need them; ``shrinkage`` is what the metric was
    pulled towards, with the strength that was taken. ``cost`` is what the budget counts,
    None where that is parameters; ``multiplier`` is the damage that one more unit of the budget
    would prevent, None where ranks do not go by damage. ``error`` is measured when the plan is
    carried out, on the data that it was made from; ``held_out_error`` on other samples, where there
    are any. ``layers`` are those of a model whose numbers are held in other forms; applying the
    plan changes the sites alone. ``notes`` say what the plan had to do without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[1] = PLAN_SCHEMA_VERSION
    allocation: str
    budget: str
    cost: PlanCost | None = None
    multiplier: float | None = None
    sequential: bool = False
    objective: Objective = "positions"
    shrinkage: Shrinkage | None = None
    sites: tuple[SitePlan, ...]
    layers: tuple[LayerPlan, ...] = ()
    error: PlanError | None = None
    held_out_error: PlanError | None = None
    skipped: tuple[SkippedNode, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def factored(self) -> tuple[SitePlan, ...]:
        """The sites that get rewritten."""
        return tuple(site for site in self.sites if site.decision == "factor")

    @property
    def thinned(self) -> tuple[SitePlan, ...]:
        """The down layer of each feed-forward network that loses neurons."""
        return tuple(s for s in self.sites if s.decision == "neurons" and s.ffn == s.site)

    @property
    def changed(self) -> tuple[SitePlan, ...]:
        """The sites whose weights are replaced."""
        return tuple(site for site in self.sites if site.decision in {"factor", "neurons"})

    @property
    def selected(self) -> tuple[SitePlan, ...]:
        """The sites that the user asked to compress, whether or not that was possible."""
        return tuple(site for site in self.sites if site.decision != "skip")

    @property
    def parameters_before(self) -> int:
        """Parameters of the selected weights; a weight that several sites share counts once."""
        return sum(weight.parameters_before for weight in self._weights)

    @property
    def parameters_after(self) -> int:
        """Parameters that replace them."""
        return sum(weight.parameters_after for weight in self._weights)

    @property
    def bytes_before(self) -> int:
        """Bytes of the selected weights in the file."""
        return sum(weight.bytes_before for weight in self._weights)

    @property
    def bytes_after(self) -> int:
        """Bytes of what replaces them: factors as stored, and their scales."""
        return sum(weight.bytes_after for weight in self._weights)

    @property
    def file_parameters_added(self) -> int:
        """Numbers that the whole file has more, biases and scales included; negative: fewer."""
        scales = sum(weight.scale_parameters for weight in self._weights)
        biases = sum(site.bias_parameters for site in self.changed)
        return self.parameters_after - self.parameters_before + scales + biases

    @property
    def file_bytes_added(self) -> int:
        """Bytes that all numbers of the file take more, biases included; negative: fewer."""
        biases = sum(site.itemsize * site.bias_parameters for site in self.changed)
        return self.bytes_after - self.bytes_before + biases

    @property
    def _weights(self) -> tuple[SitePlan, ...]:
        """One of the selected sites for each weight."""
        return tuple({site.weight: site for site in self.selected}.values())


def read_plan(path: Path) -> CompressionPlan:
    """Read a plan from JSON.

    Raises:
        RequestError: the file is missing, not JSON, or not a plan; the message names the key.
    """
    try:
        return CompressionPlan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"cannot read the plan {path}: {error.strerror}") from error
    except ValidationError as error:
        raise RequestError(f"{path} is not a compression plan: {first_problem(error)}") from error


def check_opset(storage: Storage, opset: int) -> None:
    """Make sure that a model of ``opset`` can hold factors as ``storage``.

    Raises:
        RequestError: it cannot.
    """
    if storage == "int4" and opset < INT4_OPSET:
        raise RequestError(
            f"int4 needs opset {INT4_OPSET}, the model has {opset}: export it at a newer one, or "
            "store int8"
        )


def parse_method(text: str) -> MethodSpec:
    """A method with its hyper-parameters from ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``.

    Raises:
        RequestError: a hyper-parameter is not KEY=VALUE.
    """
    name, _, settings = text.partition(":")
    options: dict[str, OptionValue] = {}
    for setting in filter(None, settings.split(",")):
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise RequestError(
                f"cannot read {setting!r} in the method {text!r}: write NAME:KEY=VALUE, "
                "for example svdlora:stages=3,layout=branches"
            )
        options[key] = _value(value)
    return MethodSpec(name=name, options=options)


def _value(text: str) -> OptionValue:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
