"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import typer
from pydantic import TypeAdapter, ValidationError

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import METHODS
from compress_onnx.graph_passes.planning.plan import parse_method as method_spec
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.cli.console import ProgressBars, TrialTable
from compress_onnx.pipeline.data.npz import load_npz
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.recipe import Domain
from compress_onnx.pipeline.runtime.backend import EMBEDDED, open_backend
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples

__all__ = ["method_spec"]

T = TypeVar("T")

_LABELS = "labels"

METHOD_HELP = (
    "auto (the best that the data allows), or NAME:KEY=VALUE,…: svdlora:stages=3,layout=branches. "
    "neurons only takes neurons out of feed-forward networks. "
    + " ".join((method.__doc__ or name).splitlines()[0] for name, method in METHODS.items())
)

Provider = Literal["auto", "cpu", "cuda", "openvino"]
Device = Literal["cpu", "cuda", "openvino"]


def _provider(text: str) -> str:
    if text not in _PROVIDERS:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, _PROVIDERS))}.")
    return text


class Numbers(tuple[int, ...]):
    """One number above zero, or several with commas between them."""

    __slots__ = ()


def numbers(text: str) -> Numbers:
    """``8`` or ``1,8`` as numbers.

    Raises:
        typer.BadParameter: the text is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no number above zero, nor several: 1,8")
    return Numbers(dict.fromkeys(map(int, parts)))


_SEVERAL = "N[,N…]"
Batches = Annotated[
    Numbers | None,
    typer.Option("--batch", parser=numbers, metavar=_SEVERAL, help="Batch sizes [default: 1]."),
]
Lengths = Annotated[
    Numbers | None,
    typer.Option(
        "--length", parser=numbers, metavar=_SEVERAL, help="Sequence lengths [default: 128]."
    ),
]
ThreadCounts = Annotated[
    Numbers | None,
    typer.Option(
        "--threads", parser=numbers, metavar=_SEVERAL, help="Threads [default: all cores]."
    ),
]
_PROVIDERS = get_args(Provider)
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        parser=_provider,
        metavar=f"[{'|'.join(_PROVIDERS)}]",
        help="Where both run; may be given several times [default: cpu].",
    ),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
]
Model = Annotated[Path, typer.Argument(help="An ONNX model; it is never changed.")]
Method = Annotated[str, typer.Option("--method", "-m", help=METHOD_HELP)]
Params = Annotated[
    float | None,
    typer.Option("--params", "-p", help="Share of the selected linear parameters to keep."),
]
Bytes = Annotated[
    float | None,
    typer.Option("--bytes", help="Share of the bytes that the selected weights take in the file."),
]
Flops = Annotated[
    float | None,
    typer.Option("--flops", help="Share of the FLOPs that the selected layers take on an input."),
]
Latency = Annotated[
    float | None,
    typer.Option("--latency", help="Share of the time of the selected layers, measured here."),
]
Rank = Annotated[
    int | None, typer.Option(help="The same rank for every site, clipped to min(K, N).")
]
Store = Annotated[
    str | None,
    typer.Option(
        help="How the file holds factors: same (as the weights), float16, int8 or int4 "
        "[default: same]."
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", "-c", help=".npz with one array for each model input."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        min=0,
        help="Find the smallest model that loses at most this (instead of --params).",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(help="Input that is the padding mask; attention_mask is found by itself."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples at a time.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads (default: all cores).")]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="LIMIT", help="Fail (exit 1) unless it holds: cosine>=0.9"),
]
Recover = Annotated[
    str | None,
    typer.Option(
        "--recover",
        metavar="TIME",
        help="Then train what was compressed to do what the original does: 90s, 10min, 1h.",
    ),
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the Python code that a recipe or source names.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace outputs that compress-onnx did not write.")
]
JUnit = Annotated[
    Path | None, typer.Option("--junit", help="Also write the verdicts as JUnit XML.")
]
RequireManifest = Annotated[
    Path | None,
    typer.Option(
        "--require-manifest",
        metavar="KEY.pem",
        help="Refuse a bundle whose manifest was not signed with this public key.",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")]
Backend = Annotated[
    str,
    typer.Option(
        help="Where independent jobs run: embedded (in this process), embedded:JOBS (so many at "
        "once), or dask:ADDRESS of a scheduler whose workers see the same files (docs/scale.md)."
    ),
]


_NAMED = "NAME=FILE.npz"
Domains = Annotated[
    list[str] | None,
    typer.Option(
        "--domain",
        metavar=_NAMED,
        help="A further set of samples to tell figures of, such as cosine.NAME; may be given "
        "several times.",
    ),
]
ShrinkageText = Annotated[
    str | None,
    typer.Option(
        "--shrinkage",
        metavar="TOWARDS:STRENGTH",
        help="Pull what calibration says towards broader data (broader:0.3) or the weights alone "
        "(identity:0.1); broader:auto chooses the strength.",
    ),
]
BroaderFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--broader",
        metavar=_NAMED,
        help="A broader set of samples for --shrinkage; may be given several times.",
    ),
]


@dataclass(frozen=True)
class Data:
    """Data."""

    calibration: CalibrationFile = None
    validation: Annotated[
        Path | None,
        typer.Option(
            help=".npz that a drop is measured on, with `labels` for accuracy "
            "[default: every fifth sample of --calibration]."
        ),
    ] = None
    mask: Mask = None
    batch_size: BatchSize = 32
    no_cache: NoCache = False
    backend: Backend = EMBEDDED


def budgets(
    params: T | None, bytes_: T | None, flops: T | None, latency: T | None, rank: T | None
) -> dict[str, T]:
    """What says how small and was given, by name."""
    named = {
        "params": params,
        "bytes": bytes_,
        "flops": flops,
        "latency": latency,
        "rank": rank,
    }
    return {name: value for name, value in named.items() if value is not None}


def check_broader(
    broader: Mapping[str, Path], shrinkage: str | None, calibration: Path | None
) -> None:
    """Refuse broader data that nothing would be done with.

    Raises:
        RequestError: there is no shrinkage, or no calibration data beside them.
    """
    if broader and shrinkage is None:
        raise RequestError("--broader is data for shrinkage: give --shrinkage broader:auto, say")
    if broader and calibration is None:
        raise RequestError("--broader stands beside calibration data: give --calibration")


def named_files(texts: list[str] | None) -> dict[str, Path]:
    """Files by name, from ``NAME=FILE``.

    Raises:
        RequestError: a text is something else, a name is none, or is given twice.
    """
    found: dict[str, Path] = {}
    for text in texts or ():
        name, sign, file = text.partition("=")
        if not (name and sign and file):
            raise RequestError(f"cannot read {text!r}: write NAME=FILE.npz")
        if name in found:
            raise RequestError(f"the name {name!r} is given twice: give each set another one")
        try:
            TypeAdapter(Domain).validate_python(name)
        except ValidationError as error:
            raise RequestError(f"{text!r}: {first_problem(error)}") from error
        found[name] = Path(file)
    return found


def validated(kind: type[T], values: dict[str, object]) -> T:
    """Build the pydantic model ``kind`` from command-line values.

    Raises:
        RequestError: a value is out of range; the message names it.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error


