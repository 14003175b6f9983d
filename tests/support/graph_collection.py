"""A collection of small exports: one of each architecture by each exporter that can write it.

Weights are random; biases and norms are jittered, so that a lost bias shows. Exporters:

* ``dynamo``: ``torch.onnx.export(dynamo=True)`` at opset 20 and, for some, 23;
* ``trace``: ``torch.onnx.export(dynamo=False)`` at opset 17 (13 and 14 for some);
* ``dynamo-static``, ``trace-static``: the same without dynamic axes;
* ``optimum``: ``optimum.exporters.onnx``, which may write several graphs for one model.

Of some traced graphs there are variants: in float16 (``fp16``), with weights in bfloat16 (``bf16``;
ONNX Runtime computes nothing in it on a CPU, so they are cast), as ONNX Runtime optimizes them
(``ort``), with dynamic quantization (``int8``), and with weights in a file of their own
(``external``).

An export that fails is part of the collection too: it has an error instead of files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_models
import numpy as np
import onnx

from compress_onnx.pipeline.export.quiet import quiet
from compress_onnx.pipeline.runtime.inputs import (
    ModelInput,
    load_structure,
    model_inputs,
    synthetic_feeds,
)
from compress_onnx.pipeline.runtime.session import one_line

if TYPE_CHECKING:
    import torch

BATCH, LENGTH, EDGE = 2, 8, 32


@dataclass(frozen=True)
class Graph:
    """One file of the collection, or the reason why there is none."""

    architecture: str
    exporter: str
    part: str = ""
    path: Path | None = None
    error: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.architecture, self.exporter, self.part)))

    def inputs(self) -> list[ModelInput]:
        """Inputs of the graph, with the one size of images that the model is made for.

        Optimum declares even the channels as dynamic.
        """
        assert self.path is not None
        image = ARCHITECTURES[self.architecture].image
        return [
            replace(i, shape=(i.shape[0], *image)) if i.name in _PIXELS else i
            for i in model_inputs(load_structure(self.path))
        ]

    def feeds(self, batch: int = BATCH, length: int = LENGTH) -> list[Mapping[str, Any]]:
        """Inputs of the graph; for a merged decoder without a past and with one."""
        feeds = synthetic_feeds(self.inputs(), batch=batch, length=length, seed=0)
        branch = "use_cache_branch"
        if branch not in feeds:
            return [feeds]
        return [{**feeds, branch: np.full_like(feeds[branch], value)} for value in (False, True)]


@dataclass(frozen=True)
class Architecture:
    """How to build a model, what it reads, and which exporters are tried on it.

    Attributes:
        build: makes the module.
        inputs: names of its inputs.
        output: the field of its output that is exported; None where it returns a tensor.
        exporters: exporter and opset.
        task: for optimum.
        variants: what else is made of the traced graph.
        image: channels, height and width.
    """

    build: Callable[[], torch.nn.Module]
    inputs: tuple[str, ...]
    output: str | None = "logits"
    exporters: tuple[tuple[str, int], ...] = (("dynamo", 20), ("trace", 17))
    task: str | None = None
    variants: tuple[str, ...] = ()
    image: tuple[int, int, int] = (3, EDGE, EDGE)


def _hugging_face(name: str, config: str, **settings: object) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import transformers

        made = getattr(transformers, config)(**settings)
        return hf_models.jittered(lambda: getattr(transformers, name)(made))

    return build


def _torch(name: str) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import torch_modules

        return hf_models.jittered(getattr(torch_modules, name))

    return build


_TEXT = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SEQ2SEQ = {
    **_TEXT, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "max_position_embeddings": 64, "decoder_start_token_id": 0,
}  # fmt: skip
_IDS = ("input_ids", "attention_mask")
_BOTH_IDS = ("input_ids", "attention_mask", "decoder_input_ids")
_PIXELS = ("pixel_values",)
_EVERY = (
    ("dynamo", 20), ("dynamo", 23), ("dynamo-static", 20), ("trace", 17), ("trace-static", 17),
    ("optimum", 17),
)  # fmt: skip
_MOST = (("dynamo", 20), ("trace", 17), ("optimum", 17))

ARCHITECTURES: Mapping[str, Architecture] = {
    "vit": Architecture(
        hf_models.vit,
        _PIXELS,
        exporters=_EVERY,
        task="image-classification",
        variants=("fp16", "bf16", "ort", "external"),
        image=(1, hf_models.IMAGE_SIZE, hf_models.IMAGE_SIZE),
    ),
    "bert": Architecture(
        lambda: hf_models.bert("BertForMaskedLM"),
        _IDS,
        exporters=(*_EVERY, ("trace", 14), ("optimum", 14)),
        task="fill-mask",
        variants=("fp16", "bf16", "ort", "int8", "external"),
    ),
    "bert-eager": Architecture(
        lambda: hf_models.bert("BertForMaskedLM", attn_implementation="eager"),
        _IDS,
        exporters=(("trace", 13),),
    ),
    "distilbert": Architecture(
        hf_models.distilbert, _IDS, exporters=_MOST, task="text-classification"
    ),
    "marian": Architecture(
        _hugging_face("MarianMTModel", "MarianConfig", **_SEQ2SEQ),
        _BOTH_IDS,
        exporters=_MOST,
        task="text2text-generation-with-past",
    ),
    "m2m100": Architecture(
        _hugging_face("M2M100ForConditionalGeneration", "M2M100Config", **_SEQ2SEQ),
        _BOTH_IDS,
        exporters=_MOST,
        task="text2text-generation",
    ),
    "t5": Architecture(
        hf_models.t5,
        _BOTH_IDS,
        exporters=_MOST,
        task="text2text-generation-with-past",
    ),
    "whisper": Architecture(
        _hugging_face(
            "WhisperForConditionalGeneration", "WhisperConfig", **_SEQ2SEQ, num_mel_bins=8,
            max_source_positions=1500, max_target_positions=32, suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        ("input_features", "decoder_input_ids"),
        exporters=_MOST,
        task="automatic-speech-recognition",
    ),
    "swin": Architecture(
        _hugging_face(
            "SwinForImageClassification", "SwinConfig", image_size=EDGE, patch_size=4, embed_dim=16,
            depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=5,
        ),
        _PIXELS,
        exporters=(*_MOST, ("trace", 13)),
        task="image-classification",
    ),
    "clip": Architecture(
        _hugging_face(
            "CLIPVisionModelWithProjection", "CLIPVisionConfig", hidden_size=32,
            intermediate_size=64, projection_dim=16, num_hidden_layers=2, num_attention_heads=4,
            image_size=EDGE, patch_size=8,
        ),
        _PIXELS,
        output="image_embeds",
    ),
    "gpt2": Architecture(
        hf_models.gpt2, _IDS, exporters=_MOST, task="text-generation-with-past"
    ),
    "llama": Architecture(
        hf_models.llama, _IDS, exporters=_MOST, task="text-generation-with-past"
    ),
    "segformer": Architecture(
        _hugging_face(
            "SegformerForImageClassification", "SegformerConfig", hidden_sizes=[16, 32],
            depths=[1, 1], num_encoder_blocks=2, sr_ratios=[2, 1], num_attention_heads=[1, 2],
            patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], num_labels=5,
        ),
        _PIXELS,
        exporters=_MOST,
        task="image-classification",
    ),
    "convnext": Architecture(
        _hugging_face(
            "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[16, 32],
            depths=[1, 1], num_stages=2, num_labels=5,
        ),
        _PIXELS,
        exporters=_MOST,
        task="image-classification",
    ),
    "packed-qkv": Architecture(
        _torch("PackedAttention"),
        ("x",),
        output=None,
        exporters=(("dynamo", 20), ("trace", 17), ("trace", 13)),
    ),
    "experts": Architecture(_torch("DenseExperts"), ("x",), output=None),
    "experts-einsum": Architecture(_torch("EinsumExperts"), ("x",), output=None),
    "lstm": Architecture(_torch("LSTMTagger"), ("x",), output=None),
    "pointwise": Architecture(_torch("PointwiseConvolutions"), ("image",), output=None),
    "tied": Architecture(_torch("TiedHead"), ("input_ids",), output=None),
    "functional": Architecture(_torch("Functional"), ("x",), output=None),
}  # fmt: skip


@cache
def collection() -> tuple[Graph, ...]:
    """Export everything, once in a process; the files go when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="graphs-")
    _KEPT.append(folder)
    return tuple(_export_all(Path(folder.name)))


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _export_all(folder: Path) -> Iterator[Graph]:
    for name, architecture in ARCHITECTURES.items():
        for exporter, opset in architecture.exporters:
            label = f"{exporter}{opset}"
            target = folder / name / label
            target.mkdir(parents=True)
            try:
                export(name, exporter, opset, target)
            except Exception as error:  # exporters raise whatever the traced code raises
                yield Graph(name, label, error=f"{type(error).__name__}: {one_line(error)}"[:160])
                continue
            if label == "trace17":
                for variant in architecture.variants:
                    _VARIANTS[variant](target / "model.onnx", target / f"{variant}.onnx")
            for path in sorted(target.glob("*.onnx")):
                part = "" if path.stem == "model" else path.stem
                yield Graph(name, label, part, path)


