"""``optimize`` hands back the best of what it measured, and says so where that is a rival's."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
from cli_runner import Cli, error_line
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.errors import ModelFileError, ProviderError, RequestError
from compress_onnx.pipeline.compress import choice, number_forms
from compress_onnx.pipeline.compress import optimize as module
from compress_onnx.pipeline.compress.forms import Forms
from compress_onnx.pipeline.compress.integers import PreparedModel, round_model
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.number_forms import NumberForms
from compress_onnx.pipeline.compress.optimize import optimize
from compress_onnx.pipeline.compress.rivals import RIVALS, half_floats, rivals
from compress_onnx.pipeline.compress.trial_log import TrialLog
from compress_onnx.pipeline.files import model_file
from compress_onnx.pipeline.files.model_file import data_files, load_model, model_size
from compress_onnx.pipeline.recipe import BenchmarkSpec, OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons
from compress_onnx.pipeline.results import Trial
from compress_onnx.pipeline.runtime.session import open_session, provider_problems, run

FEATURES, HIDDEN, OUTPUTS = 32, 128, 32
QUICK = BenchmarkSpec(warmup=1, iterations=5, batch=2, length=3)


@pytest.fixture
def model(tmp_path):
    """Half of the neurons hardly matter."""
    proto, weights = two_layers((FEATURES, HIDDEN, OUTPUTS))
    weights["second.weight"][::2] *= 1e-3
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return saved(tmp_path, proto)


@pytest.fixture
def learned(model):
    return learn(model, samples(FEATURES, 150))


@pytest.fixture
def held_out():
    return samples(FEATURES, 40, seed=7)


def call(learned, held_out, tmp_path, log=None, **spec):
    wanted = OptimizeSpec(**({"max_drop": 0.05} | spec))
    output = tmp_path / "best.onnx"
    return optimize(learned, held_out, output, wanted, benchmark=QUICK, log=log).report


def test_the_smallest_within_the_drop_wins(learned, held_out, tmp_path):
    report = call(learned, held_out, tmp_path, objective="size")
    trials = {trial.name: trial for trial in report.trials}
    winner = trials[report.winner]
    assert not winner.rival
    assert winner.within
    assert winner.drop.value <= 0.05
    best = tmp_path / "best.onnx"
    assert winner.size_bytes == model_size(best, best).candidate_bytes
    timed = [trial for trial in report.trials if trial.speedup is not None]
    assert {"original", *RIVALS} <= {trial.name for trial in timed}
    smallest = min(trial.size_bytes for trial in timed if trial.within)
    assert winner.size_bytes == smallest
    assert report.winner in report.verdict
    assert "times as small as" in report.verdict
    assert json.loads(report.model_dump_json())["winner"] == report.winner


def test_what_chooses_does_not_report(learned, held_out, tmp_path):
    report = call(learned, held_out, tmp_path)
    assert report.chosen_on.startswith("20 samples")
    assert report.reported_on.startswith("20 samples")
    assert report.chosen_on != report.reported_on
    reported = [t for t in report.trials if t.reported is not None]
    assert reported
    assert all(trial.reported.value != trial.drop.value for trial in reported)


def test_the_best_file_computes_what_was_reported(learned, held_out, tmp_path):
    report = call(learned, held_out, tmp_path, objective="size")
    winner = next(trial for trial in report.trials if trial.name == report.winner)
    x = held_out.inputs["x"][::2]  # the half that chose nothing
    other = held_out.inputs["x"][1::2]
    right, ours = (
        run(open_session(path), {"x": np.concatenate([x, other])})["y"]
        for path in (learned.original.path, tmp_path / "best.onnx")
    )
    error = np.linalg.norm(ours - right) / np.linalg.norm(right)
    assert error == pytest.approx(np.mean([winner.drop.value, winner.reported.value]), rel=0.2)


def test_whoever_wins_is_reported(learned, held_out, tmp_path, monkeypatch):
    """Also one that is not the smallest of its family."""
    race = module._Search._race

    def all_neurons_are_fastest(self, trials):
        found = race(self, trials)
        index = [trial.name for trial in found.trials].index("all neurons, integers")
        found.times[..., index] = found.times.min() // 10
        return found

    monkeypatch.setattr(module._Search, "_race", all_neurons_are_fastest)
    monkeypatch.setattr(
        choice.Race, "_cost", lambda _, trial: trial.name != "all neurons, integers"
    )
    report = call(learned, held_out, tmp_path)
    assert report.winner == "all neurons, integers"
    winner = next(trial for trial in report.trials if trial.name == report.winner)
    assert winner.reported is not None
    assert winner.batch_invariance is not None


def test_a_rival_wins_where_ours_is_not_worth_it(learned, held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "LEAST_GAIN", 1e9)
    report = call(learned, held_out, tmp_path, objective="size")
    winner = next(trial for trial in report.trials if trial.name == report.winner)
    assert winner.rival
    assert f"{winner.name} it is" in report.verdict
    assert "not worth it" in report.verdict


def test_the_original_wins_where_nothing_may_be_lost(learned, held_out, tmp_path):
    report = call(learned, held_out, tmp_path, max_drop=0.0)
    assert report.winner.startswith("original")
    x = held_out.inputs["x"]
    right, ours = (
        run(open_session(path), {"x": x})["y"]
        for path in (learned.original.path, tmp_path / "best.onnx")
    )
    np.testing.assert_allclose(ours, right, rtol=1e-6)


def test_what_depends_on_the_batch_cannot_win_where_that_is_asked(
    learned, held_out, tmp_path, monkeypatch
):
    """The best of both sides are measured until one is found that may win."""
    race, asked = module._Search._race, []

    def ours_are_slow(self, trials):
        found = race(self, trials)
        ours = [index for index, trial in enumerate(found.trials) if not trial.rival]
        dynamic = [trial.name for trial in found.trials].index("dynamic int8")
        found.times[..., ours] = found.times.max() * 10
        found.times[..., dynamic] = found.times.min() // 10
        return found.with_speeds(self._timed_at)

    def invariance(path, *_):
        dynamic = "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}
        asked.append(dynamic)
        return 0.97 if dynamic else 1.0

    monkeypatch.setattr(module._Search, "_race", ours_are_slow)
    monkeypatch.setattr(module, "batch_invariance", invariance)
    assert call(learned, held_out, tmp_path).winner == "dynamic int8"
    report = call(learned, held_out, tmp_path, batch_invariance=0.9999)
    assert report.winner != "dynamic int8"
    assert "dynamic int8 was left out: its answers depend on the batch (0.9700)" in report.verdict
    assert any(asked)
    assert call(learned, held_out, tmp_path, batch_invariance=0.9).winner == "dynamic int8"


def test_a_second_call_measures_nothing_again(learned, held_out, tmp_path, monkeypatch):
    log = tmp_path / "trials.jsonl"
    first = call(learned, held_out, tmp_path, log, objective="size")
    measured = []
    measure = module._Search._measured
    monkeypatch.setattr(
        module._Search,
        "_measured",
        lambda self, trial: measured.append(trial.name) or measure(self, trial),
    )
    again = call(learned, held_out, tmp_path, log, objective="size")
    assert measured == []
    assert again.winner == first.winner
    assert [t.drop for t in again.trials] == [t.drop for t in first.trials]
    timed = [{t.name for t in report.trials if t.speedup} for report in (first, again)]
    assert timed[0] == timed[1]
    # Other data has other trials.
    call(learned, samples(FEATURES, 40, seed=8), tmp_path, log, objective="size")
    assert measured


def test_what_is_no_log_is_refused(learned, held_out, tmp_path):
    log = tmp_path / "notes.txt"
    log.write_text("buy milk\n")
    with pytest.raises(RequestError, match="is not a log of trials"):
        call(learned, held_out, tmp_path, log)
    assert log.read_text() == "buy milk\n"


def test_without_time_the_first_of_ours_alone_is_tried(learned, held_out, tmp_path):
    report = call(learned, held_out, tmp_path, time=1e-9)
    assert {trial.name for trial in report.trials} == {"original", "all neurons, integers"}
    assert any("the time was up" in note for note in report.notes)


def test_several_shapes_are_each_timed(learned, held_out, tmp_path):
    grid = QUICK.model_copy(update={"batch": (1, 4)})
    spec = OptimizeSpec(max_drop=0.05)
    report = optimize(learned, held_out, tmp_path / "best.onnx", spec, benchmark=grid).report
    assert report.shapes == ("1x3", "4x3")
    assert report.inputs == f"1x3: x 1x3x{FEATURES}; 4x3: x 4x3x{FEATURES}"
    timed = [trial for trial in report.trials if trial.speedup is not None]
    assert len(timed) > 1
    for trial in timed:
        assert list(trial.speedup_at) == ["1x3", "4x3"]
        assert trial.speedup == pytest.approx(np.prod(list(trial.speedup_at.values())) ** 0.5)
        assert trial.speedup_low <= trial.speedup <= trial.speedup_high
        assert report.inputs in trial.timed_at
    assert "(geometric mean: " in report.verdict
    assert not any("sizes of inputs" in note for note in report.notes)


def test_speeds_at_other_shapes_are_not_taken_from_the_log(learned, held_out, tmp_path):
    """Also where the first shape is the same."""
    two, three = (QUICK.model_copy(update={"batch": sizes}) for sizes in ((2, 4), (2, 4, 8)))
    searches = [
        module._Search(Forms(learned, OptimizeSpec()), held_out, spec, metric=None, folder=tmp_path)
        for spec in (two, three)
    ]
    at = searches[0]._timed_at
    timed = Trial(name="timed", speedup=2.0, speedup_at={"2x3": 2.0, "4x3": 2.0}, timed_at=at)
    TrialLog(tmp_path / "log.jsonl", "").put(timed)
    for search in searches:
        search._log = TrialLog(tmp_path / "log.jsonl", "")
    same, other = (search._try(Trial(name="timed"), None) for search in searches)
    assert (same.speedup, same.speedup_at) == (2, timed.speedup_at)
    assert (other.speedup, other.speedup_at) == (None, {})


def test_sizes_that_the_model_fixes_are_told(learned, held_out, tmp_path):
    fixed = onnx.load(learned.original.path)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    (tmp_path / "fixed").mkdir()
    path = saved(tmp_path / "fixed", fixed)
    grid = QUICK.model_copy(update={"batch": (2, 4)})
    report = optimize(
        learn(path, samples(FEATURES, 100)),
        held_out,
        tmp_path / "best.onnx",
        OptimizeSpec(time=1e-9),
        benchmark=grid,
    ).report
    assert report.shapes == ()
    assert "of 2 sizes of inputs 1 differ: the model or its data fix the others" in report.notes


def test_integers_can_be_forbidden(learned, held_out, tmp_path):
    report = call(learned, held_out, tmp_path, integers=False)
    assert not any("integers" in trial.name for trial in report.trials)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_write_models_that_load_and_are_near(name, model, tmp_path, held_out):
    RIVALS[name](model, tmp_path / "rival.onnx")
    x = held_out.inputs
    right, theirs = (run(open_session(p), x)["y"] for p in (model, tmp_path / "rival.onnx"))
    error = np.linalg.norm(theirs - right) / np.linalg.norm(right)
    assert 0 < error < 0.2


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_that_fails_is_one_error(name, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="cannot read"):
        RIVALS[name](path, tmp_path / "rival.onnx")


def test_networks_in_a_row_are_rounded_with_outliers_in_each(tmp_path):
    """The down layer of the first is the up layer of the second."""
    rng = np.random.default_rng(0)
    sizes = (FEATURES, 64, 64, FEATURES)
    weights = {f"w{i}": rng.standard_normal(s) / 8 for i, s in enumerate(pairwise(sizes))}
    weights["w0"][:, 3] *= 50
    weights["w1"][:, 5] *= 50
    nodes = []
    for i in range(3):
        source = "x" if i == 0 else f"h{i - 1}"
        nodes.append(
            onnx.helper.make_node("MatMul", [source, f"w{i}"], [f"m{i}" if i < 2 else "y"])
        )
        nodes += [onnx.helper.make_node("Relu", [f"m{i}"], [f"h{i}"])] if i < 2 else []
    ends = [
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", "t", FEATURES])]
        for n in ("x", "y")
    ]
    tensors = [onnx.numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", *ends, tensors)
    opset = [onnx.helper.make_opsetid("", 20)]
    path = saved(tmp_path, onnx.helper.make_model(graph, opset_imports=opset, ir_version=9))
    rounded = round_model(path, samples(FEATURES, 64))
    assert len(rounded.integers) == 3
    assert list(rounded.outliers.values()) == [8]
    model_file.save_model(rounded.model, tmp_path / "rounded.onnx")
    x = samples(FEATURES, 16, seed=4).inputs
    right, ours = (run(open_session(p), x)["y"] for p in (path, tmp_path / "rounded.onnx"))
    assert np.linalg.norm(ours - right) < 0.2 * np.linalg.norm(right)


ON_CUDA = QUICK.model_copy(update={"provider": "cuda"})


def search_on_cuda(learned, held_out, tmp_path):
    """As far as it goes without a GPU: nothing is run there yet."""
    wanted = Forms(learned, OptimizeSpec(), provider="cuda")
    return module._Search(wanted, held_out, ON_CUDA, metric=None, folder=tmp_path)


def test_on_cuda_half_floats_stand_in_for_integers(learned, held_out, tmp_path, model, monkeypatch):
    monkeypatch.setattr(NumberForms, "session", learned.settings.session)
    search = search_on_cuda(learned, held_out, tmp_path)
    families = {family.name: family for family in search._forms.families()}
    assert list(families)[:2] == ["neurons, half floats", "neurons and low rank, half floats"]
    assert not any("integers" in name for name in families)
    x = held_out.inputs
    right = run(open_session(model), x)["y"]
    for share, family in zip((1.0, 0.6), list(families.values())[:2], strict=True):
        family.build(share, tmp_path / "half.onnx")
        ours = run(open_session(tmp_path / "half.onnx"), x)["y"]
        assert np.linalg.norm(ours - right) < 0.05 * np.linalg.norm(right)
        kinds = {t.data_type for t in onnx.load(tmp_path / "half.onnx").graph.initializer}
        assert kinds == {onnx.TensorProto.FLOAT16}


def test_half_floats_are_a_rival_on_cuda(model, tmp_path, held_out):
    assert set(rivals("cuda")) == {"half floats", *RIVALS}
    assert set(rivals("cpu")) == set(RIVALS)
    half_floats(model, tmp_path / "rival.onnx")
    onnx.checker.check_model(tmp_path / "rival.onnx", full_check=True)
    paths = model, tmp_path / "rival.onnx"
    right, theirs = (run(open_session(path), held_out.inputs)["y"] for path in paths)
    assert np.linalg.norm(theirs - right) < 0.01 * np.linalg.norm(right)


def test_accuracy_is_that_of_the_provider(learned, held_out, tmp_path, monkeypatch):
    specs = []

    class Asked(Exception):  # noqa: N818
        pass

    def asked(*_, spec=None, **__):
        specs.append(spec.provider)
        raise Asked

    search = search_on_cuda(learned, held_out, tmp_path)
    monkeypatch.setattr(module, "validate", asked)
    with pytest.raises(Asked):
        search._drop(learned.original.path, held_out)
    monkeypatch.setattr(
        module, "batch_invariance", lambda model, samples, spec: asked(model, samples, spec=spec)
    )
    with pytest.raises(Asked):
        search._invariance("original")
    assert specs == ["cuda", "cuda"]
    assert learned.settings.session.provider == "cpu"


def test_trials_of_another_provider_do_not_count(learned, held_out, tmp_path):
    wanted = Forms(learned, OptimizeSpec())
    on_cpu = module._Search(wanted, held_out, QUICK, metric=None, folder=tmp_path)
    assert on_cpu._key_of_all() != search_on_cuda(learned, held_out, tmp_path)._key_of_all()


@pytest.mark.skipif(provider_problems()["cuda"] is None, reason="CUDA works on this machine")
def test_without_cuda_nothing_is_tried(learned, held_out, tmp_path):
    with pytest.raises(ProviderError, match="--provider cpu"):
        optimize(learned, held_out, tmp_path / "best.onnx", benchmark=ON_CUDA)
    assert not (tmp_path / "best.onnx").exists()


class TestCommand:
    @pytest.fixture
    def cli(self, capsys, monkeypatch):
        return Cli(capsys, monkeypatch)

    @pytest.fixture
    def data(self, tmp_path):
        np.savez(tmp_path / "data.npz", **samples(FEATURES, 100).inputs)
        return tmp_path / "data.npz"

    def test_it_writes_a_model_and_a_report(self, cli, model, data, tmp_path):
        best, report, log = (tmp_path / name for name in ("best.onnx", "r.json", "log.jsonl"))
        options = ["--max-drop", "0.05", "--iterations", "5", "--objective", "size", "--no-cache"]
        given = ["optimize", model, "-c", data, *options, "-o", best]
        printed = cli(*given, "--report", report, "--log", log).out
        assert "dynamic int8" in printed
        written = json.loads(report.read_text())
        assert written["verdict"].split()[0] in printed
        assert len(log.read_text().splitlines()) >= len(RIVALS)
        open_session(best)
        cli(*given, "--report", report, "--log", log)

    def test_several_sizes_are_columns_of_the_table(self, cli, model, data, tmp_path):
        report = tmp_path / "r.json"
        sizes = ["--batch", "1,2,8", "--length", "4"]
        options = [*sizes, "--time", "1s", "--iterations", "5", "--no-cache"]
        given = ["optimize", model, "-c", data, *options, "-o", tmp_path / "best.onnx"]
        printed = " ".join(cli(*given, "--report", report).out.split())
        shapes = ["1x4", "2x4", "8x4"]
        assert " ".join(f"at {shape}" for shape in shapes) in printed
        assert f"geometric means over 1x4: x 1x3x{FEATURES}; 2x4: x 2x3x{FEATURES};" in printed
        for trial in json.loads(report.read_text())["trials"]:
            if trial["speedup"] is not None:
                assert list(trial["speedup_at"]) == shapes

    @pytest.mark.parametrize("ending", ["png", "svg"])
    def test_it_draws_and_writes_the_front_and_may_do_so_again(
        self, cli, model, data, tmp_path, ending
    ):
        pareto, picture = tmp_path / "pareto.json", tmp_path / f"front.{ending}"
        options = ["--time", "1s", "--iterations", "5", "--no-cache", "-o", tmp_path / "best.onnx"]
        page = tmp_path / "page.html"
        given = ["optimize", model, "-c", data, *options, "--pareto", pareto, "--picture", picture]
        given += ["--html", page]
        cli(*given)
        assert "What was tried" in page.read_text(encoding="utf-8")
        first = picture.read_bytes()
        assert first.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
        points = {point["name"]: point for point in json.loads(pareto.read_text())["points"]}
        assert points["original"]["from"] == "rival"
        assert points["original"]["speedup"] == 1
        cli(*given)
        picture.write_bytes(b"a photograph")
        assert "was not written by compress-onnx" in error_line(cli(*given, code=2))
        assert picture.read_bytes() == b"a photograph"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "give --calibration"),
            (["-c", "DATA", "--time", "soon"], "is no duration"),
            (["-c", "DATA", "--recover", "soon"], "is no duration"),
            (["-c", "DATA", "--log", "DATA"], "data.npz"),
            (["-c", "DATA", "--batch", "1,0"], "is no number above zero, nor several"),
            (["-c", "DATA", "-o", "MODEL"], "model.onnx"),
            (["-c", "DATA", "--picture", "front.bmp"], "a picture is a .png or .svg file"),
            pytest.param(
                ["-c", "DATA", "--provider", "cuda"],
                "CUDAExecutionProvider",
                marks=pytest.mark.skipif(
                    provider_problems()["cuda"] is None, reason="CUDA works on this machine"
                ),
            ),
        ],
    )
    def test_what_cannot_be_is_one_line(self, cli, model, data, options, message):
        names = {"DATA": data, "MODEL": model}
        given = [names.get(option, option) for option in options]
        before = model.read_bytes(), data.read_bytes()
        shown = cli("optimize", model, "-o", model.parent / "best.onnx", *given, code=2)
        assert message in error_line(shown)
        assert (model.read_bytes(), data.read_bytes()) == before
        assert not (model.parent / "best.onnx").exists()


def test_models_with_data_files_are_optimized_too(learned, held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 100)
    monkeypatch.setattr(model_file, "_SMALL_TENSOR_BYTES", 10)
    report = call(learned, held_out, tmp_path, objective="size")
    assert not [trial.problem for trial in report.trials if trial.problem]
    (data,) = data_files(load_model(tmp_path / "best.onnx"))
    assert data.exists()
    open_session(tmp_path / "best.onnx")


# Recovery


def recovered(learned, held_out, tmp_path, log=None, **spec):
    wanted = OptimizeSpec(**({"max_drop": 0.05} | spec))
    return optimize(
        learned,
        held_out,
        tmp_path / "best.onnx",
        wanted,
        benchmark=QUICK,
        log=log,
        recovery=RecoverySpec(budget=None, steps=60),
    ).report


def test_what_is_just_beyond_the_drop_is_trained(learned, held_out, tmp_path, monkeypatch):
    reports = []

    def seen(train):
        def call(*arguments, **settings):
            reports.append(train(*arguments, **settings))
            return reports[-1]

        return call

    monkeypatch.setattr(number_forms, "recover_in_memory", seen(number_forms.recover_in_memory))
    monkeypatch.setattr(PreparedModel, "recover", seen(PreparedModel.recover))
    report = recovered(learned, held_out, tmp_path)
    trials = {trial.name: trial for trial in report.trials}
    trained = {name: trial for name, trial in trials.items() if "recovered" in name}
    assert len(trained) == len(reports) == module.RECOVERED
    assert {found.steps for found in reports} == {60}
    for name, trial in trained.items():
        untrained = trials[name.removesuffix(", recovered for 60 steps")]
        assert trial.problem is None
        assert not untrained.within
        assert trial.drop.value < 1.02 * untrained.drop.value
        assert trial.size_bytes == untrained.size_bytes
        assert trial.family == untrained.family


def test_weights_of_few_bits_are_trained_through_their_rounding(learned, held_out, tmp_path):
    """Twelve neurons too few: what is left makes up for some of them."""
    recovery = RecoverySpec(budget=None, steps=400)
    lessons = Lessons(samples(FEATURES, 2000, seed=3))
    found = Forms(learned, OptimizeSpec(objective="size"), recovery=recovery, lessons=lessons)
    family = next(f for f in found.families() if f.name == "neurons, 4-bit weights")
    drops, sizes = [], []
    for build in (family.build, family.recover):
        build(0.4, tmp_path / "few.onnx")
        search = module._Search(found, held_out, QUICK, metric=None, folder=tmp_path)
        drops.append(search._drop(tmp_path / "few.onnx", held_out).value)
        sizes.append(model_size(tmp_path / "few.onnx", tmp_path / "few.onnx").candidate_bytes)
    assert drops[1] < 0.98 * drops[0]
    assert sizes[1] <= sizes[0]


def test_trained_trials_are_logged_too(learned, held_out, tmp_path, monkeypatch):
    log = tmp_path / "trials.json"
    first = recovered(learned, held_out, tmp_path, log=log, max_drop=0.02)
    monkeypatch.setattr(number_forms, "recover_in_memory", None)
    monkeypatch.setattr(PreparedModel, "recover", None)
    monkeypatch.setattr(module, "MOST", 0)
    again = recovered(learned, held_out, tmp_path, log=log, max_drop=0.02)
    assert [t.drop for t in again.trials] == [t.drop for t in first.trials]


def test_damage_is_predicted_by_the_allocation(learned):
    made = Forms(learned, OptimizeSpec())
    families = {f.name: f for f in made.families()}
    damage = families["neurons, integers"].damage
    assert damage(0.25) > damage(0.5) > damage(0.75) > 0
    assert damage(1.0) == 0
    plan = learned.compress(made._request("neurons", 0.5)).plan
    assert damage(0.5) == pytest.approx(plan.thinned[0].damage)
