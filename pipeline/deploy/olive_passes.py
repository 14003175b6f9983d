"""Passes for Microsoft Olive: our compression as a step of its workflows.

========================  ==================================  ====================================
``LowRankFactorization``  :func:`~pipeline.api.compress`      ``params`` (which Olive may search
                                                              for) or another budget, ``method``, …
``CompressWithinDrop``    :func:`~pipeline.api.optimize`      ``max_drop``, ``objective``, …
========================  ==================================  ====================================

Both take ONNX models, so that they come behind ``OnnxConversion``, and calibration data as an
``.npz`` file (``calibration``) or as Olive has it (``data_config``). The plan goes along with the
model, as one of its additional files.

Olive knows passes by its package-config, of which it reads one::

    python -m compress_onnx.pipeline.deploy.olive_passes olive-package.json
    olive run --config workflow.json --package-config olive-package.json

This module needs Olive, which imports it; nothing else here does, so that it may stand on the API,
which is above all other modules of this package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from olive.data.config import DataConfig
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import ParamCategory, PassConfigParam
from olive.resource_path import LocalFile, LocalFolder
from olive.search.search_parameter import Categorical

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import CompressionPlan, parse_method
from compress_onnx.pipeline.api import compress, optimize
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.model_file import referred_files
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS

PASSES = ("LowRankFactorization", "CompressWithinDrop")

_FILES = "additional_files"
_PLAN = "compress-onnx-plan.json"
_REPORT = "compress-onnx-report.json"


class LowRankFactorization(Pass):  # type: ignore[misc]  # Olive has no types
    """Replace weights of MatMul and Gemm by products of two factors, within a budget."""

    @classmethod
    def _default_config(cls, accelerator_spec: object) -> dict[str, Any]:  # noqa: ARG003
        shares = Categorical([0.7, 0.5, 0.33])
        params = PassConfigParam(
            type_=float,
            default_value=None,
            search_defaults=shares,
            description="What stays of the parameters, as a share [default: a half].",
        )
        return {
            "params": params,
            "bytes": _option(float, None, "What stays of the bytes, in place of params."),
            "flops": _option(float, None, "What stays of the FLOPs, in place of params."),
            "rank": _option(int, None, "The rank of every layer, in place of a share."),
            "method": _option(str, "auto", "How to factor: NAME or NAME:KEY=VALUE,…"),
            "allocation": _option(str, "auto", "What ranks are shared out by."),
            "store": _option(str, "same", "How the file holds factors: same, float16, int8, int4."),
            **_data_options(),
        }

    def _run_for_config(self, model: object, config: Any, output_model_path: str) -> Any:  # noqa: ANN401
        source, target = _files_of(model, output_model_path)
        names = ("params", "bytes", "flops", "rank")
        # Olive's search gives a share to every run; another budget that was asked for goes first.
        given = {name: _value(config, name) for name in names}
        budgets: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        if len(budgets) > 1:
            budgets.pop("params", None)
        compressed = compress(
            source,
            None,
            _data(model, config),
            mask=config.mask,
            method=parse_method(config.method),
            allocation=config.allocation,
            store=config.store,
            **budgets,
        )
        plan: CompressionPlan = compressed.write(target)
        return _handler(model, target, _PLAN, plan.model_dump_json(indent=2))


class CompressWithinDrop(Pass):  # type: ignore[misc]  # Olive has no types
    """Take the fastest or smallest form within a drop.

    Fewer neurons, low rank, integers, and what ONNX Runtime's own tools make of the model.
    """

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: object) -> bool:  # noqa: ARG004
        """What is fastest depends on where it runs."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: object) -> dict[str, Any]:  # noqa: ARG003
        return {
            "max_drop": _option(float, 0.01, "What may be lost."),
            "objective": _option(str, "latency", "What is to be least: latency or size."),
            "minutes": _option(float, 15.0, "After so long, no trial starts any more."),
            "batch": _option(int, 1, "Samples of an inference that is timed."),
            "length": _option(int, 128, "Its length, on axes of sequences."),
            **_data_options(),
        }

    def _run_for_config(self, model: object, config: Any, output_model_path: str) -> Any:  # noqa: ANN401
        source, target = _files_of(model, output_model_path)
        data = _data(model, config)
        if data is None:
            raise RequestError(
                "CompressWithinDrop chooses by data: give calibration or data_config"
            )
        wanted = str(self.accelerator_spec.execution_provider or EXECUTION_PROVIDERS["cpu"])
        known = {name: provider for provider, name in EXECUTION_PROVIDERS.items()}
        if wanted not in known:
            raise RequestError(f"CompressWithinDrop cannot measure on {wanted}: use {list(known)}")
        report = optimize(
            source,
            target,
            data,
            mask=config.mask,
            how=BenchmarkSpec(
                provider=known[wanted], batch=(config.batch,), length=(config.length,)
            ),
            max_drop=config.max_drop,
            objective=config.objective,
            time=60 * config.minutes,
        )
        return _handler(model, target, _REPORT, report.model_dump_json(indent=2))


