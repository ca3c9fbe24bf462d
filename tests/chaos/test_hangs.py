"""A loop of a real process hangs: the process ends by itself, is started again, and every part is accounted for."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.overseer import HUNG, Pulse
from edge_runtime.account import account, read_truth
from edge_runtime.draw import write_truth
from edge_runtime.station import Station
from tests.chaos.scene import HOOK
from tests.processes import TOUCHING, Line, Process, until

PARTS = 40
URL = f"synthetic://line?seed=3&parts={PARTS}&fps=50"
HANG_S = "hang_s = 2"


@pytest.fixture
def line(tmp_path: Path, bundle: Path) -> Iterator[Line]:
    write_truth(URL, tmp_path / "line_frames.csv")
    made = Line(tmp_path, bundle, URL, edge=HANG_S, host=HANG_S, camera=TOUCHING)
    yield made
    made.close()


def start(line: Line, side: str, function: str, **more: str) -> Process:
    """Edge or host of which ``function`` hangs as soon as the file `hang` is there."""
    path = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "FLAWLINE_HANG": f"{function}:{line.folder / 'hang'}", **more}
    words = ["--quiet"] if side == "edge" else []
    log = line.folder / f"{side}-{len(line.processes)}.log"
    process = Process(log, side, "run", str(line.folder / f"{side}.toml"), *words, environment=environment)
    line.processes.append(process)
    return process


class Manager:
    """A service manager that hears all that is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name)
        self._heard: list[str] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while said := self._socket.recv(4096):
            self._heard.append(said.decode())

    def end(self) -> list[str]:
        """Everything that was told until now."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", "\0" + self.name)
        self._thread.join(10)
        self._socket.close()
        return self._heard


def test_an_edge_whose_station_hangs_is_ended_and_its_parts_are_in_a_declared_gap(line: Line, tmp_path: Path) -> None:
    manager = Manager(f"flawline-{os.getpid()}-{tmp_path.name}")
    line.start_host()
    edge = start(line, "edge", "edge_runtime.station:Station._keep_watch", NOTIFY_SOCKET=f"@{manager.name}")
    until(lambda: line.results() >= 8, "eight parts were inspected")
    (line.folder / "hang").touch()
    assert edge.wait(60) == HUNG, edge.text()[-3000:]
    assert "station has not turned for" in edge.text()
    assert "in wrapped" in edge.text(), "the stack that hung"
    heard = manager.end()
    assert sum("READY=1" in each for each in heard) == 1
    assert "STATUS=hung: station has not turned" in heard[-1]
    assert "WATCHDOG=1" not in heard[-1]
    (line.folder / "hang").unlink()
    again = line.start_edge()
    assert again.wait(120) == 0, again.text()[-3000:]
    gaps = line.gaps()
    assert len(gaps) == 1 and "had not stopped cleanly" in gaps[0]["reason"], gaps
    rows = line.parts()
    assert all(row["state"] in ("result", "missed") for row in rows), "every trigger has its end"
    found = account(rows, gaps, read_truth(tmp_path / "line_frames.csv"))
    assert found.results + found.missed + (found.gap_parts or 0) == found.parts == PARTS
    assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)


HOST = [
    "plugin.receiver:Receiver._receive_some",
    "plugin.ledger:Ledger._gather",
    "plugin.writer:Writer._next",
    "plugin.connectors.loop:Loop.publish",
]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("function", HOST)
def test_a_host_of_which_one_loop_hangs_is_ended_and_nothing_is_lost(line: Line, tmp_path: Path, function: str) -> None:
    host = start(line, "host", function)
    until(lambda: line._healthy() or not host.running(), "the host is ready")
    edge = line.start_edge()
    until(lambda: line.results() >= 5, "five parts were inspected")
    (line.folder / "hang").touch()
    assert host.wait(180) == HUNG, host.text()[-3000:]
    (line.folder / "hang").unlink()
    line.start_host()
    if edge.wait(120) == 3:  # it gave up waiting for the host; what is left is sent at the next start
        (line.folder / "nothing").mkdir()  # the line has passed: it must not be shown again
        config = line.folder / "edge.toml"
        nothing = config.read_text().replace(URL, f"watch://{line.folder / 'nothing'}")
        config.write_text(nothing.replace(TOUCHING, 'trigger = "every-frame"'))
        edge = line.start_edge()
        until(lambda: line.results() == PARTS, "the events that waited are sent")
        assert edge.stop() == 0
    found = account(line.parts(), line.gaps(), read_truth(tmp_path / "line_frames.csv"))
    assert found.results == found.parts == PARTS
    assert (found.lost, found.duplicates, found.unmatched) == (0, 0, 0)
    numbers = [output["number"] for output in line.published()]
    assert len(numbers) == len(set(numbers)), "a number was published twice"


@pytest.mark.parametrize(("under_way_s", "turns"), [(None, 1), (1.0, 1), (3.0, 0)])
def test_a_station_that_goes_round_a_part_which_never_ends_does_not_turn(under_way_s: float | None, turns: int) -> None:
    """The engine's own thread hangs, and the station's loop does not."""
    lane = [] if under_way_s is None else [SimpleNamespace(t_taken_ns=time.monotonic_ns() - int(under_way_s * 1e9))]
    pulse = Pulse("station")
    station = SimpleNamespace(_lane=lane, _settings=SimpleNamespace(hang_s=2.0), pulse=pulse)
    Station._turn(station)  # type: ignore[arg-type]
    assert pulse.mark[0] == turns


def test_an_edge_that_hangs_before_its_first_part_has_the_start_s_limit(line: Line) -> None:
    config = line.folder / "edge.toml"
    config.write_text("start_s = 3\n" + config.read_text())
    (line.folder / "hang").touch()
    edge = start(line, "edge", "edge_runtime.spool:Spool._numbering")
    assert edge.wait(60) == HUNG, edge.text()[-3000:]
    assert "the start has not turned for" in edge.text()
