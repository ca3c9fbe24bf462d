"""A part is asked for at the host's command line: real processes from the request to the store, also over a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_runtime.demo import fetch
from tests.processes import Line, free_port, freeze, until


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_request_becomes_a_part_that_the_host_finds_by_its_serial(tmp_path: Path, bundle: Path) -> None:
    control = f"tcp://127.0.0.1:{free_port()}"
    line = Line(
        tmp_path, bundle, "synthetic://line?seed=5&parts=2000&fps=25",
        camera='trigger = "software"\nwithin_ms = 20000', edge="deadline_ms = 20000",
        host=f'[control]\nbind = "{control}"', link=f'control = "{control}"',
    )  # fmt: skip
    command = [sys.executable, "-m", "flawline", "host", "control", str(tmp_path / "host.toml"), "edge-1"]

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, "trigger", *words], capture_output=True, text=True, timeout=60)

    def named(serial: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = fetch(f"{line.address}/api/parts?serial={quote(serial)}")
        return found

    def ended(serial: str) -> list[dict[str, Any]]:
        return [row for row in named(serial) if row["state"] != "triggered"]

    try:
        line.start_host()
        early = ask("--part", "too early")
        assert (early.returncode, "No edge 'edge-1' is known" in early.stderr) == (2, True), early.stderr
        edge = line.start_edge()
        until(lambda: "every camera delivers" in edge.text(), "the edge runs")
        until(lambda: fetch(f"{line.address}/healthz")["control"]["edges"] == ["edge-1"], "it says hello")
        about = ["--part", "SN <1>/ä", "--lot", "L7", "--encoder", "-12", "--key", "once", "--timeout", "20"]
        asked = [ask(*about) for _ in range(2)]
        assert [(each.returncode, each.stderr) for each in asked] == [(0, "")] * 2
        (part_id,) = {each.stdout.strip() for each in asked}
        (row,) = until(lambda: ended("SN <1>/ä"), "its end is in the store")
        assert (row["part_id"], row["lot"], row["encoder"], row["state"]) == (part_id, "L7", -12, "result")
        assert row["frame_no"] > 0 and row["timing"]["t_capture_ns"] >= row["timing"]["t_trigger_ns"]
        part = fetch(f"{line.address}/api/parts/{row['id']}")
        assert (part["header"]["serial"], part["serial"]) == ("SN <1>/ä", "SN <1>/ä")
        assert part["line"]["part_id"] == part_id, "the line controller was told"

        again = ask("--part", "SN <1>/ä", "--timeout", "20", "--json")
        assert json.loads(again.stdout)["part_ids"] not in ([part_id], [])
        assert len(until(lambda: len(ended("SN <1>/ä")) == 2 and ended("SN <1>/ä"), "two parts of one serial")) == 2

        capture = children_of(edge.pid)
        for child in capture:
            freeze(child)  # no frame comes, so that the part waits
        waiting = ask("--part", "SN-2", "--timeout", "20")
        assert waiting.returncode == 0, waiting.stderr
        edge.kill()
        for child in capture:
            os.kill(child, signal.SIGKILL)
        line.start_edge()
        (row,) = until(lambda: ended("SN-2"), "what waited has its end")
        assert (row["part_id"], row["state"], row["verdict"]) == (waiting.stdout.strip(), "missed", "NOT_INSPECTED")
        assert row["reason"] == "the edge stopped before its verdict"
    finally:
        line.close()
