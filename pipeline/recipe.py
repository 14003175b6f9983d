"""Recipes: one YAML file that says everything about a run.

A recipe is data, validated on reading: an unknown key is an error that names the key. Paths in a
recipe are relative to the recipe's own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.request import CompressionSpec, Shrinkage
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.runtime.duration import parse_duration


class RecipeModel(BaseModel):
    """Base of all recipe parts: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(RecipeModel):
    """The model.

    ``model`` is a Hugging Face id, a folder in the hub's layout, ``package:NAME/FOLDER`` (a folder
    inside an installed Python package), ``MODULE:FACTORY`` (a callable that returns a torch module
    and its example inputs), or an ``.onnx`` file. ``revision`` is the hub's branch or commit.
    """

    model: str
    revision: str | None = None
    kind: Literal["auto", "huggingface", "module", "onnx"] = "auto"
    task: str | None = None
    exporter: Literal["dynamo", "optimum"] = "dynamo"
    opset: int = Field(default=23, ge=13)
    parity_tolerance: float = Field(default=1e-3, gt=0)


class NpzData(RecipeModel):
    """An ``.npz`` file with one array for each model input (and optionally ``labels``)."""

    kind: Literal["npz"]
    path: Path
    labels: str | None = None
    limit: int | None = Field(default=None, ge=1)


class TextData(RecipeModel):
    """A UTF-8 text file, one sample a line."""

    kind: Literal["text"]
    path: Path
    limit: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=128, ge=2)


class PythonData(RecipeModel):
    """What a function in Python code returns: texts, sentences with translations, or arrays.

    Attributes:
        loader: ``PATH.py:FUNCTION``, a file in the recipe's folder or below, or
            ``MODULE:FUNCTION``; what it returns is described in :mod:`pipeline.data.python`.
        arguments: passed to the function by name.
        limit: of translations, for all languages together.
    """

    kind: Literal["python"]
    loader: str
    arguments: dict[str, JsonValue] = {}
    limit: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=128, ge=2)


class ParallelData(RecipeModel):
    """A parallel data set of the Hugging Face hub, or a local folder of json or parquet files.

    Each row of ``column`` holds a sentence in several languages: ``{"de": …, "en": …}``. With
    ``{language}`` in its name, such as ``{language}_text``, each language has a column of its own.

    Attributes:
        path: the folder, or the name on the hub.
        languages: the target languages, with the configuration (in a folder: the sub-folder) that
            has each; null where one table has all. With ``target`` they are the source languages.
        source: the language to translate from.
        target: the one language to translate into, instead of ``source``.
        limit: for all languages together.
    """

    kind: Literal["parallel"]
    path: str
    languages: dict[str, str | None] = Field(min_length=1)
    source: str = "en"
    target: str | None = None
    column: str = "translation"
    split: str = "test"
    limit: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=128, ge=2)

    @model_validator(mode="after")
    def _one_common_language(self) -> ParallelData:
        if self.target is not None and "source" in self.model_fields_set:
            raise ValueError("source and target exclude each other: one side is in languages")
        return self


class HubData(RecipeModel):
    """A data set of the Hugging Face hub, or a local folder, read by the ``datasets`` library.

    ``files`` is a pattern of the files to fetch, for data sets of which one split is enough.
    """

    kind: Literal["datasets"]
    path: str
    name: str | None = None
    files: str | None = None
    split: str = "validation"
    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | None = None
    limit: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=128, ge=2)

    @model_validator(mode="after")
    def _text_or_image(self) -> HubData:
        if (self.text is None) == (self.image is None):
            raise ValueError("name exactly one column: text or image")
        return self


TextSource = Literal["descriptions", "docstrings", "library", "reference", "messages"]
TEXT_SOURCES: tuple[TextSource, ...] = get_args(TextSource)


class GeneralTextData(RecipeModel):
    """English sentences out of what is installed anyway: a general text without a download.

    Attributes:
        samples: how many sentences.
        sources: where from, evenly: descriptions of the installed packages, docstrings of their
            code, docstrings of Python's library, Python's language reference, and messages of
            gettext catalogues.
        exclude: sources whose sentences must not occur, wherever they come from.
        split: a hash of its words decides which one a sentence belongs to.
    """

    kind: Literal["general-text"]
    samples: int = Field(default=1024, ge=1)
    sources: tuple[TextSource, ...] = TEXT_SOURCES
    exclude: tuple[TextSource, ...] = ()
    split: Literal["calibration", "validation"] = "calibration"
    max_tokens: int = Field(default=128, ge=2)

    @property
    def taken(self) -> tuple[TextSource, ...]:
        """The sources that are left."""
        return tuple(source for source in dict.fromkeys(self.sources) if source not in self.exclude)

    @model_validator(mode="after")
    def _some_source(self) -> GeneralTextData:
        if not self.taken:
            raise ValueError("no source is left: name some, or exclude fewer")
        return self


