"""Clocks on the wall that can be set while a side runs: a small library between it and the C library."""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path

from tests.chaos.scene import Gear, Scene

SOURCE = Path(__file__).parent / "wall_clock.c"
SLACK_NS = 5 * 10**9


class Clock(Gear):
    """One side's time of day; ``step`` sets it for all its processes at once."""

    def __init__(self, side: str) -> None:
        self.side = side
        self._steps = [(0, 0)]
        """From when (true time of day, ns), and the offset."""

    def lay(self, scene: Scene) -> None:
        self._library, self._file = scene.folder / "wall_clock.so", scene.folder / f"{self.side}.clock"
        if not self._library.exists():
            words = ["gcc", "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(self._library), "-ldl"]
            subprocess.run(words, check=True)
        self._file.write_bytes(struct.pack("q", 0))

    def environment(self, side: str) -> dict[str, str]:
        if side != self.side:
            return {}
        return {"LD_PRELOAD": str(self._library), "FLAWLINE_WALL_CLOCK": str(self._file)}

    def step(self, hours: float) -> None:
        """Put the clock so many hours off the true time."""
        offset_ns = int(hours * 3600e9)
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", offset_ns))
        self._steps.append((time.time_ns(), offset_ns))

    def true_wall_ns(self, t_ns: int) -> int:
        """Under which offset a time was said shows in the hours: the true one lies where that offset was in force."""
        if self.side != "edge":
            return t_ns
        ends = [since for since, _ in self._steps[1:]] + [time.time_ns()]
        for (since, offset), until in zip(reversed(self._steps), reversed(ends), strict=True):
            if since - SLACK_NS <= t_ns - offset <= until + SLACK_NS:
                return t_ns - offset
        return t_ns
