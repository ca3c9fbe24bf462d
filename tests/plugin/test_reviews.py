"""The records of what inspectors said: complete, chained, and whatever is done to them is found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contract.event import Verdict
from flawline import main
from plugin import tables as t
from plugin.errors import ReviewError
from plugin.queries import Reader
from plugin.reviews import JOURNAL, Journal, seal, verify
from plugin.store import Store, open_engine
from tests.plugin import synthetic as s
from tests.plugin.older import older
from tests.plugin.test_store import put


def judged(folder: Path) -> Store:
    """A store with four records on two parts, one of each kind, every column filled somewhere."""
    store = Store(folder)
    put(store, s.frames(s.result(1, "one", Verdict.REJECT)), s.frames(s.result(2, "two", Verdict.REVIEW)))
    store.review(
        1, "defect", "Ada", defect_class="scratch", comment="at the rim, ½ mm", dwell_ms=2150, station="desk 1"
    )
    store.review(2, "unsure", "Ben", dwell_ms=900, station="desk 2", seen=0)
    store.review(1, "undo", "Ada", seen=1)
    store.review(1, "good", "Zoë", comment="dust", seen=3, purpose="arbiter")
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = judged(tmp_path)
    yield store
    store.close()


@pytest.fixture
def connection(store: Store) -> Iterator[sa.Connection]:
    """As whoever has the file in hands: without the triggers that refuse a change."""
    engine = open_engine(store.path)
    with engine.connect() as connection:
        for verb in ("update", "delete"):
            connection.exec_driver_sql(f"DROP TRIGGER reviews_no_{verb}")
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.exec_driver_sql("PRAGMA ignore_check_constraints=ON")
        connection.commit()
        yield connection
    engine.dispose()


def broken(connection: sa.Connection, store: Store) -> str | None:
    return verify(connection, store.path.parent / JOURNAL).broken


def test_a_record_says_who_when_what_and_what_judged_the_part(store: Store) -> None:
    reader = Reader(store.path)
    first, undone, last = reader.reviews(1)
    part, other = reader.part(1), reader.part(2)
    reader.close()
    assert (first["decision"], first["defect_class"], first["comment"]) == ("defect", "scratch", "at the rim, ½ mm")
    assert (first["inspector"], first["dwell_ms"], first["station"]) == ("Ada", 2150, "desk 1")
    assert (first["edge_id"], first["part_id"], first["machine_verdict"]) == (s.EDGE, "one", "REJECT")
    assert (first["recipe"], first["model_sha256"]) == ("washer", "ab" * 32)
    assert (undone["decision"], undone["supersedes"], last["supersedes"]) == ("undo", 1, None)
    assert last["prev"] == undone["sha256"] == seal(undone)
    assert part is not None and (part["review"], part["review_by"]) == ("good", "Zoë")
    assert other is not None and other["review"] == "unsure"


def test_who_decides_on_what_has_changed_meanwhile_is_told(store: Store) -> None:
    with pytest.raises(ReviewError, match="Zoë decided this part meanwhile"):
        store.review(1, "defect", "Ben", seen=3)
    with pytest.raises(ReviewError, match="Ben decided"):
        store.review(2, "good", "Ada", seen=0)
    assert store.review(2, "good", "Ada", seen=2) == 5


@pytest.mark.parametrize("column", t.reviews.columns.keys())
def test_one_flipped_bit_in_any_column_is_found(store: Store, connection: sa.Connection, column: str) -> None:
    assert broken(connection, store) is None
    connection.rollback()
    rows = connection.exec_driver_sql(f"SELECT id, {column} FROM reviews WHERE {column} IS NOT NULL").all()
    connection.rollback()
    assert rows
    for n, (number, value) in enumerate(rows):
        every = 1 if n == 0 else 29  # all bytes of one record, some of the others
        for changed in [*list(flips(value))[::every], *([None] if t.reviews.columns[column].nullable else [])]:
            value_of = "CAST(? AS TEXT)" if isinstance(changed, bytes) else "?"  # bytes need not be UTF-8
            connection.exec_driver_sql(f"UPDATE reviews SET {column} = {value_of} WHERE id = ?", (changed, number))
            found = broken(connection, store)
            assert found is not None and "record" in found, (number, changed)
            connection.rollback()
    assert broken(connection, store) is None


def flips(value: Any) -> Iterator[Any]:
    """The value with one bit of one byte turned, for every byte."""
    if isinstance(value, int):
        yield from (value ^ (1 << bit) for bit in range(3, 62, 7))  # the lowest make one record's number another's
        return
    plain = value.encode()
    for at in range(len(plain)):
        yield plain[:at] + bytes([plain[at] ^ (0x80 if at % 3 == 0 else 0x01)]) + plain[at + 1 :]


def test_one_flipped_byte_of_the_file_itself_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = judged(tmp_path)
    store.close()
    config = tmp_path / "host.toml"
    config.write_text('state_dir = "."\n')
    assert main(["host", "audit", "verify", str(config)]) == 0
    data = bytearray(store.path.read_bytes())
    at = data.index("½ mm".encode())
    data[at + 4] ^= 1
    store.path.write_bytes(data)
    assert main(["host", "audit", "verify", str(config)]) == 1
    assert "BROKEN: record 1 is not as it was written" in capsys.readouterr().err


@pytest.mark.parametrize("gone", [(1,), (2,), (4,), (3, 4), (1, 2, 3, 4)])
def test_records_that_are_gone_are_missed(store: Store, connection: sa.Connection, gone: tuple[int, ...]) -> None:
    for number in gone:
        connection.exec_driver_sql("DELETE FROM reviews WHERE id = ?", (number,))
    found = broken(connection, store)
    first = gone[0] if gone[-1] == 4 else gone[0] + 1  # the first that is left behind a hole
    assert found is not None and f"record {first} " in found


def test_a_cut_end_stays_found_when_the_host_goes_on(store: Store, connection: sa.Connection, tmp_path: Path) -> None:
    connection.exec_driver_sql("DELETE FROM reviews WHERE id = 4")
    connection.exec_driver_sql("UPDATE parts SET review = NULL, review_by = NULL WHERE id = 1")
    connection.commit()
    assert store.review(1, "defect", "Eve") == 4
    assert "record 4 is not there as reviews.chain notes it" in (broken(connection, store) or "")
    again = Store(tmp_path)  # as after a restart
    again.review(2, "good", "Eve")
    assert "record 4 is not there" in (broken(connection, again) or "")
    again.close()


def test_a_chain_that_was_made_anew_differs_from_what_was_noted(store: Store, connection: sa.Connection) -> None:
    last = verify(connection, store.path.parent / JOURNAL).last
    assert last is not None
    row = dict(connection.execute(sa.select(t.reviews).where(t.reviews.c.id == 4)).one()._mapping)
    row["inspector"] = "somebody else"
    connection.execute(
        sa.update(t.reviews).where(t.reviews.c.id == 4).values(inspector="somebody else", sha256=seal(row))
    )
    connection.exec_driver_sql("UPDATE parts SET review_by = 'somebody else' WHERE id = 1")
    assert "record 4 is not there as reviews.chain notes it" in (broken(connection, store) or "")
    journal = store.path.parent / JOURNAL
    journal.write_text("\n".join(journal.read_text().split("\n")[:4]) + f"\n4 {seal(row)}\n")
    assert broken(connection, store) is None  # whoever writes both files is found by a note elsewhere alone
    assert "record 4 is not there as it was noted elsewhere" in (verify(connection, journal, last).broken or "")
    journal.unlink()
    assert "nobody can tell" in (broken(connection, store) or "")


def test_a_verdict_that_is_shown_and_was_never_said_is_found(store: Store, connection: sa.Connection) -> None:
    connection.exec_driver_sql("UPDATE parts SET review = 'good' WHERE id = 2")
    assert "part 2 is shown as ('good', 'Ben', None)" in (broken(connection, store) or "")


def test_what_a_crash_left_unnoted_is_noted_at_the_next_start(tmp_path: Path) -> None:
    store = judged(tmp_path)
    store.close()
    journal = tmp_path / JOURNAL
    whole = journal.read_text()
    journal.write_text(whole[:-30])  # torn in the last line
    store = Store(tmp_path)
    store.close()
    assert journal.read_text() == whole
    journal.unlink()
    store = Store(tmp_path)
    engine = open_engine(store.path)
    with engine.connect() as connection:
        found = verify(connection, journal)
    assert (found.records, found.broken) == (4, None)
    assert found.notes == ["reviews.chain begins behind record 4; of a cut before that it knows nothing"]
    engine.dispose()
    store.close()


def test_a_disk_that_refuses_the_note_is_asked_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_words: Any) -> Any:
        raise OSError(28, "No space left on device")

    journal = store.path.parent / JOURNAL
    before = journal.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        store.review(2, "good", "Ada")
    assert journal.read_text() == before
    store.review(2, "defect", "Ada")
    assert [line.split()[0] for line in journal.read_text().splitlines()[1:]] == ["1", "2", "3", "4", "5", "6"]


def test_the_command_says_what_it_found_and_what_to_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "host.toml"
    config.write_text('state_dir = "."\n')

    def audit(*words: str) -> tuple[int, str]:
        code = main(["host", "audit", "verify", str(config), *words])
        heard = capsys.readouterr()
        return code, heard.out + heard.err

    code, said = audit()
    assert code == 2 and "there is no store" in said
    judged(tmp_path).close()
    code, said = audit()
    assert code == 0 and "4 record(s), each as it was written" in said
    last = re.findall(r"\d+:[0-9a-f]{64}", said)[0]  # not the last word: what is logged may stand behind it
    assert audit("--last", last)[0] == 0
    assert audit("--last", f"3:{last[2:]}")[0] == 1
    code, said = audit("--last", "last")
    assert code == 2 and "expected NUMBER:SHA256" in said


def test_records_of_before_are_chained_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "newer").mkdir()
    judged(tmp_path / "newer").close()
    newer = tmp_path / "newer" / "store.sqlite"
    known = {"decision": "replace(decision, 'unsure', 'good')"}  # there was no unsure then
    older(newer, tmp_path / "store.sqlite", "0004", ("events", "parts", "reviews"), known)
    store = Store(tmp_path)
    reader = Reader(store.path)
    rows = reader.reviews(1)
    reader.close()
    assert [(row["decision"], row["inspector"], row["part_id"]) for row in rows] == [
        ("defect", "Ada", "one"),
        ("undo", "Ada", "one"),
        ("good", "Zoë", "one"),
    ]
    assert (rows[0]["recipe"], rows[0]["machine_verdict"]) == (None, "REJECT")
    store.review(2, "undo", "Ben", seen=2)
    engine = open_engine(store.path)
    with engine.connect() as connection:
        assert verify(connection, tmp_path / JOURNAL).broken is None
    engine.dispose()
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        store._connection.exec_driver_sql("UPDATE reviews SET inspector = 'x'")
    store.close()


def test_a_journal_is_for_one_store(tmp_path: Path) -> None:
    store = judged(tmp_path)
    assert (tmp_path / JOURNAL).read_text().splitlines()[0] == "# flawline review records, begun behind record 0"
    Journal(tmp_path / JOURNAL, store._connection)
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == 5
    store.close()
