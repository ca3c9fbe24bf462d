"""The spool's disk is full, read-only or too small: no part passes unrecorded, and the time is a declared gap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.event import HEADER, State
from edge_runtime.account import account, read_truth
from edge_runtime.draw import write_truth
from edge_runtime.station import STATE_FILE
from tests.processes import TOUCHING, Line, until
from tests.small_disk import SmallDisk, small_disk

PARTS = 40
URL = f"synthetic://line?seed=5&parts={PARTS}&fps=50"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "edge", 24) as made:  # Line's state_dir of the edge
        yield made


@pytest.fixture
def line(tmp_path: Path, bundle: Path, disk: SmallDisk) -> Iterator[Line]:
    write_truth(URL, tmp_path / "line_frames.csv")
    made = Line(tmp_path, bundle, URL, camera=TOUCHING, edge="[spool]\nmax_rows = 100000")
    yield made
    made.close()


def said(line: Line) -> State:
    """The edge's newest heartbeat at the host."""
    (state,) = line.summary()["states"]
    header = HEADER.validate_python({name: value for name, value in state.items() if name != "received_ns"})
    assert isinstance(header, State)
    return header


def every_part_is_accounted_for(line: Line, folder: Path, parts: int = PARTS) -> None:
    found = account(line.parts(), line.gaps(), read_truth(folder / "line_frames.csv"))
    assert found.results + found.missed + found.gap_parts == found.parts == parts
    assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)
    assert all(row["state"] in ("result", "missed") for row in line.parts()), "every trigger has its end"
    stored = {row["part_id"]: row["verdict"] for row in line.parts()}
    passed = [output["part_id"] for output in line.published() if output["code"] == 1]
    assert all(stored[part] == "PASS" for part in passed), "the line heard no PASS that is not on record"


def test_a_disk_that_runs_full_stops_taking_parts_says_so_and_goes_on_with_a_gap(
    line: Line, disk: SmallDisk, tmp_path: Path
) -> None:
    line.start_host()
    edge = line.start_edge()
    until(lambda: line.results() >= 5, "five parts were inspected")
    disk.fill()
    state = until(lambda: state if (state := said(line)).state == "failed" else None, "the edge says so")
    assert "cannot be written" in (state.detail or "")
    at = line.results()
    time.sleep(2)  # the outage itself
    assert line.results() <= at + 1, "what cannot be recorded is not inspected"
    disk.clear()
    until(lambda: said(line).state == "running", "it goes on by itself")
    assert edge.wait(120) == 0, edge.text()[-3000:]
    gaps = line.gaps()
    assert any("seen and not recorded" in gap["reason"] and gap["camera_id"] is None for gap in gaps), gaps
    every_part_is_accounted_for(line, tmp_path)


@pytest.mark.long
def test_killed_while_the_disk_is_full_the_next_start_waits_for_room_and_declares_it_all(
    line: Line, disk: SmallDisk, tmp_path: Path
) -> None:
    line.start_host()
    edge = line.start_edge()
    until(lambda: line.results() >= 5, "five parts were inspected")
    disk.fill()
    until(lambda: said(line).state == "failed", "the edge says so")
    edge.kill()
    again = line.start_edge()
    assert again.wait(60) == 75, again.text()[-3000:]  # EX_TEMPFAIL: to be started again
    assert "is the disk full" in again.text()
    disk.clear()
    last = line.start_edge()
    assert last.wait(120) == 0, last.text()[-3000:]
    assert len(line.gaps()) == 1, line.gaps()
    every_part_is_accounted_for(line, tmp_path)


@pytest.mark.long
def test_stopped_while_the_disk_is_full_it_ends_and_owes_the_gap(line: Line, disk: SmallDisk, tmp_path: Path) -> None:
    line.start_host()
    edge = line.start_edge()
    until(lambda: line.results() >= 5, "five parts were inspected")
    disk.fill()
    until(lambda: said(line).state == "failed", "the edge says so")
    assert edge.stop() == 75, edge.text()[-3000:]
    disk.clear()
    assert line.start_edge().wait(120) == 0
    every_part_is_accounted_for(line, tmp_path)


def test_a_read_only_disk_is_named_at_the_start_and_waited_for(line: Line, disk: SmallDisk) -> None:
    disk.read_only()
    edge = line.start_edge()
    assert edge.wait(60) == 75
    assert "cannot be written" in edge.text() and "Traceback" not in edge.text()


@pytest.mark.long
def test_a_spool_that_is_full_of_events_takes_no_part_until_the_host_is_back(tmp_path: Path, bundle: Path) -> None:
    url = URL.replace(f"parts={PARTS}", "parts=90")  # two event rows a part; maps make room before those count
    write_truth(url, tmp_path / "line_frames.csv")
    line = Line(tmp_path, bundle, url, camera=TOUCHING, edge="images = 'none'\n[spool]\nmax_rows = 100")
    try:
        host = line.start_host()
        edge = line.start_edge()
        until(lambda: line.results() >= 3, "three parts were inspected")
        host.kill()
        path = tmp_path / "edge" / STATE_FILE
        state = until(
            lambda: state if (state := State.model_validate_json(path.read_bytes())).state == "failed" else None,
            "the spool is full",
        )
        assert "the spool is full" in (state.detail or "")
        assert state.spool_rows < 140, "beyond the limit the ends of parts that were taken, and no more"
        line.start_host()
        assert edge.wait(120) == 0, edge.text()[-3000:]
        assert any("the spool is full" in gap["reason"] for gap in line.gaps())
        every_part_is_accounted_for(line, tmp_path, 90)
    finally:
        line.close()
