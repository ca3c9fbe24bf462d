"""End to end in real time: parts past the camera, verdicts in the host's store, nothing lost, none twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.account import account, read_truth, stage_latencies
from edge_runtime.draw import write_truth
from tests.processes import TOUCHING, Line
from tests.shared_data import shared_data


def test_the_synthetic_line_with_touching_parts(tmp_path: Path, bundle: Path) -> None:
    url = "synthetic://line?seed=5&parts=50&fps=50"
    write_truth(url, tmp_path / "line_frames.csv")
    line = Line(tmp_path, bundle, url, camera=TOUCHING)
    try:
        line.start_host()
        edge = line.start_edge()
        assert edge.wait(150) == 0, edge.text()[-3000:]
        rows = line.parts()
        found = account(rows, line.gaps(), read_truth(tmp_path / "line_frames.csv"))
        assert (found.parts, found.results, found.lost, found.duplicates, found.unmatched) == (50, 50, 0, 0, 0)
        assert (found.missed, found.gap_parts) == (0, 0)
        summary = line.summary()
        assert summary["holes"] == 0
        assert len(line.published()) == 50
        assert {"trigger", "inference", "total"} <= set(stage_latencies(rows))
    finally:
        line.close()


@pytest.mark.timeout(200)
def test_the_real_line_video_gives_fifty_results_for_fifty_parts(tmp_path: Path, bundle: Path) -> None:
    video = shared_data("line", "line.avi")
    line = Line(tmp_path, bundle, f"file://{video}")
    try:
        line.start_host()
        edge = line.start_edge()
        assert edge.wait(90) == 0, edge.text()[-3000:]
        found = account(line.parts(), line.gaps(), read_truth(video.with_name("line_frames.csv")))
        assert (found.parts, found.results, found.missed, found.gap_parts) == (50, 50, 0, 0)
        assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)
    finally:
        line.close()
