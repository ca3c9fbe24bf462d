"""Candidates in shadow at the host: added up once, kept apart from every verdict, and shown to engineers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from contract.event import ShadowScore, Verdict
from plugin import shadows
from plugin.database import Place
from plugin.mirror import take_over
from plugin.queries import Reader
from plugin.store import Store
from tests.plugin import synthetic as s
from tests.plugin.people import Site
from tests.plugin.synthetic import Dealer
from tests.plugin.test_store import put

PASS, REJECT, NOT = Verdict.PASS, Verdict.REJECT, Verdict.NOT_INSPECTED


@pytest.fixture
def store(tmp_path: Path, where: Place) -> Iterator[Store]:
    with closing(Store(tmp_path, where=where)) as store:
        yield store


def scores() -> list[ShadowScore]:
    return [
        s.shadow_score("part-00001", PASS, PASS),
        s.shadow_score("part-00002", PASS, REJECT, reason="score \0 1.4 above 1.3"),
        s.shadow_score("part-00003", REJECT, PASS),
        s.shadow_score("part-00004", REJECT, NOT, score=None),
    ]


def test_scores_are_added_up_once_and_no_part_has_another_verdict(store: Store, where: Place) -> None:
    told = {1: PASS, 2: PASS, 3: REJECT, 4: REJECT}
    put(store, *(s.frames(s.result(n, verdict=verdict)) for n, verdict in told.items()))
    event = s.frames(s.shadow(5, scores()))
    assert put(store, event, event) == ["new", "duplicate"]
    assert put(store, event) == ["duplicate"]
    assert put(store, s.frames(s.shadow(6, scores()[:1], offered=9, scored=5, dropped=4))) == ["new"]
    (found,) = store.run(shadows.candidates)
    assert (found.edge_id, found.recipe, found.name) == (s.EDGE, "washer", "washer-next, cal-8 | washer, cal-7")
    assert found.counts == {("PASS", "PASS"): 2, ("PASS", "REJECT"): 1, ("REJECT", "PASS"): 1, ("REJECT", NOT): 1}
    assert (found.changed.hits, found.changed.total, found.passes, found.flags, found.unlike) == (2, 4, 1, 1, 1)
    (run,) = store.run(shadows.runs)
    assert (run["offered"], run["scored"], run["dropped"], run["trouble"]) == (9, 5, 4, None)
    changes = store.run(lambda connection: shadows.changes(connection, 10))
    assert [change["part_id"] for change in changes] == ["part-00004", "part-00003", "part-00002"]
    with closing(Reader(where)) as reader:
        parts = {part["part_id"]: part for part in reader.parts(0, 10)}
    assert [change["number"] for change in changes] == [parts[change["part_id"]]["id"] for change in changes]
    assert {number: parts[f"part-{number:05d}"]["verdict"] for number in told} == told


def test_master_parts_are_in_no_figure(store: Store) -> None:
    detail = {"master": "dent", "reason": "master part dent"}
    read = {"id": 1, "kind": "master", "line": "line-1", "number": 3, "who": "the line", "t_wall_ns": 1}
    rows = [{**read, "edge_id": s.EDGE, "part_id": "part-00003", "detail": detail}]
    rows.append({**read, "id": 2, "edge_id": "edge-2", "part_id": "part-00002", "detail": detail})
    store.run(lambda connection: take_over(connection, rows))
    put(store, s.frames(s.shadow(1, scores())))
    (found,) = store.run(shadows.candidates)
    assert found.counts == {("PASS", "PASS"): 1, ("PASS", "REJECT"): 1, ("REJECT", NOT): 1}
    changes = store.run(lambda connection: shadows.changes(connection, 10))
    assert [change["part_id"] for change in changes] == ["part-00004", "part-00002"]
    (run,) = store.run(shadows.runs)
    assert run["scored"] == 4, "a run's counts are the edge's"


def test_an_older_count_that_comes_late_changes_nothing(store: Store) -> None:
    put(store, s.frames(s.shadow(2, offered=9, scored=9)), s.frames(s.shadow(1, offered=3, scored=3)))
    (run,) = store.run(shadows.runs)
    assert run["offered"] == 9


def test_other_limits_are_another_candidate_and_one_that_did_not_open_says_why(store: Store) -> None:
    put(store, s.frames(s.shadow(1, scores()[:1])), s.frames(s.shadow(2, scores()[:1], calibration_id="cal-9")))
    failed = {"bundle_id": None, "calibration_id": None, "trouble": "candidate: no such folder\0", "run_id": "run-2"}
    put(store, s.frames(s.shadow(3, **failed, offered=2, dropped=2)))
    names = [found.bundle for found in store.run(shadows.candidates)]
    assert sorted(names) == ["washer-next, cal-8", "washer-next, cal-9"]
    troubles = {run["run_id"]: run["trouble"] for run in store.run(shadows.runs)}
    assert troubles == {"run-1": None, "run-2": "candidate: no such folder\ufffd"}


def test_beside_another_bundle_of_the_line_the_figures_begin_anew(store: Store) -> None:
    put(store, s.frames(s.shadow(1, scores()[:1])), s.frames(s.shadow(2, scores()[1:], beside_calibration_id="cal-9")))
    put(store, s.frames(s.shadow(3, scores()[:2], beside_bundle_id=None, beside_calibration_id=None)))
    found = {each.beside: sum(each.counts.values()) for each in store.run(shadows.candidates)}
    assert found == {"washer, cal-7": 1, "washer, cal-9": 3, "": 2}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


def test_the_page_leads_to_the_parts_and_is_for_engineers(site: Site) -> None:
    eve = site.signed_in("eve")
    assert "No station has a model in shadow" in eve.get("/candidates").text
    dealer = Dealer(site.service.endpoint)
    for n in range(1, 5):
        dealer.send(s.frames(s.result(n, verdict=PASS if n < 3 else REJECT)))
    dealer.send(s.frames(s.shadow(5, scores(), recipe="<b>washer", dropped=7, offered=11)))
    dealer.wait_acked(*range(1, 6), timeout_s=60)
    dealer.close()
    text = eve.get("/candidates").text
    number = next(part["id"] for part in site.service.reader.parts(0, 10) if part["part_id"] == "part-00002")
    assert f'<a href="/parts/{number}">part-00002</a>' in text and "part-00001" not in text
    assert "&lt;b&gt;washer" in text and "<b>washer" not in text
    assert ">11<" in text and ">7<" in text
    assert eve.get(f"/parts/{number}").status_code == 200
    assert 'href="/candidates"' in eve.get("/figures").text
    ivan = site.signed_in("ivan")
    assert ivan.get("/candidates").status_code == 403
    assert 'href="/candidates"' not in ivan.get("/figures").text
    assert site.browser().get("/candidates").status_code in (302, 303)


def test_events_of_candidates_are_there_for_programs(site: Site) -> None:
    dealer = Dealer(site.service.endpoint)
    dealer.send(s.frames(s.shadow(1, scores())))
    dealer.wait_acked(1, timeout_s=60)
    dealer.close()
    (event,) = site.signed_in("eve").get("/api/v1/events?kind=shadow").json()["items"]
    assert event["kind"] == "shadow" and event["part_id"] is None
