"""The page of drift: per camera the evidence against its line, and the measures beside their usual band (hop 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from markupsafe import Markup

from contract.event import Drift, DriftMeasure
from plugin import drift_rows
from plugin.review import charts
from plugin.review.api import DEFAULT_NAME, Row, host_of
from plugin.review.pages import name_of, page, when
from plugin.review.signin import ENGINEER, INSPECTOR, viewer_of
from plugin.review.slips import Quality
from plugin.review.texts import Texts, texts_of

REPORTS = 2000
SHOWN = 300
MEDIAN = 0.5
Words = Annotated[str, Query(max_length=100)]
router = APIRouter(include_in_schema=False)


class Measure(NamedTuple):
    """One measure: how it stands in the last report, and its chart."""

    now: DriftMeasure
    chart: Markup


class Moved(NamedTuple):
    """One reason: a measure's median, or a ``share`` of it, that is off by a spread or more."""

    measure: DriftMeasure
    share: float | None
    now: float
    usual: float
    shift: float


class Camera(NamedTuple):
    """One camera: its last report, its alarm that stands, its charts; ``moved`` is sorted by how far."""

    last: Drift
    alarm: dict[str, Any] | None
    evidence: Markup
    measures: list[Measure]
    moved: list[Moved]


@router.get("/drift", dependencies=[INSPECTOR])
def drift(request: Request, edge: Words = "") -> Response:
    host, viewer, texts = host_of(request), viewer_of(request), texts_of(request)
    ask = _quality(request).ask
    stations, standing = ask(drift_rows.stations), ask(drift_rows.standing)
    edges = {str(each["edge_id"]): each for each in host.reader.edges()}
    said = {name: each.get("drift", "unknown") for name, each in edges.items()}
    chosen = edge or next((str(each["edge_id"]) for each in standing), next(iter(stations), ""))
    found = ask(lambda connection: drift_rows.reports(connection, chosen, _reports_of(edges.get(chosen, {}))))
    alarms = {
        each["camera_id"]: {**each, "detail": ask(partial(drift_rows.detail, alarm=each["id"]))}
        for each in standing
        if each["edge_id"] == chosen
    }
    cameras = [
        camera_of([each for each in found if each.camera_id == name], alarms.get(name), texts)
        for name in sorted({each.camera_id for each in found})
    ]
    return page(
        request,
        "drift.html",
        tab="drift",
        stations=stations,
        chosen=chosen,
        cameras=cameras,
        standing=standing,
        alarms=ask(drift_rows.history),
        said=said,
        engineer=viewer is None or viewer.may("engineer"),
    )


@router.post("/drift/{number}/clear", dependencies=[ENGINEER])
def clear(request: Request, number: Row) -> Response:
    who = name_of(request) or DEFAULT_NAME
    host = host_of(request)
    if not host.write(lambda store: store.run(lambda connection: drift_rows.clear(connection, number, who))):
        raise HTTPException(409, texts_of(request)("drift.not_standing"))
    if host.drift is not None:
        host.drift.cleared(number)
    return RedirectResponse("/drift", 303)


def camera_of(reports: Sequence[Drift], alarm: dict[str, Any] | None, texts: Texts) -> Camera:
    """What a camera's reports show, oldest first, beside its alarm that stands."""
    shown = reports[-SHOWN:]
    last = shown[-1]
    labels = [when(each.t_wall_ns)[5:16] for each in shown]
    names = [test.name for test in last.tests]
    lines = [
        (name, [next((test.evidence for test in each.tests if test.name == name), None) for each in shown])
        for name in names
    ]
    # Of an alarm that stands the reasons are those of its moment: by now the line may have been mended.
    told = last.measures
    if alarm is not None:
        told = tuple(DriftMeasure.model_validate(each) for each in alarm["detail"].get("measures", ()))
    return Camera(
        last,
        alarm,
        charts.evidence(labels, lines, texts("drift.evidence"), texts("drift.line")),
        [Measure(each, _chart(each, shown, texts)) for each in last.measures],
        sorted(
            (each for measure in told for each in _reasons(measure) if abs(each.shift) >= 1),
            key=lambda each: -abs(each.shift),
        ),
    )


def _reasons(measure: DriftMeasure) -> Iterator[Moved]:
    """The median, and whatever other share of the parts is told."""
    yield Moved(measure, None, measure.now, measure.usual, measure.shift)
    for each in measure.quantiles:
        if each.share != MEDIAN:
            yield Moved(measure, each.share, each.now, each.usual, each.shift)


def _chart(measure: DriftMeasure, reports: Sequence[Drift], texts: Texts) -> Markup:
    """Its shift over time, in spreads."""
    found = [next((each.shift for each in one.measures if each.name == measure.name), None) for one in reports]
    title = f"{texts.among('drift_what', measure.what)}, {measure.name}"
    return charts.band(found, title)


def _reports_of(edge: dict[str, Any]) -> int:
    """So many are read: what is shown of as many cameras as its heartbeat names."""
    return min(REPORTS, SHOWN * max(1, len(edge.get("cameras", ()))))


def _quality(request: Request) -> Quality:
    quality = host_of(request).quality
    if quality is None:
        raise HTTPException(404, texts_of(request)("error.no_page"))
    return quality
