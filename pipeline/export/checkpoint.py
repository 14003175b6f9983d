"""Load a Hugging Face checkpoint into a :class:`TorchModel`.

Weights are read from safetensors only and code of the repository is never run. A checkpoint must
hold every weight that the task needs: ``transformers`` would draw the missing ones at random.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.pipeline.export.probes import BATCH_AXIS, TEXT_AXES, image_probes, text_probes
from compress_onnx.pipeline.export.quiet import quiet
from compress_onnx.pipeline.export.tasks import Task
from compress_onnx.pipeline.export.torch_model import TorchModel, named_tensors
from compress_onnx.pipeline.runtime.session import one_line

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def read_config(folder: Path) -> PretrainedConfig:
    """Read ``config.json``.

    Raises:
        ModelFileError: it is damaged, of an unknown model type, or needs code of the repository.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelFileError(
            f"cannot read the configuration in {folder}: {one_line(error)}"
        ) from error


def require_safetensors(folder: Path) -> None:
    """Refuse a folder without safetensors.

    Raises:
        ModelFileError: there are none; pickled weights, which run code when loaded, do not count.
    """
    if not any(folder.glob("*.safetensors")):
        raise ModelFileError(
            f"{folder} has no *.safetensors: pickled weights (.bin, .pt) are never loaded, save "
            "the model again with safe_serialization=True"
        )


def load_checkpoint(folder: Path, task: Task) -> PreTrainedModel:
    """Load the model for ``task`` in float32 and evaluation mode.

    Raises:
        ModelFileError: weights are damaged or missing, or the architecture has no such task.
    """
    import transformers
    from safetensors import SafetensorError

    require_safetensors(folder)
    auto_class = getattr(transformers, task.auto_class)
    try:
        with quiet():
            # Attention is left to transformers, which takes PyTorch's own where the model can.
            model, info = auto_class.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelFileError(f"cannot load {folder} for {task.name}: {one_line(error)}") from error
    missing = sorted(
        name for name in info["missing_keys"] if not name.startswith(task.unused_weights)
    )
    if missing:
        raise ModelFileError(
            f"{folder} lacks {len(missing)} weights that {task.name} needs, such as "
            f"{missing[0]}: choose the task that it was trained for"
        )
    model.config.use_cache = False
    model.config.return_dict = True
    return model.float().eval()


def torch_model(
    model: PreTrainedModel,
    task: Task,
    folder: Path,
    *,
    seed: int,
    input_names: Sequence[str] | None = None,
) -> TorchModel:
    """Describe ``model``'s inputs and outputs.

    Args:
        model: loaded for ``task``.
        task: says which outputs count.
        folder: where the image processor's settings are.
        seed: of the made-up inputs.
        input_names: the inputs to feed; those that the model's ``forward`` takes when None.

    Raises:
        RequestError: the model takes other inputs than text or images, or lacks an output.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        probes = image_probes(model.config, folder, generator)
    elif model.main_input_name == "input_ids":
        probes = text_probes(input_names or _text_inputs(model), model.config, generator)
    else:
        raise RequestError(
            f"{type(model).__name__} takes {model.main_input_name}: only text and images can be "
            "exported by dynamo, use the exporter optimum"
        )
    _require_outputs(model, task, probes[0])
    axes = BATCH_AXIS if "pixel_values" in probes[0] else TEXT_AXES
    return TorchModel(model, task.outputs, dict.fromkeys(probes[0], axes), probes)


def _text_inputs(model: PreTrainedModel) -> list[str]:
    parameters = inspect.signature(model.forward).parameters
    names = [name for name in _TEXT_INPUTS if name in parameters]
    # Some take token types that their tokenizers never give, having only one.
    if getattr(model.config, "type_vocab_size", 0) < 2 and "token_type_ids" in names:
        names.remove("token_type_ids")
    return names


def _require_outputs(model: PreTrainedModel, task: Task, probe: dict[str, Tensor]) -> None:
    import torch

    try:
        with torch.no_grad():
            found = named_tensors(model(**probe))
    except Exception as error:  # the model's own code, on inputs that it may not be made for
        raise ModelFileError(
            f"{type(model).__name__} cannot run on made-up {', '.join(probe)}: {one_line(error)}"
        ) from error
    if missing := [name for name in task.outputs if name not in found]:
        raise RequestError(
            f"{type(model).__name__} has no output {missing[0]!r}, which {task.name} needs, only "
            f"{', '.join(found)}: choose another task"
        )
