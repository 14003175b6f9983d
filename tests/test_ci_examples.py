"""The examples for continuous integration: their steps are run as the host would run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import small_models as small
import yaml

ROOT = Path(__file__).parent.parent
RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "data.npz"},
    "compression": {"params": 0.5},
    "gates": [{"quantity": "relative_l2", "max": 0.9}],
    "benchmark": None,
}

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path) -> Path:
    """Somebody's repository."""
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    return tmp_path


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as both hosts do: bash that stops at the first command that fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cache = {"COMPRESS_ONNX_CACHE": str(folder / "cache"), "HOME": str(folder)}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **cache, **variables, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def github(text: str, inputs: dict[str, str]) -> str:
    """What GitHub makes of its expressions, as far as the action uses them."""
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], text)


def run_action(folder: Path, **given: str) -> list[subprocess.CompletedProcess[str]]:
    """The steps of the composite action but the installation, until one fails."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    inputs = {name: spec.get("default", "") for name, spec in action["inputs"].items()} | given
    done = []
    for step in action["runs"]["steps"]:
        condition = step.get("if", "true")
        if "!= ''" in condition and not inputs[re.search(r"inputs\.([\w-]+)", condition)[1]]:
            continue
        if step["name"] == "Install":
            continue
        variables = {name: github(value, inputs) for name, value in step.get("env", {}).items()}
        summary = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.txt")}
        done.append(shell(step["run"], folder, **variables, **summary))
        if done[-1].returncode:
            break
    return done


def test_the_action_compresses_and_tells(folder):
    (done,) = run_action(folder, recipe="recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert (folder / "bundle" / "manifest.json").is_file()
    assert (folder / "bundle.junit.xml").is_file()
    assert "PASSED" in (folder / "summary.txt").read_text()


def test_the_action_fails_where_a_gate_does(folder):
    gates = [{"quantity": "size_ratio", "max": 0.01}]
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE | {"gates": gates}))
    done = run_action(folder, recipe="recipe.yaml")
    assert done[-1].returncode == 1
    assert "::error title=compress-onnx::size_ratio" in done[-1].stdout


def test_the_action_compares_with_a_baseline(folder):
    assert run_action(folder, recipe="recipe.yaml")[-1].returncode == 0
    report = json.loads((folder / "bundle" / "report.json").read_text())
    report["validation"]["outputs"][0]["relative_l2"] /= 2
    (folder / "base.json").write_text(json.dumps(report))
    run, compare = run_action(folder, recipe="recipe.yaml", baseline="base.json")
    assert (run.returncode, compare.returncode) == (0, 1), compare.stderr
    assert "::error title=compress-onnx::relative_l2" in compare.stdout
    assert "**worse**" in (folder / "bundle.compare.md").read_text()


def test_names_are_no_code(folder):
    """An input goes through the environment: what it says is never a part of the script."""
    (done,) = run_action(folder, recipe='$(touch evil)"; touch evil; "')
    assert done.returncode == 2
    assert not (folder / "evil").exists()


def test_the_workflow_calls_the_action_with_what_it_takes():
    workflow = yaml.safe_load((ROOT / ".github/workflows/compress.yml").read_text())
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    steps = workflow["jobs"]["compress"]["steps"]
    (ours,) = [step for step in steps if "compress-onnx@" in step.get("uses", "")]
    assert ours["with"].keys() <= action["inputs"].keys()
    called = workflow[True]["workflow_call"]["inputs"]  # YAML 1.1 reads "on" as true
    asked = re.findall(r"inputs\.([\w-]+)", json.dumps(workflow))
    assert set(asked) <= called.keys()
    assert workflow["permissions"] == {"contents": "read"}


def test_gitlabs_job(folder):
    job = yaml.safe_load((ROOT / "ci/gitlab.yml").read_text())[".compress-onnx"]
    script = "\n".join(line for line in job["script"] if "pip install" not in line)
    variables = {n: v for n, v in job["variables"].items() if "CI_PROJECT_DIR" not in v}
    done = shell(script, folder, **(variables | {"RECIPE": "recipe.yaml"}))
    assert done.returncode == 0, done.stderr
    assert (folder / "run.junit.xml").is_file()
    again = variables | {"RECIPE": "recipe.yaml", "BASELINE": "bundle/report.json", "OUTPUT": "b2"}
    done = shell(script, folder, **again)
    assert done.returncode == 0, done.stderr
    assert (folder / "compare.junit.xml").is_file()


def test_hooks_of_pre_commit(folder):
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    recipes, bundles = hooks
    assert re.search(recipes["files"], "models/encoder.yaml")
    assert not re.search(recipes["files"], "models/data/other.yaml")
    assert re.search(bundles["files"], "bundles/encoder/manifest.json")
    assert shell(f"{recipes['entry']} recipe.yaml", folder).returncode == 0
    (folder / "recipe.yaml").write_text("name: tiny\nsource: {model: x}\nsauce: {}\n")
    done = shell(f"{recipes['entry']} recipe.yaml", folder)
    assert done.returncode == 2
    assert "sauce" in done.stderr


def test_the_dockerfile_is_sound():
    """No daemon here: what a linter would say of it."""
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]
    instructions = [line.split(maxsplit=1) for line in lines]
    names = [name for name, _ in instructions]
    assert names[0] == "FROM"
    assert ":" in instructions[0][1]
    assert not instructions[0][1].endswith(":latest")
    users = [rest for name, rest in instructions if name == "USER"]
    assert users
    assert users[-1] != "root"
    for name, rest in instructions:
        if name == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists" in rest
        assert name != "ADD"
    entry = next(rest for name, rest in instructions if name == "ENTRYPOINT")
    assert json.loads(entry)
    extras = re.search(r"/source\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())[1]
    known = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", known, re.M) for extra in extras.split(","))
