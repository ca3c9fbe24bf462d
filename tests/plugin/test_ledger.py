"""The ledger by itself: one number a part, at most one publication, deadlines, restarts."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConfigError
from contract.event import Header, LineCode, Verdict, from_frames
from plugin.connectors.base import LineOutput
from plugin.dispatch import Sent
from plugin.ledger import GRACE_NS, Ledger, LedgerReader
from plugin.settings import LineSettings
from plugin.transit import Arrival
from tests.plugin import synthetic as s


class Rig:
    """A running ledger whose outputs are collected and, if asked, reported as published."""

    def __init__(self, path: Path, deadline_ms: int, publish: bool = True) -> None:
        self.outputs: list[LineOutput] = []
        self._publish = publish
        self.ledger = Ledger(path, lambda _edge: LineSettings(id="line-1", deadline_ms=deadline_ms))
        self.ledger.connect(self._take, lambda _line: True)
        self._thread = threading.Thread(target=self.ledger.run)
        self._thread.start()
        self.reader = LedgerReader(path)

    def _take(self, outputs: Any) -> None:
        for output in outputs:
            self.outputs.append(output)
            if self._publish:
                self.ledger.record(Sent(output.line, output.number, "test", "published", None, time.time_ns()))

    def tell(self, header: Header, age_ms: float = 0.0) -> None:
        message = from_frames(s.frames(header, age_ms=age_ms))
        ticket = self.ledger.tell([Arrival(message, time.monotonic_ns())])
        assert self.ledger.has(ticket, 5.0)

    def rows(self) -> list[dict[str, Any]]:
        return self.reader.outputs(0, 1000)

    def stop(self) -> None:
        self.ledger.stop()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def start(deadline_ms: int = 60_000, publish: bool = True) -> Rig:
        rigs.append(Rig(tmp_path / "ledger.sqlite", deadline_ms, publish))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.stop()


def test_a_verdict_in_time_is_published_once_with_its_code(make: Callable[..., Rig]) -> None:
    rig = make()
    for seq, verdict in enumerate(Verdict, 1):
        rig.tell(s.trigger(10 * seq, f"p{seq}"))
        for _ in range(3):
            rig.tell(s.result(10 * seq + 1, f"p{seq}", verdict))
        rig.tell(s.trigger(10 * seq, f"p{seq}"))
    assert [(output.number, output.code.name) for output in rig.outputs] == [
        (1, "PASS"),
        (2, "REVIEW"),
        (3, "REJECT"),
        (4, "NOT_INSPECTED"),
    ]
    s.until(lambda: {row["outcome"] for row in rig.rows()} == {"published"})


def test_without_a_verdict_the_deadline_says_not_inspected(make: Callable[..., Rig]) -> None:
    rig = make(deadline_ms=150)
    start = time.monotonic()
    rig.tell(s.trigger(1, "p"), age_ms=50.0)
    s.until(lambda: rig.outputs)
    assert 0.08 <= time.monotonic() - start < 1.0  # 150 ms from capture, 50 ms of them had passed
    assert rig.outputs[0].code == LineCode.NOT_INSPECTED
    assert 0 < rig.outputs[0].due_ns - time.monotonic_ns() <= GRACE_NS  # nor may it lie in a connector's queue
    rig.tell(s.result(2, "p"), age_ms=200.0)
    rig.tell(s.result(2, "p"), age_ms=300.0)
    (row,) = rig.rows()
    assert len(rig.outputs) == 1
    assert (row["source"], row["late_code"], row["late_age_ms"]) == ("deadline", LineCode.PASS, 200.0)


def test_a_missed_part_is_published_at_once(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.tell(s.trigger(1, "p"))
    rig.tell(s.missed(2, "p", "camera lost"))
    assert [(output.code, output.reason) for output in rig.outputs] == [(LineCode.NOT_INSPECTED, "camera lost")]


def test_a_result_without_its_trigger_still_gets_one_number(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.tell(s.result(2, "p"))
    rig.tell(s.trigger(1, "p"))
    assert [output.code for output in rig.outputs] == [LineCode.PASS]


@pytest.mark.parametrize("header", [s.trigger(1, "p"), s.result(2, "p"), s.missed(3, "p")])
def test_what_arrives_past_its_deadline_is_recorded_and_never_dispatched(
    make: Callable[..., Rig], header: Header
) -> None:
    rig = make(deadline_ms=1000)
    rig.tell(header, age_ms=1500.0)
    (row,) = rig.rows()
    assert rig.outputs == []
    assert (row["outcome"], row["code"]) == ("late", LineCode.NOT_INSPECTED)
    assert (row["late_code"] is None) == (header.kind == "trigger")


def test_a_restart_publishes_what_just_ran_out_and_repeats_nothing(make: Callable[..., Rig], tmp_path: Path) -> None:
    first = make(deadline_ms=300, publish=False)
    first.tell(s.result(1, "said"))  # committed and handed over, but the outcome was never recorded
    first.tell(s.trigger(2, "open"))
    first.stop()
    second = make(deadline_ms=300)
    s.until(lambda: second.outputs)
    second.tell(s.result(1, "said"))
    assert [(output.part_id, output.number, output.code) for output in second.outputs] == [
        ("open", 2, LineCode.NOT_INSPECTED)
    ]
    s.until(lambda: [row["outcome"] for row in second.rows()] == ["unknown", "published"])


def alter(path: Path, *statements: str) -> None:
    """Write to the ledger's file past the ledger."""
    with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def outcomes(rig: Rig) -> dict[str, tuple[str, int]]:
    return {row["part_id"]: (row["outcome"], row["code"]) for row in rig.rows()}


