"""What a line may do beside its verdicts: whether it is to stop, and whether its masters were read right (hop 9).

Lives in the ledger's file and is used by the ledger's thread alone, within its transactions: what is decided here is
on the disk before the line hears of it. Everything that happened goes into ``journal``, which nobody changes again.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field, ValidationError

from contract.config import Strict
from contract.event import Label, LineCode, Missed, Result, Verdict
from plugin.connectors.base import LINE_CONTROLLER, Challenge, GateOutcome, LineState, StopKind
from plugin.errors import LineError
from plugin.settings import LineSettings

MAX_MASTERS = 64
MAX_CAMERAS = 256
MAX_BACK = 100_000
"""Parts of a line that are looked at for the rows that a start finds: a tenth of a second, hours of a fast line."""

MOST_READ = 8
"""How often masters may be read, for each step of a challenge; one that takes more does not get anywhere."""

DUE = "challenge due"
ENDLESS = "masters were read again and again, and some were never read"
HOST, THE_LINE = "the host", "the line"
JUDGEMENT = {
    "score",
    "threshold",
    "recipe",
    "recipe_number",
    "bundle_id",
    "model_sha256",
    "calibration_id",
}
IN_A_ROW = {"rejects_in_a_row": "rejects", "not_inspected_in_a_row": "parts that were not inspected"}
TABLES = """
CREATE TABLE IF NOT EXISTS journal (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    line TEXT NOT NULL,
    number INTEGER NOT NULL,
    edge_id TEXT,
    part_id TEXT,
    who TEXT NOT NULL,
    detail TEXT NOT NULL,
    t_wall_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS journal_gate ON journal (line, number, id) WHERE kind = 'gate';
CREATE INDEX IF NOT EXISTS journal_of_line ON journal (line, kind, id);
CREATE TABLE IF NOT EXISTS lines (line TEXT PRIMARY KEY, kept TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS masters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    line TEXT NOT NULL,
    name TEXT NOT NULL,
    expected TEXT NOT NULL,
    defect_class TEXT,
    recipe INTEGER,
    edge TEXT,
    serial TEXT,
    added_by TEXT NOT NULL,
    t_added_ns INTEGER NOT NULL,
    removed_by TEXT,
    t_removed_ns INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS masters_named ON masters (line, name) WHERE removed_by IS NULL;
CREATE TABLE IF NOT EXISTS gate_waits (
    line TEXT NOT NULL,
    number INTEGER NOT NULL,
    edge_id TEXT NOT NULL,
    part_id TEXT NOT NULL,
    due_ns INTEGER NOT NULL,
    PRIMARY KEY (line, number)
) WITHOUT ROWID;
"""

Key = tuple[str, str]
STOPS: dict[StopKind, str] = {
    "not_confirmed": "a part that had to leave the line was not seen behind the gate",
    "rejects_in_a_row": "too many parts in a row were rejected",
    "not_inspected_in_a_row": "too many parts in a row were not inspected",
    "bin_full": "the bin for rejected parts is full",
    "alarm": "an alarm",
}


class NewMaster(Strict):
    """A part whose verdict is known. ``recipe``, ``edge``: judged so only there; ``serial``: how it is recognised."""

    name: Label
    expected: Literal["pass", "reject"]
    defect_class: Label | None = None
    recipe: Annotated[int, Field(ge=0, le=65535)] | None = None
    edge: Label | None = None
    serial: Label | None = None


class Master(BaseModel):
    """The same as it stands in the file."""

    id: int
    name: str
    expected: Literal["pass", "reject"]
    defect_class: str | None = None
    recipe: int | None = None
    edge: str | None = None
    serial: str | None = None


class Reading(BaseModel):
    """How a master was read; ``wrong`` says why it does not do, None where it does or nothing was expected of it."""

    master: str
    expected: str
    edge_id: str
    camera_id: str
    part_id: str
    verdict: str
    score: float | None = None
    threshold: float | None = None
    recipe: str | None = None
    recipe_number: int | None = None
    bundle_id: str | None = None
    model_sha256: str | None = None
    calibration_id: str | None = None
    wrong: str | None = None


class Run(BaseModel):
    """One time through the masters of ``recipe``. ``rows``: parts of each camera in the order of their announcement.

    ``taken``: every reading so far, of which ``readings`` are those that count.
    """

    id: str
    by: str
    began_ns: int
    masters: list[Master]
    recipe: int | None = None
    rows: dict[str, list[str]] = {}
    readings: list[Reading] = []
    taken: int = 0
    unseen: int = 0

    def add(self, reading: Reading) -> None:
        """Of one master at one camera and model what was wrong first and what came last are kept: a run stays small."""
        place = _place_of(reading)
        wrong = next((each for each in self.readings if each.wrong and _place_of(each) == place), None)
        self.readings = [each for each in self.readings if each is wrong or _place_of(each) != place] + [reading]
        self.taken += 1

    @property
    def by_serial(self) -> bool:
        return all(master.serial for master in self.masters)


class Kept(BaseModel):
    """What is known of a line over a restart. ``covered``: what judged at each camera of the challenge that passed."""

    stop: StopKind | None = None
    stop_text: str | None = None
    stops: list[StopKind] = []
    counted_from: int = 0
    challenge: Challenge = "none"
    why: str | None = None
    released_ns: int = 0
    covered: dict[str, list[str]] = {}
    cameras: list[str] = []
    run: Run | None = None


class Gated(NamedTuple):
    """What the sensor behind the gate saw of a part."""

    line: str
    number: int
    outcome: GateOutcome
    who: str


class Judging(NamedTuple):
    """By what an edge judges now and which cameras it has, from its heartbeat."""

    line: str
    edge_id: str
    recipe_number: int | None
    model_sha256: str
    cameras: tuple[str, ...]


Asked = Literal["clear_stop", "require_challenge", "begin_challenge", "add_master", "remove_master", "alarm"]
MAX_TEXT = 300


class Named(Strict):
    """Which master is to be none any more."""

    name: Label


class Alarm(Strict):
    """What an alarm says."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class Nothing(Strict):
    """What other orders say beside their name."""


SAYING: dict[str, type[Strict]] = {"add_master": NewMaster, "remove_master": Named, "alarm": Alarm}


class Order(NamedTuple):
    """A person or a controller asks something of a line; ``done`` hears what came of it once it is on the disk."""

    line: str
    what: Asked
    who: str
    values: Mapping[str, Any]
    done: Future[dict[str, Any]]


class Hold(NamedTuple):
    """Why a part is not OK whatever was found; ``reading``: where it is a master of the run."""

    reason: str
    kind: Literal["challenge", "master"]
    reading: Reading | None = None


class Waits(NamedTuple):
    """A part that must leave the line at the gate, and by when (CLOCK_MONOTONIC) that must have been seen."""

    key: Key
    due_ns: int


class Part(NamedTuple):
    """What the ledger knows of a part when its code is given out."""

    key: Key
    camera_id: str
    captured_ns: int
    header: Result | Missed | None

    @property
    def camera(self) -> str:
        return f"{self.key[0]}/{self.camera_id}"


class Lines:
    """All lines of a ledger. Every method is called on its thread; what writes, within a transaction."""

    def __init__(self, connection: sqlite3.Connection, settings: Sequence[LineSettings], rows_before: int = 0) -> None:
        self.edges_of: Callable[[str], list[str]] = lambda _line: []
        self.changed = True
        """Whether ``states`` would say something else than before; whoever asks sets it back."""

        self._connection = connection
        self._settings = {line.id: line for line in settings}
        self._lines: dict[str, Kept] = {}
        self._masters: dict[str, list[Master]] = {}
        self._waits: dict[tuple[str, int], Waits] = {}
        self._in_row: dict[str, Counter[StopKind]] = {}
        self._numbers: dict[str, int] = {}
        self._judging: dict[str, Judging] = {}
        self._serials: dict[Key, str] = {}
        self._numbered: list[Key] = []
        self._to_save: set[str] = set()
        self._looked_s = self._looked_before_s = time.time()
        self._rows_before = self._last_id = rows_before

    def states(self) -> dict[str, LineState]:
        """Of every line that has something to say."""
        return {line: self._state(line) for line in {*self._lines, *self._masters}}

    def _state(self, line: str) -> LineState:
        kept = self._kept(line)
        if not self._masters.get(line):
            return LineState(kept.stop, kept.stop_text)
        held = None if kept.challenge == "passed" else f"{DUE}: {kept.why}"
        if kept.run is None:
            return LineState(kept.stop, kept.stop_text, kept.challenge, held)
        steps = len(kept.run.masters) * max(1, len(self._required(line, kept.run)))
        return LineState(kept.stop, kept.stop_text, kept.challenge, held, kept.run.taken, steps)

    def load(self) -> None:
        """Read everything anew, at the start and after a transaction that failed."""
        ask = self._connection.execute
        self._lines = {line: Kept.model_validate_json(kept) for line, kept in ask("SELECT line, kept FROM lines")}
        self._masters = {}
        names = list(Master.model_fields)
        rows = ask(f"SELECT line, {', '.join(names)} FROM masters WHERE removed_by IS NULL ORDER BY id").fetchall()  # noqa: S608 - our own names
        for line, *values in rows:
            master = Master.model_validate(dict(zip(names, values, strict=True)))
            self._masters.setdefault(line, []).append(master)
        waits = ask("SELECT line, number, edge_id, part_id, due_ns FROM gate_waits").fetchall()
        self._waits = {(line, number): Waits((edge, part), due) for line, number, edge, part, due in waits}
        last = "SELECT coalesce(max(number), 0) FROM outputs WHERE line = ?"
        self._numbers = {line: ask(last, (line,)).fetchone()[0] for line in self._settings}
        self._in_row = {line: self._count_back(line) for line in self._settings}
        self._last_id = max(self._rows_before, *ask("SELECT coalesce(max(id), 0) FROM journal").fetchone())
        self._looked_s = self._looked_before_s  # a shift that was seen in a transaction that failed is seen again
        self._numbered.clear()  # and a serial that was told is asked for again
        self._to_save.clear()
        self.changed = True

    def restart(self) -> None:
        """The host was started: masters are due, and whether what was on its way left at the gate is not known."""
        for line in self._masters:
            self._require(line, "the host was started", HOST)
        for (line, number), waits in self._waits.items():
            self._write(line, "gate", HOST, {"outcome": "unknown"}, number, waits.key)
            text = f"no. {number} ({waits.key[1]}) was on its way to the gate when the host ended"
            self._raise(line, "not_confirmed", text, HOST)
        if self._waits:
            self._connection.execute("DELETE FROM gate_waits")
        self._waits.clear()
        self.save()

    def save(self) -> None:
        """Write what changed, at the end of a transaction."""
        for line in self._to_save:
            row = (line, self._kept(line).model_dump_json())
            self._connection.execute("INSERT OR REPLACE INTO lines VALUES (?, ?)", row)
        self._to_save.clear()

    def committed(self) -> None:
        """The transaction stands: what was told of parts that have their number now is not asked for again."""
        for key in self._numbered:
            self._serials.pop(key, None)
        self._numbered.clear()

    def next_ns(self) -> int | None:
        """When ``tick`` has something to do, CLOCK_MONOTONIC; shifts are looked for with every turn."""
        return min((waits.due_ns for waits in self._waits.values()), default=None)

    def tick(self, now_ns: int) -> None:
        """What time alone brings about: a reject that nobody saw behind the gate."""
        for (line, number), waits in [each for each in self._waits.items() if each[1].due_ns <= now_ns]:
            text = f"no. {number} ({waits.key[1]}) was not seen behind the gate in time"
            self._write(
                line, "gate", HOST, {"outcome": "not_confirmed", "why": "nothing was heard in time"}, number, waits.key
            )
            self._forget_wait(line, number)
            self._raise(line, "not_confirmed", text, HOST)

    def look_at_clock(self) -> None:
        """A shift that has begun since the last look makes masters due."""
        self._looked_before_s = before_s = self._looked_s
        self._looked_s = time.time()
        for line, settings in self._settings.items():
            if settings.shifts and self._masters.get(line):
                began = last_shift(settings.shifts, self._looked_s)
                if began.timestamp() > before_s:
                    self._require(line, f"a shift began at {began:%H:%M}", HOST)

    # Parts

    def announced(self, line: str, key: Key, camera_id: str, captured_ns: int, serial: str | None) -> None:
        """A part is under way; in a run without serials it is the next master of its camera."""
        if not self._masters.get(line):
            return
        if serial is not None:
            self._serials[key] = serial
        run = self._kept(line).run
        if run is None or run.by_serial or captured_ns < run.began_ns:
            return
        row = run.rows.setdefault(f"{key[0]}/{camera_id}", [])
        if key[1] not in row and len(row) < len(run.masters):
            row.append(key[1])
            self._touch(line)

    def hold(self, line: str, part: Part, code: LineCode) -> Hold | None:
        """Why this part is not OK, whatever was found; asked once for each part, when its code is due."""
        masters = self._masters.get(line)
        told = self._serials.get(part.key)
        if not masters:
            return None
        kept = self._kept(line)
        serial = (part.header.serial if part.header is not None else None) or told
        if kept.run is not None and (master := _master_of(kept.run, part, serial)) is not None:
            return Hold(f"master part {master.name}", "master", _reading(master, part, code, serial))
        if serial is not None and (found := next((each for each in masters if each.serial == serial), None)):
            return Hold(f"master part {found.name}, outside a challenge", "master")
        if kept.challenge == "passed":
            self._check_cover(line, kept, part)
        if kept.challenge != "passed" or part.captured_ns <= kept.released_ns:
            return Hold(DUE, "challenge")
        return None

    def told(self, line: str, number: int, part: Part, code: LineCode, hold: Hold | None, given_out: bool) -> None:
        """A part has its number and code; ``given_out``: a line controller is to hear of it."""
        self._numbers[line] = number
        self._numbered.append(part.key)
        if hold is None:
            self._count(line, code, number)
        else:
            self._note_held(line, number, part, hold)
        if given_out and code is not LineCode.PASS:
            self._wait(line, number, part)

    def _note_held(self, line: str, number: int, part: Part, hold: Hold) -> None:
        run = self._kept(line).run
        if hold.kind == "master":
            said = {} if hold.reading is None else hold.reading.model_dump()
            in_run = None if run is None or hold.reading is None else run.id
            self._write(line, "master", THE_LINE, {"run": in_run, "reason": hold.reason, **said}, number, part.key)
        if run is None or part.captured_ns < run.began_ns:
            return
        if hold.reading is not None:
            run.add(hold.reading)
        elif part.key[0] == LINE_CONTROLLER:
            run.unseen += 1
        else:
            return
        self._touch(line)
        self._conclude(line, run)

    # The gate, and reasons to stop

    def gate(self, gated: Gated) -> bool:
        """A sensor saw something behind the gate; False where no such number was given out."""
        line, number, outcome, who = gated
        row = self._connection.execute(
            "SELECT edge_id, part_id, code FROM outputs WHERE line = ? AND number = ?", (line, number)
        ).fetchone()
        if row is None:
            return False
        self._write(line, "gate", who, {"outcome": outcome}, number, (row[0], row[1]))
        if outcome == "bin_full":
            self._raise(line, "bin_full", STOPS["bin_full"], who)
            return True
        self._forget_wait(line, number)
        if outcome == "not_confirmed" and row[2] != LineCode.PASS:
            self._raise(line, "not_confirmed", f"no. {number} ({row[1]}) was not seen behind the gate", who)
        return True

    def _wait(self, line: str, number: int, part: Part) -> None:
        settings = self._settings.get(line)
        if settings is None or settings.gate_ms is None:
            return
        waits = Waits(part.key, part.captured_ns + settings.gate_ms * 1_000_000)
        self._waits[line, number] = waits
        row = (line, number, *waits.key, waits.due_ns)
        self._connection.execute("INSERT OR REPLACE INTO gate_waits VALUES (?, ?, ?, ?, ?)", row)

    def _forget_wait(self, line: str, number: int) -> None:
        if self._waits.pop((line, number), None) is not None:
            self._connection.execute("DELETE FROM gate_waits WHERE line = ? AND number = ?", (line, number))

    def _count(self, line: str, code: LineCode, number: int) -> None:
        if (settings := self._settings.get(line)) is None:
            return
        row = self._in_row[line]
        count_on(row, code)
        for kind, most in _limits(settings).items():
            if most and row[kind] >= most:
                self._raise(line, kind, f"{row[kind]} {IN_A_ROW[kind]} in a row, to no. {number}", THE_LINE)

    def _count_back(self, line: str) -> Counter[StopKind]:
        """How many in a row there were at the last number, from the file: back to a judgement that ends both rows."""
        row: Counter[StopKind] = Counter()
        limits = _limits(self._settings[line])
        if not any(limits.values()):
            return row
        found = self._connection.execute(
            "SELECT code, held FROM outputs WHERE line = ? AND number > ? ORDER BY number DESC LIMIT ?",
            (line, self._kept(line).counted_from, MAX_BACK),
        )
        judged = False
        for code, held in found:
            if held is not None:
                continue
            if code == LineCode.NOT_INSPECTED:
                row["not_inspected_in_a_row"] += not judged
                continue
            judged = True
            if code != LineCode.REJECT or row["rejects_in_a_row"] >= limits["rejects_in_a_row"]:
                break
            row["rejects_in_a_row"] += 1
        found.close()
        return row

    def _raise(self, line: str, kind: StopKind, text: str, who: str) -> None:
        """Ask for a stop until somebody clears it. The first reason is shown, each kind noted once and every alarm."""
        kept = self._kept(line)
        if kind in kept.stops and kind != "alarm":
            return
        if kept.stop is None:
            kept.stop, kept.stop_text = kind, text
        kept.stops = sorted({*kept.stops, kind})
        self._touch(line)
        self._write(line, "stop", who, {"stop": kind, "text": text})

    def _clear_stop(self, line: str, who: str) -> None:
        kept = self._kept(line)
        if kept.stop is None:
            return
        self._write(line, "stop_cleared", who, {"stop": kept.stop, "text": kept.stop_text})
        kept.stop, kept.stop_text, kept.stops = None, None, []
        kept.counted_from = self._numbers.get(line, 0)
        self._in_row[line] = Counter()
        self._touch(line)

    # The challenge

    def judging(self, now: Judging) -> None:
        """An edge's heartbeat says by what it judges: something else than the masters were read by makes them due."""
        self._judging[now.edge_id] = now
        kept = self._kept(now.line)
        if not self._masters.get(now.line):
            return
        for camera, judged_by in kept.covered.items():
            if camera.partition("/")[0] == now.edge_id and judged_by[:2] != [str(now.recipe_number), now.model_sha256]:
                self._require(now.line, f"{now.edge_id} judges by another recipe or model", HOST)
                return
        if kept.run is not None:
            if kept.run.recipe != now.recipe_number:
                self._require(now.line, f"{now.edge_id} judges by another recipe or model", HOST)
                return
            before = [each for each in kept.run.readings if each.edge_id == now.edge_id and each.model_sha256]
            if any((each.recipe_number, each.model_sha256) != now[2:4] for each in before):
                self._require(now.line, f"{now.edge_id} judges by another recipe or model", HOST)

    def order(self, order: Order) -> dict[str, Any]:
        """Do what a person or a controller asks. Raises LineError before anything is written."""
        line, who, values = order.line, order.who, order.values
        if line not in self._settings:
            raise LineError(f"there is no line {line!r}; there are: {', '.join(self._settings)}")
        if order.what == "clear_stop":
            self._clear_stop(line, who)
        elif order.what == "alarm":
            self._raise(line, "alarm", values["text"], who)
        elif order.what == "add_master":
            return self._add_master(line, who, values)
        elif order.what == "remove_master":
            self._remove_master(line, who, values["name"])
        elif not self._masters.get(line):
            raise LineError(f"line {line!r} has no masters; register them first: flawline host masters add")
        elif order.what == "require_challenge":
            self._require(line, f"asked for by {who}", who)
        else:
            self._begin(line, who)
        return {}

    def _add_master(self, line: str, who: str, values: Mapping[str, Any]) -> dict[str, Any]:
        masters = self._masters.get(line, [])
        master = Master.model_validate({"id": 0, **values})
        if any(each.name == master.name for each in masters):
            raise LineError(f"line {line!r} has a master {master.name!r} already; remove it first")
        if master.serial is not None and any(each.serial == master.serial for each in masters):
            raise LineError(f"another master of line {line!r} bears the serial {master.serial!r}")
        if len(masters) >= MAX_MASTERS:
            raise LineError(f"line {line!r} has {MAX_MASTERS} masters already")
        row = {**master.model_dump(exclude={"id"}), "line": line, "added_by": who, "t_added_ns": time.time_ns()}
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        added = self._connection.execute(f"INSERT INTO masters ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608 - our own names
        master = master.model_copy(update={"id": int(added.lastrowid or 0)})
        self._masters.setdefault(line, []).append(master)
        self._write(line, "master_added", who, master.model_dump())
        self._require(line, "the masters were changed", who)
        return master.model_dump()

    def _remove_master(self, line: str, who: str, name: str) -> None:
        master = next((each for each in self._masters.get(line, []) if each.name == name), None)
        if master is None:
            raise LineError(f"line {line!r} has no master {name!r}")
        self._connection.execute(
            "UPDATE masters SET removed_by = ?, t_removed_ns = ? WHERE id = ?", (who, time.time_ns(), master.id)
        )
        self._masters[line].remove(master)
        self._write(line, "master_removed", who, master.model_dump())
        if self._masters[line]:
            self._require(line, "the masters were changed", who)
            return
        del self._masters[line]
        before = self._kept(line)
        self._lines[line] = Kept(**before.model_dump(include={"stop", "stop_text", "stops", "counted_from"}))
        self._touch(line)

    def _require(self, line: str, why: str, who: str) -> None:
        """Nothing of the line is OK until its masters are read right. One that has failed stays failed."""
        kept = self._kept(line)
        if kept.run is not None:
            self._write(line, "challenge_abandoned", who, {"run": kept.run.id, "why": why, **_said(kept.run)})
        if kept.challenge != "failed":
            kept.challenge, kept.why = "due", why
        kept.run, kept.covered = None, {}
        self._touch(line)
        self._write(line, "challenge_due", who, {"why": why})

    def _begin(self, line: str, who: str) -> None:
        recipe = self._one_recipe(line)
        masters = self._masters_of(line, recipe)
        self._check_telling(line, masters, recipe)
        kept = self._kept(line)
        if kept.run is not None or kept.challenge == "passed":
            self._require(line, f"asked for by {who}", who)
        run = Run(id=secrets.token_hex(4), by=who, began_ns=time.monotonic_ns(), masters=masters, recipe=recipe)
        kept.run, kept.challenge, kept.why = run, "running", "the masters are being read"
        self._touch(line)
        self._write(line, "challenge_begun", who, {"run": run.id, "masters": [each.name for each in masters]})

    def _one_recipe(self, line: str) -> int | None:
        """By which all edges of the line judge now: which masters are to be read goes by it. Raises LineError."""
        edges = self.edges_of(line)
        if not edges:
            raise LineError(f"line {line!r} has no edge that was heard of yet: start one, then begin again")
        if silent := [edge for edge in edges if edge not in self._judging]:
            raise LineError(
                f"line {line!r} has edges that have not said yet by which recipe they judge ({', '.join(silent)}): "
                "start them, wait for their heartbeat, then begin again"
            )
        said = {edge: self._judging[edge].recipe_number for edge in edges}
        if len(set(said.values())) > 1:
            named = ", ".join(f"{edge}: {number}" for edge, number in said.items())
            raise LineError(
                f"the edges of line {line!r} judge by different recipes ({named}): "
                "select one for all of them, then begin again"
            )
        return next(iter(said.values()))

    def _masters_of(self, line: str, recipe: int | None) -> list[Master]:
        return [each for each in self._masters[line] if each.recipe in (None, recipe)]

    def _check_telling(self, line: str, masters: Sequence[Master], recipe: int | None) -> None:
        """Each edge has to tell a defective master from a good one. Raises LineError."""
        for edge in self.edges_of(line):
            expected = {each.expected for each in masters if each.edge in (None, edge)}
            lacking = [name for kind, name in (("pass", "good"), ("reject", "defective")) if kind not in expected]
            if lacking:
                raise LineError(
                    f"line {line!r} has no {' and no '.join(lacking)} master for {edge} and the recipe that judges "
                    f"now ({'no number' if recipe is None else recipe}): a challenge that cannot tell them apart "
                    "releases nothing; register one: flawline host masters add"
                )

    def _required(self, line: str, run: Run) -> set[str]:
        """The cameras that must read every master: those that have read one, and those that parts came from before."""
        seen = {*run.rows, *(f"{each.edge_id}/{each.camera_id}" for each in run.readings)}
        edges = {*self.edges_of(line), *(camera.partition("/")[0] for camera in seen)}
        for camera in self._kept(line).cameras:
            edge, _, camera_id = camera.partition("/")
            if edge in edges and edge in self._judging and camera_id in self._judging[edge].cameras:
                seen.add(camera)
        silent = edges - {camera.partition("/")[0] for camera in seen}
        return seen | {f"{edge}/" for edge in silent}

    def _conclude(self, line: str, run: Run) -> None:
        """Once every camera has read every master: released, or not."""
        names = {master.name for master in run.masters}
        read: dict[str, set[str]] = {}
        judged_by: dict[str, set[tuple[str, ...]]] = {}
        for each in run.readings:
            camera = f"{each.edge_id}/{each.camera_id}"
            read.setdefault(camera, set()).add(each.master)
            judged_by.setdefault(camera, set()).add(tuple(_judged_by(each)))
        required = self._required(line, run)
        lacking = any(read.get(camera, set()) != names for camera in required)
        endless = run.taken + run.unseen >= MOST_READ * len(names) * max(1, len(required))
        if lacking and not endless:
            return
        wrong = [ENDLESS] if lacking else []
        wrong += [f"{each.master} {each.wrong}" for each in run.readings if each.wrong]
        wrong += ["a part was counted that no edge announced"] * run.unseen
        wrong += self._of_other_recipes(line, run)
        wrong += [f"{camera} judged by more than one model" for camera, found in judged_by.items() if len(found) > 1]
        kept = self._kept(line)
        kept.run = None
        if wrong:
            kept.challenge, kept.why = "failed", "; ".join(wrong)[:400]
        else:
            kept.challenge, kept.why, kept.released_ns = "passed", None, time.monotonic_ns()
            kept.covered = {camera: list(found.pop()) for camera, found in judged_by.items()}
        detail = {"run": run.id, "why": kept.why, "judged_by": kept.covered, **_said(run)}
        self._write(line, f"challenge_{kept.challenge}", run.by, detail)

    def _of_other_recipes(self, line: str, run: Run) -> list[str]:
        """What was read has to be what is registered for the recipe that read it."""
        wrong = []
        for number in sorted({each.recipe_number for each in run.readings if each.model_sha256}, key=str):
            if {each.name for each in self._masters_of(line, number)} != {each.name for each in run.masters}:
                wrong.append(f"recipe {number} has other masters than were read")
            elif number != run.recipe:
                wrong.append(f"recipe {number} judged, the challenge was begun for {run.recipe}")
        return wrong

    def _check_cover(self, line: str, kept: Kept, part: Part) -> None:
        """Only what read the masters right may pass parts."""
        if not isinstance(part.header, Result) or part.header.verdict is Verdict.NOT_INSPECTED:
            return
        known = kept.covered.get(part.camera)
        if known is None:
            kept.cameras = sorted({*kept.cameras, part.camera})[:MAX_CAMERAS]
            self._require(line, f"{part.camera} has read no masters", HOST)
        elif known != _judged_by(part.header):
            self._require(line, f"{part.key[0]} judges by another recipe or model", HOST)

    # The file

    def _kept(self, line: str) -> Kept:
        return self._lines.setdefault(line, Kept())

    def _touch(self, line: str) -> None:
        self._to_save.add(line)
        self.changed = True

    def _write(
        self, line: str, kind: str, who: str, detail: dict[str, Any], number: int | None = None, key: Key | None = None
    ) -> None:
        """Append to the journal. Its numbers go up even over a new file, for the store takes over from the last.

        The clock sees to that, and where it was ahead once, the last row that the store had at the start.
        """
        self._last_id = max(self._last_id + 1, time.time_ns() // 1000)
        at = self._numbers.get(line, 0) if number is None else number
        row = (self._last_id, kind, line, at, *(key or (None, None)), who, json.dumps(detail), time.time_ns())
        self._connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.changed = True


def checked(line: object, what: str, who: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """What an order says, as it is written; the ledger's thread must not end over it. Raises LineError."""
    _check_text("line", line)
    if what not in get_args(Asked):
        raise LineError(f"{what!r} cannot be asked of a line; there are: {', '.join(get_args(Asked))}")
    _check_text("who asks", who)
    try:
        said = SAYING.get(what, Nothing).model_validate(dict(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise LineError(f"{what}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    found: dict[str, Any] = said.model_dump()
    for name, value in found.items():
        if isinstance(value, str):
            _check_text(name, value)
    return found


def check_gated(line: object, number: object, outcome: object, who: object) -> None:
    """The same of what a gate saw; SQLite holds no larger number. Raises LineError."""
    _check_text("line", line)
    if type(number) is not int or not 1 <= number < 2**63:
        raise LineError(f"a part's number at the gate is {number!r}; expected a whole number from 1")
    if outcome not in get_args(GateOutcome):
        raise LineError(f"the gate says {outcome!r} of a part; expected one of: {', '.join(get_args(GateOutcome))}")
    _check_text("who saw it", who)


def _check_text(name: str, text: object) -> None:
    """Neither database takes a lone surrogate, and PostgreSQL no NUL."""
    if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable():
        raise LineError(f"{name}: expected a text that can be printed, of at most {MAX_TEXT} characters")


def last_shift(times: Sequence[str], now_s: float) -> datetime:
    """When the latest shift began that began by ``now_s``; ``times`` are of this machine's zone, as HH:MM."""
    now = datetime.fromtimestamp(now_s, UTC).astimezone().replace(tzinfo=None)
    begun = []
    for text in times:
        hour, minute = map(int, text.split(":"))
        for day in (now, now - timedelta(days=1)):
            at = day.replace(hour=hour, minute=minute, second=0, microsecond=0)
            if at <= now:
                begun.append(at)
    return max(begun).astimezone()


def count_on(row: Counter[StopKind], code: LineCode) -> None:
    """Count a part: what was judged ends a row without judgement, and only a judgement ends a row of rejects."""
    if code is LineCode.NOT_INSPECTED:
        row["not_inspected_in_a_row"] += 1
        return
    row["not_inspected_in_a_row"] = 0
    row["rejects_in_a_row"] = row["rejects_in_a_row"] + 1 if code is LineCode.REJECT else 0


def _limits(settings: LineSettings) -> dict[StopKind, int]:
    return {
        "rejects_in_a_row": settings.rejects_in_a_row,
        "not_inspected_in_a_row": settings.not_inspected_in_a_row,
    }


def _master_of(run: Run, part: Part, serial: str | None) -> Master | None:
    """Which master of a run a part is: by its serial where all have one, else by its place in its camera's row."""
    if part.captured_ns < run.began_ns:
        return None
    if run.by_serial:
        return next((master for master in run.masters if master.serial == serial), None)
    row = run.rows.get(part.camera, [])
    return run.masters[row.index(part.key[1])] if part.key[1] in row else None


def _reading(master: Master, part: Part, code: LineCode, serial: str | None) -> Reading:
    header = part.header if isinstance(part.header, Result) else None
    reading = Reading(
        master=master.name,
        expected=master.expected,
        edge_id=part.key[0],
        camera_id=part.camera_id,
        part_id=part.key[1],
        verdict=code.name,
    )
    if header is not None:
        reading = reading.model_copy(update=header.model_dump(include=JUDGEMENT))
    if master.edge in (None, part.key[0]):
        reading.wrong = _wrong(master, reading, serial)
    return reading


def _wrong(master: Master, reading: Reading, serial: str | None) -> str | None:
    if reading.verdict != (wanted := master.expected.upper()):
        return f"was read as {reading.verdict}, expected {wanted}"
    if master.serial is not None and serial is not None and serial != master.serial:
        return f"bears the serial {serial}, expected {master.serial}"
    if master.recipe is not None and reading.recipe_number != master.recipe:
        return f"was judged by recipe {reading.recipe_number}, expected {master.recipe}"
    return None


def _judged_by(said: Reading | Result) -> list[str]:
    """Recipe number and model first, as heartbeats say them too."""
    return [str(each) for each in (said.recipe_number, said.model_sha256, said.bundle_id, said.calibration_id)]


def _place_of(reading: Reading) -> tuple[str, ...]:
    return (reading.edge_id, reading.camera_id, reading.master, *_judged_by(reading))


def _said(run: Run) -> dict[str, Any]:
    return {
        "by": run.by,
        "recipe": run.recipe,
        "unseen": run.unseen,
        "readings": [each.model_dump() for each in run.readings],
    }
