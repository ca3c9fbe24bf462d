"""A line with a candidate in shadow, from camera to host: what it says arrives and adds up, and moves no output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.processes import TOUCHING, Line, fetch

PARTS = 12


@pytest.mark.parametrize("candidate", ["itself", "nothing"])
def test_what_a_candidate_says_arrives_and_moves_no_output(tmp_path: Path, bundle: Path, candidate: str) -> None:
    folder = bundle if candidate == "itself" else tmp_path / "nothing"
    link = f'[shadow]\nbundle = "{folder}"\nshare = 1.0\n'
    url = f"synthetic://line?seed=5&parts={PARTS}&fps=5"
    patient = '[[lines]]\nid = "line-1"\ndeadline_ms = 60000'  # how soon verdicts come is not what is tested here
    line = Line(tmp_path, bundle, url, edge="deadline_ms = 60000", camera=TOUCHING, host=patient, link=link)
    try:
        line.start_host()
        edge = line.start_edge()
        assert edge.wait(240) == 0, edge.text()[-3000:]
        rows = {row["part_id"]: row for row in line.parts()}
        assert len(rows) == len(line.published()) == PARTS
        assert line.summary()["holes"] == 0, "its events are numbered with the others"
        told = [event["header"] for event in fetch(f"{line.address}/api/v1/events?kind=shadow&limit=1000")["items"]]
        last: dict[str, Any] = told[-1]
        assert last["offered"] == sum(row["state"] == "result" for row in rows.values())
        assert last["offered"] == last["scored"] + last["dropped"] + last["unseen"] and last["waiting"] == 0
        scores = [score for event in told for score in event["scores"]]
        assert len(scores) == last["scored"]
        for score in scores:  # of the line's own bundle, on another engine
            row = rows[score["part_id"]]
            assert score["live"] == row["verdict"] and score["score"] == pytest.approx(row["score"], rel=1e-3)
        if candidate == "nothing":
            assert last["scored"] == 0 and str(folder) in last["trouble"]
    finally:
        line.close()
