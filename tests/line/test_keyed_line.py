"""Edge and host as processes with keys: authorised while the line runs, the host killed, the edge revoked at last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from contract.keys import authorise, new_pair, revoke
from tests.processes import TOUCHING, Line, until

LINK = 'key = "edge-keys/edge-1.key_secret"\nserver_key = "keys/host.key"'


def test_an_edge_authorised_while_the_line_runs_loses_nothing_though_the_host_is_killed(
    tmp_path: Path, bundle: Path
) -> None:
    new_pair(tmp_path / "keys", "host")
    new_pair(tmp_path / "edge-keys", "edge-1")
    url = "synthetic://line?seed=5&parts=60&fps=50"
    line = Line(tmp_path, bundle, url, camera=TOUCHING, host='keys = "keys"', link=LINK)
    try:
        host = line.start_host()
        edge = line.start_edge()
        until(lambda: "flawline keys authorise edge-1.key" in edge.text(), "the edge says what is missing")
        state = until(lambda: _state(tmp_path), "the edge's state on its own box")
        assert "flawline keys authorise edge-1.key" in state
        assert line.parts() == []
        authorise(tmp_path / "keys", tmp_path / "edge-keys" / "edge-1.key")
        until(lambda: line.results() > 0, "the edge is heard")
        host.kill()
        line.start_host()
        assert edge.wait(150) == 0, edge.text()[-3000:]
        parts = line.parts()
        assert len({row["part_id"] for row in parts}) == len(parts) == 60
        assert {row["state"] for row in parts} == {"result"}
        assert line.summary()["holes"] == 0
        numbers = [row["number"] for row in line.published()]
        assert len(set(numbers)) == len(numbers)
        revoke(tmp_path / "keys", "edge-1")
        again = line.start_edge()
        until(lambda: "has revoked it" in again.text(), "a revoked edge is refused")
        assert len(line.parts()) == 60
    finally:
        line.close()


def _state(folder: Path) -> str:
    words = [sys.executable, "-m", "flawline", "edge", "state", str(folder / "edge.toml")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 3 and "host:" in done.stdout else ""
