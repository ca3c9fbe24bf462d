"""The figures: counted once and kept up, defined as the page says, in the plant's own days, safe as CSV and SVG."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contract.event import Verdict
from plugin import figures, tally
from plugin.control_chart import p_chart, pareto
from plugin.database import Place
from plugin.figures import Ages, Calendar, sums
from plugin.looks import Known, Pair
from plugin.review import charts, figure_pages
from plugin.review.figure_pages import as_csv
from plugin.settings import QualitySettings
from plugin.store import LOST, Store
from plugin.tally import QUARTER_S, Counted
from tests.plugin import synthetic as s
from tests.plugin.people import Site
from tests.plugin.synthetic import Dealer
from tests.plugin.test_store import put

EVERYTHING = (0, 2**50)


@pytest.fixture
def store(tmp_path: Path, where: Place) -> Iterator[Store]:
    with closing(Store(tmp_path, where=where)) as store:
        yield store


def counted(store: Store) -> dict[tuple[str, str, bool, str, str], int]:
    while store.run(lambda c: tally.add_up(c, 3)):
        pass
    assert store.run(tally.waiting_to_count) == 0
    found: dict[tuple[str, str, bool, str, str], int] = {}
    for row in store.run(lambda c: tally.counted(c, *EVERYTHING)):
        key = (row.recipe, row.verdict, row.audited, row.review, row.defect_class)
        found[key] = found.get(key, 0) + row.n
    return found


def test_every_part_that_ended_is_counted_once_and_again_as_it_is_judged(store: Store) -> None:
    put(store, *(s.frames(s.result(n)) for n in range(1, 9)))
    put(store, s.frames(s.result(9, verdict=Verdict.REJECT)), s.frames(s.result(10, audited=True, audit_share=0.1)))
    put(store, s.frames(s.trigger(11)), s.frames(s.missed(12)))
    before = {
        ("washer", "PASS", False, "", ""): 8,
        ("washer", "REJECT", False, "", ""): 1,
        ("washer", "PASS", True, "", ""): 1,
        ("", "NOT_INSPECTED", False, "", ""): 1,
    }
    assert counted(store) == before
    assert counted(store) == before
    store.review(9, "defect", "Ada", defect_class="dent")
    store.review(10, "good", "Ada")
    after = counted(store)
    assert after.pop(("washer", "REJECT", False, "defect", "dent")) == 1
    assert after.pop(("washer", "PASS", True, "good", "")) == 1
    assert after == {("washer", "PASS", False, "", ""): 8, ("", "NOT_INSPECTED", False, "", ""): 1}
    store.review(9, "undo", "Ada")
    assert counted(store)[("washer", "REJECT", False, "", "")] == 1


def test_a_master_part_counts_as_nothing_whenever_it_is_marked(store: Store) -> None:
    put(store, *(s.frames(s.result(n, verdict=Verdict.REJECT)) for n in range(1, 4)))

    def mark(part: int) -> None:
        store.run(lambda c: c.execute(sa.update(tally.t.parts).where(tally.p.id == part).values(master="scratch-0.3")))

    mark(1)
    assert counted(store) == {("washer", "REJECT", False, "", ""): 2}
    mark(2)
    assert counted(store) == {("washer", "REJECT", False, "", ""): 1}


def test_a_part_that_was_thought_lost_is_counted_anew_when_its_end_comes(store: Store) -> None:
    put(store, s.frames(s.trigger(1, "late")))
    put(store, s.frames(s.state(1, events_spool_id="spool-2", settled=True)))
    assert LOST and counted(store) == {("", "NOT_INSPECTED", False, "", ""): 1}
    put(store, s.frames(s.result(2, "late")))
    assert counted(store) == {("washer", "PASS", False, "", ""): 1}


def test_what_is_due_is_found_by_its_index(store: Store, where: Place) -> None:
    put(store, *(s.frames(s.result(n)) for n in range(1, 41)))
    counted(store)
    ours = isinstance(where, Path)

    def plan(connection: sa.Connection) -> str:
        if not ours:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # of so few parts all would be read
        explain = "EXPLAIN QUERY PLAN" if ours else "EXPLAIN"
        return str(
            connection.exec_driver_sql(f"{explain} SELECT id FROM parts WHERE {tally.t.UNTALLIED} ORDER BY id").all()
        )

    assert "parts_untallied" in store.run(plan)


def row(verdict: str, n: int, review: str = "", **more: Any) -> Counted:
    return Counted(
        **{"quarter": 0, "edge_id": "e", "recipe": "r", "audited": False, "defect_class": "", **more},
        verdict=verdict,
        review=review,
        n=n,
    )


def test_the_rates_by_hand() -> None:
    passed = [
        row("PASS", 900),
        row("PASS", 30, "good", audited=True),
        row("PASS", 10, "defect", audited=True),
        row("PASS", 60, audited=True),
    ]
    rejected = [row("REJECT", 30, "defect"), row("REJECT", 10, "good"), row("REJECT", 15, "disputed")]
    others = [row("REVIEW", 40), row("REVIEW", 5, "unsure"), row("NOT_INSPECTED", 7)]
    total = sums([*passed, *rejected, *others])
    assert (total.inspected, total.flagged, total.unsure, total.disputed, total.drawn) == (1100, 100, 5, 15, 100)
    assert total.false_calls[:3] == (10, 40, 0.25)
    assert total.escapes[:3] == (10, 40, 0.25)
    # 0.25 * 100 flagged are good; of 1000 that passed 750 are
    assert total.overkill.rate == pytest.approx(25 / 775)
    # 0.25 * 1000 escaped; 75 of those flagged are defects
    assert total.escaped.rate == pytest.approx(250 / 325)
    assert total.escaped.low is not None and total.escaped.high is not None
    assert total.escaped.low < 250 / 325 < total.escaped.high


def test_an_audit_that_found_nothing_never_says_nothing_escapes() -> None:
    total = sums([row("PASS", 950), row("PASS", 50, "good", audited=True), row("REJECT", 10, "defect")])
    assert total.escapes.rate == 0.0
    assert total.escapes.high == pytest.approx(3.8415 / 53.8415, abs=1e-4)
    assert total.escaped.high is not None and total.escaped.high > 0.5  # 71 of 1000 may have, beside 10 found
    every = sums([row("REJECT", 5, "good")])
    assert (every.false_calls.rate, every.false_calls.high) == (1.0, 1.0)
    assert every.false_calls.low == pytest.approx(5 / 8.8415, abs=1e-4)


def test_without_an_audit_or_a_verdict_nothing_is_known() -> None:
    total = sums([row("PASS", 100), row("REJECT", 10)])
    assert total.false_calls.rate is None and total.overkill == total.escaped == figures.Estimate()
    assert sums([]).inspected == 0 and sums([]).escapes.rate is None


def test_shifts_and_days_are_the_plant_s() -> None:
    calendar = Calendar(QualitySettings(shifts=["early 06:00", "late 14:00", "night 22:00"], timezone="Europe/Berlin"))
    begin = calendar.begin_of(date(2026, 3, 29))  # the clocks go forward in this night: the day has 23 hours
    assert calendar.begin_of(date(2026, 3, 30)) - begin == 23 * 3600 // QUARTER_S
    assert calendar.shift_of(begin) == (date(2026, 3, 28), "night")
    assert calendar.label(begin, "shift") == "2026-03-28 night"
    at_six = begin + 5 * 4  # 06:00 by the clock comes after five hours
    assert calendar.label(at_six, "hour") == "2026-03-29 06:00"
    assert [calendar.shift_of(at_six + n)[1] for n in (-1, 0, 31, 32)] == ["night", "early", "early", "late"]
    assert Calendar(QualitySettings()).shift_of(0) == (date(1970, 1, 1), "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"shifts": ["late 14:00", "early 06:00"]},
        {"shifts": ["a 06:10"]},
        {"shifts": ["a 06:00", "a 14:00"]},
        {"timezone": "Mars/One"},
    ],
)
def test_wrong_shifts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shifts|timezone"):
        QualitySettings(**wrong)


def test_the_age_of_what_waits() -> None:
    rows = [
        row("REJECT", 8, quarter=10),
        row("REVIEW", 1, quarter=2),
        row("PASS", 1, quarter=0, audited=True),
        row("PASS", 99),
        row("REJECT", 9, "good"),
    ]
    found = figures.queue_ages(rows, 11 * QUARTER_S)
    assert found == Ages(10, 0.5 * QUARTER_S, 8.5 * QUARTER_S, 10.5 * QUARTER_S)
    assert figures.queue_ages([], 0) == Ages(0, None, None, None)


def test_inspectors_against_each_other_and_against_the_truth() -> None:
    pairs = [
        Pair(1, "ada", "good", "ben", "good"),
        Pair(2, "ben", "defect", "ada", "good"),
        Pair(3, "ada", "defect", "cem", "defect"),
    ]
    known = [
        Known("ada", "defect", "good"),
        Known("ada", "defect", "defect"),
        Known("ada", "good", "good"),
        Known("ada", "good", "unsure"),
    ]
    ada, ben, cem = figures.inspectors(pairs, known)
    assert (ada.name, ada.kappa.n, ada.missed[:2], ada.false_calls[:2], ada.unsure) == ("ada", 3, (1, 2), (0, 1), 1)
    # ada's three: (good, good), (good, defect), (defect, defect): observed 2/3, by chance (2*1 + 1*2) / 9
    assert ada.kappa.kappa == pytest.approx((2 / 3 - 4 / 9) / (5 / 9))
    assert (ben.kappa.n, ben.missed.rate, cem.kappa.kappa) == (2, None, None)
    assert [(each.first, each.second, each.table) for each in figures.couples(pairs)] == [
        ("ada", "ben", [[1, 1], [0, 0]]),
        ("ada", "cem", [[0, 0], [0, 1]]),
    ]
    assert figures.overall(pairs).n == 3


def test_a_text_that_a_spreadsheet_would_run_is_given_as_a_text() -> None:
    body = bytes(as_csv([["=1+1", "@x", "a,b", 0.5, None]], "x.csv").body).decode("utf-8-sig")
    assert list(csv.reader(io.StringIO(body))) == [["'=1+1", "'@x", "a,b", "0.5", ""]]


def test_charts_take_no_name_for_markup_and_keep_within_their_frame() -> None:
    evil = '"><script>alert(1)</script>'
    drawn = [
        charts.pareto_chart(pareto({evil: 3, "dent": 1}), evil),
        charts.control([evil, "b"], p_chart([(1, 10), (9, 10)]), evil),
        charts.stacked([charts.Bar(evil, [("pass", 3), ("reject", 0)])], evil),
        charts.stacked([], "none"),
        charts.control([], p_chart([]), "none"),
    ]
    assert all("<script" not in each for each in drawn)
    for value in (0.004, 0.05, 0.3, 1, 7, 10, 11, 1234, 99_999):
        assert value <= charts._ceiling(value) <= 10 * value
    for count in [*range(1, 200), 999, 1001, 123_456, 10**9]:
        top = charts._count_ceiling(count)
        assert count <= top <= max(4, 2 * count) and top % 4 == 0, "parts are whole"
    assert charts._count_ceiling(0) == 4


@pytest.mark.parametrize("far", [1e16, 1e308, float("inf"), -1e308, float("-inf")])
def test_what_no_axis_can_hold_is_drawn_at_its_end(far: float) -> None:
    drawn = charts.band([0.0, far], "shift")
    edge = charts.SMALL_H * (0.04 if far > 0 else 0.96)
    assert f'cy="{edge:.1f}"' in drawn and len(drawn) < 2000


def test_what_was_never_found_is_no_nothing_in_a_file() -> None:
    total = sums([row("PASS", 950), row("PASS", 50, "good", audited=True), row("REJECT", 10, "defect")])
    head, cells = figure_pages._rates([("all", "", total)])
    shown = dict(zip(head, cells, strict=True))
    assert (shown["defective_passes_n"], shown["defective_passes_of"], shown["defective_passes_rate"]) == (0, 50, None)
    assert shown["defective_passes_high"] == pytest.approx(3.8415 / 53.8415, abs=1e-4)
    assert shown["escaped"] is None and shown["escaped_high"] > 0.5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("figures"))
    dealer = Dealer(site.service.endpoint)
    for n in range(1, 31):
        verdict = Verdict.REJECT if n % 3 == 0 else Verdict.PASS
        dealer.send(s.frames(s.result(n, verdict=verdict, recipe="<b>washer")))
    dealer.wait_acked(*range(1, 31))
    dealer.close()
    host = site.service.app.state.host
    host.decide(3, "defect", "ada", defect_class='=cmd|"<i>')
    host.decide(6, "good", "ada")
    host.write(lambda store: store.run(tally.add_up))
    yield site
    site.stop()


DAY = "from=2026-09-21&to=2026-09-21"


def test_the_page_of_figures_shows_what_was_counted_for_whoever_may_see_it(site: Site) -> None:
    ivan = site.signed_in("ivan")
    text = ivan.get(f"/figures?{DAY}").text
    assert text.count("<svg") == 3 and "<b>30</b>" in text
    assert "<b>washer" not in text and "&lt;b&gt;washer" in text and "<i>" not in text
    assert ivan.get(f"/figures?{DAY}&recipe=other").text.count("<svg") == 0
    assert ivan.get("/figures?from=2026-09-21&to=2026-09-20").status_code == 422
    assert ivan.get("/figures?from=1971-01-01&to=2026-09-20").status_code == 422
    assert ivan.get("/figures?from=9999-12-31&to=9999-12-31").status_code == 422
    assert ivan.get("/inspectors").status_code == 403
    assert site.signed_in("eve").get("/inspectors").status_code == 200
    assert site.browser().get("/figures").status_code in (302, 303)


def table(site: Site, name: str) -> list[dict[str, str]]:
    answer = site.signed_in("eve").get(f"/{name}?{DAY}")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))


def test_each_table_is_there_as_csv(site: Site) -> None:
    (hour,) = table(site, "figures/time.csv")
    assert (hour["hour"][:10], hour["pass"], hour["reject"]) == ("2026-09-21", "20", "10")
    rates = table(site, "figures/rates.csv")
    assert [(each["by"], each["inspected"], each["false_calls_of"]) for each in rates][:2] == [
        ("all", "30", "2"),
        ("line", "30", "2"),
    ]
    assert (rates[0]["false_calls_rate"], rates[0]["defective_passes_rate"]) == ("0.5", "")
    (point,) = table(site, "figures/chart.csv")
    assert (point["flagged"], point["inspected"], point["limits"]) == ("10", "30", "p")
    (cause,) = table(site, "figures/classes.csv")
    assert (cause["class"], cause["defects"]) == ("'=cmd|\"<i>", "1")
    assert [(each["station"], each["waiting"]) for each in table(site, "figures/queue.csv")] == [
        ("", "8"),
        (s.EDGE, "8"),
    ]
    assert table(site, "inspectors/inspectors.csv") == table(site, "inspectors/couples.csv") == []