class MaskedData(RecipeModel):
    """Sentences with one word masked in each; the word is the label."""

    kind: Literal["masked"]
    sentences: Annotated[
        TextData | HubData | PythonData | GeneralTextData, Field(discriminator="kind")
    ]

    @model_validator(mode="after")
    def _text_without_labels(self) -> MaskedData:
        if isinstance(self.sentences, HubData) and (self.sentences.image or self.sentences.label):
            raise ValueError("the masked words are the labels: name a column of text and no label")
        return self


DataSpec = Annotated[
    NpzData | TextData | HubData | ParallelData | PythonData | GeneralTextData | MaskedData,
    Field(discriminator="kind"),
]


class EmbeddingMetric(RecipeModel):
    """Fidelity of sentence embeddings: cosine to the original, neighbours, pair similarities."""

    kind: Literal["embedding"]
    output: str | None = None
    pooling: Literal["mean", "cls", "none"] = "mean"
    neighbours: int = Field(default=10, ge=1)


class AccuracyMetric(RecipeModel):
    """Labelled top-k accuracy of a classifier."""

    kind: Literal["accuracy"]
    output: str | None = None
    top_k: int = Field(default=1, ge=1)


class MaskFillingMetric(RecipeModel):
    """Top-k accuracy of filling in masked words: for data of the kind ``masked``."""

    kind: Literal["mask-filling"]
    output: str | None = None
    top_k: int = Field(default=5, ge=1)


class RetrievalMetric(RecipeModel):
    """How well embeddings find the samples with the same label: nDCG and recall at ``top_k``."""

    kind: Literal["retrieval"]
    output: str | None = None
    pooling: Literal["mean", "cls", "none"] = "mean"
    top_k: int = Field(default=10, ge=1)


class TranslationMetric(RecipeModel):
    """BLEU and chrF of what an encoder–decoder says: for data of translations.

    A model of many languages is told languages in one of two ways: by a prompt, or by tokens of
    its own (M2M100, NLLB, mBART). One that translates into one language may need neither.

    Attributes:
        beams: hypotheses that the search keeps; 1 is greedy.
        max_new_tokens: where a translation is cut off.
        prompt: what the model reads, with the language's code for ``{language}`` and the sentence
            for ``{source}``, such as ``>>{language}<< {source}``.
        source_language: the code that the tokenizer has for the source; the target language is
            then the first token, which the decoder is forced to say.
        target_language: the code that the decoder is forced to say, where data have ``target``;
            the language of each sentence is then marked in what the encoder reads.
        codes: what the model calls the languages of the data, where that is something else.
    """

    kind: Literal["translation"]
    beams: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    prompt: str | None = None
    source_language: str | None = None
    target_language: str | None = None
    codes: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_way(self) -> TranslationMetric:
        ways = ("prompt", "source_language", "target_language")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.prompt is not None and "{source}" not in self.prompt:
            raise ValueError("a prompt needs {source}, where the sentence goes")
        return self


MetricSpec = Annotated[
    EmbeddingMetric | AccuracyMetric | MaskFillingMetric | RetrievalMetric | TranslationMetric,
    Field(discriminator="kind"),
]


DeployTarget = Literal[
    "sentence-transformers",
    "tei",
    "fastembed",
    "transformers-js",
    "optimum",
    "triton",
    "kserve",
    "mlserver",
    "vespa",
    "opensearch",
    "ort",
]
"""A place where models go."""


class Gate(RecipeModel):
    """A limit on a measured quantity such as ``cosine``, ``accuracy_drop`` or ``speedup.cpu``."""

    quantity: str
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_limit(self) -> Gate:
        if (self.min is None) == (self.max is None):
            raise ValueError("give exactly one of min and max")
        return self


Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1),
]
"""One size, or a list of them."""


