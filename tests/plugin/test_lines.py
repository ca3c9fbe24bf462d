"""What the ledger decides of a line beside its verdicts, turn by turn: masters, rows of rejects, containment."""

from __future__ import annotations

import io
import json
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from contract.event import Verdict, from_frames
from plugin import containment, lines
from plugin import tables as t
from plugin.errors import LineError
from plugin.ledger import Ledger, LedgerReader
from plugin.lines import ENDLESS, MOST_READ, Kept
from plugin.review import archive, host
from plugin.review.host import LineDesk
from plugin.review.pages import AT_THE_GATE
from plugin.settings import LineSettings
from plugin.transit import Arrival
from tests.plugin import synthetic as s
from tests.plugin.people import Site, add_part

MODELS = {None: "ab" * 32, 1: "a1" * 32, 2: "b2" * 32}


class Turns:
    """A ledger with one line, whose turns a test takes itself."""

    def __init__(self, path: Path, edges: tuple[str, ...] = ("edge-1",), **settings: Any) -> None:
        line = LineSettings(id="line-1", deadline_ms=60_000, edges=list(edges), **settings)
        self.ledger = Ledger(path, lambda _edge: line, [line])
        self.ledger.connect(lambda _outputs: None, lambda _line: True, lambda _line: list(edges))
        self.reader = LedgerReader(path)
        self.seq = self.ledger.last_number("line-1") * 2

    def turn(self) -> None:
        assert self.ledger._settle(self.ledger._gather())

    def ask(self, what: Any, **values: Any) -> None:
        self.ledger.ask("line-1", what, "eve", **values)
        self.turn()

    def beat(self, recipe: int | None = None) -> None:
        state = s.state(1, model_sha256=MODELS[recipe], recipe_number=recipe)
        self.ledger.tell([Arrival(from_frames(s.frames(state)), time.monotonic_ns())])
        if not self.ledger._inbox.empty():  # a heartbeat that says nothing new is none for it
            self.turn()

    def part(self, name: str, verdict: Verdict = Verdict.PASS, recipe: int | None = None, **more: Any) -> None:
        told = [s.trigger(self.seq + 1, name, **more)]
        told += [s.result(self.seq + 2, name, verdict, recipe_number=recipe, model_sha256=MODELS[recipe], **more)]
        self.seq += 2
        self.ledger.tell([Arrival(from_frames(s.frames(each, age_ms=0)), time.monotonic_ns()) for each in told])
        self.turn()

    def challenge(self, recipe: int | None, *verdicts: Verdict) -> None:
        self.beat(recipe)
        self.ask("begin_challenge")
        for verdict in verdicts:
            self.part(f"master {self.seq}", verdict, recipe)

    def contained(self, kind: str | None = None) -> list[str]:
        """The parts that are no masters, from the newest such row of the journal, or from now."""
        event = None if kind is None else self.reader.journal_of("line-1", [kind], 1)[0]["id"]
        found = containment.since_good_check(self.reader, "line-1", event)
        rows = self.reader.between("line-1", found.after, found.last)
        return [row["part_id"] for row in rows if not row["part_id"].startswith("master")]

    @property
    def kept(self) -> Kept:
        return self.ledger._lines._kept("line-1")

    def end(self) -> None:
        self.ledger._connection.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Turns]]:
    """A ledger of the test's folder; another call is its next start."""
    made: list[Turns] = []

    def start(**settings: Any) -> Turns:
        if made:
            made[-1].end()
        made.append(Turns(tmp_path / "ledger.sqlite", **settings))
        return made[-1]

    yield start
    for each in made:
        each.end()


READ_RIGHT = (Verdict.PASS, Verdict.REJECT)
READ_WRONG = (Verdict.PASS, Verdict.PASS)


def test_a_good_check_of_another_recipe_ends_no_containment(make: Callable[..., Turns]) -> None:
    line = make()
    for recipe in (1, 2):
        for name, expected in (("good", "pass"), ("bad", "reject")):
            line.ask("add_master", name=f"{name} {recipe}", expected=expected, recipe=recipe)
    line.part("before any check", recipe=1)
    line.challenge(1, *READ_RIGHT)
    line.part("by 1", recipe=1)
    line.challenge(2, *READ_RIGHT)
    line.part("by 2", recipe=2)
    line.ask("alarm", text="scores drift")
    assert line.contained("stop") == ["by 2"], "what was released last is doubted"
    line.challenge(1, *READ_WRONG)
    assert line.contained("challenge_failed") == ["by 1", "by 2"]
    assert line.contained() == ["by 1", "by 2"], "now, after a failure, as from the failure"
    detail = line.reader.journal_of("line-1", ["challenge_failed"], 1)[0]["detail"]
    assert detail["recipe"] == 1
    line.challenge(1, *READ_RIGHT)
    line.part("by 1 again", recipe=1)
    assert line.contained() == ["by 1 again"]


