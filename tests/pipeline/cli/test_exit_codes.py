"""What a script can tell from the exit code: a failed gate is never a crash or an interruption."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import small_models as small
from cli_runner import Cli, error_line

from compress_onnx.pipeline.cli import validate


@pytest.fixture
def cli(capsys, monkeypatch):
    return Cli(capsys, monkeypatch)


@pytest.fixture
def model(tmp_path):
    return small.save(small.perceptron(), tmp_path / "model.onnx")


@pytest.mark.parametrize("defect", [ZeroDivisionError("x"), MemoryError(), OSError(5, "I/O")])
def test_a_crash_is_no_failed_gate(cli, monkeypatch, model, defect):
    def crash(*_arguments, **_options):
        raise defect

    monkeypatch.setattr(validate, "validate_models", crash)
    captured = cli("validate", model, model, code=70)
    assert f"{type(defect).__name__}" in captured.err
    assert "Traceback" in captured.err
    assert "report it" in error_line(captured)


def test_an_interruption_is_one_line(cli, monkeypatch, model):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, "validate_models", interrupt)
    captured = cli("validate", model, model, code=130)
    assert captured.err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in captured.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("module", ["onnx", "typer", "scipy"])
def test_an_interruption_during_the_imports_is_one_line(tmp_path, module):
    # The module interrupts the process that imports it, as Ctrl-C would at that moment.
    (tmp_path / f"{module}.py").write_text(
        f"import os\nos.kill(os.getpid(), {signal.SIGINT:d})\nwhile True: pass\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            # A process that was started in the background has no ear for it.
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
            "from compress_onnx.pipeline.cli import main; main()",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_the_help_names_every_exit_code(cli):
    words = cli("--help").out.split("Exit codes:")[1].replace("\n", " ").split()
    assert {"0", "1", "2", "3", "70", "130"} <= set(words)
