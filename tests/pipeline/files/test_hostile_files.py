"""Strangers' model files, broken in every way: one clear error or a sound result, never both."""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import start
from graph_collection import export
from onnx import helper, numpy_helper

from compress_onnx.graph_passes.errors import CompressOnnxError, ModelFileError
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.spectra import spectra_of
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.runtime.session import open_session

REQUEST = CompressionSpec(rank=4)
SECONDS_PER_FILE = 20.0
BYTES_IN_ALL = 2**30


def squeeze(path: Path, output: Path) -> None:
    """What ``analyze`` and then ``compress`` do."""
    compressed = learn(path).compress(REQUEST)
    spectra_of(compressed.basis, compressed.plan)
    save_model(compressed.model, output)


def loads(path: Path) -> bool:
    try:
        open_session(path)
    except ModelFileError:
        return False
    return True


def outcome(path: Path, output: Path) -> str:
    """``sound``, ``error``, or ``as bad as it was``; anything else fails the test."""
    folder, before = output.parent, small.listing(output.parent)
    start = time.monotonic()
    try:
        squeeze(path, output)
        result = "sound" if loads(output) else "as bad as it was"
    except CompressOnnxError:
        result = "error"
    assert time.monotonic() - start < SECONDS_PER_FILE
    if result == "error":
        assert small.listing(folder) == before
    if result == "as bad as it was":
        assert not loads(path), "a model that runs became one that does not"
    output.unlink(missing_ok=True)
    return result


def mutated(content: bytes, kind: str, rng: random.Random) -> bytes:
    changed = bytearray(content)
    if kind == "truncate":
        return content[: rng.randrange(len(content))]
    if kind == "random":
        return rng.randbytes(rng.randrange(2000))
    for _ in range(rng.choice((1, 1, 3, 20))):
        position = rng.randrange(len(changed))
        if kind == "flip":
            changed[position] ^= 1 << rng.randrange(8)
        elif kind == "structure":  # where names, shapes and lengths are, not the weights
            changed[rng.choice((position % 1500, -1 - position % 1500))] ^= 1 << rng.randrange(8)
        else:
            del changed[position : position + rng.choice((1, 4, 100))]
    return bytes(changed)


KINDS = ("truncate", "flip", "structure", "delete", "random")
COUNT = 120  # of each kind, for each of the two models


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_no_mutation_breaks_anything(tmp_path, kind, external):
    rng = random.Random(f"{kind} {external}")  # noqa: S311
    save = small.save_external if external else small.save
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = save(small.perceptron(), tmp_path / "in" / "model.onnx")
    sound = path.read_bytes()
    found = Counter()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(COUNT):
        path.write_bytes(mutated(sound, kind, rng))
        found[outcome(path, tmp_path / "out" / "small.onnx")] += 1
    assert sum(found.values()) == COUNT
    assert found["error"]
    assert found["sound"] or kind in {"truncate", "random", "delete"}
    # Tests before this one may have had a higher peak.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < peak_bytes + BYTES_IN_ALL


def bert(folder: Path) -> onnx.ModelProto:
    export("bert", "dynamo", 20, folder)
    return onnx.load(folder / "model.onnx")


def vit(folder: Path) -> onnx.ModelProto:
    export("vit", "trace", 17, folder)
    return onnx.load(folder / "model.onnx")


def decoder_with_branches(folder: Path) -> onnx.ModelProto:
    export("marian", "optimum", 17, folder)
    return onnx.load(folder / "decoder_model_merged.onnx")


def half_quantized(folder: Path) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    export("distilbert", "trace", 17, folder)
    products = [n.name for n in onnx.load(folder / "model.onnx").graph.node if n.op_type in PRODUCT]
    quantize_dynamic(
        folder / "model.onnx",
        folder / "int8.onnx",
        nodes_to_exclude=products[::2],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return onnx.load(folder / "int8.onnx")


PRODUCT = {"MatMul", "Gemm"}
EXPORTS = (bert, vit, decoder_with_branches, half_quantized)
EXPORT_COUNT = 26  # of each kind, for each export, inline and external: 1040 together


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", EXPORTS)
def test_no_mutation_of_an_export_breaks_anything(tmp_path, make):
    pytest.importorskip("torch")
    pytest.importorskip("optimum")
    for folder in ("made", "in", "out"):
        (tmp_path / folder).mkdir()
    model = make(tmp_path / "made")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for save in (small.save, small.save_external):
        path = save(model, tmp_path / "in" / "model.onnx")
        files = [(file, file.read_bytes()) for file in sorted((tmp_path / "in").iterdir())]
        assert outcome(path, tmp_path / "out" / "small.onnx") == "sound"
        for kind in KINDS:
            rng = random.Random(f"{make.__name__} {save.__name__} {kind}")  # noqa: S311
            found = Counter()
            for count in range(EXPORT_COUNT):
                file, sound = files[count % len(files)]  # the graph and, if external, its weights
                file.write_bytes(mutated(sound, kind, rng))
                found[outcome(path, tmp_path / "out" / "small.onnx")] += 1
                file.write_bytes(sound)
            assert sum(found.values()) == EXPORT_COUNT
            assert found["error"] or kind in {"flip", "structure"}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown * 1024 < BYTES_IN_ALL


def test_some_mutations_through_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)  # noqa: S311
    sound = small.perceptron().SerializeToString()
    for kind, command in (("truncate", "analyze"), ("structure", "compress")):
        content = mutated(sound, kind, rng)
        while (tmp_path / "model.onnx").write_bytes(content) and loadable(tmp_path / "model.onnx"):
            content = mutated(sound, kind, rng)
        before = small.listing(tmp_path)
        output = ("-o", "out.onnx") if command == "compress" else ()
        done = start(command, "model.onnx", *output, code=2)
        assert done.stdout == ""
        assert done.stderr.startswith("error: model.onnx is")
        assert done.stderr.count("\n") == 1
        assert small.listing(tmp_path) == before


