"""A person at the host asks a real edge over keys: before it runs, and while parts pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from contract.keys import authorise, new_pair
from edge_runtime.demo import fetch
from tests.processes import TOUCHING, Line, free_port, until


def test_what_is_asked_before_the_edge_runs_is_done_when_it_does(tmp_path: Path, bundle: Path) -> None:
    new_pair(tmp_path / "keys", "host")
    new_pair(tmp_path / "edge-keys", "edge-1")
    authorise(tmp_path / "keys", tmp_path / "edge-keys" / "edge-1.key")
    control = f"tcp://127.0.0.1:{free_port()}"
    line = Line(
        tmp_path, bundle, "synthetic://line?seed=5&parts=2000&fps=50", camera=TOUCHING,
        edge=f'[[recipes]]\nnumber = 2\nbundle = "{bundle}"',
        host=f'keys = "keys"\n[control]\nbind = "{control}"',
        link=f'control = "{control}"\nkey = "edge-keys/edge-1.key_secret"\nserver_key = "keys/host.key"',
    )  # fmt: skip
    command = [sys.executable, "-m", "flawline", "host", "control", str(tmp_path / "host.toml"), "edge-1"]
    try:
        line.start_host()
        early = subprocess.Popen([*command, "recipe", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: fetch(f"{line.address}/healthz")["control"]["asked"] == 1, "the host has been asked")
        line.start_edge()
        said, error = early.communicate(timeout=120)
        assert early.returncode == 0, error
        assert "edge-1 is not connected" in error
        assert "recipe 2 " in said
        for word in ("stop", "start"):
            done = subprocess.run([*command, word], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert ("stopped by request" in done.stdout) == (word == "stop")
        until(lambda: line.results() > 0, "parts are inspected")
    finally:
        line.close()
