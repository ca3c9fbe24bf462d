"""The front door: every command of the table resolves, helps quickly and explains what it lacks."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import typer

from flawline import COMMANDS, main, usage

HEAVY = (
    "torch",
    "lightning",
    "cv2",
    "openvino",
    "onnxruntime",
    "onnx",
    "fastapi",
    "sqlalchemy",
    "uvicorn",
    "cryptography",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_target_is_a_typer_app_with_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"flawline {name}" in capfd.readouterr().out
    assert name in usage()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_sub_command_helps(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    for words in sub_commands(name):
        assert main([*words, "--help"]) == 0
        shown = capfd.readouterr().out
        assert f"Usage: flawline {' '.join(words)} " in shown
        assert len(shown.splitlines()) > 4, "a sentence and the options at least"


def sub_commands(name: str) -> list[list[str]]:
    """Words of every sub-command of ``name``; the command itself where it has none."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    app = getattr(importlib.import_module(module), attribute)
    assert isinstance(app, typer.Typer)
    below = getattr(typer.main.get_command(app), "commands", {})
    return [[name, sub] for sub in below] or [[name]]


def test_sub_commands_are_found() -> None:
    assert ["calibrate", "thresholds"] in sub_commands("calibrate")
    assert ["host", "run"] in sub_commands("host")
    assert sub_commands("train") == [["train"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name: str) -> None:
    """Under half a second on any machine, since what takes seconds is not imported."""
    script = (
        f"import sys, flawline; [flawline.main([*words, '--help']) for words in {[[name], *sub_commands(name)]!r}];"
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
