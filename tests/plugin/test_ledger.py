"""The ledger by itself: one number a part, at most one publication, deadlines, restarts."""

from __future__ import annotations

import errno
import os
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
from plugin.connectors.base import LINE_CONTROLLER, LineOutput
from plugin.dispatch import Sent
from plugin.durability import PASSED_OVER, sync
from plugin.ledger import GRACE_NS, MAX_COUNTED, MAX_OF_EDGE, MAX_WAITING, Ledger, LedgerReader
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
        (ticket,) = self.ledger.tell([Arrival(message, time.monotonic_ns())])
        assert ticket is not None
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
    assert 0.08 <= time.monotonic() - start < 10  # 150 ms from capture, 50 ms of them had passed
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


def test_numbers_that_a_power_cut_may_have_taken_are_never_used_again(make: Callable[..., Rig], tmp_path: Path) -> None:
    first = make()
    first.tell(s.result(1, "a"))
    first.tell(s.result(2, "b"))
    first.stop()
    alter(  # as the disk was before the last commits
        tmp_path / "ledger.sqlite",
        "DELETE FROM outputs WHERE number = 2",
        "UPDATE meta SET value = 'x' WHERE key = 'boot_id'",
    )
    second = make()
    assert second.ledger.last_number("line-1") == 1 + PASSED_OVER
    second.tell(s.result(3, "c"))
    assert [row["number"] for row in second.rows()] == [1, 2 + PASSED_OVER]
    second.stop()
    third = make()  # the same boot: nothing can be gone
    third.tell(s.result(4, "d"))
    assert third.rows()[-1]["number"] == 3 + PASSED_OVER


