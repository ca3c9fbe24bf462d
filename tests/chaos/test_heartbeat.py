"""Frames or inference stop in a real edge: the line's heartbeat stops within its stated time, and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.connectors.registers import WORDS
from tests.plugin.controller import Master
from tests.processes import Line, children, free_port, freeze, until

STATED_S = 2.0
"""``docs/modbus.md``, with the settings as they are by default."""


class Watched:
    """A running line and a controller that looks at its heartbeat."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        port = free_port()
        host = f'[[connectors]]\nurl = "modbus://127.0.0.1:{port}"\n'
        camera = "stall_s = 30\n"  # the camera is not replaced while the test looks
        self.line = Line(folder, bundle, "synthetic://line?seed=3&parts=5000&fps=25", camera=camera, host=host)
        self.line.start_host()
        self.edge = self.line.start_edge()
        self.master = Master(("127.0.0.1", port))

    def beat(self) -> int:
        return self.master.read(WORDS["heartbeat"], 1)[0]

    def until_beating(self) -> None:
        before = self.beat()
        until(lambda: (self.beat() - before) % 65536 >= 3, "the heart beats")

    def stops(self) -> None:
        """From now on: not one beat later than the stated time."""
        time.sleep(STATED_S)  # the stated time itself
        after = self.beat()
        time.sleep(0.8)  # eight beats that do not come
        assert self.beat() == after

    def close(self) -> None:
        self.master.close()
        self.line.close()


@pytest.fixture
def watched(tmp_path: Path, bundle: Path) -> Iterator[Watched]:
    made = Watched(tmp_path, bundle)
    made.until_beating()
    yield made
    made.close()


def test_the_heartbeat_stops_with_inference_and_comes_back(watched: Watched) -> None:
    freeze(watched.edge.pid)
    try:
        watched.stops()
    finally:
        os.kill(watched.edge.pid, signal.SIGCONT)
    watched.until_beating()


def test_the_heartbeat_stops_with_the_frames_and_comes_back(watched: Watched) -> None:
    cameras = children(watched.edge.pid)
    assert cameras
    for camera in cameras:
        freeze(camera)
    try:
        watched.stops()
    finally:
        for camera in cameras:
            os.kill(camera, signal.SIGCONT)
    watched.until_beating()


def test_the_heartbeat_stops_with_the_edge(watched: Watched) -> None:
    watched.edge.kill()
    watched.stops()