def test_only_a_check_that_read_the_master_that_failed_ends_a_containment(make: Callable[..., Turns]) -> None:
    line = make()
    for name, expected in (("good", "pass"), ("dent", "reject")):
        line.ask("add_master", name=name, expected=expected)
    line.challenge(None, *READ_RIGHT)
    line.part("with dent")
    line.ask("remove_master", name="dent")
    line.ask("add_master", name="scratch", expected="reject")
    line.challenge(None, *READ_RIGHT)
    line.part("with scratch")
    line.ask("add_master", name="dent", expected="reject")
    line.challenge(None, Verdict.PASS, Verdict.REJECT, Verdict.PASS)
    assert line.contained("challenge_failed") == ["with dent", "with scratch"]
    line.challenge(None, Verdict.PASS, Verdict.PASS, Verdict.REJECT)
    assert line.contained("challenge_failed") == ["with scratch"]


def test_a_journal_of_before_says_the_recipe_with_its_readings(make: Callable[..., Turns]) -> None:
    line = make()
    for name, expected in (("good", "pass"), ("bad", "reject")):
        line.ask("add_master", name=name, expected=expected)
    line.part("before any check", recipe=2)
    line.challenge(2, *READ_RIGHT)
    line.part("by 2", recipe=2)
    line.challenge(1, *READ_RIGHT)
    line.part("by 1", recipe=1)
    line.challenge(2, *READ_WRONG)
    old = "UPDATE journal SET detail = json_remove(detail, '$.recipe') WHERE kind LIKE 'challenge_%ed'"
    line.ledger._connection.execute(old)
    assert line.contained("challenge_failed") == ["by 2", "by 1"]
    line.challenge(2, Verdict.NOT_INSPECTED, Verdict.NOT_INSPECTED)
    line.ledger._connection.execute(old)
    nobody = "UPDATE journal SET detail = json_set(detail, '$.readings', json('[]')) WHERE kind = 'challenge_failed'"
    line.ledger._connection.execute(nobody)
    assert line.contained("challenge_failed") == ["before any check", "by 2", "by 1"], "where none is known, all"


