"""A line, a host and a controller at its registers, killed at named points, and what came of every part.

Both sides run as they would in a plant, but for a hook that ends a process by SIGKILL at a chosen function
(``tests/chaos/crash``). Whichever side died is started again at once, armed with the next point, until all had their
turn and some more parts have passed; then every part that the line showed must have one result, one miss or lie in a
declared gap, and the controller must never have read a PASS that the host did not commit as PASS.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edge_runtime.account import TruePart, Truth, account, read_truth
from edge_runtime.demo import fetch
from edge_runtime.draw import write_truth
from tests.plugin.controller import Controller, Judged, ModbusError
from tests.processes import TOUCHING, Line, Process, free_port, until

HOOK = Path(__file__).parent / "crash"
PASS = 1
POLL_S = 0.02
PARTS_A_KILL = 25
MORE = 5


class Point(NamedTuple):
    """Where a process dies: its side, the function, and whether before or after that did its work."""

    side: str
    function: str
    when: str


POINTS = {
    "edge: before a row is spooled": Point("edge", "edge_runtime.spool:Spool.append", "before"),
    "edge: a row is spooled, not committed": Point("edge", "edge_runtime.spool:Spool._insert", "after"),
    "edge: a row is committed, not synced": Point("edge", "edge_runtime.spool:Spool.append", "after"),
    "edge: before a sync": Point("edge", "edge_runtime.spool:_sync", "before"),
    "edge: after a sync": Point("edge", "edge_runtime.spool:_sync", "after"),
    "edge: parts taken over from a camera": Point("edge", "edge_runtime.capture:CameraProcess.drain", "after"),
    "edge: before a part is inspected": Point("edge", "edge_runtime.inspector:Inspector.inspect", "before"),
    "edge: a part is inspected, not recorded": Point("edge", "edge_runtime.inspector:Inspector.inspect", "after"),
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
"""Every named point; the test of the list finds each function in the product."""


class Count(NamedTuple):
    """One campaign: kills by point, and the account of its parts."""

    kills: Counter[str]
    parts: int
    triggers: int
    results: int
    missed: int
    gap: int
    unaccounted: int
    duplicates: int
    false_ok: int
    passes: int

    def row(self, fault: str, kills: int) -> dict[str, Any]:
        """As it stands in the table of results."""
        names = ("parts", "triggers", "results", "missed", "gap", "unaccounted", "duplicates", "false_ok", "passes")
        return {"fault": fault, "kills": kills, **{name: getattr(self, name) for name in names}}


class Plc(threading.Thread):
    """A controller that polls every 20 ms, connects again when the host is gone, and remembers all that it took."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._address = ("127.0.0.1", port)
        self._controller: Controller | None = None
        self.taken: list[Judged] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                if self._controller is None:
                    self._controller = Controller(self._address)
                    self._controller.taken = self.taken
                self._controller.poll()
            except ModbusError:
                self._reconnect()

    def _reconnect(self) -> None:
        """The same controller with a fresh connection: it remembers where it was."""
        if self._controller is None:
            return
        try:
            self._controller.master.close()
            self._controller.master = type(self._controller.master)(self._address)
        except ModbusError:
            return

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)


