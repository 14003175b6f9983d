"""Gates are held against what is going to be measured, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import small_models as small
from cli_runner import Cli
from test_gates import BENCHMARK, LOADING, SIZE, VALIDATION
from typer.main import get_command

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.cli.dispatch import app
from compress_onnx.pipeline.measure.gates import (
    check_quantities,
    measured_quantities,
    parse_gate,
    translation_quantities,
)
from compress_onnx.pipeline.measure.latency import cases_of
from compress_onnx.pipeline.measure.metrics import make_metric
from compress_onnx.pipeline.measure.metrics.check import check_metric
from compress_onnx.pipeline.measure.quantities import (
    bench_quantities,
    metric_quantities,
    recipe_quantities,
    validate_quantities,
)
from compress_onnx.pipeline.recipe import (
    AccuracyMetric,
    BenchmarkSpec,
    EmbeddingMetric,
    Gate,
    MaskFillingMetric,
    Recipe,
    RetrievalMetric,
    read_recipe,
)
from compress_onnx.pipeline.results import (
    GenerationTiming,
    Loading,
    TranslationScore,
    TranslationScores,
)
from compress_onnx.pipeline.runtime.samples import Batch
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS

MODELS = Path(__file__).parents[3] / "models"
EMBEDDING = EmbeddingMetric(kind="embedding", pooling="none", neighbours=2)
ACCURACY = AccuracyMetric(kind="accuracy")
FILLING = MaskFillingMetric(kind="mask-filling", top_k=1)
RETRIEVAL = RetrievalMetric(kind="retrieval", pooling="none")
SOURCE = {"model": "model.onnx"}
NPZ = {"kind": "npz", "path": "data.npz"}
GETTEXT = {
    "kind": "python",
    "loader": "data/translations.py:pairs",
    "arguments": {"languages": ["de", "fr"], "split": "test"},
}


def recipe(**settings: object) -> Recipe:
    return Recipe.model_validate({"name": "r", "source": SOURCE, **settings})


def measured_everywhere(loadings: Sequence[Loading] = ()) -> dict[str, float]:
    rows = [BENCHMARK.model_copy(update={"provider": place}) for place in EXECUTION_PROVIDERS]
    return measured_quantities(None, rows, SIZE, loadings)


class TestNamesAreThoseThatAreMeasured:
    def test_of_outputs_and_sizes(self):
        measured = measured_quantities(VALIDATION.model_copy(update={"metrics": {}}), size=SIZE)
        assert set(validate_quantities(["hidden", "pooled"])) == set(measured)

    def test_of_latency(self):
        on_cpu = BenchmarkSpec(provider="cpu")
        measured = measured_quantities(None, [BENCHMARK], SIZE)
        assert set(bench_quantities(on_cpu, loading=False)) == set(measured)
        assert set(bench_quantities(loading=False)) == set(measured_everywhere())

    def test_of_loading(self):
        without_memory = LOADING.model_dump(exclude={n for n in vars(LOADING) if "resident" in n})
        loadings = [
            Loading.model_validate(without_memory | {"provider": place})
            if place == "cuda"
            else LOADING.model_copy(update={"provider": place})
            for place in EXECUTION_PROVIDERS
        ]
        assert set(bench_quantities()) == set(measured_everywhere(loadings))

    def test_of_a_grid(self):
        grid = BenchmarkSpec(provider="cpu", batch=(1, 8), length=(16, 128))
        for threads in ((), (2,), (1, 2)):
            rows = [
                BENCHMARK.model_copy(update={"case": case.name}) for case in cases_of(grid, threads)
            ]
            measured = measured_quantities(None, rows, SIZE)
            assert set(bench_quantities(grid, threads, loading=False)) == set(measured)

    @pytest.mark.parametrize("spec", [EMBEDDING, ACCURACY, FILLING, RETRIEVAL])
    def test_of_metrics(self, spec):
        outputs = np.random.default_rng(0).normal(size=(8, 3, 4) if spec is FILLING else (8, 4))
        labels = np.zeros(outputs.shape[:-1], int)
        metric = make_metric(spec)
        batch = Batch({}, np.arange(8), None, labels)
        metric.update(batch, {"y": outputs}, {"y": outputs})
        assert set(metric.result()) == set(metric_quantities(spec))

    def test_of_translations(self):
        score = TranslationScore(sentences=1, bleu=1.0, chrf=1.0)
        scores = TranslationScores(languages={"de": score, "fr": score}, mean=score)
        timing = GenerationTiming.model_construct(provider="cpu", speedup=1.0, speedup_low=1.0)
        asked = recipe(metric={"kind": "translation"}, validation=GETTEXT)
        measured = translation_quantities(scores, scores, SIZE, timing)
        assert set(recipe_quantities(asked)) == set(measured)


class TestRecipes:
    def test_what_is_not_in_the_recipe_is_not_measured(self):
        assert "relative_l2" not in recipe_quantities(recipe())
        assert "cosine" not in recipe_quantities(recipe(validation=NPZ))
        both = recipe(validation=NPZ, metric={"kind": "embedding"})
        assert {"cosine", "relative_l2", "speedup.cpu"} <= set(recipe_quantities(both))
        assert "speedup.cpu" not in recipe_quantities(recipe(benchmark=None))
        grid = recipe_quantities(recipe(benchmark={"batch": [1, 8], "length": 16}))
        assert {"speedup.cpu", "speedup.cpu.1x16", "speedup_low.cuda.8x16"} <= set(grid)
        assert "load_ms.cpu" not in grid
        on_cpu = recipe(benchmark=BenchmarkSpec(provider="cpu"), validation=NPZ)
        assert not any(name.endswith(".cuda") for name in recipe_quantities(on_cpu))

    def test_accuracy_is_measured_where_latency_is(self):
        names = set(recipe_quantities(recipe(validation=NPZ, metric={"kind": "embedding"})))
        for name in ("cosine", "relative_l2", "batch_invariance", "output.*.cosine"):
            assert {name, f"{name}.cpu", f"{name}.cuda"} <= names

    @pytest.mark.parametrize("path", sorted(MODELS.rglob("*.yaml")), ids=lambda path: path.stem)
    def test_the_gates_of_all_recipes_are_about_something(self, path):
        known = read_recipe(path)
        check_quantities(known.gates, recipe_quantities(known))
        if known.gates:
            mistyped = Gate(quantity=known.gates[0].quantity + "x", min=0)
            with pytest.raises(RequestError, match=f"did you mean '{known.gates[0].quantity}'"):
                check_quantities([mistyped], recipe_quantities(known))


class TestCheck:
    @pytest.mark.parametrize(
        ("quantity", "meant"),
        [
            ("relative_l1", "relative_l2"),
            ("output.y.cosin", "output.y.cosine"),
            ("size_ration", "size_ratio"),
        ],
    )
    def test_a_mistyped_quantity_is_refused_with_the_names(self, quantity, meant):
        gates = [Gate(quantity="max_abs", max=1.0), Gate(quantity=quantity, max=1.0)]
        with pytest.raises(RequestError, match=f"did you mean '{meant}") as caught:
            check_quantities(gates, validate_quantities(["y"]))
        assert all(name in str(caught.value) for name in validate_quantities(["y"]))
        assert "\n" not in str(caught.value)

    def test_what_resembles_nothing_is_refused_without_a_guess(self):
        names = bench_quantities(BenchmarkSpec(provider="cpu"))
        with pytest.raises(RequestError, match=r"measured here: There are speedup\.cpu"):
            check_quantities([Gate(quantity="zzz", min=1)], names)

    def test_a_star_is_any_output(self):
        for name in ("output.a.b/c:0.cosine", "output.x[0].max_abs"):
            check_quantities([Gate(quantity=name, max=1)], validate_quantities())
        for name in ("output..cosine", "output.cosine", "output.y.other"):
            with pytest.raises(RequestError):
                check_quantities([Gate(quantity=name, max=1)], validate_quantities())


class TestMetricsBeforeTheRun:
    @pytest.mark.parametrize("kind", [EMBEDDING, ACCURACY, FILLING, RETRIEVAL])
    def test_an_output_that_is_none_is_refused(self, kind):
        spec = kind.model_copy(update={"output": "logit"})
        with pytest.raises(RequestError, match=r"'logit' is no output of the model: use .*logits"):
            check_metric(spec, ["logits", "hidden"], has_labels=True)
        check_metric(spec, ["logit"], has_labels=True)

    @pytest.mark.parametrize("kind", [ACCURACY, FILLING, RETRIEVAL])
    def test_labels_must_be_there_for_what_needs_them(self, kind):
        with pytest.raises(DataError, match=f"{kind.kind} needs labels"):
            check_metric(kind, ["logits"], has_labels=False)
        check_metric(kind, ["logits"], has_labels=True)
        check_metric(EMBEDDING, ["logits"], has_labels=False)
        check_metric(None, [], has_labels=False)


@pytest.mark.parametrize(
    ("command", "available"),
    [
        ("validate", validate_quantities(["NAME"], providers=["auto"], domains=["news", "off"])),
        ("bench", bench_quantities()),
    ],
)
class TestExamplesInTheHelp:
    """Whatever the help of a command names can be gated there."""

    def texts(self, command: str) -> tuple[str, str]:
        found = get_command(app).commands[command]
        (gate,) = [option for option in found.params if "--gate" in option.opts]
        return found.help, gate.help

    def test_every_gate(self, command, available):
        text, option = self.texts(command)
        examples = re.findall(r"--gate '([^']+)'", text) + re.findall(r"\S+[<>]=\S+$", option)
        assert len(examples) == 2
        check_quantities([parse_gate(example) for example in examples], available)

    def test_every_quantity(self, command, available):
        named = re.findall(r"`([\w.]+)`", self.texts(command)[0].partition("Gates can name")[2])
        assert len(named) > 3
        check_quantities([Gate(quantity=name, min=0) for name in named], available)

    def test_they_run(self, command, available, capsys, monkeypatch, tmp_path):  # noqa: ARG002
        model = small.save(small.perceptron(), tmp_path / "model.onnx")
        (tmp_path / "small.onnx").write_bytes(model.read_bytes())
        small.save_rows(tmp_path / "data.npz")
        monkeypatch.chdir(tmp_path)
        text, _ = self.texts(command)
        (line,) = re.findall(rf"`compress-onnx ({command} [^`]+)`", text)
        short = ["--iterations", "5", "--provider", "cpu", "--loads", "0"]
        quick = short if command == "bench" else []
        # Equal models: a gate on outputs holds, one on the size does not.
        code = 1 if "size_ratio" in line else 0
        printed = Cli(capsys, monkeypatch)(*line.replace("'", "").split(), *quick, code=code)
        assert "not measured" not in printed.out
