"""A line, a host and a controller at its registers to which a fault is done, and the account of every part.

Both sides run as they would in a plant. What a fault needs to be done at all (a file system of its own, a wire between
the sides, a clock that can be set) is put under them as gear; the product knows nothing of it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from edge_runtime.account import ENDED, TruePart, Truth, account
from edge_runtime.demo import fetch
from edge_runtime.draw import line_of
from edge_runtime.synthetic import WIDTH
from plugin.settings import LineSettings
from tests.plugin.controller import Controller, Judged, ModbusError
from tests.processes import TOUCHING, Line, Process, free_port, until

HOOK = Path(__file__).parent / "crash"
PASS = 1
POLL_S = 0.02
FPS = 50
DEADLINE_NS = LineSettings(id="line-1").deadline_ms * 1_000_000
LATE_NS = DEADLINE_NS + 10**9
"""Since its capture: a PASS that first shows up in the registers so late could move the gate for another part."""

SIDES = ("host", "edge")


class Count(NamedTuple):
    """The account of one scene. ``missed`` and ``results`` are rows of the host, ``gap`` parts that lie in one.

    ``false_ok``: a PASS at the registers that the edge did not give this part, that the host's ledger holds otherwise,
    or that came later than LATE_NS. ``duplicates``: two ends of one part, a part told twice, or a number used twice.
    """

    parts: int
    triggers: int
    results: int
    missed: int
    gap: int
    unaccounted: int
    duplicates: int
    false_ok: int
    passes: int

    @property
    def faults(self) -> tuple[int, int, int]:
        """What has to be zero: unaccounted, duplicates, false_ok."""
        return self.unaccounted, self.duplicates, self.false_ok


class Plc(threading.Thread):
    """A controller that polls every 20 ms, connects again when the host is gone, and remembers all that it took."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._address = ("127.0.0.1", port)
        self._controller: Controller | None = None
        self._stopping = threading.Event()
        self.taken: list[Judged] = []
        self.not_before_ns: list[int] = []
        """For each taken part the monotonic time of the poll before, at which the registers did not hold it yet."""

    def run(self) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                self._poll()
            except ModbusError:
                self._reconnect()

    def _poll(self) -> None:
        if self._controller is None:
            self._controller = Controller(self._address)
            self._controller.taken = self.taken
        started_ns = time.monotonic_ns()
        self._controller.poll()
        self.not_before_ns += [self._looked_ns] * (len(self.taken) - len(self.not_before_ns))
        self._looked_ns = started_ns

    _looked_ns = 0

    @property
    def inspected(self) -> bool:
        """Whether the line's heartbeat goes on and says that it is inspected."""
        return self._controller is not None and self._controller.inspected

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


class Gear:
    """Something under a scene that a fault works on; this one is none."""

    def lay(self, scene: Scene) -> None:
        """Before anything runs."""

    def prefix(self, side: str) -> Sequence[str]:
        """Words before the command of a side."""
        return ()

    def environment(self, side: str) -> dict[str, str]:
        """Variables of a side's processes."""
        return {}

    def true_wall_ns(self, t_ns: int) -> int:
        """The edge's time of day as it was without the gear."""
        return t_ns

    def clear(self) -> None:
        """Take everything away; everything that ran has ended."""


