"""The table of rivals: every row is there, and a model that is damaged shows in it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from studies.performance import __main__ as study
from studies.performance import rows as made
from studies.performance import table as tables
from studies.performance.rows import DYNAMIC, ORIGINAL, compiled, ours, recovered
from studies.performance.subject import Subject
from studies.performance.table import Line, absent, accuracy, groups, ratios, render, speeds_of
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.pipeline.compress.form_times import Speed
from compress_onnx.pipeline.compress.forms import Forms
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.rivals import RIVALS
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.recipe import EmbeddingMetric, OptimizeSpec
from compress_onnx.pipeline.recover.recover import Lessons
from compress_onnx.pipeline.runtime.session import SessionSpec

FEATURES = 32


@pytest.fixture
def subject(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SIZES", ((1, 2), (2, 3)))
    monkeypatch.setattr(study, "speedups", known)
    path = saved(tmp_path, two_layers((FEATURES, 64, FEATURES))[0])
    learned = learn(path, samples(FEATURES, 100))
    return Subject(learned, samples(FEATURES, 20, seed=3), None)


def known(makes, **_):
    """Speeds that do not depend on the machine: integers are worth it."""
    values = {"fewer": 1.5, "floats": 0.5}
    return {name: Speed(*[values.get(name, 1.0)] * 3) for name in makes}


def table(subject, tmp_path, base=ORIGINAL, **options) -> dict[str, list[str]]:
    """The cells of the table over ``base``, by row."""
    folder = tmp_path / base
    folder.mkdir()
    text = "\n".join(study.table(subject, folder, rounds=3, **options))
    over = {ORIGINAL: f"Over the {ORIGINAL}:", DYNAMIC: f"Over {DYNAMIC}:"}[base]
    lines = text.split(over)[1].strip().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in cells}


def test_every_rival_stands_beside_ours(subject, tmp_path):
    found = table(subject, tmp_path)
    expected = {
        "original, sums and norms apart",
        "integers",
        "75% of the neurons",
        "50% of the neurons, integers",
        "ours, 4-bit weights",
    }
    assert {ORIGINAL, "static QDQ", *RIVALS, *expected} <= found.keys()
    assert found[ORIGINAL][0] == "1.0000"
    assert all(float(row[0]) > 0.8 for row in found.values())
    assert all(len(row) == 5 for row in found.values())
    assert found[ORIGINAL][3] == "1.00 [1.00, 1.00]"


def test_a_column_has_each_other_domain(subject, tmp_path):
    held_out = subject.held_out
    large = replace(held_out, inputs={"x": 100 * held_out.inputs["x"]})
    other = subject._replace(domains={"itself": held_out, "large": large})
    found = table(other, tmp_path, only=["integers"])
    cosine, itself, elsewhere = found["integers"][:3]
    assert cosine == itself
    assert float(elsewhere) < float(cosine)


def test_what_is_found_of_a_topic_stands_in_a_table(subject, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(20), 3)
    centres = rng.normal(size=(20, 1, FEATURES))
    x = (centres[topics] + 0.1 * rng.normal(size=(60, 3, FEATURES))).astype(np.float32)
    labelled = replace(subject.held_out, inputs={"x": x}, labels=topics)
    metric = EmbeddingMetric(kind="embedding")
    monkeypatch.setitem(RIVALS, "constant", constant)
    other = subject._replace(labelled=labelled, metric=metric)
    lines = list(study.table(other, tmp_path, rounds=3, only=["constant"]))
    assert lines[lines.index("Sentences of the same topic found:") + 2] == (
        "|  | nDCG@10 | nDCG lost | recall@10 | recall lost |"
    )
    cells = {
        c[0]: c[1:] for c in ([x.strip() for x in n.strip("| ").split("|")] for n in lines[-3:])
    }
    assert float(cells[ORIGINAL][0]) > 0.9
    assert cells[ORIGINAL][1] == "0.0000 [0.0000, 0.0000]"
    assert float(cells["constant"][0]) < 0.5
    lost, low, _ = map(float, re.findall(r"[-\d.]+", cells["constant"][1]))
    assert low > 0.3
    assert lost == pytest.approx(float(cells[ORIGINAL][0]) - float(cells["constant"][0]), abs=2e-4)


def constant(model: Path, output: Path) -> None:
    """A rival that says the same of everything."""
    damaged = load_model(model)
    last = [v for v in damaged.graph.initializers.values() if len(v.const_value.shape) == 2][-1]
    last.const_value = ir.tensor(np.zeros(last.const_value.shape, np.float32), name=last.name)
    save_model(damaged, output)


def test_a_table_over_dynamic_int8_stands_behind(subject, tmp_path):
    found = table(subject, tmp_path, DYNAMIC)
    assert {ORIGINAL, "integers"} <= found.keys()
    assert DYNAMIC not in found
    assert all(len(row) == 2 and "[" in row[0] for row in found.values())


def test_rows_can_be_chosen(subject, tmp_path):
    found = table(subject, tmp_path, only=["integers"])
    assert list(found) == [ORIGINAL, DYNAMIC, "integers"]
    with pytest.raises(RequestError, match="no row is called rubbish; there are: original, "):
        list(study.table(subject, tmp_path, rounds=3, only=["rubbish"]))


def test_models_are_trained_where_that_is_asked_for(subject, tmp_path):
    name = "50% of the neurons, integers"
    assert f"{name}, recovered" not in table(subject, tmp_path)
    only = [name, f"{name}, recovered"]
    found = table(subject, tmp_path, DYNAMIC, recovery_s=2.0, only=only)
    assert list(found) == [ORIGINAL, *only]
    rows = {
        row.name: row for row in recovered(subject.learned, known, 2.0, Lessons(subject.samples))
    }
    paths = [tmp_path / "start.onnx", tmp_path / "end.onnx"]
    {row.name: row for row in ours(subject.learned, known)}[name].build(paths[0])
    rows[only[1]].build(paths[1])
    start, end = (float(accuracy(subject, path)["cosine"]) for path in paths)
    assert end > start


def test_ours_are_what_the_product_makes(subject, tmp_path):
    forms = Forms(subject.learned, OptimizeSpec(), unfused=True, speedups=known)
    build = {family.name: family.build for family in forms.families()}
    rows = {row.name: row for row in ours(subject.learned, known)}
    build["neurons, integers"](0.5, tmp_path / "theirs.onnx")
    rows["50% of the neurons, integers"].build(tmp_path / "ours.onnx")
    assert (tmp_path / "ours.onnx").read_bytes() == (tmp_path / "theirs.onnx").read_bytes()


def test_half_of_the_neurons_are_half_of_them(subject, tmp_path):
    rows = {row.name: row for row in ours(subject.learned, known)}
    rows["50% of the neurons"].build(tmp_path / "half.onnx")
    (ffn,) = find_ffns(open_original(tmp_path / "half.onnx").table.sites).ffns
    assert ffn.neurons == 32


def test_a_damaged_model_shows(subject, tmp_path, monkeypatch):
    damaged = two_layers((FEATURES, 64, FEATURES), seed=1)[0].SerializeToString()

    def break_(_model: Path, output: Path) -> None:
        output.write_bytes(damaged)

    monkeypatch.setattr(made, "RIVALS", {"broken": break_})
    assert float(table(subject, tmp_path)["broken"][0]) < 0.5


def test_a_model_that_cannot_be_made_says_why(subject, tmp_path, monkeypatch):
    def refuse(_model: Path, _output: Path) -> None:
        raise ModelFileError("it has no weights")

    monkeypatch.setattr(made, "RIVALS", {"refused": refuse})
    found = table(subject, tmp_path)
    (name,) = [name for name in found if name.startswith("refused")]
    assert name == "refused: not measured, it has no weights"
    assert set(found[name]) == {"–"}
    assert "integers" in found


def test_speeds_are_over_each_base():
    times = np.tile([8.0, 4.0, 2.0], (10, 1))
    found = {(name, base): text for name, base, text in ratios(times, [ORIGINAL, DYNAMIC, "x"])}
    assert found["x", ORIGINAL] == "4.00 [4.00, 4.00]"
    assert found["x", DYNAMIC] == "2.00 [2.00, 2.00]"
    assert found[ORIGINAL, DYNAMIC] == "0.50 [0.50, 0.50]"


def test_a_base_that_is_not_there_has_no_speeds():
    found = speeds_of({"1×16": np.tile([8.0, 4.0], (10, 1))}, [ORIGINAL, "x"])
    assert found["x"] == {(ORIGINAL, "1×16"): "2.00 [2.00, 2.00]"}


def test_groups_hold_so_many_bytes_beside_the_bases(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_BYTES", 10)
    monkeypatch.setattr(tables, "file_bytes", lambda path: int(path.name))
    sizes = {"a": 4, ORIGINAL: 50, "b": 6, "c": 1, DYNAMIC: 9, "huge": 11, "d": 2}
    paths = {name: tmp_path / str(size) for name, size in sizes.items()}
    found = list(groups(paths))
    assert [names[:2] for names in found] == [[ORIGINAL, DYNAMIC]] * 4
    assert [names[2:] for names in found] == [["a", "b"], ["c"], ["huge"], ["d"]]
    assert list(groups({ORIGINAL: tmp_path / "1"})) == [[ORIGINAL]]


def test_each_group_has_its_own_ratios(monkeypatch):
    monkeypatch.setattr(tables, "GROUP_BYTES", 0)
    monkeypatch.setattr(tables, "file_bytes", lambda _: 1)
    runs = iter([[8.0, 4.0, 2.0], [80.0, 60.0, 10.0]])
    monkeypatch.setattr(tables, "time_models", lambda *_: np.tile(next(runs), (10, 1)))
    paths = {name: Path(name) for name in (ORIGINAL, DYNAMIC, "x", "y")}
    found = tables.speeds(paths, {"1×16": {}}, SessionSpec(), 10)
    assert found["x"][ORIGINAL, "1×16"] == "4.00 [4.00, 4.00]"
    assert found["y"][ORIGINAL, "1×16"] == "8.00 [8.00, 8.00]"
    assert found["y"][DYNAMIC, "1×16"] == "6.00 [6.00, 6.00]"
    assert found[DYNAMIC][ORIGINAL, "1×16"] == "2.00 [2.00, 2.00]"


def test_the_text_of_tables():
    lines = [
        Line(DYNAMIC, {"file": "2 MB"}, {(ORIGINAL, "1×16"): "2", (DYNAMIC, "1×16"): "1"}),
        Line("a", {"file": "1 MB"}, {(ORIGINAL, "1×16"): "4", (DYNAMIC, "1×16"): "2"}),
        absent("b", "pip said | no"),
    ]
    assert list(render(lines, ["file"], ["1×16"])) == [
        "Over the original:",
        "",
        "|  | file | 1×16 |",
        "|:---|---:|---:|",
        "| dynamic int8 | 2 MB | 2 |",
        "| a | 1 MB | 4 |",
        "| b: not measured, pip said / no | – | – |",
        "",
        "Over dynamic int8:",
        "",
        "|  | 1×16 |",
        "|:---|---:|",
        "| a | 2 |",
    ]


def test_forms_are_chosen_by_the_speed_over_the_first(monkeypatch):
    sizes = []

    def timed(paths, feeds, *_):
        sizes.extend(tables.file_bytes(path) for path in paths)
        return np.tile([8.0, feeds["x"]], (10, 1))

    monkeypatch.setattr(tables, "time_models", timed)
    makes = {
        name: partial(ir.from_proto, two_layers((6, width, 6))[0])
        for name, width in (("plain", 64), ("fewer", 8))
    }
    feeds = {"1×1": {"x": 4.0}, "1×2": {"x": 16.0}}  # twice as fast, and half as fast
    found = tables.speedups(makes, feeds, SessionSpec(), 10)
    assert found["plain"] == (1.0, 1.0, 1.0)
    assert found["fewer"] == pytest.approx((1.0, 1.0, 1.0))
    assert tables.speedups(makes, {"1×1": {"x": 4.0}}, SessionSpec(), 10)["fewer"].low == 2.0
    assert sizes[0] > sizes[1]


def test_without_dynamic_int8_there_is_one_table():
    lines = [Line("a", {}, {(ORIGINAL, "1×16"): "4"})]
    assert "Over dynamic int8:" not in list(render(lines, [], ["1×16"]))


def test_openvino_reads_integers_as_qdq(subject, tmp_path):
    found = {row.name: row.build for row in compiled(subject.learned)}
    assert list(found)[:3] == ["integers", "75% of the neurons", "75% of the neurons, integers"]
    found["75% of the neurons, integers"](tmp_path / "ours.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "ours.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "MatMul"} <= operators
    assert not any("Integer" in operator for operator in operators)