class Campaign:
    """A line whose sides are killed at ``points``, each side's in turn, each after a seeded moment."""

    def __init__(self, folder: Path, bundle: Path, points: Sequence[str], seed: int) -> None:
        self.folder = folder
        self._random = random.Random(seed)
        self._waiting = {side: [name for name in points if POINTS[name].side == side] for side in ("edge", "host")}
        self._url = f"synthetic://line?seed={seed}&parts={PARTS_A_KILL * (len(points) + 4)}&fps=50"
        self._truth = folder / "line_frames.csv"
        write_truth(self._url, self._truth)
        port = free_port()
        self._line = Line(folder, bundle, self._url, camera=TOUCHING)
        with (folder / "host.toml").open("a") as file:
            file.write(f'[[connectors]]\nurl = "modbus://127.0.0.1:{port}"\n')
        self._plc = Plc(port)
        self._armed: dict[str, str | None] = {"edge": None, "host": None}
        self._running: dict[str, Process] = {}
        self.kills: Counter[str] = Counter()

    def run(self, limit_s: float) -> Count:
        """Until every point had its turn and the edge has ended in order; raises AssertionError after ``limit_s``."""
        self._plc.start()
        deadline = time.monotonic() + limit_s
        try:
            for side in ("host", "edge"):
                self._start(side)
            while not self._step():
                assert time.monotonic() < deadline, self._told(f"not over within {limit_s:.0f} s")
                time.sleep(0.02)
            until(lambda: self._healthy() and self._line.results() >= MORE, "parts pass that nobody disturbs")
            enough = self._line.results() + MORE
            until(lambda: self._line.results() >= enough, self._told("some more of them"), limit_s)
            assert self._running["edge"].stop() == 0, self._told("the edge did not end in order")
            return self._count()
        finally:
            self._plc.stop()
            self._line.close()

    def _step(self) -> bool:
        """Start again what died; whether both sides run and no point is left."""
        if self._kills_camera() and self._mark("edge").exists() and self._running["edge"].running():
            self._running["edge"].kill()  # only an edge that begins anew is armed with the next point
        for side, process in self._running.items():
            if not process.running():
                self._died(side)
        return not any(self._armed.values())

    def _kills_camera(self) -> bool:
        return (self._armed["edge"] or "").startswith("camera")

    def _died(self, side: str) -> None:
        name, process = self._armed[side], self._running[side]
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
        environment = dict(os.environ)
        if name is not None:
            point = POINTS[name]
            seconds = self._random.uniform(0.0, 3.0)
            environment["FLAWLINE_CRASH"] = f"{point.function}:{point.when}:{seconds:.3f}:{self._mark(side)}"
            environment["PYTHONPATH"] = os.pathsep.join([str(HOOK), *filter(None, [environment.get("PYTHONPATH")])])
        words = ("run", str(self.folder / f"{side}.toml"), *(("--quiet",) if side == "edge" else ()))
        process = Process(self.folder / f"{side}.log", side, *words, environment=environment)
        self._running[side] = process
        self._line.processes.append(process)

    def _mark(self, side: str) -> Path:
        """Stands where the armed point has killed: the edge lives on where that was its camera."""
        return self.folder / f"{side}.dead"

    def _healthy(self) -> bool:
        try:
            fetch(f"{self._line.address}/healthz")
        except OSError:
            return False
        return True

    def _told(self, what: str) -> str:
        logs = "\n".join(self._running[side].text()[-2000:] for side in self._running)
        return f"{what}\n{dict(self.kills)}\n{logs}"

    def _count(self) -> Count:
        rows, gaps = self._line.parts(), self._line.gaps()
        until(lambda: not fetch(f"{self._line.address}/api/summary")["line"]["open"], "no part waits for its deadline")
        found = account(rows, gaps, passed(read_truth(self._truth), rows))
        assert found.gap_parts is not None and found.duplicates is not None
        return Count(
            kills=self.kills,
            parts=found.parts,
            triggers=len(rows),
            results=found.results,
            missed=found.missed,
            gap=found.gap_parts,
            unaccounted=found.lost + (found.unmatched or 0),
            duplicates=found.duplicates + self._told_twice(),
            false_ok=self._false_ok(rows),
            passes=sum(each.code == PASS for each in self._plc.taken),
        )

    def _outputs(self) -> list[dict[str, Any]]:
        """Every output that the ledger committed."""
        outputs: list[dict[str, Any]] = []
        while True:
            after = outputs[-1]["number"] if outputs else 0
            batch = fetch(f"{self._line.address}/api/line?limit=500&after={after}")
            if not batch:
                return outputs
            outputs += batch

    def _told_twice(self) -> int:
        """Parts that moved the gate twice, and numbers that were read twice."""
        part_of = {row["number"]: row["part_id"] for row in self._outputs()}
        told = Counter(part_of.get(each.seq) for each in self._plc.taken)
        numbers = Counter(each.seq for each in self._plc.taken)
        return sum(count - 1 for count in told.values()) + sum(count - 1 for count in numbers.values())

    def _false_ok(self, rows: list[dict[str, Any]]) -> int:
        """PASS that the controller read and the host never committed, in ledger and store, as this part's PASS."""
        outputs = {row["number"]: row for row in self._outputs()}
        verdicts = {row["part_id"]: row["verdict"] for row in rows if row["state"] == "result"}
        false = 0
        for each in self._plc.taken:
            output = outputs.get(each.seq)
            part = None if output is None else output["part_id"]
            if each.code == PASS and (output is None or output["code"] != PASS or verdicts.get(str(part)) != "PASS"):
                false += 1
        return false


def passed(truth: Truth, rows: list[dict[str, Any]]) -> Truth:
    """The parts up to the last one that was taken: those behind it were still to come when the edge was stopped."""
    last = max(row["frame_no"] for row in rows if row["box_px"])
    newest = [row for row in rows if row["frame_no"] == last]
    taken = [part.number for part in truth.parts for row in newest if overlaps(part, row)]
    return truth._replace(parts=[part for part in truth.parts if part.number <= max(taken)])


def overlaps(part: TruePart, row: dict[str, Any]) -> bool:
    """Whether the row's box lies on the part, in the frame in which it was taken."""
    box, at = part.boxes.get(row["frame_no"]), row["box_px"]
    if box is None or at is None:
        return False
    return all(abs(box[n] + box[n + 2] / 2 - at[n] - at[n + 2] / 2) < box[n + 2] / 2 for n in (0, 1))


def schedule(kills: int, seed: int) -> list[str]:
    """``kills`` points, each in its turn, in an order that the seed decides."""
    rng = random.Random(seed)
    names: list[str] = []
    while len(names) < kills:
        turn = list(POINTS)
        rng.shuffle(turn)
        names += turn
    return names[:kills]
