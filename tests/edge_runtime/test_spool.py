"""The spool: nothing that was appended is lost to a killed process, and full means pictures first."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from contract.event import CHUNK_BYTES, HEADER, Attachment, Gap, Missed, Trigger, part_ref
from edge_runtime.errors import SpoolBlockedError, SpoolError
from edge_runtime.spool import ANOTHER_BOOT_MS, Draft, Outage, Spool
from edge_runtime.spool_room import Limits
from edge_runtime.spool_tables import CHECKPOINT_BYTES, EVENTS, IMAGES, MAPS
from tests.processes import until

PART = {"edge_id": "e", "spool_id": "-", "seq": 1, "run_id": "-", "t_wall_ns": 1, "camera_id": "top", "frame_no": 0}


def trigger(number: int) -> Trigger:
    return Trigger(**PART, part_id=f"p{number}", trigger_id=number)  # type: ignore[arg-type]


def missed(number: int) -> Missed:
    return Missed(**PART, part_id=f"p{number}", trigger_id=number, reason="test")  # type: ignore[arg-type]


def attachment(data: bytes, role: Literal["image", "map"] = "image") -> Draft:
    reference = part_ref(role, data, codec="png", shape=(1, 1))
    header = Attachment(
        edge_id="e", spool_id="-", seq=1, run_id="-", t_wall_ns=1, part_id="p1", result_seq=1, parts=(reference,)
    )
    return Draft(header, (data,))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool.sqlite")
    yield opened
    opened.close()


def test_numbers_run_on_and_rows_stay_until_forgotten(spool: Spool) -> None:
    assert spool.append([Draft(trigger(1)), Draft(missed(1))]) == [1, 2]
    rows = spool.pending(0, 0, 10)
    assert [HEADER.validate_json(row.header).kind for row in rows] == ["trigger", "missed"]
    spool.forget(spool.spool_id, [1])
    assert [row.seq for row in spool.pending(0, 0, 10)] == [2]
    assert spool.row(rows[0].n) is None
    assert spool.size[0] == 1


def test_what_is_forgotten_together_takes_nothing_along_that_lies_between(spool: Spool) -> None:
    spool.append([Draft(trigger(number)) for number in range(1, 10)])
    spool.forget(spool.spool_id, [7, 2, 3, 9, 3, 50])
    assert [row.seq for row in spool.pending(0, 0, 10)] == [1, 4, 5, 6, 8]
    assert spool.size[0] == 5


def test_verdicts_maps_and_pictures_are_read_apart(spool: Spool) -> None:
    spool.append([attachment(b"x" * 10), attachment(b"y" * 10, "map"), Draft(trigger(1))])
    assert [row.seq for row in spool.pending(EVENTS, 0, 10)] == [3]
    assert spool.pending(MAPS, 0, 10)[0].parts == (b"y" * 10,)
    assert spool.pending(IMAGES, 0, 10)[0].parts == (b"x" * 10,)


def test_a_large_body_is_left_out_of_its_row_and_read_piece_by_piece(spool: Spool) -> None:
    data = os.urandom(CHUNK_BYTES + 1000)
    spool.append([attachment(data)])
    (row,) = spool.pending(IMAGES, 0, 10)
    assert (row.parts, row.body_bytes, row.is_large) == ((), len(data), True)
    assert spool.read(row.n, CHUNK_BYTES, CHUNK_BYTES) == data[CHUNK_BYTES:]
    assert spool.parts(row) == (data,)
    spool.forget(row.spool_id, [row.seq])
    assert spool.read(row.n, 0, 10) is None


def test_a_trigger_is_open_until_its_end_stands(spool: Spool) -> None:
    spool.append([Draft(trigger(1)), Draft(trigger(2))])
    spool.append([Draft(missed(1))])
    assert [open_.part_id for open_ in spool.open_triggers()] == ["p2"]


def test_what_earlier_runs_owe_is_settled_once_the_host_has_it(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool.sqlite")
    assert first.settled()
    first.append([Draft(trigger(1)), attachment(b"x")])
    assert first.settled(), "its own events are no debt"
    first.close(clean=False)
    second = Spool(tmp_path / "spool.sqlite")
    second.append([Draft(missed(1))])
    second.note_earlier()
    second.append([Draft(trigger(2))])
    for spool_id, settled in ((first.spool_id, False), (second.spool_id, True)):
        second.forget(spool_id, [1])
        assert second.settled() == settled
    assert second.size[0] == 2, "its own trigger and the picture still wait"
    second.close(clean=False)


def dropped_of(spool: Spool, priority: int) -> list[bool]:
    headers = [HEADER.validate_json(row.header) for row in spool.pending(priority, 0, 100_000)]
    return [isinstance(header, Attachment) and header.dropped for header in headers]


def test_full_gives_up_pictures_first_the_oldest_first_then_maps_and_keeps_every_event(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=200_000)
    for _ in range(20):
        spool.append([Draft(missed(1)), attachment(os.urandom(2000), "map"), attachment(os.urandom(10_000))])
    gone = dropped_of(spool, IMAGES)
    assert any(gone) and gone == sorted(gone, reverse=True) and not any(dropped_of(spool, MAPS))
    assert spool.dropped == sum(gone)
    for _ in range(100):
        spool.append([Draft(missed(1)), attachment(os.urandom(2000), "map")])
    assert spool.size[1] <= 200_000 and not spool.full
    assert len(spool.pending(EVENTS, 0, 1000)) == 120
    gone = dropped_of(spool, MAPS)
    assert any(gone) and gone == sorted(gone, reverse=True) and all(dropped_of(spool, IMAGES))
    rows = spool.pending(MAPS, 0, 1000)
    assert all((row.parts == ()) == gone for row, gone in zip(rows, dropped_of(spool, MAPS), strict=True))
    spool.close()


def test_rows_have_a_limit_of_their_own_and_events_are_never_given_up(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", max_rows=100)
    spool.append([attachment(b"x") for _ in range(40)] + [attachment(b"y", "map") for _ in range(40)])
    spool.append([Draft(missed(n)) for n in range(40)])
    assert len(spool.pending(EVENTS, 0, 1000)) == 40
    assert len(spool.pending(MAPS, 0, 1000)) == 40
    assert len(spool.pending(IMAGES, 0, 1000)) == 10, "a tenth is free again"
    assert spool.dropped == 30
    spool.require_room()
    spool.append([Draft(missed(n)) for n in range(60)])
    assert spool.full
    with pytest.raises(SpoolBlockedError, match=r"the spool is full: 100 events.*max_rows"):
        spool.require_room()
    spool.append([Draft(missed(1))])  # the end of a part that was taken has its place
    assert len(spool.pending(EVENTS, 0, 1000)) == 101
    spool.forget(spool.spool_id, range(1, 86))
    with pytest.raises(SpoolBlockedError):  # still over nine tenths
        spool.require_room()
    spool.forget(spool.spool_id, range(86, 140))
    spool.require_room()
    spool.close()


VERSION_1 = """
CREATE TABLE rows (n INTEGER PRIMARY KEY AUTOINCREMENT, spool_id TEXT NOT NULL, seq INTEGER NOT NULL,
    priority INTEGER NOT NULL, header BLOB NOT NULL, sizes TEXT NOT NULL, body BLOB NOT NULL, bytes INTEGER NOT NULL,
    boot_id TEXT NOT NULL, t_ref_ns INTEGER NOT NULL, t_wall_ns INTEGER NOT NULL, UNIQUE (spool_id, seq));
