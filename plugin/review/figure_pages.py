"""The pages of figures, their charts beside their tables, and each table as CSV (hop 11)."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response

from contract.stats import Rate
from plugin import figures, looks, tally
from plugin.figures import Calendar, Sums
from plugin.review import charts
from plugin.review.api import host_of
from plugin.review.pages import page
from plugin.review.signin import ENGINEER, INSPECTOR
from plugin.review.slips import Quality
from plugin.review.texts import Texts, texts_of
from plugin.tally import Counted

MAX_DAYS, USUAL_DAYS = 400, 7
MAX_GROUPS = 500
Words = Annotated[str, Query(max_length=100)]
Table = Literal["time", "rates", "chart", "classes", "queue"]
PeopleTable = Literal["inspectors", "couples"]
Rows = list[list[Any]]
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Filter:
    """What the figures are asked of: local days, both included, and names, empty for all."""

    since: date
    until: date
    line: str
    station: str
    recipe: str
    shift: str
    by: figures.By


def asked(
    request: Request,
    since: Annotated[date | None, Query(alias="from")] = None,
    until: Annotated[date | None, Query(alias="to")] = None,
    line: Words = "",
    station: Words = "",
    recipe: Words = "",
    shift: Words = "",
    by: Literal["", "hour", "shift", "day"] = "",
) -> Filter:
    """The filter of a request; without days the last seven, an empty ``by`` as fits their number."""
    calendar = Calendar(_quality(request).settings)
    last = until or calendar.at(int(time.time()) // tally.QUARTER_S).date()
    first = since or last - timedelta(days=USUAL_DAYS - 1)
    days = (last - first).days + 1
    if not 1 <= days <= MAX_DAYS or not 1971 <= first.year <= last.year <= 9000:
        raise HTTPException(422, texts_of(request)("figures.days", n=MAX_DAYS))
    usual: figures.By = "hour" if days <= 2 else "shift" if calendar.shifts and days <= 31 else "day"
    chosen = by or usual
    return Filter(first, last, line, station, recipe, shift, "day" if chosen == "hour" and days > 20 else chosen)


Asked = Annotated[Filter, Depends(asked)]


class Found:
    """The sums that a filter leaves, by quarter, and what every table of the page is made of."""

    def __init__(self, quality: Quality, asked: Filter) -> None:
        self.calendar = Calendar(quality.settings)
        self.asked = asked
        self.stations, self.recipes = quality.ask(tally.names)
        self.line_of = {name: _line(quality, name) for name in self.stations}
        edges = [
            name for name in self.stations if asked.station in ("", name) and asked.line in ("", self.line_of[name])
        ]
        begin = self.calendar.begin_of(asked.since)
        end = self.calendar.begin_of(asked.until + timedelta(days=1))
        self.shift_of = cache(lambda quarter: self.calendar.shift_of(quarter)[1])
        self.label = cache(lambda quarter: self.calendar.label(quarter, asked.by))
        wanted = quality.ask(lambda connection: tally.counted(connection, begin, end, edges, asked.recipe or None))
        self.rows = [row for row in wanted if asked.shift in ("", self.shift_of(row.quarter))]
        self.groups = figures.grouped(self.rows, lambda row: str(self.label(row.quarter)))
        self.inspected = {name: each for name, each in self.groups.items() if each.inspected}
        self.chart = figures.rejects_chart(list(self.inspected.values()))

    def rates(self, texts: Texts) -> list[tuple[str, str, Sums]]:
        """(kind, name, sums): all together, and by line, station, recipe and shift."""
        found = [("all", "", figures.sums(self.rows))]
        keys: dict[str, Callable[[Counted], str]] = {
            "line": lambda row: self.line_of[row.edge_id],
            "station": lambda row: row.edge_id,
            "recipe": lambda row: row.recipe or texts("figures.no_recipe"),
            "shift": lambda row: self.shift_of(row.quarter),
        }
        for kind, key in keys.items():
            groups = figures.grouped(self.rows, key)
            found += [(kind, name, each) for name, each in groups.items() if name or len(groups) > 1]
        return found

    def marked(self) -> list[tuple[str, str]]:
        """(label, what is marked of it) of the chart's points, the newest first."""
        points = zip(self.inspected, self.chart.points, strict=True)
        kinds = [(name, "outside" if each.outside else "run") for name, each in points if each.outside or each.run]
        return kinds[::-1]


