"""Peak memory of compressing a model that is larger than it: ``python -m studies.memory``.

Builds a decoder-like chain of about 3 GB (random weights, external data), compresses it in a child
process with plain SVD at half of the parameters, and prints the child's peak resident memory beside
the size of the model and what the factorization of its largest weight takes. With ``--auto``, the
child learns from rows, gradients included, and compresses by ``auto`` one shot: time and peak of
each step are printed.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.threads import limited
from studies.scale import Step, Watch

HIDDEN = 2048
INTERMEDIATE = 5632
BATCH = 512
DATA_NAME = "weights.bin"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """One linear layer of the chain."""

    name: str
    in_features: int
    out_features: int

    @property
    def bytes(self) -> int:
        """Size of the float32 weight."""
        return 4 * self.in_features * self.out_features


def layers(blocks: int) -> Iterator[Layer]:
    """The linear layers of ``blocks`` decoder blocks, in a row."""
    for block in range(blocks):
        for role in ("q", "k", "v", "o"):
            yield Layer(f"layers.{block}.attention.{role}_proj", HIDDEN, HIDDEN)
        yield Layer(f"layers.{block}.mlp.up_proj", HIDDEN, INTERMEDIATE)
        yield Layer(f"layers.{block}.mlp.down_proj", INTERMEDIATE, HIDDEN)


def build(path: Path, blocks: int, seed: int = 0) -> int:
    """Write the chain to ``path``, its weights to a data file beside it, one at a time.

    Returns:
        The bytes of all weights.
    """
    rng = np.random.default_rng(seed)
    nodes, initializers, offset, value = [], [], 0, "x"
    with (path.parent / DATA_NAME).open("wb") as stream:
        for layer in layers(blocks):
            weight = rng.standard_normal((layer.in_features, layer.out_features), dtype=np.float32)
            weight /= np.sqrt(np.float32(layer.in_features))  # values stay as large as they are
            stream.write(weight.data)
            tensor = TensorProto(
                name=f"{layer.name}.weight",
                data_type=TensorProto.FLOAT,
                dims=[layer.in_features, layer.out_features],
                data_location=TensorProto.EXTERNAL,
            )
            for key, text in (("location", DATA_NAME), ("offset", offset), ("length", layer.bytes)):
                tensor.external_data.add(key=key, value=str(text))
            offset += layer.bytes
            initializers.append(tensor)
            nodes.append(helper.make_node("MatMul", [value, tensor.name], [f"{layer.name}.out"]))
            value = f"{layer.name}.out"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", HIDDEN])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", HIDDEN])],
        initializers,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return offset


def peak_bytes(command: list[str]) -> int:
    """Run ``command`` and return its peak resident memory."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return usage.ru_maxrss * 1024


def learned(model: Path, rows: int) -> Iterator[Step]:
    """Learn ``model`` from so many rows, and compress it by ``auto``, in this process."""
    watch = Watch()
    x = np.random.default_rng(1).standard_normal((rows, HIDDEN), dtype=np.float32)
    settings = RunSettings(progress=watch, batch_size=BATCH)
    request = CompressionSpec(method=MethodSpec(name="auto"), params=0.5, sequential=False)
    with limited():
        learn(model, Samples({"x": x}), settings).compress(request).write(
            model.with_name("small.onnx")
        )
    yield from watch.result()


def main() -> None:
    """Build, compress, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=19, help="decoder blocks of 159 MB each")
    parser.add_argument("--include", default="*", help="compress only sites that match (glob)")
    parser.add_argument("--auto", type=int, metavar="ROWS", help="learn from so many rows")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.child:
        for step in learned(arguments.child, arguments.auto):
            print(f"| {step.name} | {step.seconds:.0f} | {step.peak_bytes / 1e9:.2f} |")
        return
    with TemporaryDirectory(prefix="compress-onnx-memory-") as work:
        source, target = Path(work) / "large.onnx", Path(work) / "small.onnx"
        model_bytes = build(source, arguments.blocks)
        if arguments.auto:
            command = [sys.executable, "-m", "studies.memory", "--auto", str(arguments.auto)]
            logger.info("model %.2f GB; step, seconds, peak memory GB:", model_bytes / 1e9)
            subprocess.run([*command, "--child", str(source)], check=True)  # noqa: S603
            return
        compress = [
            sys.executable,
            "-m",
            "compress_onnx.pipeline.cli",
            "compress",
            str(source),
            "-o",
            str(target),
        ]
        options = ["--method", "svd", "--params", "0.5", "--include", arguments.include]
        peak = peak_bytes([*compress, *options])
        onnx.checker.check_model(target)
        written = sum(file.stat().st_size for file in target.parent.glob("small.onnx*"))
    largest = max(layer.bytes for layer in layers(1))
    logger.info(
        "model %.2f GB, compressed %.2f GB, peak memory %.2f GB; "
        "the largest weight is %.3f GB in float32 (%.3f GB in float64)",
        *(number / 1e9 for number in (model_bytes, written, peak, largest, 2 * largest)),
    )


if __name__ == "__main__":
    main()
