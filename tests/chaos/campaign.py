"""A line, a host and a controller at its registers, killed at named points, and what came of every part.

Both sides run as they would in a plant, but for a hook that ends a process by SIGKILL at a chosen function
(``tests/chaos/crash``). Whichever side died is started again at once, armed with the next point, until all had their
turn and some more parts have passed; then every part that the line showed must have one result, one miss or lie in a
declared gap, and the controller must never have read a PASS that the host did not commit as PASS.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.scene import SIDES, Count, Scene
from tests.processes import until

PARTS_A_KILL = 150
MORE = 5


class Point(NamedTuple):
    """Where a process dies: its side, the function, and whether before or after that did its work."""

    side: str
    function: str
    when: str


WHEN = ("before", "after")
POINTS = {
    "edge: before a row is spooled": Point("edge", "edge_runtime.spool:Spool.append", "before"),
    "edge: a row is spooled, not committed": Point("edge", "edge_runtime.spool:Spool._insert", "after"),
    "edge: a row is committed, not synced": Point("edge", "edge_runtime.spool:Spool.append", "after"),
    "edge: before a sync": Point("edge", "edge_runtime.spool:_sync", "before"),
    "edge: after a sync": Point("edge", "edge_runtime.spool:_sync", "after"),
    "edge: parts taken over from a camera": Point("edge", "edge_runtime.capture:CameraProcess.drain", "after"),
    "edge: before a part is inspected": Point("edge", "edge_runtime.inspector:Inspector.ready", "before"),
    "edge: a part is inspected, not recorded": Point("edge", "edge_runtime.inspector:Inspector.end", "after"),
    "edge: before a message is sent": Point("edge", "edge_runtime.emitter:Emitter._put", "before"),
    "edge: after a message is sent": Point("edge", "edge_runtime.emitter:Emitter._put", "after"),
    "edge: acknowledged, not forgotten": Point("edge", "edge_runtime.spool:Spool.forget", "before"),
    "edge: after rows are forgotten": Point("edge", "edge_runtime.spool:Spool.forget", "after"),
    "edge: after its mark of life": Point("edge", "edge_runtime.spool:Spool.mark_alive", "after"),
    "camera: before a frame is put": Point("edge", "edge_runtime.ring:Ring.put", "before"),
    "camera: a frame is put, no trigger": Point("edge", "edge_runtime.ring:Ring.put", "after"),
    "camera: before a trigger is announced": Point("edge", "edge_runtime.ring:Ring.announce", "before"),
    "camera: after a trigger is announced": Point("edge", "edge_runtime.ring:Ring.announce", "after"),
    "host: an event is read, not told": Point("host", "plugin.receiver:Receiver._decode", "after"),
    "host: before the ledger commits": Point("host", "plugin.ledger:Ledger._settle", "before"),
    "host: an output is written, not committed": Point("host", "plugin.ledger:Ledger._write_output", "after"),
    "host: committed, before it is published": Point("host", "plugin.dispatch:Dispatcher.publish", "before"),
    "host: before the registers": Point("host", "plugin.connectors.modbus:Modbus.publish", "before"),
    "host: after the registers": Point("host", "plugin.connectors.modbus:Modbus.publish", "after"),
    "host: before the store commits": Point("host", "plugin.store:Store.commit", "before"),
    "host: parts are stored, not committed": Point("host", "plugin.store:Store._insert_parts", "after"),
    "host: stored, not acknowledged": Point("host", "plugin.store:Store.commit", "after"),
    "host: after an acknowledgement": Point("host", "plugin.receiver:Receiver._send", "after"),
}
"""Every named point; a test finds each called while parts pass."""


class Campaign:
    """A line whose sides are killed at ``points``, each side's in turn, each after a seeded moment."""

    def __init__(self, folder: Path, bundle: Path, points: Sequence[str], seed: int) -> None:
        self._random = random.Random(seed)
        self._waiting = {side: [name for name in points if POINTS[name].side == side] for side in SIDES}
        self._scene = Scene(folder, bundle, seed, PARTS_A_KILL * (len(points) + 4))
        self._armed: dict[str, str | None] = dict.fromkeys(SIDES)
        self.kills: Counter[str] = Counter()

    def run(self, limit_s: float) -> Count:
        """Until every point had its turn and the edge has ended in order; raises AssertionError after ``limit_s``."""
        scene = self._scene
        scene.plc.start()
        try:
            for side in SIDES:
                self._start(side)
            until(self._step, self._told("every point had its turn"), limit_s)
            until(lambda: scene.healthy() and scene.line.results() >= MORE, "parts pass that nobody disturbs", limit_s)
            enough = scene.line.results() + MORE
            until(lambda: scene.line.results() >= enough, self._told("some more of them"), limit_s)
            return scene.end()
        finally:
            scene.close()

    def _step(self) -> bool:
        """Start again what died; whether both sides run and no point is left."""
        edge = self._scene.running["edge"]
        if self._kills_camera() and self._mark("edge").exists() and edge.running():
            edge.kill()  # only an edge that begins anew is armed with the next point
        for side, process in self._scene.running.items():
            if not process.running():
                self._died(side)
        return not any(self._armed.values())

    def _kills_camera(self) -> bool:
        return (self._armed["edge"] or "").startswith("camera")

    def _died(self, side: str) -> None:
        name, process = self._armed[side], self._scene.running[side]
        assert process.code() == -9, self._told(f"the {side} ended with {process.code()}")
        assert name is not None and self._mark(side).exists(), self._told(f"the {side} died of something else")
        self.kills[name] += 1
        self._start(side)

    def _start(self, side: str) -> None:
        """Armed with the next point; with none once all had their turn."""
        waiting = self._waiting[side]
        self._mark(side).unlink(missing_ok=True)
        name = waiting.pop(0) if waiting else None
        self._armed[side] = name
        armed = {}
        if name is not None:
            point = POINTS[name]
            seconds = self._random.uniform(0.0, 3.0)
            armed["FLAWLINE_CRASH"] = f"{point.function}:{point.when}:{seconds:.3f}:{self._mark(side)}"
        self._scene.start(side, armed)

    def _mark(self, side: str) -> Path:
        """Stands where the armed point has killed: the edge lives on where that was its camera."""
        return self._scene.folder / f"{side}.dead"

    def _told(self, what: str) -> str:
        return self._scene.told(f"{what}\n{dict(self.kills)}") if self._scene.running else what


def schedule(kills: int, seed: int) -> list[str]:
    """``kills`` points, each in its turn, in an order that the seed decides."""
    rng = random.Random(seed)
    names: list[str] = []
    while len(names) < kills:
        turn = list(POINTS)
        rng.shuffle(turn)
        names += turn
    return names[:kills]
