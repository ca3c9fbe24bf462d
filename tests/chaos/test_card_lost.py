"""A graphics card is lost under a running edge: no part passes, the line hears of it, and a new process goes on.

The card is of paper (tests/paper_box.py): cuda-python, our engine, the edge and the host are real, the driver and
TensorRT are not.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_runtime.account import account, read_truth
from edge_runtime.demo import fetch
from edge_runtime.draw import write_truth
from edge_runtime.errors import CardLostError
from tests.paper_box import PaperBox
from tests.processes import TOUCHING, Line, Process, until

PARTS = 30
URL = f"synthetic://line?seed=3&parts={PARTS}&fps=50"


def test_the_process_ends_with_its_own_code_and_the_next_one_inspects_again(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = PaperBox(tmp_path, monkeypatch)
    write_truth(URL, tmp_path / "line_frames.csv")
    line = Line(tmp_path, bundle, URL, edge='engine = "tensorrt"', camera=TOUCHING)
    try:
        line.start_host()
        edge = line.start_edge()
        until(lambda: line.results() >= 5, "five parts were inspected")
        before = {row["part_id"] for row in line.parts() if row["state"] == "result"}
        box.lose_card()
        assert edge.wait(30) == CardLostError.exit_code == 75, edge.text()[-3000:]
        said = r"tensorrt: Paper RTX does not compute for this process any more \(CUDA: \w+ says 700, an illegal memory"
        assert re.search(said, edge.text()) and "Traceback" not in edge.text(), edge.text()[-3000:]

        rows = line.parts()
        assert all(row["state"] in ("result", "missed") for row in rows), "what was announced has its end"
        assert re.search("edge-1: (is failed|silent for)", str(fetch(f"{line.address}/healthz"))), "the heart stands"
        state = Process(tmp_path / "state.log", "edge", "state", str(tmp_path / "edge.toml"))
        assert state.wait(30) == 3
        assert re.search(rf"^edge-1: failed$(.|\n)*^{said}", state.text(), re.M), state.text()

        box.mend_card()
        again = line.start_edge()
        assert again.wait(120) == 0, again.text()[-3000:]
        rows = line.parts()
        verdicts = {row["part_id"]: row["verdict"] for row in rows if row["state"] == "result"}
        assert any(verdict == "PASS" for part, verdict in verdicts.items() if part not in before), "and inspects again"
        lost = [row for row in rows if row["verdict"] == "NOT_INSPECTED" and row["state"] == "result"]
        assert all(re.search(said, row["reason"]) for row in lost), lost
        assert len(line.gaps()) == 1
        found = account(rows, line.gaps(), read_truth(tmp_path / "line_frames.csv"))
        assert found.results + found.missed + found.gap_parts == found.parts == PARTS
        assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)
    finally:
        line.close()
