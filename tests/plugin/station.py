"""A host with a line, a controller made with libmodbus that watches it, and an edge whose parts are invented."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from contract.event import Verdict
from plugin.connectors import registers as r
from tests.plugin import synthetic as s
from tests.plugin.controller import Controller, Judged, library
from tests.plugin.synthetic import Dealer, HostProcess

OUTCOMES = {name: number for number, name in r.GATE.items()}


class Line:
    """A host with one line, its controller and an edge whose parts are invented."""

    def __init__(self, host: HostProcess, dealer: Dealer, number: int = 1) -> None:
        """``number``: of a line whose only connector stands at the same place of the host's list."""
        self.host = host
        self.dealer = dealer
        self.id, self.edge = f"line-{number}", f"edge-{number}"
        self.seq = 0
        self._connector = number - 1
        self.connect()

    def connect(self) -> None:
        self.plc = Controller(self.host.get("/healthz")["connectors"][self._connector]["address"])
        self.plc.poll()
        self.plc.master.write(r.WRITTEN["command"], 0)  # the first word of a session asks for nothing

    def restart(self) -> None:
        """The host is killed and started anew."""
        self.plc.master.close()
        self.host.end(signal.SIGKILL)
        self.host.start()
        self.connect()

    def beat(self, edge: str | None = None, **more: Any) -> None:
        """The edge's heartbeat: it runs, and judges by what its results say."""
        says = {"model_sha256": "ab" * 32, "recipe_number": None, **more}
        self.dealer.send(s.frames(s.state(1, edge_id=edge or self.edge, **says)))

    def send(self, make: Callable[..., Any], name: str, edge: str | None = None, **more: Any) -> int:
        """One event of a part, captured just now; its number in the spool."""
        edge = edge or self.edge
        self.seq += 1
        header = make(self.seq, name, trigger_id=self.seq, edge_id=edge, spool_id=f"spool-{edge}", **more)
        self.dealer.send(s.frames(header, age_ms=0))
        self.dealer.wait_acked(self.seq, spool=f"spool-{edge}")
        return self.seq

    def part(self, name: str, verdict: Verdict = Verdict.PASS, **more: Any) -> Judged:
        """A part goes through; what the controller took of it."""
        trigger = {key: value for key, value in more.items() if key in s.Trigger.model_fields or key == "edge"}
        before = len(self.plc.taken)
        self.send(s.trigger, name, **trigger)
        self.send(s.result, name, verdict=verdict, **more)
        s.until(lambda: self.plc.poll() and len(self.plc.taken) > before, what=f"the code of {name}")
        return self.plc.taken[-1]

    def flawline(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command over the running host."""
        words = [sys.executable, "-m", "flawline", "host", *command.split(), str(self.host.config), *arguments]
        return subprocess.run(words, cwd=s.ROOT, capture_output=True, text=True, timeout=30)

    def post(self, path: str, **form: str) -> int:
        """A form of a page; the status of its answer."""
        return httpx.post(self.host.url.rstrip("/") + path, data=form).status_code

    def saw(self, seq: int, outcome: str) -> None:
        """The sensor behind the gate saw a part."""
        self.plc.master.write(r.WRITTEN["gate_outcome"], OUTCOMES[outcome], seq)
        s.until(lambda: self.word("gate_echo") == seq)

    def begin(self) -> None:
        """The controller asks for the challenge to begin, once it sees by what the line's edges judge."""
        s.until(lambda: any(self.plc.master.read(r.WORDS["model"], 2)), what="the edges' heartbeats")
        self.command(4)
        s.until(lambda: self.word("challenge") == r.CHALLENGES["running"])

    def kinds(self) -> list[str]:
        """What happened on the line, newest first."""
        return [row["kind"] for row in self.host.get(f"/api/lines/{self.id}/journal")]

    def row(self) -> dict[str, Any]:
        """How the host says that it stands."""
        return next(row for row in self.host.get("/api/lines") if row["line"] == self.id)

    def command(self, number: int) -> None:
        self.plc.master.write(r.WRITTEN["command"], number)
        self.plc.master.write(r.WRITTEN["command"], 0)

    def word(self, name: str) -> int:
        return self.plc.master.read(r.WORDS[name], 1)[0]

    def bit(self, name: str) -> bool:
        return bool(self.word("status") >> r.STATUS[name] & 1)

    def outcomes(self) -> list[tuple[str, str, str]]:
        """The store's, in their order: part, outcome, who said so."""
        with closing(sqlite3.connect(self.host.folder / "state" / "store.sqlite")) as connection:
            return connection.execute("SELECT part_id, outcome, who FROM gate_outcomes ORDER BY id").fetchall()


@pytest.fixture
def make_line(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> Iterator[Callable[..., Line]]:
    library()
    made: list[Line] = []

    def make(settings: str = "", deadline_ms: int = 5000) -> Line:
        host = make_host(line=settings, deadline_ms=deadline_ms, connectors=("modbus://127.0.0.1:0",))
        made.append(Line(host, make_dealer(host.endpoint)))
        return made[-1]

    yield make
    for line in made:
        line.plc.master.close()