@router.get("/figures", dependencies=[INSPECTOR])
def page_of_figures(request: Request, asked: Asked) -> Response:
    quality, texts = _quality(request), texts_of(request)
    found = Found(quality, asked)
    causes = figures.classes(found.rows, texts("figures.no_class"))
    names = ("PASS", "REVIEW", "REJECT", "NOT_INSPECTED")
    bars = [
        charts.Bar(label, [(name.lower(), each.verdicts[name]) for name in names])
        for label, each in found.groups.items()
    ]
    return page(
        request,
        "figures.html",
        tab="figures",
        asked=asked,
        query=urlencode(_query(asked)),
        names=names,
        found=found,
        lines=sorted({*found.line_of.values()}),
        rates=found.rates(texts),
        total=figures.sums(found.rows),
        time_chart=charts.stacked(bars, texts("figures.time")),
        control_chart=charts.control(list(found.inspected), found.chart, texts("figures.chart")),
        pareto_chart=charts.pareto_chart(causes, texts("figures.classes")),
        causes=causes,
        ages=_ages(quality, asked),
        behind=quality.ask(tally.waiting_to_count),
        shown=MAX_GROUPS,
    )


@router.get("/figures/{table}.csv", dependencies=[INSPECTOR])
def table_of_figures(request: Request, table: Table, asked: Asked) -> Response:
    quality, texts = _quality(request), texts_of(request)
    found = Found(quality, asked)
    tables: dict[str, Callable[[], Rows]] = {
        "time": lambda: _time(found),
        "rates": lambda: _rates(found.rates(texts)),
        "chart": lambda: _chart(found),
        "classes": lambda: [
            ["class", "defects", "cumulative_share"],
            *([*each] for each in figures.classes(found.rows, texts("figures.no_class"))),
        ],
        "queue": lambda: [
            ["station", "waiting", "median_s", "p90_s", "oldest_s"],
            *([name, *each] for name, each in _ages(quality, asked)),
        ],
    }
    return as_csv(tables[table](), f"flawline-{table}-{asked.since}-{asked.until}.csv")


@router.get("/inspectors", dependencies=[ENGINEER])
def page_of_inspectors(request: Request, asked: Asked) -> Response:
    pairs, known = _opinions(request, asked)
    return page(
        request,
        "inspectors.html",
        tab="inspectors",
        asked=asked,
        query=urlencode(_query(asked)),
        people=figures.inspectors(pairs, known),
        couples=figures.couples(pairs),
        overall=figures.overall(pairs),
        quality=_quality(request),
    )


@router.get("/inspectors/{table}.csv", dependencies=[ENGINEER])
def table_of_inspectors(request: Request, table: PeopleTable, asked: Asked) -> Response:
    pairs, known = _opinions(request, asked)
    kappa = ["parts", "observed", "by_chance", "kappa", "kappa_low", "kappa_high"]
    rows: Rows
    if table == "couples":
        rows = [["first", "second", "good_good", "good_defect", "defect_good", "defect_defect", *kappa]]
        rows += [
            [each.first, each.second, *each.table[0], *each.table[1], *each.kappa] for each in figures.couples(pairs)
        ]
    else:
        rows = [["inspector", *kappa, *_rate_names("missed"), *_rate_names("false_calls"), "unsure_of_known"]]
        rows += [
            [each.name, *each.kappa, *_shown(each.missed), *_shown(each.false_calls), each.unsure]
            for each in figures.inspectors(pairs, known)
        ]
    return as_csv(rows, f"flawline-{table}-{asked.since}-{asked.until}.csv")