class Scene:
    """One line with its controller. ``tend`` starts again whichever side died, as systemd does, unless it is held."""

    def __init__(
        self, folder: Path, bundle: Path, seed: int, parts: int, gear: Sequence[Gear] = (), edge: str = "",
        link: str = "", host: str = "",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.kills = 0
        self.held: set[str] = set()
        self.running: dict[str, Process] = {}
        self.url = f"synthetic://line?seed={seed}&parts={parts}&fps={FPS}"
        self.line = Line(folder, bundle, self.url, edge=edge, camera=TOUCHING, host=host, link=link)
        port = free_port()
        with (folder / "host.toml").open("a") as file:
            file.write(f'[[connectors]]\nurl = "modbus://127.0.0.1:{port}"\n')
        self.plc = Plc(port)
        self._gear = gear
        self._laid = ExitStack()
        try:
            for each in gear:
                self._laid.callback(each.clear)
                each.lay(self)
        except BaseException:
            self._laid.close()
            raise

    # Life -------------------------------------------------------------------------------------------------------------

    def start(self, side: str, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Process:
        """Start a side, with further variables and words before its command."""
        variables = dict(os.environ)
        for each in self._gear:
            variables |= each.environment(side)
        variables |= environment or {}
        variables["PYTHONPATH"] = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        before = [word for each in self._gear for word in each.prefix(side)] + list(prefix)
        words = ("run", str(self.folder / f"{side}.toml"), *(("--quiet",) if side == "edge" else ()))
        process = Process(self.folder / f"{side}.log", side, *words, environment=variables, prefix=before)
        self.running[side] = process
        self.line.processes.append(process)
        return process

    def tend(self) -> None:
        for side, process in list(self.running.items()):
            if side not in self.held and not process.running():
                self.start(side)

    def wait(self, condition: Callable[[], Any], what: str, limit_s: float = 240.0) -> Any:
        """Until the condition holds, while whatever dies is started again; AssertionError after ``limit_s``."""

        def tended() -> Any:
            self.tend()
            return condition()

        try:
            return until(tended, what, limit_s)
        except AssertionError as error:
            raise AssertionError(self.told(str(error))) from None

    def kill(self, side: str, hold: bool = False) -> None:
        """SIGKILL to a side; ``hold``: it is not started again until ``release``."""
        if hold:
            self.held.add(side)
        self.running[side].kill()
        self.kills += 1

    def release(self, side: str) -> None:
        self.held.discard(side)

    def pass_time(self, seconds: float) -> None:
        """The time for which a fault lasts: no wait for something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tend()
            time.sleep(0.02)

    def flow(self, parts: int = 3, limit_s: float = 240.0) -> None:
        """Until so many more parts have been inspected and the controller has heard of one."""
        self.wait(self.healthy, "the host answers", limit_s)
        enough, heard = self.line.results() + parts, len(self.plc.taken)
        self.wait(lambda: self._results() >= enough and len(self.plc.taken) > heard, "parts are inspected", limit_s)

    def run(self, work: Callable[[Scene], None]) -> Count:
        """Parts pass, ``work`` is done, parts pass, the edge ends in order; then the account."""
        try:
            self.plc.start()
            for side in SIDES:
                self.start(side)
            self.flow()
            work(self)
            self.flow()
            return self.end()
        finally:
            self.close()

    def end(self) -> Count:
        """Let the host have everything, stop the edge in order, let every deadline pass, and count."""
        self.wait(lambda: self.waiting() == 0, "the host has committed everything", 300.0)
        self.held.update(SIDES)
        code = self.running["edge"].stop(180)
        assert code == 0, self.told(f"the edge ended with {code}")
        summary = f"{self.line.address}/api/summary"
        until(lambda: not fetch(summary)["line"]["open"], "no part waits for its deadline", 180.0)
        with suppress(AssertionError):  # those that have none are counted
            until(lambda: all(row["state"] in ENDED for row in self.line.parts()), "every trigger has its end", 10.0)
        return self._count()

    def close(self) -> None:
        self.plc.stop()
        self.line.close()
        self._laid.close()

    # What is seen -----------------------------------------------------------------------------------------------------

    def healthy(self) -> bool:
        try:
            fetch(f"{self.line.address}/healthz")
        except OSError:
            return False
        return True

    def trouble(self) -> str:
        """Why the host says that the line is not inspected; empty where it is, or the host does not answer."""
        try:
            return str(fetch(f"{self.line.address}/healthz")["lines"]["line-1"] or "")
        except OSError:
            return ""

    def note(self, fault: str) -> None:
        """Say in both logs what is done now."""
        for side in SIDES:
            with (self.folder / f"{side}.log").open("a") as file:
                file.write(f"=== {fault}\n")

    def waiting(self) -> int:
        """Events that the edge keeps for the host, as its heartbeat says; -1 where it says nothing."""
        try:
            return int(json.loads((self.folder / "edge" / "state.json").read_text())["spool_rows"])
        except (OSError, ValueError, KeyError):
            return -1

    def _results(self) -> int:
        try:
            return self.line.results()
        except OSError:
            return 0

    def told(self, what: str) -> str:
        logs = "\n".join(f"--- {side}\n{self.running[side].text()[-2500:]}" for side in self.running)
        return f"{what}\n{logs}"

    # The account ------------------------------------------------------------------------------------------------------

    def _count(self) -> Count:
        rows, gaps = [self._true(row) for row in self.line.parts()], [self._true(gap) for gap in self.line.gaps()]
        found = account(rows, gaps, passed(truth_of(self.url, max(row["frame_no"] for row in rows)), rows))
        assert found.gap_parts is not None and found.duplicates is not None
        outputs = self._outputs()
        taken = [each._asdict() for each in self.plc.taken]
        seen = {"parts": rows, "gaps": gaps, "outputs": outputs, "taken": taken, "before_ns": self.plc.not_before_ns}
        (self.folder / "account.json").write_text(json.dumps(seen))
        return Count(
            parts=found.parts,
            triggers=len(rows),
            results=found.results,
            missed=found.missed,
            gap=found.gap_parts,
            unaccounted=found.lost + (found.unmatched or 0),
            duplicates=found.duplicates + told_twice(self.plc.taken, outputs),
            false_ok=false_ok(self.plc.taken, self.plc.not_before_ns, rows, outputs),
            passes=sum(each.code == PASS for each in self.plc.taken),
        )

    def _true(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row or a gap in the true time of day, whatever the edge's clock was set to."""
        row = dict(row)
        for name in ("t_wall_ns", "from_wall_ns", "to_wall_ns"):
            for each in self._gear:
                if row.get(name) is not None:
                    row[name] = each.true_wall_ns(row[name])
        return row

    def _outputs(self) -> list[dict[str, Any]]:
        """Every output that the ledger committed."""
        outputs: list[dict[str, Any]] = []
        while True:
            after = outputs[-1]["number"] if outputs else 0
            batch = fetch(f"{self.line.address}/api/line?limit=500&after={after}")
            if not batch:
                return outputs
            outputs += batch


def told_twice(taken: list[Judged], outputs: list[dict[str, Any]]) -> int:
    """Parts that moved the gate twice, and numbers that were read twice."""
    part_of = {row["number"]: row["part_id"] for row in outputs}
    told = Counter(part_of.get(each.seq) for each in taken)
    numbers = Counter(each.seq for each in taken)
    return sum(count - 1 for count in told.values()) + sum(count - 1 for count in numbers.values())


def false_ok(
    taken: list[Judged], not_before_ns: list[int], rows: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> int:
    """PASS that the controller read, and was none of this part, is not on record as sent, or came too late."""
    sent = {row["number"]: row for row in outputs if row["outcome"] != "late"}
    false = 0
    for each, before_ns in zip(taken, not_before_ns, strict=True):
        if each.code != PASS:
            continue
        output = sent.get(each.seq, {})
        own = [row for row in rows if row["part_id"] == output.get("part_id") and _may_be(row, before_ns)]
        recorded = (output.get("trigger_id"), output.get("code")) == (each.trigger_id, PASS)
        false += not (recorded and any((row["state"], row["verdict"]) == ("result", "PASS") for row in own))
    return false


def _may_be(row: dict[str, Any], not_before_ns: int) -> bool:
    """Whether the row's part was captured so shortly before its PASS was read that its gate was still to come."""
    return row["timing"] is not None and not_before_ns <= row["timing"]["t_capture_ns"] + LATE_NS


def truth_of(url: str, last_frame: int) -> Truth:
    """Where every part of a drawn line was up to a frame; nothing is drawn for that."""
    line = line_of(url)
    boxes: dict[int, dict[int, tuple[float, float, float, float]]] = {}
    for frame in range(last_frame + 1):
        for part, x in line._in_view(frame):
            left, right = max(0, x), min(WIDTH, x + part.box_w)
            boxes.setdefault(part.number, {})[frame] = (left, part.y, right - left, part.box_h)
    return Truth(
        [TruePart(n, line.parts[n].defect, line.parts[n].defective, boxes[n]) for n in sorted(boxes)], line.fps
    )


def passed(truth: Truth, rows: list[dict[str, Any]]) -> Truth:
    """The parts up to the last one that was taken: those behind it were still to come when the edge was stopped."""
    boxed = [row for row in rows if row["box_px"]]
    last = max(row["frame_no"] for row in boxed)
    newest = [row for row in boxed if row["frame_no"] > last - 2 * FPS]  # parts are not always taken in their order
    taken = [part.number for part in truth.parts for row in newest if overlaps(part, row)]
    return truth._replace(parts=[part for part in truth.parts if part.number <= max(taken)])


def overlaps(part: TruePart, row: dict[str, Any]) -> bool:
    """Whether the row's box lies on the part, in the frame in which it was taken."""
    box, at = part.boxes.get(row["frame_no"]), row["box_px"]
    if box is None or at is None:
        return False
    return all(abs(box[n] + box[n + 2] / 2 - at[n] - at[n + 2] / 2) < box[n + 2] / 2 for n in (0, 1))