class BenchmarkSpec(RecipeModel):
    """How latency is measured.

    ``batch`` and ``length`` give the size of the inputs (``length`` for sequence axes), each a
    number or a list: of lists, every combination is measured. ``optimize`` chooses by the geometric
    mean of the speed-ups over all of them. Where one inference stands for all, as in a budget of
    latency, it is that of the first sizes.
    """

    provider: Literal["auto", "cpu", "cuda", "openvino"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    batch: Sizes = (1,)
    length: Sizes = (128,)
    warmup: int = Field(default=10, ge=0)
    iterations: int = Field(default=100, ge=5)

    @property
    def device(self) -> Literal["cpu", "cuda", "openvino"]:
        """The one provider that choices are measured on: with ``auto`` the CPU's."""
        return "cpu" if self.provider == "auto" else self.provider


Duration = Annotated[
    float,
    BeforeValidator(lambda value: parse_duration(value) if isinstance(value, str) else value),
    Field(gt=0, allow_inf_nan=False),
]
"""Seconds, also written as ``90s``, ``10min`` or ``1h``."""


class OptimizeSpec(RecipeModel):
    """The search for the best form within a drop.

    Attributes:
        max_drop: what may be lost.
        objective: what is to be least.
        integers: whether layers may multiply integers.
        seven_bits: whether weights are kept so small that no CPU overflows; None where this one
            does.
        time: seconds, after which no trial starts any more.
        batch_invariance: the least cosine between a sample alone and the same in a batch that the
            winner may have; None lets it depend on the batch.
        shrinkage: what the metric that forms are chosen by is pulled towards; None leaves it.
    """

    max_drop: float = Field(default=0.01, ge=0)
    objective: Literal["latency", "size"] = "latency"
    integers: bool = True
    seven_bits: bool | None = None
    time: Duration = 900.0
    batch_invariance: float | None = Field(default=None, ge=0, le=1)
    shrinkage: Shrinkage | None = None


class Compression(CompressionSpec):
    """How to compress: as :class:`CompressionSpec` says, or as ``optimize`` finds best."""

    optimize: OptimizeSpec | None = None

    @model_validator(mode="after")
    def _alone(self) -> Compression:
        others = self.model_dump(exclude_defaults=True).keys() - {"optimize"}
        if self.optimize is not None and others:
            raise ValueError(f"optimize chooses the form itself: drop {', '.join(sorted(others))}")
        return self

    @property
    def plain(self) -> CompressionSpec:
        """What there is besides ``optimize``."""
        return CompressionSpec(**{n: getattr(self, n) for n in CompressionSpec.model_fields})


class RecoverySpec(RecipeModel):
    """Training against the original's outputs, with labels only where asked for.

    Attributes:
        data: what to train on; the calibration data unless it is given.
        held_out: what decides when to stop and which weights are kept, such as text of a kind that
            is not trained on; a batch in ten of ``data``, at most 512 samples,
            unless it is given.
        budget: seconds; None leaves only ``steps``.
        steps: at most so many, and with a budget whichever ends first; None leaves only ``budget``.
        learning_rate: the size of a step relative to the weights; None measures one that helps.
        train: ``factors``, which are all weights that compression changed: low-rank factors,
            networks with fewer neurons, float branches, what will be integers. Or ``all``: biases
            and norm scales too.
        hidden: importance of values inside the model (norms and sites), next to 1 for each output.
        pooled: importance of outputs averaged over positions, next to 1 for their positions.
        labels: importance of the labels' cross-entropy at the logits, next to 1 for the original's
            outputs; above 0, the calibration data must have labels (of samples, or of positions as
            the data kind ``masked`` has them).
        mixing: share of the steps on new samples, mixed from those that there are, after the first
            epoch.
        patience: stop after so many checks of the held-out data without an improvement.
        products: in gradients: of bfloat16 where these are faster (``auto``), or ``float32``.
    """

    data: DataSpec | None = None
    held_out: DataSpec | None = None
    budget: Duration | None = 600.0
    steps: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    train: Literal["factors", "all"] = "all"
    hidden: float = Field(default=0.0, ge=0)
    pooled: float = Field(default=1.0, ge=0)
    labels: float = Field(default=0.0, ge=0)
    mixing: float = Field(default=0.5, ge=0, le=1)
    patience: int = Field(default=30, ge=1)
    products: Literal["auto", "float32"] = "auto"

    @model_validator(mode="after")
    def _some_end(self) -> RecoverySpec:
        if self.budget is None and self.steps is None:
            raise ValueError("give a budget or steps: recovery has to end")
        return self


MAIN_SET, WORST = "validation", "worst"
"""What quantities and tables call the set that decides, and the worst of all sets."""

_PROVIDERS = get_args(BenchmarkSpec.model_fields["provider"].annotation)


def _unambiguous(domain: str) -> str:
    if domain in {*_PROVIDERS, MAIN_SET, WORST}:
        raise ValueError(
            f"no domain can be called {domain!r}, which quantities such as cosine.{domain} "
            "mean something else by: choose another name"
        )
    return domain


Domain = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"), AfterValidator(_unambiguous)]
"""The name of a further validation set, as it stands in ``cosine.NAME``."""


_PRESETS = {"99": 0.99, "99.9": 0.999}


class Recipe(RecipeModel):
    """A whole run of the pipeline.

    With ``max_drop``, the share is not given but found: the smallest whose drop stays within it.
    With ``compression: {optimize: …}``, the form is found too.

    ``domains`` are further sets to validate on, by name: other kinds of data than ``calibration``
    has. They decide nothing, they only report. ``broader`` are further sets to calibrate on, by
    name, as far as ``compression: {shrinkage: …}`` says. ``deploy`` names places where the model
    goes: the bundle gets a folder for each. ``preset`` is one of MLPerf's accuracy classes, as a
    gate: the share of the reference's score that has to be kept, in percent.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: SourceSpec
    calibration: DataSpec | None = None
    broader: dict[Domain, DataSpec] = {}
    validation: DataSpec | None = None
    domains: dict[Domain, DataSpec] = {}
    mask: str | None = None
    metric: MetricSpec | None = None
    compression: Compression = Compression()
    max_drop: float | None = Field(default=None, ge=0)
    recovery: RecoverySpec | None = None
    gates: tuple[Gate, ...] = ()
    benchmark: BenchmarkSpec | None = BenchmarkSpec()
    batch_size: int = Field(default=32, ge=1)
    seed: int = 0
    output: Path | None = None
    deploy: tuple[DeployTarget, ...] = ()
    preset: Literal["99", "99.9"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _gate_of_preset(cls, values: object) -> object:
        preset = values.get("preset") if isinstance(values, dict) else None
        if not isinstance(values, dict) or str(preset) not in _PRESETS:
            return values
        gate = {"quantity": "kept", "min": _PRESETS[str(preset)]}
        gates = [*(values.get("gates") or ()), gate]
        kept = [g for g in gates if not (isinstance(g, dict) and g.get("quantity") == "kept")]
        return {**values, "preset": str(preset), "gates": [*kept, gate]}

    @model_validator(mode="after")
    def _deploy_one_graph(self) -> Recipe:
        if self.deploy and isinstance(self.metric, TranslationMetric):
            raise ValueError("deploy is for models of one graph: translation has two")
        return self

    @model_validator(mode="after")
    def _broader_for_shrinkage(self) -> Recipe:
        search = self.compression.optimize
        shrinkage = search.shrinkage if search else self.compression.shrinkage
        if self.broader and shrinkage is None:
            raise ValueError("broader data are for shrinkage: add it to compression")
        if self.broader and isinstance(self.metric, TranslationMetric):
            raise ValueError("broader data are for models of one graph: translation has languages")
        if shrinkage is not None and shrinkage.towards == "broader" and not self.broader:
            raise ValueError("shrinkage towards broader data needs some: add broader")
        if shrinkage is not None and self.calibration is None:
            raise ValueError("shrinkage is of what calibration data say: add calibration")
        return self

    @model_validator(mode="after")
    def _recovery_reports_on_other_data(self) -> Recipe:
        chosen_by = self.recovery and self.recovery.held_out
        if chosen_by is not None and chosen_by in (self.validation, *self.domains.values()):
            raise ValueError(
                "recovery keeps what is best on its held_out data, so these cannot report: "
                "validate on others"
            )
        return self

    @model_validator(mode="after")
    def _preset_of_a_metric(self) -> Recipe:
        if self.preset is not None and self.metric is None:
            raise ValueError("a preset is a share of a metric: add one")
        return self

    @model_validator(mode="after")
    def _domains_beside_a_main_set(self) -> Recipe:
        if self.domains and self.validation is None:
            raise ValueError("domains stand beside the set that decides: add validation")
        if self.domains and isinstance(self.metric, TranslationMetric):
            raise ValueError("domains are for models of one graph: translation has languages")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Raises:
        RequestError: missing file, invalid YAML, or an invalid recipe; the message names the key.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RequestError(f"{path}: {first_problem(error, Recipe)}") from error