CREATE INDEX rows_by_priority ON rows (priority, n);
CREATE TABLE open_triggers (part_id TEXT PRIMARY KEY, header BLOB NOT NULL);
CREATE TABLE dead_letters (spool_id TEXT, seq INTEGER, header BLOB, code TEXT, message TEXT, t_wall_ns INTEGER);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO rows VALUES (7, 's', 3, 1, '{}', '[4]', x'01020304', 6, 'boot', 1, 2);
INSERT INTO dead_letters VALUES ('s', 2, '{}', 'schema', 'no', 5);
INSERT INTO meta VALUES ('spool_id', 's'), ('seq', '3'), ('clean', 'yes');
PRAGMA user_version = 1;
"""


def test_a_spool_of_the_version_before_keeps_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    spool = Spool(path)
    assert [(row.n, row.seq, row.parts) for row in spool.pending(MAPS, 0, 10)] == [(7, 3, (b"\1\2\3\4",))]
    assert (spool.size, spool.dead) == ((1, 6), (1, 0))
    assert spool.append([attachment(b"x", "map")]) == [4]
    assert [row.n for row in spool.pending(MAPS, 7, 10)] == [8]
    spool.close()


def test_a_clean_stop_keeps_its_numbering_and_the_time_until_the_next_start_is_due(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool.sqlite")
    assert first.outage is None
    first.append([Draft(trigger(1))])
    first.close()
    second = Spool(tmp_path / "spool.sqlite")
    assert second.outage is not None
    assert second.outage.clean
    assert second.spool_id == first.spool_id
    assert second.append([Draft(missed(1))]) == [2]
    second.close()


def gap_of(outage: Outage) -> Draft:
    since = outage.since_wall_ns
    return Draft(
        Gap(
            edge_id="e", spool_id="-", seq=1, run_id="-", t_wall_ns=1, reason="r",
            from_wall_ns=since, to_wall_ns=since, duration_ns=0,
        )
    )  # fmt: skip


def test_after_an_unclean_stop_numbering_is_new_and_the_gap_stays_due_until_declared(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool.sqlite")
    first.append([Draft(trigger(1))])
    first.close(clean=False)
    second = Spool(tmp_path / "spool.sqlite")
    assert second.outage is not None
    assert second.outage.same_boot
    assert not second.outage.clean
    assert second.spool_id != first.spool_id
    second.close()  # a clean stop, but the gap was never declared
    third = Spool(tmp_path / "spool.sqlite")
    assert third.outage is not None
    assert third.outage.since_wall_ns == second.outage.since_wall_ns
    third.append([gap_of(third.outage)])
    assert third.outage is None
    third.close(clean=False)
    fourth = Spool(tmp_path / "spool.sqlite")
    assert fourth.outage is not None
    assert fourth.outage.since_wall_ns > second.outage.since_wall_ns, "the declared time is not declared again"
    fourth.close()


def test_a_gap_that_could_not_be_written_stays_due(tmp_path: Path) -> None:
    Spool(tmp_path / "spool.sqlite").close(clean=False)
    spool = Spool(tmp_path / "spool.sqlite")
    assert spool.outage is not None
    spool._writer.execute("PRAGMA max_page_count=1")  # SQLite's own "disk is full"
    with pytest.raises(SpoolError, match="is the disk full"):
        spool.append([gap_of(spool.outage)] * 200)
    spool.begin_outage(time.monotonic_ns(), "the disk was full")
    assert spool.outage is not None and spool.outage.reason == "the disk was full"
    assert spool.size[0] == 0
    spool._writer.execute("PRAGMA max_page_count=1000000")
    assert spool.append([gap_of(spool.outage)]) == [1]
    spool.close()


def test_what_was_written_before_a_reboot_is_never_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box without a battery clock comes up in the past: yesterday's PASS must not look fresh."""
    first = Spool(tmp_path / "spool.sqlite")
    first.append([Draft(missed(1).model_copy(update={"t_wall_ns": time.time_ns() + 3_600 * 10**9}))])
    first.close()
    monkeypatch.setattr("edge_runtime.spool.boot_id", lambda: "another boot")
    second = Spool(tmp_path / "spool.sqlite")
    assert second.pending(0, 0, 1)[0].age_ms >= ANOTHER_BOOT_MS
    assert second.outage is not None
    assert not second.outage.same_boot
    second.close()