def loadable(path: Path) -> bool:
    try:
        load_model(path)
    except ModelFileError:
        return False
    return True


def changed(tmp_path: Path, change) -> Path:
    model = small.perceptron()
    change(model.graph)
    return small.save(model, tmp_path / "model.onnx")


def feed_back(graph):
    graph.node[0].input[0] = "r1"


def read_itself(graph):
    graph.node[1].input[0] = "a1"


def read_nothing(graph):
    graph.node[1].input[0] = "nowhere"


def return_nothing(graph):
    graph.output[0].name = "nowhere"


def drop_outputs(graph):
    del graph.output[:]


def drop_an_operand(graph):
    del graph.node[0].input[1:]


def blank_an_operand(graph):
    graph.node[0].input[1] = ""


def miswrite_an_attribute(graph):
    graph.node[5].attribute.append(helper.make_attribute("alpha", "much"))


def declare_too_much(graph):
    graph.initializer[0].dims[:] = [2**40, 2**40]


def declare_a_negative_size(graph):
    graph.initializer[0].dims[:] = [-48, -64]


def use_an_unknown_type(graph):
    graph.initializer[0].data_type = 999


def break_a_name(graph):
    graph.node[0].name = "name"
    broken = graph.SerializeToString().replace(b"\x1a\x04name", b"\x1a\x04n\xff\xfee")
    graph.ParseFromString(broken)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (feed_back, "cycle"),
        (read_itself, "cycle"),
        (read_nothing, "'nowhere', which nothing produces"),
        (return_nothing, "'nowhere' is not produced"),
        (drop_outputs, "empty"),
        (drop_an_operand, "has 1 inputs"),
        (blank_an_operand, "lacks its input B"),
        (miswrite_an_attribute, "attribute 'alpha' of Gemm /head/Gemm has the wrong type"),
        (declare_too_much, "'w1' of shape"),
        (declare_a_negative_size, "'w1' has a negative dimension"),
        (use_an_unknown_type, "unknown type 999"),
        (break_a_name, "is not UTF-8"),
    ],
)
def test_an_unsound_graph_is_refused_with_its_trouble(tmp_path, change, trouble):
    path = changed(tmp_path, change)
    with pytest.raises(ModelFileError, match=r"model\.onnx is not an ONNX model") as refused:
        load_model(path)
    assert trouble in str(refused.value)


def test_nodes_in_another_order_are_put_right(tmp_path):
    def shuffle(graph):
        nodes = list(graph.node)[::-1]
        del graph.node[:]
        graph.node.extend(nodes)

    path = changed(tmp_path, shuffle)
    squeeze(path, tmp_path / "small.onnx")
    onnx.checker.check_model(tmp_path / "small.onnx", full_check=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_with_nan_stays_dense_and_says_so(tmp_path, bad):
    def poison(graph):
        array = np.array(numpy_helper.to_array(graph.initializer[0]))
        array[3, 4] = bad
        graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w1"))

    plan = learn(changed(tmp_path, poison)).compress(REQUEST).plan
    assert (plan.sites[0].decision, plan.sites[1].decision) == ("dense", "factor")
    assert plan.sites[0].reason == "the weight has NaN or infinite values"
    squeeze(tmp_path / "model.onnx", tmp_path / "small.onnx")
    kept = {i.name for i in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert "w1" in kept


def test_a_gigantic_input_shape_costs_nothing(tmp_path):
    def enlarge(graph):
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**50

    squeeze(changed(tmp_path, enlarge), tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").exists()


def test_a_gigantic_weight_in_external_data_is_refused(tmp_path):
    path = small.save_external(small.perceptron(), tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[:] = [2**30, 2**30]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="'w1'"):
        load_model(path)
    del model.graph.initializer[0].external_data[1:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="is truncated: 'w1'"):
        load_model(path)
