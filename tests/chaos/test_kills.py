"""Either side is killed in mid-run: every part that was on the belt is accounted for, none twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.account import account, read_truth
from edge_runtime.draw import write_truth
from tests.processes import TOUCHING, Line, until

PARTS = 40
URL = f"synthetic://line?seed=3&parts={PARTS}&fps=50"


@pytest.fixture
def line(tmp_path: Path, bundle: Path) -> Iterator[Line]:
    write_truth(URL, tmp_path / "line_frames.csv")
    made = Line(tmp_path, bundle, URL, camera=TOUCHING)
    yield made
    made.close()


def test_host_killed_for_five_seconds_every_result_stands_exactly_once(line: Line, tmp_path: Path) -> None:
    host = line.start_host()
    edge = line.start_edge()
    until(lambda: line.results() >= 5, "five parts were inspected")
    host.kill()
    time.sleep(5)  # the outage itself, not a wait for something
    line.start_host()
    assert edge.wait(120) == 0, edge.text()[-3000:]
    found = account(line.parts(), line.gaps(), read_truth(tmp_path / "line_frames.csv"))
    assert (found.parts, found.results, found.missed, found.gap_parts) == (PARTS, PARTS, 0, 0)
    assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)
    numbers = [output["number"] for output in line.published()]
    assert len(numbers) == len(set(numbers)), "a number was published twice"
    parts = [output["part_id"] for output in line.published()]
    assert len(parts) == len(set(parts)), "a part moved the gate twice"


def test_edge_killed_and_restarted_leaves_one_declared_gap(line: Line, tmp_path: Path) -> None:
    line.start_host()
    edge = line.start_edge()
    until(lambda: line.results() >= 8, "eight parts were inspected")
    edge.kill()
    time.sleep(2)  # the outage itself
    restarted = line.start_edge()
    assert restarted.wait(120) == 0, restarted.text()[-3000:]
    gaps = line.gaps()
    assert len(gaps) == 1, gaps
    assert gaps[0]["duration_ns"] >= 2e9
    rows = line.parts()
    assert all(row["state"] in ("result", "missed") for row in rows), "every trigger has its end"
    found = account(rows, gaps, read_truth(tmp_path / "line_frames.csv"))
    assert found.results + found.missed + found.gap_parts == found.parts == PARTS
    assert found.gap_parts > 0
    assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)


def test_edge_killed_twice_with_the_host_away(line: Line, tmp_path: Path) -> None:
    host = line.start_host()
    line.start_edge()
    until(lambda: line.results() >= 3, "three parts were inspected")
    host.kill()
    for _ in range(2):
        before = len(line.processes)
        line.processes[-1].kill()
        edge = line.start_edge()
        until(lambda edge=edge: "running: every camera" in edge.text() or not edge.running(), "the edge runs")
        assert len(line.processes) == before + 1
    line.start_host()
    assert line.processes[-2].wait(120) == 0, line.processes[-2].text()[-3000:]
    found = account(line.parts(), line.gaps(), read_truth(tmp_path / "line_frames.csv"))
    assert found.results + found.missed + found.gap_parts == found.parts == PARTS
    assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)