@pytest.mark.parametrize("lost", [40, 16])
def test_rejects_in_a_row_are_counted_over_a_start_and_what_was_not_inspected_between(
    make: Callable[..., Turns], lost: int
) -> None:
    """``lost`` parts that were not inspected end no row of rejects, however many there are of them."""
    limits = {"rejects_in_a_row": 5, "not_inspected_in_a_row": 0 if lost == 40 else 5}
    line = make(**limits)
    verdicts = [Verdict.PASS, *([Verdict.REJECT, *[Verdict.NOT_INSPECTED] * (lost // 4)] * 4)]
    for verdict in verdicts:
        line.part(f"part {line.seq}", verdict)
    line = make(**limits)
    assert line.kept.stop is None
    line.part("last", Verdict.REJECT)
    assert line.kept.stop == "rejects_in_a_row"
    line.ask("clear_stop")
    line = make(**limits)
    line.part("after it was cleared", Verdict.REJECT)
    assert line.kept.stop is None


def test_what_a_start_counts_back_ends_at_a_judgement_that_is_none(make: Callable[..., Turns]) -> None:
    limits = {"rejects_in_a_row": 3, "not_inspected_in_a_row": 3}
    line = make(**limits)
    for verdict in (Verdict.REJECT, Verdict.REVIEW, Verdict.REJECT, Verdict.NOT_INSPECTED, Verdict.NOT_INSPECTED):
        line.part(f"part {line.seq}", verdict)
    line = make(**limits)
    line.part("one more", Verdict.REJECT)
    assert line.kept.stop is None
    line.part("the third", Verdict.REJECT)
    assert line.kept.stop == "rejects_in_a_row"


def test_a_run_that_gets_nowhere_stays_small_and_ends_as_failed(make: Callable[..., Turns]) -> None:
    line = make(edges=("edge-1", "edge-2"))
    for name, expected in (("good", "pass"), ("bad", "reject")):
        line.ask("add_master", name=name, expected=expected, serial=name)
    line.beat()
    state = s.state(1, edge_id="edge-2", model_sha256=MODELS[None], recipe_number=None)
    line.ledger.tell([Arrival(from_frames(s.frames(state)), time.monotonic_ns())])
    line.ask("begin_challenge")
    steps = 2 * 2
    line.part("read wrong", Verdict.REJECT, serial="good")
    for number in range(1, MOST_READ * steps - 1):
        line.part(f"again {number}", serial="good")
        assert line.kept.run is not None
        assert [each.part_id for each in line.kept.run.readings] == ["read wrong", f"again {number}"]
    assert line.ledger._lines.states()["line-1"].taken == MOST_READ * steps - 1
    line.part("once too often", serial="good")
    assert (line.kept.run, line.kept.challenge) == (None, "failed")
    assert line.kept.why == f"{ENDLESS}; good was read as REJECT, expected PASS"
    line.ask("begin_challenge")
    line.part("both", serial="good")
    line.part("of them", Verdict.REJECT, serial="bad")
    assert line.kept.challenge == "running", "the other edge has read none"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A host with accounts and one part."""
    made = Site(tmp_path_factory.mktemp("site"))
    add_part(made)
    yield made
    made.stop()


def test_an_archive_of_contained_parts_is_one_of_few_and_takes_no_more_memory_with_more_parts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    eve, inside = site.signed_in("eve"), site.app.state.host
    opened = eve.post("/api/lines/line-1/containments", json={}, headers={"x-csrf-token": eve.token()}).json()
    url = f"/api/containments/{opened['id']}/parts.zip"
    names = zipfile.ZipFile(io.BytesIO(eve.get(url).content)).namelist()
    assert (names[0], names[-1], len(names) > 2) == ("containment.json", "parts.csv", True)
    with monkeypatch.context() as slow, pytest.raises(httpx.RemoteProtocolError):
        slow.setattr(archive, "LONGEST_S", -1.0)
        eve.get(url)
    assert inside.exports.begin() and inside.exports.begin()
    assert eve.get(url).status_code == 503
    inside.exports.end()
    inside.exports.end()

    asked: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        (row,) = containment.parts_of(inside.ledger, inside.reader, opened)
        for number in range(1000):
            asked.append(number)
            yield {**row, "number": number, "part_id": f"none such {number}"}

    pieces = b""
    ahead = []
    for piece in containment.as_zip(rows, inside.reader, inside.blobs, opened):
        pieces += piece
        ahead.append(len(asked) - len(ahead))
    assert max(ahead[1:]) - min(ahead[1:]) <= 2, "the table goes out as it is made"
    table = zipfile.ZipFile(io.BytesIO(pieces)).read("parts.csv").decode().splitlines()
    assert len(table) == 1001


def test_a_containment_of_another_ledger_shows_no_parts(tmp_path: Path) -> None:
    first = Site(tmp_path)
    add_part(first)
    eve = first.signed_in("eve")
    opened = eve.post("/api/lines/line-1/containments", json={}, headers={"x-csrf-token": eve.token()}).json()
    urls = [f"/api/containments/{opened['id']}{more}" for more in ("", "/parts.csv", "/parts.zip")]
    urls.append(f"/containments/{opened['id']}")
    assert [eve.get(url).status_code for url in urls] == [200] * 4
    first.stop()
    for start, status in (("the same", 200), ("another", 409)):
        if start == "another":
            for file in (tmp_path / "state").glob("ledger.sqlite*"):
                file.unlink()
        second = Site(tmp_path)
        try:
            eve = second.signed_in("eve")
            answers = [eve.get(url) for url in urls]
            assert [answer.status_code for answer in answers] == [status] * 4, start
            assert all(("was opened over another ledger" in each.text) == (status == 409) for each in answers)
        finally:
            second.stop()


def test_what_was_refused_as_busy_is_never_done_and_what_was_begun_is_never_denied(
    make: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = make()
    line.ask("alarm", text="scores drift")
    desk = LineDesk(("line-1",), lambda _line: None, line.ledger.state_of, line.ledger.ask)
    monkeypatch.setattr(host, "DESK_S", 0.01)
    with pytest.raises(TimeoutError):
        desk.do("line-1", "clear_stop", "eve")
    line.turn()
    assert line.kept.stop == "alarm"

    waits = desk.ask("line-1", "clear_stop", "eve")
    failing = iter([sqlite3.OperationalError("disk I/O error")])
    save = line.ledger._lines.save

    def once() -> None:
        assert not waits.cancel(), "it has begun"
        if (error := next(failing, None)) is not None:
            raise error
        save()

    monkeypatch.setattr(line.ledger._lines, "save", once)
    line.turn()
    assert (waits.result(0), line.kept.stop) == ({}, None)

    begun: list[Future[dict[str, Any]]] = []

    def begins(*_args: Any, **_values: Any) -> Future[dict[str, Any]]:
        begun.append(Future())
        assert begun[-1].set_running_or_notify_cancel()
        return begun[-1]

    with pytest.raises(LineError, match="whether this was done is not known yet"):
        replace(desk, ask=begins).do("line-1", "clear_stop", "eve")


def texts_in_store(site: Site) -> list[str]:
    details = sa.select(t.line_events.c.detail).where(t.line_events.c.kind == "stop").order_by(t.line_events.c.id)
    found = site.service._writer.call(lambda store: store.run(lambda each: each.execute(details).scalars().all()))
    return [json.loads(detail)["text"] for detail in found]


def alarm(site: Site, text: str) -> None:
    eve = site.signed_in("eve")
    answer = eve.post("/api/lines/line-1/alarm", json={"text": text}, headers={"x-csrf-token": eve.token()})
    assert answer.status_code == 200, answer.text


def test_a_journal_that_does_not_come_to_the_store_is_trouble_and_an_alarm(site: Site) -> None:
    def rename(old: str, new: str) -> None:
        words = sa.text(f"ALTER TABLE {old} RENAME TO {new}")
        site.service._writer.call(lambda store: store.run(lambda connection: connection.execute(words)))

    rename("line_events", "lost_events")
    alarm(site, "lost on its way")
    (trouble,) = s.until(lambda: site.service.health()["trouble"])
    assert "what happened on the lines is not in the store yet (no such table: line_events" in trouble
    assert not site.service.health()["ok"]
    s.until(lambda: ("journal", trouble) in [(each.source, each.text) for each in site.service.feed.alarms.standing()])
    rename("lost_events", "line_events")
    s.until(lambda: site.service.health()["ok"])
    assert texts_in_store(site)[-1] == "lost on its way"


def test_a_new_ledger_s_journal_comes_to_the_store_after_a_clock_that_was_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    with monkeypatch.context() as ahead:
        ahead.setattr(lines, "time", SimpleNamespace(**{**vars(time), "time_ns": lambda: real() + 86_400 * 10**9}))
        first = Site(tmp_path)
        alarm(first, "a day ahead")
        s.until(lambda: texts_in_store(first) == ["a day ahead"])
        first.stop()
    for file in (tmp_path / "state").glob("ledger.sqlite*"):
        file.unlink()
    second = Site(tmp_path)
    try:
        alarm(second, "the right time")
        s.until(lambda: texts_in_store(second) == ["a day ahead", "the right time"])
    finally:
        second.stop()


def test_the_banner_names_no_part_to_those_who_may_have_to_judge_it_blindly(site: Site) -> None:
    site.signed_in("eve").submit("/lines/line-1/ask", what="clear_stop")
    site.service.ledger.gate("line-1", 1, "not_confirmed", "the line controller")
    s.until(lambda: site.service.ledger.state_of("line-1").stop == "not_confirmed")
    said = "Line line-1 is to stop: no. 1 {}was not seen behind the gate"
    for name, part in (("ivan", ""), ("eve", "(worst) ")):
        page = site.signed_in(name).get("/counts").text
        assert said.format(part) in page, name
        assert ("(worst)" in page) == bool(part)


@pytest.mark.parametrize(
    "way", ["was not seen behind the gate in time", "was on its way to the gate when the host ended"]
)
def test_whatever_a_part_is_called_it_is_left_out(way: str) -> None:
    text = f"Line line-1 is to stop: no. 12 (a (b) was not seen (c) {way}"
    assert AT_THE_GATE.sub(r"\1 \2", text) == f"Line line-1 is to stop: no. 12 {way}"
