"""The inspector's pages: queue, part, not inspected, counts (hop 11), and the verdict's form (hop 12)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.templating import Jinja2Templates

from contract.stats import Rate
from plugin.queries import Reader
from plugin.review.api import DEFAULT_NAME, After, Comment, Dwell, Inspector, Row, Seen, desk_of, host_of, station_of
from plugin.review.host import MOST_WAITING, Host
from plugin.review.offers import blindly, disputes, offered
from plugin.review.signin import INSPECTOR, INSPECTOR_BACKGROUND, OPEN, Viewer, viewer_of
from plugin.review.texts import HTML, LANGUAGE_COOKIE, LANGUAGES, THEME_COOKIE, THEMES, texts_of, theme_of
from plugin.reviews import Decision
from plugin.store import severity

FOLDER = FilePath(__file__).parent
COOKIE, DESK_COOKIE, STATION_COOKIE = "inspector", "desk", "station"
HOME = "/queue"
YEAR_S = 365 * 86400
QUEUE_LENGTH = 60
LOST_LENGTH = 300
STAGES = [
    ("t_trigger_ns", "trigger"),
    ("t_taken_ns", "taken"),
    ("t_prepared_ns", "prepared"),
    ("t_inferred_ns", "inferred"),
    ("t_decided_ns", "decided"),
    ("t_spooled_ns", "spooled"),
]

Words = Annotated[str, Query(max_length=100)]
AT_THE_GATE = re.compile(r"(no\. \d+) \(.*\) (was not seen behind|was on its way to)", re.DOTALL)
"""Number and name of a part in a stop's reason, as ``plugin.lines`` writes it."""

router = APIRouter(include_in_schema=False)
templates = Jinja2Templates(directory=FOLDER / "templates")