def samples_for(model: Path, data: Path, mask: str | None) -> Samples:
    """The samples in ``data`` for ``model``, with the padding mask named or found.

    Raises:
        DataError: the file is missing, damaged, or no samples at all.
    """
    declared = model_inputs(load_structure(model))
    if mask is None and "attention_mask" in {model_input.name for model_input in declared}:
        mask = "attention_mask"
    return load_npz(data, mask=mask, declared=declared)


def labelled_samples_for(model: Path, data: Path, mask: str | None) -> Samples:
    """As :func:`samples_for`; an array ``labels`` that is no input of the model is the labels.

    Raises:
        DataError: the file is missing, damaged, or no samples at all.
    """
    samples = samples_for(model, data, mask)
    inputs = dict(samples.inputs)
    if _LABELS not in inputs or _LABELS in _input_names(model):
        return samples
    labels = inputs.pop(_LABELS)
    return replace(samples, inputs=inputs, labels=labels)


def _input_names(model: Path) -> set[str]:
    return {model_input.name for model_input in model_inputs(load_structure(model))}


def cache_unless(no_cache: bool) -> ArrayCache | None:
    """The user's cache, or none."""
    return None if no_cache else ArrayCache(default_folder())


def settings(
    no_cache: bool, allow_code: bool = False, batch_size: int = 32, backend: str = EMBEDDED
) -> RunSettings:
    """How a command runs models: with the user's cache unless told otherwise, and progress bars.

    Raises:
        RequestError: there is no such backend.
        BackendError: it cannot be reached.
    """
    return RunSettings(
        batch_size=batch_size,
        cache=cache_unless(no_cache),
        progress=ProgressBars(),
        on_trial=TrialTable(),
        allow_code=allow_code,
        backend=open_backend(backend),
    )
