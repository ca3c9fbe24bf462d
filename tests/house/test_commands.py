"""The front door: every command of the table resolves, helps quickly and explains what it lacks."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import typer

from flawline import COMMANDS, main, usage

HEAVY = ("torch", "lightning", "cv2", "openvino", "onnxruntime", "onnx", "fastapi", "sqlalchemy", "uvicorn")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_target_is_a_typer_app_with_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), typer.Typer)
    assert main([name, "--help"]) == 0
    assert f"flawline {name}" in capfd.readouterr().out
    assert name in usage()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name: str) -> None:
    """Under half a second on any machine, since what takes seconds is not imported."""
    script = (
        f"import sys, flawline; flawline.main([{name!r}, '--help']);"
        f"sys.stderr.write(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_mistakes_are_sentences(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "no command 'trian'; there are: demo, train" in capfd.readouterr().err
    assert main(["edge", "run", "none.toml"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("flawline edge: none.toml: cannot be read")
    assert "Traceback" not in error


def test_no_command_shows_the_list_and_version_is_the_package_s(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "flawline COMMAND --help" in capfd.readouterr().out
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("flawline ")
