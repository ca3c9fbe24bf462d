"""Pictures go by class, age and free disk; rows say so first, and no file is left without a row for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from contract.event import Verdict, part_ref
from plugin import retention
from plugin.backup import pictures_stay
from plugin.database import Place
from plugin.errors import ReviewError
from plugin.looks import Follow, register, retire
from plugin.queries import Reader
from plugin.retention import DAY_NS, Retention
from plugin.settings import RetentionSettings
from plugin.store import Store
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.plugin.test_store import received


class Kept:
    """A store, what retention does to it, and pictures with names of their own."""

    def __init__(self, folder: Path, where: Place) -> None:
        self.folder = folder
        self.store = Store(folder, where=where)
        self.reader = Reader(where)
        self._seq = 0

    def part(self, name: str, verdict: Verdict, age_days: float, data: bytes, **more: Any) -> None:
        self._seq += 2
        reference = part_ref("image", data, codec="png", shape=(1,))
        result = received(s.frames(s.result(self._seq, name, verdict, **more)))
        attached = received(s.frames(s.attachment(self._seq + 1, name, self._seq, (reference,)), [data]))
        at = time.time_ns() - int(age_days * DAY_NS)
        self.store.commit([result._replace(received_ns=at), attached._replace(received_ns=at)])

    def retention(self, **settings: float) -> Retention:
        made = RetentionSettings(**settings)  # type: ignore[arg-type]
        return Retention(made, self.folder, self.reader, self.store.blobs, lambda job: job(self.store))

    def left(self) -> dict[str, str | None]:
        """Part -> the rule that removed its picture, None where it is there; and both agree with the files."""
        found = {}
        for part in self.reader.parts(0, 100):
            (row,) = self.reader.attachments(part["edge_id"], part["part_id"])
            found[part["part_id"]] = row["removed_by"]
            if row["removed_ns"] is None:
                assert self.store.blobs.find(row["sha256"]) is not None
        held = {name for names in self.store.blobs.groups() for name in names}
        assert self.reader.unnamed(sorted(held)) == []
        assert {row["sha256"] for row in self.reader.pictures(0, 100)} <= held
        return found


@pytest.fixture
def kept(tmp_path: Path, where: Place) -> Iterator[Kept]:
    made = Kept(tmp_path, where)
    yield made
    made.reader.close()
    made.store.close()


def fill(kept: Kept) -> None:
    kept.part("old pass", Verdict.PASS, 31, b"1")
    kept.part("young pass", Verdict.PASS, 29, b"2")
    kept.part("drawn pass", Verdict.PASS, 31, b"3", audit_share=0.1, audited=True)
    kept.part("old reject", Verdict.REJECT, 91, b"4")
    kept.part("judged", Verdict.REJECT, 91, b"5")
    kept.part("lost", Verdict.NOT_INSPECTED, 11, b"6")
    kept.store.review(5, "good", "Ada")
    kept.part("unsure", Verdict.REJECT, 31, b"7")
    kept.store.review(7, "unsure", "Ada")


def test_pictures_go_by_what_became_of_their_part(kept: Kept) -> None:
    fill(kept)
    kept.retention(pass_days=30, waiting_days=90, not_inspected_days=10, reviewed_days=90.5).remove_by_age()
    assert kept.left() == {
        "old pass": "pass_days = 30",
        "young pass": None,
        "drawn pass": None,
        "old reject": "waiting_days = 90",
        "judged": "reviewed_days = 90.5",
        "lost": "not_inspected_days = 10",
        "unsure": None,
    }
    assert len(kept.reader.reviews(5)) == 1


def test_pictures_that_are_still_to_be_judged_blindly_stay(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, name in enumerate(("known", "second", "given", "disputed", "plain"), 1):
        kept.part(name, Verdict.REJECT, 400, name.encode())
        kept.store.follow = Follow(float(name != "plain"), 0.0)
        kept.store.review(n, "good", "Ada")
    for n, said in ((1, "good"), (3, "good"), (4, "defect")):
        kept.store.review(n, said, "Ben", purpose="second")
    kept.store.run(lambda c: register(c, 1, "Eve"))
    monkeypatch.setattr(Retention, "_free", lambda _: 0)
    kept.retention(reviewed_days=90).remove_by_age()
    gone = "reviewed_days = 90"
    assert kept.left() == {"known": None, "second": None, "given": gone, "disputed": None, "plain": gone}
    kept.retention(free_gb=1).keep_the_floor()
    assert [name for name, rule in kept.left().items() if rule is None] == ["known", "second"]
    with pytest.raises(ReviewError, match="no picture"):
        kept.store.run(lambda c: register(c, 3, "Eve"))
    kept.store.run(lambda c: retire(c, 1))
    kept.store.review(2, "good", "Ben", purpose="second")
    kept.retention(reviewed_days=90).remove_by_age()
    assert None not in kept.left().values()


def test_nothing_goes_where_nothing_is_said(kept: Kept) -> None:
    fill(kept)
    kept.retention().remove_by_age()
    kept.retention().keep_the_floor()
    assert set(kept.left().values()) == {None}


def test_a_file_goes_with_the_last_row_that_names_it(kept: Kept) -> None:
    kept.part("old", Verdict.PASS, 31, b"same")
    kept.part("young", Verdict.PASS, 1, b"same")
    kept.retention(pass_days=30).remove_by_age()
    assert kept.left() == {"old": "pass_days = 30", "young": None}
    kept.retention(pass_days=0.5).remove_by_age()
    assert kept.left() == {"old": "pass_days = 30", "young": "pass_days = 0.5"}
    kept.part("new", Verdict.PASS, 0, b"same")
    assert kept.left()["new"] is None and kept.left()["old"] == "pass_days = 30"


def test_a_full_disk_takes_passed_parts_first_and_what_waits_last(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(kept)
    gone = ["old pass", "young pass", "lost", "judged", "drawn pass", "old reject", "unsure"]
    for enough in range(1, 8):
        full = kept.retention(free_gb=1)
        monkeypatch.setattr(full, "_free", lambda enough=enough: 2e9 if removed(kept) >= enough else 0)
        monkeypatch.setattr(retention, "BATCH", 1)
        full.keep_the_floor()
        assert {name for name, rule in kept.left().items() if rule} == set(gone[:enough])
        assert full.trouble is None
    last = kept.retention(free_gb=1)
    monkeypatch.setattr(last, "_free", lambda: 0)
    last.keep_the_floor()
    assert "no picture left to remove" in str(last.trouble)


def removed(kept: Kept) -> int:
    return 7 - len(kept.reader.pictures(0, 100))


@pytest.mark.parametrize("at", ["before the file", "after the file"])
def test_a_crash_between_row_and_file_leaves_neither_alone_for_ever(
    kept: Kept, where: Place, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    kept.part("old", Verdict.PASS, 31, b"1")
    remove = kept.store.blobs.remove

    def crash(sha256: str) -> None:
        if at == "after the file":
            remove(sha256)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept.store.blobs, "remove", crash)
        with pytest.raises(KeyboardInterrupt):
            kept.retention(pass_days=30).remove_by_age()
    (row,) = kept.reader.attachments(s.EDGE, "old")
    assert row["removed_by"] == "pass_days = 30"
    kept.retention().remove_unnamed()
    assert kept.left() == {"old": "pass_days = 30"}


def test_what_a_failed_commit_and_a_duplicate_leave_is_found(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kept.store, "_insert_gaps", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kept.part("failed", Verdict.PASS, 0, b"1")
    (kept.folder / "blobs" / "ab").mkdir()
    (kept.folder / "blobs" / "ab" / f".{'ab' * 32}.draft").touch()
    assert [names for names in kept.store.blobs.groups() if names]
    kept.part("old", Verdict.PASS, 31, b"2")
    kept.retention(pass_days=30).remove_by_age()
    kept._seq -= 2
    kept.part("old", Verdict.PASS, 31, b"2")  # sent again: a duplicate, whose picture is not written anew
    kept.retention().remove_unnamed()
    assert kept.left() == {"old": "pass_days = 30"}
    assert not list((kept.folder / "blobs").glob("*/.*"))


def test_a_verdict_that_comes_meanwhile_keeps_its_picture(kept: Kept) -> None:
    kept.part("old", Verdict.REJECT, 91, b"1")
    made = RetentionSettings(waiting_days=90)

    def judged_first(job: Callable[[Store], int]) -> int:
        kept.store.review(1, "defect", "Ada")
        return job(kept.store)

    Retention(made, kept.folder, kept.reader, kept.store.blobs, judged_first).remove_by_age()
    assert kept.left() == {"old": None}


def test_a_host_removes_by_itself_and_says_so_but_not_during_a_backup(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer], tmp_path: Path
) -> None:
    host = make_host()
    dealer = make_dealer(host.endpoint)
    for message in s.flagged(1, "bad", Verdict.REJECT, 2.0, seed=1):
        dealer.send(message)
    dealer.wait_acked(1, 2, 3)
    assert host.end() == 0
    host.config.write_text(host.config.read_text() + "[retention]\nwaiting_days = 0.00000001\n")
    with pictures_stay(tmp_path / "state", wait=False) as mine:
        assert mine
        host.start()
        assert host.get("/healthz")["retention"] == {"removed": 0}
        assert host.end() == 0
    host.start()
    s.until(lambda: host.get("/healthz")["retention"]["removed"] == 3)
    part = host.get("/api/parts/1")
    assert {each["removed_by"] for each in part["attachments"]} == {"waiting_days = 1e-08"}
    assert not list((tmp_path / "state" / "blobs").glob("*/*"))
    with closing(Reader(tmp_path / "state" / "store.sqlite")) as reader:
        assert reader.pictures(0, 10) == []
