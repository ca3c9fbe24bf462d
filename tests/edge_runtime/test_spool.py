"""The spool: nothing that was appended is lost to a killed process, and full means pictures first."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.event import HEADER, Attachment, Gap, Missed, Trigger, part_ref
from edge_runtime.errors import SpoolError
from edge_runtime.spool import ANOTHER_BOOT_MS, CHECKPOINT_BYTES, Draft, Outage, Spool
from tests.processes import until

PART = {"edge_id": "e", "spool_id": "-", "seq": 1, "run_id": "-", "t_wall_ns": 1, "camera_id": "top", "frame_no": 0}


def trigger(number: int) -> Trigger:
    return Trigger(**PART, part_id=f"p{number}", trigger_id=number)  # type: ignore[arg-type]


def missed(number: int) -> Missed:
    return Missed(**PART, part_id=f"p{number}", trigger_id=number, reason="test")  # type: ignore[arg-type]


def attachment(data: bytes) -> Draft:
    reference = part_ref("image", data, codec="png", shape=(1, 1))
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


def test_verdicts_and_pictures_are_read_apart(spool: Spool) -> None:
    spool.append([attachment(b"x" * 10), Draft(trigger(1))])
    assert [row.seq for row in spool.pending(0, 0, 10)] == [2]
    assert spool.pending(1, 0, 10)[0].parts == (b"x" * 10,)


def test_a_trigger_is_open_until_its_end_stands(spool: Spool) -> None:
    spool.append([Draft(trigger(1)), Draft(trigger(2))])
    spool.append([Draft(missed(1))])
    assert [open_.part_id for open_ in spool.open_triggers()] == ["p2"]


def test_full_empties_the_oldest_pictures_and_keeps_every_event(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=100_000)
    for _ in range(30):
        spool.append([Draft(missed(1)), attachment(os.urandom(10_000))])
    assert spool.size[1] <= 100_000
    assert len(spool.pending(0, 0, 100)) == 30
    pictures = spool.pending(1, 0, 100)
    headers = [HEADER.validate_json(row.header) for row in pictures]
    dropped = [isinstance(header, Attachment) and header.dropped for header in headers]
    assert spool.dropped == sum(dropped) > 0
    assert dropped == sorted(dropped, reverse=True), "the oldest go first"
    assert all((row.parts == ()) == gone for row, gone in zip(pictures, dropped, strict=True))
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
    assert spool.outage is not None
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
from edge_runtime.spool import ANOTHER_BOOT_MS, CHECKPOINT_BYTES, Draft, Outage, Spool
from tests.processes import until
from contract.event import Missed
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
