"""`flawline host`: help, the example configuration, mistakes and a second host in the same folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin.synthetic import ROOT, HostProcess


def flawline(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flawline", "host", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--help"], "run"), (["run", "--help"], "flawline host run host.toml")]
)
def test_help(arguments: list[str], words: str) -> None:
    done = flawline(*arguments)
    assert done.returncode == 0
    assert words in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, plugin.cli\n"
        "heavy = {'fastapi', 'uvicorn', 'sqlalchemy', 'alembic', 'jinja2', 'zmq', 'cv2', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_the_host_needs_neither_opencv_nor_engines() -> None:
    code = (
        "import sys, plugin.service\n"
        "sys.exit(', '.join(sorted({'cv2', 'torch', 'openvino', 'onnxruntime'} & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_init_writes_once(tmp_path: Path) -> None:
    file = tmp_path / "station" / "host.toml"
    assert flawline("init", str(file)).returncode == 0
    text = file.read_text()
    again = flawline("init", str(file))
    assert (again.returncode, file.read_text()) == (2, text)
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stat_dir = 1", "did you mean `state_dir`"),
        ('[[connectors]]\nurl = "modbsu://plc"', "no connector 'modbsu'"),
        ('state_dir = "/proc/nothing"', "cannot be written"),
    ],
)
def test_mistakes_end_with_a_sentence_and_two(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "host.toml"
    file.write_text(text)
    done = flawline("run", str(file))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    done = flawline("run", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_one_folder_or_port_has_one_host(make_host: Callable[..., HostProcess], tmp_path: Path) -> None:
    host = make_host()
    assert "another host is using this folder" in flawline("run", str(host.config)).stderr
    other = tmp_path / "other.toml"
    other.write_text(f'state_dir = "other"\n[events]\nbind = "{host.endpoint}"\n[http]\nport = 0\n')
    done = flawline("run", str(other))
    assert "is another host running?" in done.stderr
    port = host.url.rstrip("/").rpartition(":")[2]
    other.write_text(f'state_dir = "other"\n[events]\nbind = "tcp://127.0.0.1:*"\n[http]\nport = {port}\n')
    done = flawline("run", str(other))
    assert (done.returncode, "set it to 0" in done.stderr) == (2, True)