def export(name: str, exporter: str, opset: int, folder: Path) -> None:
    """Write what ``exporter`` makes of one architecture; raises whatever the exporter does."""
    with quiet():
        _EXPORTERS[exporter](ARCHITECTURES[name], opset, folder)


def _example(architecture: Architecture) -> dict[str, torch.Tensor]:
    import torch

    made = {
        "pixel_values": torch.randn(BATCH, *architecture.image),
        "image": torch.randn(BATCH, 8, EDGE // 4, EDGE // 4),
        "input_features": torch.randn(BATCH, 8, 3000),
        "x": torch.randn(BATCH, LENGTH, 32),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64),
    }
    ids = torch.randint(3, 60, (BATCH, LENGTH))
    return {name: made.get(name, ids) for name in architecture.inputs}


def _axes(name: str) -> dict[int, str]:
    if name in {"pixel_values", "image", "input_features"}:
        return {0: "batch"}
    return {0: "batch", 1: "decoder_length" if name.startswith("decoder") else "length"}


def _wrapped(architecture: Architecture) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    import torch_modules

    module = architecture.build()
    example = _example(architecture)
    return torch_modules.Wrapped(module, architecture.inputs, architecture.output).eval(), example


def _trace(architecture: Architecture, opset: int, folder: Path, *, dynamic: bool = True) -> None:
    import torch

    module, example = _wrapped(architecture)
    axes = {**{name: _axes(name) for name in example}, "output": {0: "batch"}}
    torch.onnx.export(
        module,
        tuple(example.values()),
        folder / "model.onnx",
        dynamo=False,
        opset_version=opset,
        input_names=list(example),
        output_names=["output"],
        dynamic_axes=axes if dynamic else None,
    )