@pytest.mark.parametrize(
    "change",
    [
        "t_capture_ns = t_capture_ns - 5000000000, due_ns = due_ns - 5000000000",
        "boot_id = 'another', due_ns = due_ns + 1000000000000",  # monotonic times of another boot have passed
    ],
    ids=["beyond grace", "another boot"],
)
def test_a_deadline_of_long_ago_is_recorded_and_not_published(
    make: Callable[..., Rig], tmp_path: Path, change: str
) -> None:
    first = make(deadline_ms=2000)
    first.tell(s.trigger(1, "gone"))
    first.stop()
    alter(tmp_path / "ledger.sqlite", f"UPDATE open_parts SET {change}")
    second = make(deadline_ms=2000)
    second.tell(s.result(2, "now"))
    s.until(lambda: outcomes(second) == {"gone": ("late", 4), "now": ("published", 1)})
    assert [output.part_id for output in second.outputs] == ["now"]


def test_a_failing_disk_publishes_nothing_and_loses_nothing(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()
    failing = threading.Event()
    failing.set()
    write = rig.ledger._write_output

    def fail(*arguments: Any) -> LineOutput:
        output = write(*arguments)
        if failing.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        return output

    monkeypatch.setattr(rig.ledger, "_write_output", fail)
    message = from_frames(s.frames(s.result(1, "p")))
    ticket = rig.ledger.tell([Arrival(message, time.monotonic_ns())])
    s.until(lambda: rig.ledger.trouble)
    assert not rig.ledger.has(ticket, 0.1)
    assert rig.outputs == []
    failing.clear()
    assert rig.ledger.has(ticket, 5.0)
    assert [(output.number, output.part_id) for output in rig.outputs] == [(1, "p")]
    assert rig.ledger.trouble is None


OUTPUT = (
    "INSERT INTO outputs (line, number, edge_id, part_id, camera_id, trigger_id, code, source, outcome, age_ms, "
    "t_wall_ns) VALUES ('line-1', {number}, 'edge-1', '{part}', 'cam-1', 1, 4, 'deadline', 'late', 0, 0)"
)


def test_a_part_that_has_its_number_is_not_opened_again(make: Callable[..., Rig], tmp_path: Path) -> None:
    first = make(deadline_ms=300)
    first.tell(s.trigger(1, "numbered"))
    first.stop()
    alter(tmp_path / "ledger.sqlite", OUTPUT.format(number=1, part="numbered"))
    second = make(deadline_ms=300)
    second.tell(s.result(2, "next"))
    assert second.reader.counts()["open"] == 0
    assert [(output.part_id, output.number) for output in second.outputs] == [("next", 2)]


def test_a_part_that_cannot_be_numbered_keeps_no_other_waiting(make: Callable[..., Rig], tmp_path: Path) -> None:
    rig = make(deadline_ms=700)
    rig.tell(s.trigger(1, "twice"))
    rig.tell(s.trigger(2, "waits"))
    alter(tmp_path / "ledger.sqlite", OUTPUT.format(number=1, part="twice"))  # another hand
    rig.tell(s.result(3, "told"))
    s.until(lambda: len(rig.outputs) == 2)
    assert [(output.part_id, output.number) for output in rig.outputs] == [("told", 2), ("waits", 3)]
    assert (rig.ledger.skipped, rig.ledger.trouble, rig.reader.counts()["open"]) == (1, None, 0)


def test_a_failed_attempt_to_read_the_file_anew_forgets_no_open_part(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make(deadline_ms=500)
    rig.tell(s.trigger(1, "open"))
    failures = iter([sqlite3.OperationalError("disk I/O error")] * 2)
    write, load = rig.ledger._write_output, rig.ledger._read_numbers

    def fail(work: Callable[..., Any]) -> Callable[..., Any]:
        def worked(*arguments: Any) -> Any:
            found = work(*arguments)
            for error in failures:
                raise error
            return found

        return worked

    monkeypatch.setattr(rig.ledger, "_write_output", fail(write))
    monkeypatch.setattr(rig.ledger, "_read_numbers", fail(load))
    s.until(lambda: rig.outputs)
    assert [(output.part_id, output.number) for output in rig.outputs] == [("open", 1)]


def test_drained_it_publishes_no_deadline_and_still_notes_outcomes(make: Callable[..., Rig]) -> None:
    rig = make(deadline_ms=200, publish=False)
    rig.tell(s.result(1, "said"))
    rig.tell(s.trigger(2, "open"))
    assert rig.ledger.drain(5.0)
    time.sleep(0.3)
    rig.ledger.record(Sent("line-1", 1, "test", "published", None, time.time_ns()))
    rig.stop()
    assert [row["outcome"] for row in rig.rows()] == ["published"]
    assert rig.reader.counts()["open"] == 1


def test_each_line_counts_for_itself(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", lambda edge: LineSettings(id=f"line-{edge}"))
    thread = threading.Thread(target=ledger.run)
    thread.start()
    for seq, edge in enumerate(["a", "b", "a"], 1):
        message = from_frames(s.frames(s.result(seq, f"p{seq}", edge_id=edge)))
        ticket = ledger.tell([Arrival(message, time.monotonic_ns())])
    assert ledger.has(ticket, 5.0)
    ledger.stop()
    thread.join(5)
    rows = LedgerReader(tmp_path / "l.sqlite").outputs(0, 10)
    assert [(row["line"], row["number"], row["outcome"]) for row in rows] == [
        ("line-a", 1, "unconnected"),
        ("line-b", 1, "unconnected"),
        ("line-a", 2, "unconnected"),
    ]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Ledger(tmp_path / "l.sqlite", lambda _edge: LineSettings(id="a"))