def when(t_wall_ns: int | None) -> str:
    """UTC nanoseconds as text for people; a dash where the time is missing or absurd."""
    try:
        return (
            datetime.fromtimestamp((t_wall_ns or 0) / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if t_wall_ns else "–"
        )
    except (ValueError, OverflowError, OSError):
        return "–"


def number(value: float | None, digits: int = 4) -> str:
    """A score for people: a few significant digits, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share as per cent with one digit."""
    return "–" if value is None else f"{100 * value:.1f} %"


def percent2(value: float | None) -> str:
    """A share that may be small: two digits that count, at least hundredths of a per cent."""
    return "–" if value is None else f"{100 * value:.2g} %" if 0 < value < 0.1 else f"{100 * value:.1f} %"


templates.env.filters.update(when=when, number=number, percent=percent, percent2=percent2)


def name_of(request: Request) -> str | None:
    """Whom a verdict is recorded under: the account that is signed in, else the name from the cookie."""
    if host_of(request).sign_in is not None:
        viewer = viewer_of(request)
        return None if viewer is None else viewer.name
    return unquote(request.cookies.get(COOKIE, ""))[:60].strip() or None


def page(request: Request, name: str, status: int = 200, **values: Any) -> Response:
    """Render a template with what every page shows; somebody who is not signed in is shown nothing of the host."""
    host = host_of(request)
    viewer = viewer_of(request)
    inside = host.sign_in is None or viewer is not None
    texts = texts_of(request)
    here = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
    waiting = host.reader.waiting(MOST_WAITING) if inside else 0
    base = {
        "t": texts,
        "html_language": HTML[texts.language],
        "languages": LANGUAGES,
        "theme": theme_of(request),
        "themes": THEMES,
        "here": here if request.method in ("GET", "HEAD") else HOME,
        "inside": inside,
        "viewer": viewer,
        "waiting": waiting,
        "waiting_said": str(waiting) if waiting < MOST_WAITING else f"{MOST_WAITING - 1}+",
        "inspector": name_of(request) or DEFAULT_NAME,
        "asked": name_of(request) is not None,
        "desk_name": unquote(request.cookies.get(STATION_COOKIE, ""))[:60],
        "trouble": _troubles(host, viewer) if inside else [],
    }
    return templates.TemplateResponse(request, name, {**base, **values}, status)


def within(path: str) -> str:
    """A path on this host to go on to; anything else, such as ``//elsewhere``, is the queue."""
    inside = re.fullmatch(r"/(?!/)[!-~]*", path) and "\\" not in path and not path.startswith(("/sign-", "/api/"))
    return path if inside else HOME


def keep(response: Response, name: str, value: str) -> None:
    """Have the browser remember something of its own for a year."""
    response.set_cookie(name, quote(value), max_age=YEAR_S, httponly=True, samesite="strict", path="/")


@router.get("/", dependencies=[INSPECTOR])
def home() -> Response:
    return RedirectResponse("/queue")


@router.get("/queue", dependencies=[INSPECTOR])
def queue(request: Request, last: After = 0, show: Literal["waiting", "unsure"] = "waiting") -> Response:
    host = host_of(request)
    desk = desk_of(request)
    host.holds.leave(desk)
    unsure = show == "unsure"
    parts = host.reader.unsure(QUEUE_LENGTH) if unsure else host.reader.queue(QUEUE_LENGTH)
    return page(
        request,
        "queue.html",
        tab="queue",
        unsure=unsure,
        n_unsure=host.reader.count_unsure(),
        look=offered(request),
        disputes=disputes(request),
        parts=parts,
        blind={part["id"] for part in parts if host.is_blind(part)},
        held=host.holds.others(desk),
        pictures=host.reader.thumbnails(parts),
        last=_last(request, last),
    )


@router.get("/parts/{number}", dependencies=[INSPECTOR])
def part(request: Request, number: Row, last: After = 0) -> Response:
    host, reader = host_of(request), host_of(request).reader
    found = _found(request, number)
    desk = desk_of(request) or secrets.token_hex(16)
    hold = host.holds.take(number, desk, name_of(request) or DEFAULT_NAME)
    others = host.holds.others(desk)
    header = reader.header_of(found)
    attachments = reader.attachments(found["edge_id"], found["part_id"])
    blind = host.is_blind(found)
    if blind and (elsewhere := blindly(request, found)):
        return at_desk(request, desk, RedirectResponse(elsewhere, 303))
    following = next(iter(_free(reader, found, others)), None)
    response = page(
        request,
        "part.html",
        tab="queue",
        part=found,
        blind=blind,
        hold="" if hold is None else hold.token,
        hold_every_ms=round(1000 * host.holds.span_s / 3),
        held_by=others.get(number),
        classes=host.classes,
        factor=severity(found["verdict"], found["score"], found["threshold"]),
        header=header,
        views=views(header, attachments, blind, reader.golden(found, header)),
        dropped=any(each["role"] == "dropped" for each in attachments),
        removed=max(
            (each for each in attachments if each["removed_ns"]), key=lambda each: each["removed_ns"], default=None
        ),
        stages=stages(found["timing"]),
        reviews=reader.reviews(number),
        output=host.ledger.output_of(found["edge_id"], found["part_id"]),
        following=following,
        previous=reader.beside(found, "previous"),
        preload=_preload(request, following),
        last=_last(request, last),
    )
    return at_desk(request, desk, response)


def at_desk(request: Request, desk: str, response: Response) -> Response:
    """The browser is told its name, by which it holds what it has open."""
    if desk_of(request) != desk:
        keep(response, DESK_COOKIE, desk)
    return response


@router.post("/parts/{number}/verdict", dependencies=[INSPECTOR])
def decide(
    request: Request,
    number: Row,
    decision: Annotated[Decision | None, Form()] = None,
    defect_class: Annotated[str | None, Form(max_length=60)] = None,
    comment: Annotated[Comment, Form()] = None,
    dwell_ms: Annotated[Dwell, Form()] = None,
    seen: Annotated[Seen, Form()] = None,
) -> Response:
    """``defect_class`` alone is a verdict: a defect of this class. Goes on to the next part that is free."""
    host, reader, texts = host_of(request), host_of(request).reader, texts_of(request)
    found = _found(request, number)
    if decision is None and defect_class is None:
        raise HTTPException(422, texts("error.no_class"))
    if defect_class is not None and defect_class not in host.classes:
        raise HTTPException(422, texts("error.no_class"))
    desk = desk_of(request)
    others = host.holds.others(desk)
    if number in others:
        return page(request, "error.html", 409, tab="", text=texts("error.held", name=others[number]))
    name = name_of(request) or DEFAULT_NAME
    reviews = reader.reviews(number)
    if seen is not None and reviews and reviews[-1]["id"] != seen:
        return page(
            request,
            "error.html",
            409,
            tab="",
            text=texts("error.meanwhile", name=reviews[-1]["inspector"]),
            back=number,
        )
    host.decide(
        number,
        decision or "defect",
        name,
        defect_class=defect_class,
        comment=comment,
        dwell_ms=dwell_ms,
        station=station_of(request),
        seen=seen,
    )
    if decision == "undo":
        return RedirectResponse(f"/parts/{number}", 303)
    if look := offered(request):
        return RedirectResponse(look, 303)
    return RedirectResponse(after(request, found), 303)


def after(request: Request, found: dict[str, Any] | None) -> str:
    """The next part that is free, taken for this desk, or else the queue."""
    host, desk = host_of(request), desk_of(request)
    reader, others, name = host.reader, host.holds.others(desk), name_of(request) or DEFAULT_NAME
    last = "" if found is None else f"last={found['id']}"
    following = (_free(reader, found, others) if found else []) + _free(reader, None, others)
    # Taken already now, so that the page that follows is not another's by the time it is asked for.
    taken = next((each for each in following if not desk or host.holds.take(each, desk, name)), None)
    return f"{HOME if taken is None else f'/parts/{taken}'}?{last}".rstrip("?")


@router.post("/parts/{number}/hold", dependencies=[INSPECTOR_BACKGROUND])
def hold(
    request: Request,
    number: Row,
    hold: Annotated[str, Form(max_length=40)],
    kind: Annotated[Literal["renew", "ask", "release"], Form()],
) -> Response:
    """What the page of a part says while it is open: whether somebody is there, and at last that it is left."""
    holds, desk = host_of(request).holds, desk_of(request)
    if kind == "release":
        holds.release(number, desk, hold)
    elif not holds.renew(number, desk, hold, lengthen=kind == "renew"):
        return JSONResponse({"taken": number in holds.others(desk)}, 409)
    return Response(status_code=204)


@router.post("/look", dependencies=[OPEN])
def look(
    request: Request,
    here: Annotated[str, Form(max_length=2000)] = HOME,
    language: Annotated[str | None, Form()] = None,
    theme: Annotated[str | None, Form()] = None,
) -> Response:
    """Language and colours of this browser."""
    at_sign_in = re.fullmatch(r"/sign-in(\?[!-~]*)?", here) is not None
    response = RedirectResponse(here if at_sign_in else within(here), 303)
    if language in LANGUAGES:
        keep(response, LANGUAGE_COOKIE, str(language))
    if theme in THEMES:
        keep(response, THEME_COOKIE, str(theme))
    return response


@router.post("/desk", dependencies=[INSPECTOR])
def set_desk(request: Request, station: Annotated[str, Form(max_length=60)] = "") -> Response:
    """What this desk is called in the records; its address where it has no name."""
    response = RedirectResponse(HOME, 303)
    keep(response, STATION_COOKIE, station.strip())
    return response


@router.post("/name", dependencies=[INSPECTOR])
def set_name(request: Request, name: Annotated[Inspector, Form()]) -> Response:
    if viewer_of(request) is not None:
        return RedirectResponse("/account", 303)
    response = RedirectResponse(HOME, 303)
    keep(response, COOKIE, name.strip())
    return response


@router.get("/name", dependencies=[INSPECTOR])
def ask_name(request: Request) -> Response:
    if viewer_of(request) is not None:
        return RedirectResponse("/account", 303)
    return page(request, "name.html", tab="")


@router.get("/lost", dependencies=[INSPECTOR])
def lost(request: Request) -> Response:
    reader = host_of(request).reader
    return page(
        request,
        "lost.html",
        tab="lost",
        parts=reader.not_inspected(LOST_LENGTH),
        gaps=reader.gaps()[::-1],
        limit=LOST_LENGTH,
    )


@router.get("/find", dependencies=[INSPECTOR])
def find(request: Request, serial: Words = "", lot: Words = "") -> Response:
    host = host_of(request)
    asked = bool(serial or lot)
    parts = host.reader.parts(0, LOST_LENGTH, serial or None, lot or None) if asked else []
    blind = {part["id"] for part in parts if host.is_blind(part)}
    return page(request, "find.html", tab="find", serial=serial, lot=lot, parts=parts, blind=blind, limit=LOST_LENGTH)


@router.get("/counts", dependencies=[INSPECTOR])
def counts(request: Request) -> Response:
    summary = host_of(request).summary()
    rates = {name: Rate(**rate) for name, rate in summary["false_rejects"].items()}
    escapes = Rate(**summary["audit"]["defects"])
    return page(request, "counts.html", tab="counts", summary=summary, rates=rates, escapes=escapes, now_ns=_now_ns())


def views(
    header: dict[str, Any],
    attachments: list[dict[str, Any]],
    blind: bool = False,
    golden: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """What the canvas of each view needs: pictures and, unless ``blind``, map, regions, the map's threshold.

    ``golden``: the pictures of a good part of the same recipe.
    """
    found: dict[str, dict[str, Any]] = {}
    for each in attachments:
        if each["role"] == "dropped" or each["removed_ns"] is not None or (blind and each["role"] == "map"):
            continue
        view = found.setdefault(each["view"], {"name": each["view"], "pictures": {}, "map": None})
        entry = {"url": f"/api/attachments/{each['id']}", "toPart": each["to_part"], "shape": each["shape"]}
        if each["role"] == "map" and each["codec"] == "raw" and each["dtype"] != "uint8":
            view["map"] = {**entry, "dtype": each["dtype"]}
        elif each["codec"] in ("png", "jpeg"):
            view["pictures"].setdefault(each["role"], entry)
    for view in found.values():
        if "image" in view["pictures"]:
            view["pictures"].pop("thumbnail", None)
        regions = [] if blind else header.get("regions", [])
        view["threshold"] = None if blind else header.get("map_threshold")
        view["regions"] = [region for region in regions if region.get("view") == view["name"]]
        view["golden"] = next(
            (
                {"url": f"/api/attachments/{each['id']}", "toPart": each["to_part"], "shape": each["shape"]}
                for each in golden or []
                if each["view"] == view["name"]
            ),
            None,
        )
    return list(found.values())


def stages(timing: dict[str, Any]) -> list[tuple[str, float]]:
    """(stage, milliseconds since capture) for every stage that was reached."""
    start = timing.get("t_capture_ns") or 0
    reached = [(name, timing.get(key) or 0) for key, name in STAGES]
    return [(name, (at - start) / 1e6) for name, at in reached if start and at]


def _last(request: Request, number: int) -> dict[str, Any] | None:
    """The part decided just before, to offer its undo."""
    reader = host_of(request).reader
    found = reader.part(number) if number else None
    if found is None or not found["review"]:
        return None
    return {**found, "seen": reader.reviews(number)[-1]["id"]}


def _found(request: Request, number: int) -> dict[str, Any]:
    found = host_of(request).reader.part(number)
    if found is None:
        raise HTTPException(404, texts_of(request)("error.no_part", n=number))
    return found


def _free(reader: Reader, part: dict[str, Any] | None, others: Collection[int]) -> list[int]:
    """The next parts of the queue that nobody else has open; from its beginning without ``part``."""
    behind = None if part is None else (part["severity"] or 0.0, part["id"])
    waiting = [each["id"] for each in reader.queue(len(others) + 2, behind)]
    return [each for each in waiting if each not in others and (part is None or each != part["id"])]


def _preload(request: Request, number: int | None) -> list[str]:
    """What the next part's page will fetch, so that it stands there at once."""
    reader = host_of(request).reader
    found = reader.part(number) if number is not None else None
    if found is None:
        return []
    return [
        f"/api/attachments/{each['id']}"
        for each in reader.attachments(found["edge_id"], found["part_id"])
        if each["sha256"] and each["removed_ns"] is None
    ]


def _troubles(host: Host, viewer: Viewer | None) -> list[str]:
    """What stands at the top of every page; whoever is to judge a part blindly does not read there that it was bad."""
    health = host.health()
    alarms: list[str] = health["alarms"]
    if viewer is not None and not viewer.may("engineer"):
        alarms = [AT_THE_GATE.sub(r"\1 \2", text) for text in alarms]
    return [*health["trouble"], *alarms]


def _now_ns() -> int:
    return int(datetime.now(UTC).timestamp() * 1e9)