def _dynamo(architecture: Architecture, opset: int, folder: Path, *, dynamic: bool = True) -> None:
    import torch

    module, example = _wrapped(architecture)
    axes = tuple(dict.fromkeys(_axes(name), torch.export.Dim.DYNAMIC) for name in example)
    program = torch.onnx.export(
        module,
        tuple(example.values()),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=list(example),
        output_names=["output"],
        dynamic_shapes=(axes,) if dynamic else None,
    )
    assert program is not None
    program.save(folder / "model.onnx", external_data=False)


def _optimum(architecture: Architecture, opset: int, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory() as checkpoint:
        architecture.build().save_pretrained(checkpoint)  # type: ignore[operator]
        main_export(
            checkpoint,
            output=folder,
            task=architecture.task,
            opset=opset,
            framework="pt",
            library_name="transformers",
            local_files_only=True,
            do_validation=False,
        )


_EXPORTERS: Mapping[str, Callable[[Architecture, int, Path], None]] = {
    "trace": _trace,
    "trace-static": partial(_trace, dynamic=False),
    "dynamo": _dynamo,
    "dynamo-static": partial(_dynamo, dynamic=False),
    "optimum": _optimum,
}


def _fp16(source: Path, target: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=False), target)


def _bf16(source: Path, target: Path) -> None:
    """Every matrix in bfloat16, with a Cast behind it."""
    model = onnx.load(source)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name, exact = tensor.name, onnx.numpy_helper.to_array(tensor)
            half = exact.astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.bf16"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=1))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def _external(source: Path, target: Path) -> None:
    onnx.save(
        onnx.load(source),
        target,
        save_as_external_data=True,
        location=f"{target.name}.data",
        size_threshold=0,
    )


def _ort(source: Path, target: Path) -> None:
    """What ONNX Runtime makes of the graph, with its fused operators."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})


_VARIANTS: Mapping[str, Callable[[Path, Path], None]] = {
    "fp16": _fp16,
    "bf16": _bf16,
    "ort": _ort,
    "int8": _int8,
    "external": _external,
}


def load(graph: Graph) -> onnx.ModelProto:
    """The file with its weights."""
    assert graph.path is not None
    return onnx.load(graph.path)