def package_config() -> dict[str, Any]:
    """Olive's own package-config with our passes in it, as ``olive run`` reads it."""
    path = Path(OlivePackageConfig.get_default_config_path())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in PASSES:
        found["passes"][name] = {
            "module_path": f"compress_onnx.pipeline.deploy.olive_passes.{name}",
            "supported_providers": ["*"],
            "supported_accelerators": ["*"],
            "supported_precisions": ["*"],
            "module_dependencies": ["compress-onnx"],
        }
    return found


def write_package_config(path: Path) -> None:
    """Write :func:`package_config` to a file.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(package_config(), indent=2) + "\n", encoding="utf-8")


def _option(kind: Any, default: object, description: str) -> Any:  # noqa: ANN401
    return PassConfigParam(type_=kind, default_value=default, description=description)


def _data_options() -> dict[str, Any]:
    calibration = PassConfigParam(
        type_=Union[Path, str],  # noqa: UP007  # Olive takes it apart by its origin
        category=ParamCategory.PATH,
        description="An .npz file with an array for each input of the model.",
    )
    return {
        "calibration": calibration,
        "data_config": _option(
            Union[DataConfig, dict],  # noqa: UP007
            None,
            "Calibration data as Olive has it, in place of that.",
        ),
        "mask": _option(str, None, "The input that is the padding mask."),
    }


def _value(config: Any, name: str) -> float | None:  # noqa: ANN401
    """A number that was given; Olive has words of its own for those that were not."""
    value = getattr(config, name)
    return value if isinstance(value, int | float) else None


def _files_of(model: object, output_model_path: str) -> tuple[Path, Path]:
    """The model's file, and that which is to be written."""
    if not isinstance(model, ONNXModelHandler):
        raise RequestError(
            f"{type(model).__name__} is no ONNX model: put the pass OnnxConversion in front"
        )
    source = Path(model.model_path)
    return source, Path(resolve_onnx_path(output_model_path, source.name))


def _data(model: Any, config: Any) -> Path | list[dict[str, Any]] | None:  # noqa: ANN401
    if config.calibration is not None and config.data_config is not None:
        raise RequestError("calibration and data_config exclude each other: give one of them")
    if config.calibration is not None:
        return Path(config.calibration)
    return None if config.data_config is None else list(_feeds(model, config.data_config))


def _feeds(model: Any, data_config: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """What Olive's loader gives for the inputs of the model, batch by batch."""
    io = model.io_config
    if isinstance(data_config, dict):
        data_config = DataConfig(**data_config)
    container = data_config.to_data_container()
    loader = container.create_calibration_dataloader(model_path=model.model_path, io_config=io)
    for batch in loader:
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        yield {name: inputs[name] for name in io["input_names"] if name in inputs}


def _handler(model: Any, path: Path, name: str, text: str) -> Any:  # noqa: ANN401
    """The finished model with a file of ours beside it."""
    beside = path.parent / name
    with atomic_file(beside) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    known = dict(model.model_attributes or {})
    known[_FILES] = sorted({*(known.get(_FILES) or ()), str(beside)})
    if referred_files(path):
        return ONNXModelHandler(
            LocalFolder({"path": path.parent}), onnx_file_name=path.name, model_attributes=known
        )
    return ONNXModelHandler(LocalFile({"path": path}), model_attributes=known)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m compress_onnx.pipeline.deploy.olive_passes FILE.json")
    write_package_config(Path(sys.argv[1]))