def as_csv(rows: Rows, name: str) -> Response:
    """A table as a file; a text that a spreadsheet would run as a formula is given as a text."""
    file = io.StringIO()
    csv.writer(file).writerows([[_cell(each) for each in row] for row in rows])
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response("\ufeff" + file.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


def _time(found: Found) -> Rows:
    names = list(figures.VERDICTS)
    return [
        [found.asked.by, *(name.lower() for name in names)],
        *([label, *(each.verdicts[name] for name in names)] for label, each in found.groups.items()),
    ]


def _rate_names(name: str) -> list[str]:
    return [f"{name}_{part}" for part in ("n", "of", "rate", "low", "high")]


def _shown(share: Rate | figures.Estimate) -> list[Any]:
    """A share for a file: where nothing was found the upper end stands alone, for nobody is to read that it is 0."""
    return [None if name == "rate" and value == 0 else value for name, value in share._asdict().items()]


def _rates(rates: Sequence[tuple[str, str, Sums]]) -> Rows:
    head = ["by", "name", "inspected", "not_inspected", "flagged", *_rate_names("false_calls")]
    head += ["overkill", "overkill_low", "overkill_high", "audited", *_rate_names("defective_passes")]
    head += ["escaped", "escaped_low", "escaped_high", "unsure", "disputed"]
    rows: Rows = [head]
    for kind, name, each in rates:
        counts = [
            each.inspected,
            each.verdicts["NOT_INSPECTED"],
            each.flagged,
            *_shown(each.false_calls),
            *_shown(each.overkill),
        ]
        rows.append(
            [kind, name, *counts, each.drawn, *_shown(each.escapes), *_shown(each.escaped), each.unsure, each.disputed]
        )
    return rows


def _chart(found: Found) -> Rows:
    head = [found.asked.by, "flagged", "inspected", "share", "low", "high", "outside", "run", "limits"]
    points = zip(found.inspected, found.chart.points, strict=True)
    return [head, *([label, *point, found.chart.kind] for label, point in points)]


def _ages(quality: Quality, asked: Filter) -> list[tuple[str, figures.Ages]]:
    """Of everything that waits, whenever it was captured: all together and by station."""
    rows = quality.ask(tally.waiting)
    rows = [row for row in rows if asked.station in ("", row.edge_id) and asked.recipe in ("", row.recipe)]
    now_s = time.time()
    found = [("", figures.queue_ages(rows, now_s))]
    for name in sorted({row.edge_id for row in rows}):
        found.append((name, figures.queue_ages([row for row in rows if row.edge_id == name], now_s)))
    return found


def _opinions(request: Request, asked: Filter) -> tuple[list[looks.Pair], list[looks.Known]]:
    quality = _quality(request)
    calendar = Calendar(quality.settings)
    begin = calendar.begin_of(asked.since) * tally.QUARTER_NS
    end = calendar.begin_of(asked.until + timedelta(days=1)) * tally.QUARTER_NS
    return quality.ask(lambda each: (looks.pairs(each, begin, end), looks.known_answers(each, begin, end)))


def _query(asked: Filter) -> dict[str, str]:
    plain = {"from": asked.since, "to": asked.until, "line": asked.line, "station": asked.station}
    plain |= {"recipe": asked.recipe, "shift": asked.shift, "by": asked.by}
    return {name: str(value) for name, value in plain.items() if value}


def _line(quality: Quality, edge_id: str) -> str:
    return next((line.id for line in quality.lines if edge_id in line.edges), quality.lines[0].id)


def _quality(request: Request) -> Quality:
    quality = host_of(request).quality
    if quality is None:
        raise HTTPException(404, texts_of(request)("error.no_page"))
    return quality