def test_the_log_does_not_keep_its_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    spool = Spool(path, sync_ms=0)
    wal = path.with_name(path.name + "-wal")
    numbers = [seq for _ in range(12) for seq in spool.append([attachment(os.urandom(1_000_000))])]
    spool.forget(spool.spool_id, numbers)

    def small() -> bool:
        spool.append([Draft(missed(1))])
        return wal.stat().st_size < CHECKPOINT_BYTES

    until(small, "the log was folded into the database and cut", 20)
    spool.close()


WRITER = """
import sys
from pathlib import Path
from contract.event import Missed
from edge_runtime.spool import Draft, Spool
spool = Spool(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    header = Missed(edge_id="e", spool_id="-", seq=1, run_id="-", t_wall_ns=1, camera_id="top", frame_no=0,
                    part_id=f"p{number}", trigger_id=number, reason="test")
    for seq in spool.append([Draft(header)]):
        sys.stdout.write(f"{seq}\\n")
        sys.stdout.flush()
"""


@pytest.mark.parametrize("after", [1, 40, 300])
def test_killed_at_any_moment_every_append_that_returned_stands(tmp_path: Path, after: int) -> None:
    path = tmp_path / "spool.sqlite"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(after)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines() if line]
    spool = Spool(path)
    seqs = [row.seq for row in spool.pending(0, 0, 100_000)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert set(said) <= set(seqs)
    spool.close()


def test_a_damaged_or_foreign_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(SpoolError, match=r"cannot be opened.*move the file away"):
        Spool(path)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(SpoolError, match="spool version 99"):
        Spool(path)


def test_an_outage_begins_at_the_last_mark_or_at_what_was_lost_before_it(spool: Spool) -> None:
    spool.mark_alive()
    marked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    spool.begin_outage(time.monotonic_ns(), "first")
    assert spool.outage is not None and spool.outage.since_boot_ns <= marked_ns
    spool.begin_outage(time.monotonic_ns() - 10**9, "second")
    assert spool.outage.since_boot_ns <= marked_ns - 0.9e9
    assert (spool.outage.reason, spool.outage.clean, spool.outage.same_boot) == ("first", False, True)
    spool.append([gap_of(spool.outage)])
    assert spool.outage is None


def test_a_dead_letter_keeps_everything_and_pictures_go_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", dead=Limits(10, 1 << 20))
    spool.append([attachment(b"x" * 100), *(Draft(missed(n)) for n in range(11))])
    for seq in range(1, 11):
        spool.bury(spool.spool_id, seq, "schema", "no")
    assert spool.dead == (10, 0)
    spool.bury(spool.spool_id, 11, "schema", "no")
    assert spool.dead == (9, 2), "down to nine tenths, and counted"
    kinds = spool._writer.execute("SELECT DISTINCT priority FROM dead_letters").fetchall()
    assert kinds == [(EVENTS,)]
    assert spool.size[0] == 1
    spool.close()
    again = Spool(tmp_path / "spool.sqlite", dead=Limits(10, 1 << 20))
    assert again.dead == (9, 2)
    again.close()


def test_what_another_process_changes_is_counted(spool: Spool) -> None:
    spool.append([Draft(missed(n)) for n in range(5)])
    with closing(sqlite3.connect(spool.path)) as connection, connection:
        connection.execute("DELETE FROM rows WHERE seq > 3")
    spool.mark_alive()
    assert spool.size[0] == 3


def test_a_mark_of_life_is_of_the_time_until_which_everything_was_seen(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool.sqlite")
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()
    first.mark_alive(5 * 10**9)
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()
    first.close(clean=False)
    second = Spool(tmp_path / "spool.sqlite")
    outage = second.outage
    assert outage is not None
    assert before[0] <= outage.since_boot_ns + 5 * 10**9 <= after[0]
    assert before[1] <= outage.since_wall_ns + 5 * 10**9 <= after[1]
    second.close()
