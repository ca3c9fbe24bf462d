"""Drift at the host: an alarm stands once, whatever comes again, is told to people and controllers, and contained."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa

from contract.event import CameraState, Drift, LineCode, Verdict
from plugin import containment, drift_rows, drift_watch
from plugin import tables as t
from plugin.database import Place
from plugin.drift_watch import DriftWatch
from plugin.ledger import LedgerReader
from plugin.queries import Reader
from plugin.review.drift_pages import SHOWN
from plugin.store import Store
from tests.plugin import synthetic as s
from tests.plugin.people import Site
from tests.plugin.station import Line
from tests.plugin.synthetic import Dealer
from tests.plugin.test_lines import Turns
from tests.plugin.test_store import put


def ask(line: Line, sql: str) -> list[Any]:
    with closing(sqlite3.connect(line.host.folder / "state" / "store.sqlite")) as connection:
        return connection.execute(sql).fetchall()


def alarms(line: Line) -> list[tuple[Any, ...]]:
    """Times said again, containment, whether it is cleared."""
    return ask(line, "SELECT again, containment, cleared_by IS NOT NULL FROM drift_alarms ORDER BY id")


def contained(line: Line) -> list[tuple[Any, ...]]:
    return ask(line, 'SELECT "after", last, cause FROM containments ORDER BY id')


def standing(line: Line) -> list[dict[str, Any]]:
    return [each for each in line.host.get("/api/v1/alarms")["items"] if each["source"] == "drift"]


def test_an_alarm_stands_once_and_changes_no_code(make_line: Callable[..., Line]) -> None:
    line = make_line("silence_ms = 60000")
    line.beat()
    for n in range(1, 6):
        line.part(f"part-{n:05d}")
    assert not line.bit("drift")
    seq = line.send(s.drift, "", alarm="picture", shift=-6.0)
    s.until(lambda: line.bit("drift"))
    s.until(lambda: alarms(line) == [(0, 1, 0)])
    assert contained(line) == [(2, 5, "drift: edge-1, camera cam-1")], "from the part that the edge names, to now"
    assert "drift at edge-1, camera cam-1: picture (lamp)" in str(s.until(lambda: standing(line))[0])
    assert line.row()["drift"] and line.row()["stop"] is None
    assert "is to be looked at: drift" in " ".join(line.host.get("/healthz")["alarms"])
    assert line.bit("ready") and line.part("after").code == LineCode.PASS, "no verdict follows from drift"
    # The same message, as an edge sends it that heard no acknowledgement; a report that says it goes on; a restart.
    same = s.drift(seq, alarm="picture", shift=-6.0, edge_id=line.edge, spool_id=f"spool-{line.edge}")
    line.dealer.send(s.frames(same, attempt=2))
    line.send(s.drift, "", alarm="rejects")
    s.until(lambda: alarms(line)[0][0] >= 1)
    line.restart()
    line.beat()
    s.until(lambda: line.bit("drift"))
    assert [row[1:] for row in alarms(line)] == [(1, 0)] and len(contained(line)) == 1
    assert line.post("/drift/1/clear") == 303
    s.until(lambda: not line.bit("drift"))
    assert line.post("/drift/1/clear") == 409
    s.until(lambda: standing(line) == [])
    # What has not been mended is another alarm, with a list of its own.
    line.send(s.drift, "", alarm="score", shift=-6.0)
    s.until(lambda: line.bit("drift"))
    s.until(lambda: [row[1:] for row in alarms(line)] == [(1, 1), (2, 0)])


def test_an_event_that_is_sent_again_counts_once(tmp_path: Path) -> None:
    site = Site(tmp_path, sign_in=False)
    dealer = Dealer(site.service.endpoint)
    message = s.drift(1, alarm="picture", shift=3.0)
    for attempt in (1, 2, 3):
        dealer.send(s.frames(message, attempt=attempt))
    dealer.send(s.frames(s.drift(2, shift=3.0)))
    dealer.wait_acked(1, 2)
    rows = site.service.reader.counts()["kinds"]
    with site.service.reader.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT again, cleared_ns FROM drift_alarms").fetchall()
    dealer.close()
    site.stop()
    assert rows == {"drift": 2} and [tuple(row) for row in found] == [(0, None)]


class Ledger(SimpleNamespace):
    """A journal with or without a challenge that was passed before a number."""

    def challenge_passed(self, _line: str, side: str, number: int) -> dict[str, int] | None:
        assert side == "before"
        return self.good if self.good is not None and self.good["number"] < number else None


@pytest.mark.parametrize(
    ("good", "number", "after"),
    [(None, 40, 39), ({"number": 25, "id": 7}, 40, 25), ({"number": 50, "id": 7}, 40, 39)],
    ids=["no check", "a check before the change", "a check after it"],
)
def test_contained_is_from_the_last_good_check_before_the_change(
    good: dict[str, int] | None, number: int, after: int
) -> None:
    ledger = Ledger(good=good, last_number=lambda _line: 60, ledger_id=lambda: "one")
    interval = containment.since_drift(cast(LedgerReader, ledger), "line-1", number, "drift: edge-1, camera cam-1")
    assert (interval.after, interval.last, interval.event) == (after, 60, None)
    assert interval.good_check == (7 if after == 25 else None)


@pytest.fixture
def store(tmp_path: Path, where: Place) -> Iterator[Store]:
    with closing(Store(tmp_path, where=where)) as store:
        yield store


def watch_of(store: Store, reader: Reader, ledger: Any) -> DriftWatch:
    return DriftWatch(reader.engine, ledger, lambda _edge: "line-1", lambda job, _timeout_s=5.0: job(store))


def test_an_alarm_that_fails_keeps_no_other_from_its_list_and_ends_nothing(
    store: Store, where: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def output_of(_edge: str, part: str) -> dict[str, int]:
        if part == "gone":
            raise KeyError(part)
        return {"number": 3}

    asked = {
        "masters": lambda _line: [],
        "last_number": lambda _line: 60,
        "ledger_id": lambda: "one",
        "challenges": lambda *_: iter(()),
    }
    ledger = Ledger(good=None, output_of=output_of, **asked)
    for n, since in enumerate(("gone", "part-00003", "part-00003"), 1):
        put(store, s.frames(s.drift(n, alarm="score", camera_id=f"cam-{n}", since_part_id=since)))
    strange = sa.update(t.drift_alarms).where(t.drift_alarms.c.camera_id == "cam-2").values(detail='{"tests": 1}')
    store.run(lambda connection: connection.execute(strange))
    with closing(Reader(where)) as reader:
        watch = watch_of(store, reader, ledger)
        watch.look()
        watch.look()
    lists = store.run(drift_rows.standing)
    assert [row["containment"] for row in lists] == [None, 1, 2]
    assert watch.of_line("line-1") == (
        "drift at edge-1, camera cam-1: score; drift at edge-1, camera cam-2; drift at edge-1, camera cam-3: score"
    )
    assert caplog.text.count("no list could be opened yet for alarm 1") == 1


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    made = Turns(tmp_path / "ledger.sqlite")
    for n in range(6):
        made.ask("add_master", name=f"dent {n}", expected="reject" if n else "pass", serial=f"dent {n}")
    yield made
    made.end()


def masters(turns: Turns, count: int) -> None:
    for n in range(count):
        turns.part(f"master-{n}", Verdict.REJECT, serial=f"dent {n}")


@pytest.mark.parametrize(
    ("before", "read", "after", "stands"),
    [(40, 6, 0, False), (80, 6, 0, True), (3, 2, 0, True), (0, 6, 1, True)],
    ids=["masters alone", "most are ordinary parts", "two masters", "it came with an ordinary part"],
)
def test_an_alarm_that_master_parts_made_stands_not(
    store: Store, where: Place, turns: Turns, before: int, read: int, after: int, stands: bool
) -> None:
    turns.part("since")
    for n in range(before):
        turns.part(f"part-{n}")
    masters(turns, read)
    for n in range(after):
        turns.part(f"after-{n}", Verdict.REJECT)
    last = f"after-{after - 1}" if after else f"master-{read - 1}"
    put(store, s.frames(s.drift(1, alarm="rejects", since_part_id="since", last_part_id=last)))
    with closing(Reader(where)) as reader:
        watch = watch_of(store, reader, turns.reader)
        watch.look()
        assert (watch.of_line("line-1") is not None) == stands
    (kept,) = store.run(drift_rows.history)
    assert kept["cleared_by"] == (None if stands else "the host: master parts")
    assert (kept["containment"] is not None) == stands


def test_an_alarm_waits_for_its_parts_numbers_and_not_for_ever(
    store: Store, where: Place, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns.part("since")
    put(store, s.frames(s.drift(1, alarm="rejects", since_part_id="since", last_part_id="master-5")))
    with closing(Reader(where)) as reader:
        watch = watch_of(store, reader, turns.reader)
        monkeypatch.setattr(drift_watch, "PATIENCE_S", 1e9)
        watch.look()
        assert watch.of_line("line-1") is None and store.run(drift_rows.standing)
        monkeypatch.setattr(drift_watch, "PATIENCE_S", 0.0)
        watch.look()
        assert watch.of_line("line-1") is not None
    assert store.run(drift_rows.standing)[0]["containment"] == 1


def test_an_edge_has_so_many_alarms_and_others_have_theirs(store: Store, where: Place) -> None:
    cameras = [f"cam-{n}" for n in range(drift_rows.MOST_OF_EDGE + 5)]
    put(store, *(s.frames(s.drift(n, alarm="score", camera_id=name)) for n, name in enumerate(cameras, 1)))
    put(store, s.frames(s.drift(len(cameras) + 1, alarm="score", camera_id="cam-0")))
    put(store, s.frames(s.drift(1, alarm="score", edge_id="edge-2")))
    found = store.run(drift_rows.standing)
    assert [row["edge_id"] for row in found] == ["edge-1"] * drift_rows.MOST_OF_EDGE + ["edge-2"]
    assert found[0]["again"] == 1 and "detail" not in found[0]
    with closing(Reader(where)) as reader:
        assert reader.counts()["kinds"] == {"drift": len(cameras) + 2}, "every event is stored"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def test_engineers_clear_and_inspectors_see(site: Site) -> None:
    dealer = Dealer(site.service.endpoint)
    ivan, eve = site.signed_in("ivan"), site.signed_in("eve")
    assert "No edge has reported yet" in ivan.get("/drift").text
    dealer.send(s.frames(s.state(1, drift="no_baseline", edge_id="edge-9")))
    dealer.wait_acked(1, spool="state-run-1")
    assert "edge-9: its bundle has no baseline" in ivan.get("/drift").text
    dealer.send(s.frames(s.state(2, drift="failed", edge_id="edge-9")))
    dealer.wait_acked(2, spool="state-run-1")
    assert "edge-9: its watch over drift broke" in ivan.get("/drift").text
    dealer.send(s.frames(s.result(1, "part-00003", Verdict.PASS)))
    dealer.send(s.frames(s.drift(2)))
    dealer.send(s.frames(s.drift(3, alarm="picture", shift=-4.0)))
    dealer.wait_acked(1, 2, 3)
    s.until(lambda: site.service._drift.of_line("line-1"))
    page = ivan.get("/drift").text
    assert "the lamp" in page and "-4.0 spreads" in page and "Clear the alarm" not in page
    assert ivan.submit("/drift/1/clear").status_code == 403
    assert "Clear the alarm" in eve.get("/drift").text
    assert eve.submit("/drift/1/clear").status_code == 303
    assert "eve" in ivan.get("/drift").text
    assert eve.submit("/drift/1/clear").status_code == 409
    s.until(lambda: site.service._drift.of_line("line-1") is None)
    dealer.close()


def test_a_share_of_the_scores_that_moved_is_a_reason(site: Site) -> None:
    """A tenth of defective parts does not move the median."""
    dealer = Dealer(site.service.endpoint)
    calm = s.drift(1).measures[-1]
    high = calm.quantiles[-1].model_copy(update={"now": 3.4, "shift": 28.5})
    dealer.send(s.frames(s.drift(1, measures=(calm.model_copy(update={"quantiles": (*calm.quantiles[:2], high)}),))))
    dealer.wait_acked(1)
    page = " ".join(site.signed_in("ivan").get(f"/drift?edge={s.EDGE}").text.split())
    assert "(90.0 % of the parts at most) cam-1" in page and ": 3.4 instead of 0.55, +28.5 spreads" in page
    assert "<td>10.0 %</td><td>0.28</td><td>0.28</td>" in page and page.count(" spreads</li>") == 1
    dealer.close()


def test_the_page_reads_what_it_shows_of_each_camera(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    reports = drift_rows.reports

    def counted(connection: sa.Connection, edge_id: str, limit: int) -> list[Drift]:
        asked.append(limit)
        return reports(connection, edge_id, limit)

    monkeypatch.setattr(drift_rows, "reports", counted)
    ivan, dealer = site.signed_in("ivan"), Dealer(site.service.endpoint)
    dealer.send(s.frames(s.drift(1)))
    dealer.wait_acked(1)
    assert "cam-1" in ivan.get(f"/drift?edge={s.EDGE}").text
    cameras = tuple(CameraState(camera_id=f"cam-{n}", state="running") for n in (1, 2))
    dealer.send(s.frames(s.state(1, cameras=cameras)))
    dealer.wait_acked(1, spool="state-run-1")
    ivan.get("/drift")
    assert asked == [SHOWN, 2 * SHOWN]
    dealer.close()


def test_what_an_edge_calls_itself_is_text_on_the_page(site: Site) -> None:
    dealer = Dealer(site.service.endpoint)
    names = {"edge_id": "<script>x</script>", "camera_id": '"><b>'}
    dealer.send(s.frames(s.drift(1, alarm="score", **names)))
    dealer.wait_acked(1)
    page = site.signed_in("eve").get("/drift").text
    assert "<script>x" not in page and "&lt;script&gt;x" in page and '"><b>' not in page
    dealer.close()