def test_what_is_given_out_is_on_the_disk_and_what_nobody_waits_for_soon(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make(publish=False)
    soon, hanging = threading.Event(), threading.Event()
    monkeypatch.setattr("plugin.durability.sync", lambda _path: soon.set())
    monkeypatch.setattr("plugin.ledger.sync", lambda _path: hanging.wait(20))
    rig.tell(s.trigger(1, "a"))
    assert soon.wait(20)
    message = from_frames(s.frames(s.result(2, "a")))
    (ticket,) = rig.ledger.tell([Arrival(message, time.monotonic_ns())])
    assert ticket is not None
    s.until(lambda: [row["number"] for row in rig.rows()] == [1])
    assert not rig.ledger.has(ticket, 0.1) and rig.outputs == []
    hanging.set()
    assert rig.ledger.has(ticket, 5.0)
    assert [output.part_id for output in rig.outputs] == ["a"]


@pytest.mark.parametrize("hangs", ["plugin.ledger", "plugin.durability"])
def test_a_disk_that_hangs_is_told_as_long_as_it_does(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    monkeypatch.setattr("plugin.ledger.STALLED_NS", 10**8)
    rig = make(publish=False)
    answers = threading.Event()
    monkeypatch.setattr(f"{hangs}.sync", lambda _path: answers.wait(20))
    header = s.result(1, "a") if hangs == "plugin.ledger" else s.trigger(1, "a")
    rig.ledger.tell([Arrival(from_frames(s.frames(header)), time.monotonic_ns())])
    assert "has not answered" in s.until(lambda: rig.ledger.trouble)
    assert rig.outputs == []
    answers.set()
    s.until(lambda: rig.ledger.trouble is None)


def refuse(_path: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


class BadPages:
    """A disk that refuses one sync of the ledger's log, says so to one asker alone, and never writes those pages again.

    ``after_power_cut`` is what it then holds: the log with nothing where those pages were, unless it began anew.
    """

    def __init__(self, path: Path, asker: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self._log = path.with_name(path.name + "-wal")
        self._kept: tuple[bytes, int] | None = None
        self._refusing = threading.Event()
        for module in ("plugin.ledger", "plugin.durability"):
            monkeypatch.setattr(f"{module}.sync", self._sync if module == asker else self._sync_well)

    def refuse_next(self) -> None:
        log = self._log.read_bytes()
        self._kept = log[:32], len(log)
        self._refusing.set()

    def after_power_cut(self, folder: Path) -> dict[str, str]:
        """Each part that is on record, and its outcome."""
        assert self._kept is not None
        header, length = self._kept
        log = self._log.read_bytes()
        folder.mkdir()
        copy = folder / self.path.name
        copy.write_bytes(self.path.read_bytes())
        copy.with_name(self._log.name).write_bytes(log[:length] if log[:32] == header else log)
        with closing(sqlite3.connect(copy)) as connection:
            return dict(connection.execute("SELECT part_id, outcome FROM outputs").fetchall())

    def _sync(self, path: Path) -> None:
        if self._refusing.is_set():
            self._refusing.clear()
            refuse(path)
        sync(path)

    def _sync_well(self, path: Path) -> None:
        sync(path)


def test_what_the_disk_does_not_keep_is_never_given_out(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()
    with monkeypatch.context() as patch:
        patch.setattr("plugin.ledger.sync", refuse)
        rig.tell(s.result(1, "a"))
        s.until(lambda: outcomes(rig) == {"a": ("refused", 1)})
        rig.tell(s.trigger(2, "b"))
        assert "does not keep" in str(rig.ledger.trouble), "what was committed since does not end it"
    s.until(lambda: rig.ledger.trouble is None)
    rig.tell(s.result(3, "b"))
    s.until(lambda: outcomes(rig) == {"a": ("refused", 1), "b": ("published", 1)})
    assert [output.part_id for output in rig.outputs] == ["b"]


@pytest.mark.parametrize("asker", ["plugin.ledger", "plugin.durability"], ids=["an output", "what nobody waits for"])
def test_after_a_refused_sync_nothing_is_given_out_on_a_torn_log(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asker: str
) -> None:
    """The kernel tells of pages that it could not write once, to whoever asks first, and then that all is well."""
    disk = BadPages(tmp_path / "ledger.sqlite", asker, monkeypatch)
    rig = make(publish=False)
    torn, tear = threading.Event(), rig.ledger._tear
    monkeypatch.setattr(rig.ledger, "_tear", lambda error: (tear(error), torn.set()))
    rig.tell(s.trigger(1, "b"))
    disk.refuse_next()
    rig.tell(s.result(2, "a") if asker == "plugin.ledger" else s.trigger(2, "a"))
    assert torn.wait(20)
    s.until(lambda: rig.ledger.trouble is None)
    rig.tell(s.result(3, "b"))
    assert [output.part_id for output in rig.outputs] == ["b"]
    assert disk.after_power_cut(tmp_path / "after")["b"] == "committed"


def test_a_start_trusts_no_log_of_the_last_run(make: Callable[..., Rig], tmp_path: Path) -> None:
    """One that was killed may have known that it is torn; the next one's syncs would not hear of it."""
    rig = make()
    rig.tell(s.trigger(1, "a"))
    log = tmp_path / "ledger.sqlite-wal"
    assert log.stat().st_size
    Ledger(tmp_path / "ledger.sqlite", lambda _edge: LINE)._connection.close()
    assert log.stat().st_size == 0


def test_what_another_sync_is_told_meanwhile_counts(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told of the output's pages first, so that the output's own sync says that all is well."""
    rig = make(publish=False)
    begun, told = threading.Event(), threading.Event()

    def refuse_slowly(path: Path) -> None:
        begun.set()
        assert told.wait(20)
        refuse(path)

    monkeypatch.setattr("plugin.durability.sync", refuse_slowly)
    rig.tell(s.trigger(1, "a"))
    assert begun.wait(20)
    monkeypatch.setattr("plugin.durability.sync", lambda _path: None)
    synced = threading.Event()
    monkeypatch.setattr("plugin.ledger.sync", lambda _path: synced.set())
    message = from_frames(s.frames(s.result(2, "a")))
    rig.ledger.tell([Arrival(message, time.monotonic_ns())])
    assert synced.wait(20)
    assert rig.outputs == []
    told.set()
    s.until(lambda: outcomes(rig) == {"a": ("refused", 1)})
    assert rig.outputs == []


def test_a_log_that_is_being_read_is_not_mended_yet_and_nothing_given_out(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rig = make()
    rig.tell(s.trigger(1, "a"))
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM outputs").fetchone()
        with monkeypatch.context() as patch:
            patch.setattr("plugin.ledger.sync", refuse)
            rig.tell(s.result(2, "a"))
        rig.tell(s.result(3, "b"))
        assert rig.outputs == []
        assert "being read" in str(rig.ledger.trouble)
    s.until(lambda: rig.ledger.trouble is None)
    rig.tell(s.result(4, "c"))
    assert [output.part_id for output in rig.outputs] == ["c"]


def test_a_sync_that_says_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a file system fails: the sync returns, and no change is taken any more."""
    (tmp_path / "ledger.sqlite-wal").touch()
    sync(tmp_path / "ledger.sqlite")
    monkeypatch.setattr(os, "utime", refuse)
    with pytest.raises(OSError, match="Read-only"):
        sync(tmp_path / "ledger.sqlite")


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
    (ticket,) = rig.ledger.tell([Arrival(message, time.monotonic_ns())])
    assert ticket is not None
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
        (ticket,) = ledger.tell([Arrival(message, time.monotonic_ns())])
    assert ticket is not None
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


LINE = LineSettings(id="line-1", deadline_ms=400, trigger_offset_ms=100, trigger_tolerance_ms=60)
OTHER_LINE = LineSettings(id="line-2", deadline_ms=400)


class Counting(Rig):
    """A rig whose line controller counts parts: 100 ms before their capture, give or take 60."""

    def __init__(self, path: Path, publish: bool = True) -> None:
        super().__init__(path, LINE.deadline_ms, publish)
        self.ledger._line_of = lambda edge: OTHER_LINE if edge == "another" else LINE

    def count(self, counter: int, ago_ms: float = 0.0) -> None:
        self.write((counter,), ago_ms)

    def write(self, counters: tuple[int, ...], ago_ms: float = 0.0) -> None:
        """One write of the controller, and wait until the ledger has it."""
        self.ledger.counted(LINE, counters, time.monotonic_ns() - int(ago_ms * 1e6))
        self.tell(s.trigger(9000 + counters[0], f"sync-{counters[0]}", edge_id="another"), age_ms=100_000.0)

    def open(self) -> list[tuple[str, str]]:
        with closing(sqlite3.connect(self.ledger.path)) as connection:
            return connection.execute("SELECT edge_id, part_id FROM open_parts").fetchall()

    def of_parts(self) -> list[LineOutput]:
        return [output for output in self.outputs if not output.part_id.startswith("sync-")]


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    rig = Counting(tmp_path / "ledger.sqlite")
    yield rig
    rig.stop()


def test_a_counted_part_and_its_announcement_are_one_part(counting: Counting) -> None:
    counting.count(7, ago_ms=120.0)
    assert len(counting.open()) == 1
    counting.tell(s.trigger(1, "p"), age_ms=20.0)
    assert counting.open() == [(s.EDGE, "p")]
    counting.tell(s.result(2, "p"), age_ms=40.0)
    assert [(o.part_id, o.code, o.counter) for o in counting.of_parts()] == [("p", LineCode.PASS, 7)]
    assert counting.open() == []
    (row,) = [row for row in counting.rows() if row["part_id"] == "p"]
    assert row["counter"] == 7


def test_an_announcement_that_comes_before_the_count_is_the_same_part(counting: Counting) -> None:
    counting.tell(s.trigger(1, "p"), age_ms=10.0)
    counting.count(65_535, ago_ms=110.0)
    assert counting.open() == [(s.EDGE, "p")]
    counting.tell(s.result(2, "p", Verdict.REJECT), age_ms=30.0)
    assert [(o.code, o.counter) for o in counting.of_parts()] == [(LineCode.REJECT, 65_535)]


def test_a_result_without_announcement_bears_the_counter_too(counting: Counting) -> None:
    counting.count(3, ago_ms=130.0)
    counting.tell(s.result(2, "p"), age_ms=30.0)
    assert [(o.part_id, o.counter) for o in counting.of_parts()] == [("p", 3)]


def test_a_counted_part_that_no_edge_announces_is_not_inspected_at_its_deadline(counting: Counting) -> None:
    counting.count(7, ago_ms=120.0)
    (output,) = s.until(counting.of_parts)
    assert (output.edge_id, output.code, output.counter) == (LINE_CONTROLLER, LineCode.NOT_INSPECTED, 7)
    assert output.reason == "the line controller counted a part that no edge announced"
    assert counting.open() == []


def test_another_parts_verdict_is_never_taken_for_a_part_that_no_edge_saw(counting: Counting) -> None:
    counting.count(1, ago_ms=300.0)  # no edge sees this one
    counting.count(2, ago_ms=110.0)
    counting.tell(s.trigger(1, "second"), age_ms=10.0)
    counting.tell(s.result(2, "second"), age_ms=15.0)
    s.until(lambda: len(counting.of_parts()) == 2)
    codes = {output.counter: output.code for output in counting.of_parts()}
    assert codes == {1: LineCode.NOT_INSPECTED, 2: LineCode.PASS}


def test_a_write_that_tells_of_two_parts_gives_neither_a_verdict(counting: Counting) -> None:
    counting.tell(s.trigger(1, "second"), age_ms=10.0)  # the edge missed the first
    counting.write((11, 12), ago_ms=110.0)
    counting.tell(s.result(2, "second"), age_ms=15.0)
    s.until(lambda: len(counting.of_parts()) == 3)
    told = sorted((output.counter or 0, output.code) for output in counting.of_parts())
    assert told == [(0, LineCode.PASS), (11, LineCode.NOT_INSPECTED), (12, LineCode.NOT_INSPECTED)]


def test_a_write_that_comes_late_gives_a_rejected_part_nobody_elses_pass(counting: Counting) -> None:
    counting.tell(s.trigger(1, "first"), age_ms=210.0)
    counting.tell(s.result(2, "first", Verdict.REJECT), age_ms=215.0)
    counting.tell(s.trigger(3, "second"), age_ms=10.0)
    counting.count(11, ago_ms=110.0)  # 200 ms late: it is there with the second part
    counting.tell(s.result(4, "second"), age_ms=15.0)
    counting.count(12, ago_ms=105.0)
    s.until(lambda: len(counting.of_parts()) == 4)
    codes = {output.counter: output.code for output in counting.of_parts() if output.counter is not None}
    assert codes == {11: LineCode.NOT_INSPECTED, 12: LineCode.NOT_INSPECTED}


def test_a_controller_that_counts_far_too_much_is_said_and_not_numbered(counting: Counting) -> None:
    for first in range(0, 2000, 10):
        counting.ledger.counted(LINE, tuple(range(first, first + 10)), time.monotonic_ns())
    counting.count(3000)
    assert counting.ledger.flooded("line-1")
    assert len(counting.open()) <= MAX_COUNTED


def test_where_two_could_be_meant_neither_is(counting: Counting) -> None:
    counting.count(1, ago_ms=130.0)
    counting.count(2, ago_ms=100.0)
    counting.tell(s.trigger(1, "p"), age_ms=15.0)
    counting.tell(s.result(2, "p"), age_ms=20.0)
    s.until(lambda: len(counting.of_parts()) == 3)
    told = sorted((output.counter or 0, output.code) for output in counting.of_parts())
    assert told == [(0, LineCode.PASS), (1, LineCode.NOT_INSPECTED), (2, LineCode.NOT_INSPECTED)]


def test_two_parts_announced_within_the_tolerance_share_no_counter(counting: Counting) -> None:
    counting.tell(s.trigger(1, "a"), age_ms=30.0)
    counting.tell(s.trigger(2, "b"), age_ms=10.0)
    counting.count(5, ago_ms=120.0)
    counting.tell(s.result(3, "a"), age_ms=50.0)
    counting.tell(s.result(4, "b"), age_ms=30.0)
    s.until(lambda: len(counting.of_parts()) == 3)
    assert sorted((o.counter or 0, o.code) for o in counting.of_parts()) == [
        (0, LineCode.PASS),
        (0, LineCode.PASS),
        (5, LineCode.NOT_INSPECTED),
    ]


def test_a_counted_part_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    first = Counting(path)
    first.count(11, ago_ms=100.0)
    first.stop()
    second = Counting(path)
    (output,) = s.until(second.of_parts)
    assert (output.code, output.counter) == (LineCode.NOT_INSPECTED, 11)
    second.stop()


def test_what_a_connector_says_last_of_an_output_stands(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.tell(s.result(1, "p"))
    s.until(lambda: [row["outcome"] for row in rig.rows()] == ["published"])
    rig.ledger.record(Sent("line-1", 1, "test", "refused", "the module was gone", time.time_ns()))
    s.until(lambda: [row["outcome"] for row in rig.rows()] == ["refused"])
    rig.ledger.record(Sent("line-1", 1, "another", "published", None, time.time_ns()))
    s.until(lambda: [row["outcome"] for row in rig.rows()] == ["published"])


def test_a_ledger_of_the_first_version_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path, lambda _edge: LINE)._connection.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE outputs DROP COLUMN counter")
        connection.execute("PRAGMA user_version=1")
    rig = Rig(path, 60_000)
    rig.tell(s.result(1, "p"))
    assert [row["counter"] for row in rig.rows()] == [None]
    rig.stop()


def test_what_nobody_waits_for_is_committed_with_the_next_judgement(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit of its own would be in the way of a verdict that comes during it."""
    monkeypatch.setattr("plugin.ledger.PATIENCE_S", 600.0)
    rig = make()
    for number in range(3):
        (announced,) = rig.ledger.tell(
            [Arrival(from_frames(s.frames(s.trigger(2 * number + 1, f"p{number}"))), time.monotonic_ns())]
        )
        assert announced is not None
        rig.ledger.record(Sent("line-1", number, "test", "published", None, 0))
        assert not rig.ledger.has(announced, 0.05)
        rig.tell(s.result(2 * number + 2, f"p{number}"))
        assert rig.ledger.has(announced, 0.0)
    rig.ledger.tell([Arrival(from_frames(s.frames(s.trigger(100, "p100"))), time.monotonic_ns())])
    assert rig.ledger.drain(5.0)
    assert rig.reader.counts()["open"] == 1


def test_one_edge_that_floods_takes_no_room_of_another(tmp_path: Path) -> None:
    """The ledger stands while one edge sends without measure; the other's event comes in the same burst."""
    ledger = Ledger(tmp_path / "l.sqlite", lambda _edge: LineSettings(id="line-1", deadline_ms=60_000))

    def arrival(edge: str, seq: int) -> Arrival:
        header = s.result(seq, f"{edge}-{seq}", edge_id=edge, spool_id=edge)
        return Arrival(from_frames(s.frames(header)), time.monotonic_ns())

    flood = [arrival("greedy", 1)] * (MAX_WAITING + 1)
    *greedy, modest = ledger.tell([*flood, arrival("modest", 1)])
    assert greedy.count(None) == ledger.lost == len(flood) - MAX_OF_EDGE
    assert modest == MAX_OF_EDGE + 1
    assert ledger.tell([arrival("greedy", 2)]) == [None]
    thread = threading.Thread(target=ledger.run)
    thread.start()
    assert ledger.has(modest, 20.0)
    assert ledger.tell([arrival("greedy", 2)]) == [modest + 1], "there is room again"
    ledger.stop()
    thread.join(20)
    assert [row["part_id"] for row in LedgerReader(ledger.path).outputs(0, 10)] == ["greedy-1", "modest-1", "greedy-2"]
    assert not ledger._count_of_edge


def test_a_trigger_shortly_before_its_deadline_is_published(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.ledger.PATIENCE_S", 600.0)
    monkeypatch.setattr("plugin.ledger.NEAR_S", 1.0)
    rig = make(deadline_ms=1000)
    rig.ledger.tell([Arrival(from_frames(s.frames(s.trigger(1, "p"), age_ms=500.0)), time.monotonic_ns())])
    s.until(lambda: rig.outputs)
    assert rig.outputs[0].code == LineCode.NOT_INSPECTED


def test_a_deadline_is_not_kept_waiting_by_patience(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make(deadline_ms=150)
    rig.tell(s.trigger(1, "p"))
    monkeypatch.setattr("plugin.ledger.PATIENCE_S", 600.0)
    rig.ledger.record(Sent("line-1", 99, "test", "published", None, 0))
    s.until(lambda: rig.outputs)
    assert rig.outputs[0].code == LineCode.NOT_INSPECTED
