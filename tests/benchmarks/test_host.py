"""The host's benchmark in small: every figure that is asked for, of real processes and a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_run_has_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    words = ["--seconds", "0.5", "--events", "150", "--rounds", "1", "--edges", "50", "--parts", "200", "400"]
    command = [sys.executable, "-m", "benchmarks.host", *words, "--pages", "3", "--json", str(out)]
    subprocess.run(command, check=True, timeout=280, cwd=ROOT)
    found = json.loads(out.read_text())
    for name in ("events_per_s_sqlite", "events_per_s_postgresql"):
        assert set(found[name]) == {"50"}
        assert all(rate > 0 for rates in found[name].values() for rate in rates.values())
        assert {"without_images", "with_images"} == set(found[name]["50"])
    assert set(found["next_part_page_ms"]) == {"200", "400"}
    assert all(ms > 0 for ms in found["next_part_page_ms"].values())
