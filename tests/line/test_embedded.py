"""The example of an embedding program, as its page gives it, with a real edge in front."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.plugin.synthetic import ROOT
from tests.processes import TOUCHING, Line, until


def test_the_example_hears_every_part_of_a_real_edge(tmp_path: Path, bundle: Path) -> None:
    line = Line(tmp_path, bundle, "synthetic://line?seed=7&parts=12&fps=25&defects=0.5", camera=TOUCHING)
    out = tmp_path / "said.txt"
    with out.open("w") as file:
        host = subprocess.Popen(
            [sys.executable, str(ROOT / "docs" / "examples" / "embedded_host.py"), str(tmp_path / "host.toml")],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "ready: edges connect to" in out.read_text(), "the example is ready")
        edge = line.start_edge()
        assert edge.wait(150) == 0, edge.text()[-3000:]
        parts = {row["part_id"]: row["verdict"] for row in line.parts()}
        flagged = sorted(name for name, verdict in parts.items() if verdict in ("REJECT", "REVIEW"))
        assert len(parts) == 12 and flagged
        host.send_signal(signal.SIGTERM)
        assert host.wait(20) == 0, out.read_text()
    finally:
        host.kill()
        host.wait()
        line.close()
    said = out.read_text().splitlines()
    for name, verdict in parts.items():
        assert said.count(f"line-1 {name}: {verdict}") == 1
    assert sorted(row.split()[2].rstrip(":") for row in said if row.startswith("look at")) == flagged
    assert said[-1] == "stopped; calls left out: 0"
