"""The inspector's pages: queue, part, not inspected, counts (hop 11), and the verdict's form (hop 12)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.templating import Jinja2Templates

from contract.stats import Rate
from plugin.review.api import DEFAULT_NAME, After, Inspector, Row, host_of
from plugin.review.signin import INSPECTOR, viewer_of
from plugin.reviews import Decision
from plugin.store import severity

FOLDER = FilePath(__file__).parent
COOKIE = "inspector"
QUEUE_LENGTH = 60
LOST_LENGTH = 300
OUTCOMES = {
    "committed": "on its way",
    "unconnected": "no connector set up",
    "late": "too late, not sent",
    "unknown": "unknown after a restart, not repeated",
}
STAGES = [
    ("t_trigger_ns", "trigger"),
    ("t_taken_ns", "taken up"),
    ("t_prepared_ns", "prepared"),
    ("t_inferred_ns", "inferred"),
    ("t_decided_ns", "decided"),
    ("t_spooled_ns", "spooled"),
]

Words = Annotated[str, Query(max_length=100)]
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


def words(verdict: str | None) -> str:
    """A verdict as words."""
    return "in inspection" if verdict is None else verdict.replace("_", " ").lower()


def outcome(name: str) -> str:
    """What became of an output, as words."""
    return OUTCOMES.get(name, name)


def ago(seconds: float) -> str:
    """A time span for people, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


templates.env.filters.update(when=when, number=number, percent=percent, words=words, outcome=outcome, ago=ago)


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
    base = {
        "inside": inside,
        "viewer": viewer,
        "waiting": host.reader.waiting() if inside else 0,
        "inspector": name_of(request) or DEFAULT_NAME,
        "asked": name_of(request) is not None,
        "trouble": host.health()["trouble"] if inside else [],
    }
    return templates.TemplateResponse(request, name, {**base, **values}, status)


@router.get("/", dependencies=[INSPECTOR])
def home() -> Response:
    return RedirectResponse("/queue")


@router.get("/queue", dependencies=[INSPECTOR])
def queue(request: Request, last: After = 0) -> Response:
    host = host_of(request)
    parts = host.reader.queue(QUEUE_LENGTH)
    return page(
        request,
        "queue.html",
        tab="queue",
        parts=parts,
        blind={part["id"] for part in parts if host.is_blind(part)},
        pictures=host.reader.thumbnails(parts),
        last=_last(request, last),
    )


@router.get("/parts/{number}", dependencies=[INSPECTOR])
def part(request: Request, number: Row, last: After = 0) -> Response:
    host = host_of(request)
    found = host.reader.part(number)
    if found is None:
        raise HTTPException(404, f"There is no part {number}.")
    header = host.reader.header_of(found)
    attachments = host.reader.attachments(found["edge_id"], found["part_id"])
    following = host.reader.beside(found, "next")
    blind = host.is_blind(found)
    return page(
        request,
        "part.html",
        tab="queue",
        part=found,
        blind=blind,
        factor=severity(found["verdict"], found["score"], found["threshold"]),
        header=header,
        views=views(header, attachments, blind),
        dropped=any(each["role"] == "dropped" for each in attachments),
        stages=stages(found["timing"]),
        reviews=host.reader.reviews(number),
        output=host.ledger.output_of(found["edge_id"], found["part_id"]),
        following=following,
        previous=host.reader.beside(found, "previous"),
        preload=_preload(request, following),
        last=_last(request, last),
    )


@router.post("/parts/{number}/verdict", dependencies=[INSPECTOR])
def decide(
    request: Request, number: Row, decision: Annotated[Decision, Form()], last: Annotated[int, Query(ge=0)] = 0
) -> Response:
    host = host_of(request)
    found = host.reader.part(number)
    if found is None:
        raise HTTPException(404, f"There is no part {number}.")
    following = host.reader.beside(found, "next")
    host.decide(number, decision, name_of(request) or DEFAULT_NAME)
    if decision == "undo":
        return RedirectResponse(f"/parts/{number}", 303)
    return RedirectResponse(f"/parts/{following}?last={number}" if following else f"/queue?last={number}", 303)


@router.post("/name", dependencies=[INSPECTOR])
def set_name(request: Request, name: Annotated[Inspector, Form()]) -> Response:
    if viewer_of(request) is not None:
        return RedirectResponse("/account", 303)
    response = RedirectResponse("/queue", 303)
    response.set_cookie(COOKIE, quote(name.strip()), max_age=365 * 86400, httponly=True, samesite="strict", path="/")
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


def views(header: dict[str, Any], attachments: list[dict[str, Any]], blind: bool = False) -> list[dict[str, Any]]:
    """What the canvas of each view needs: pictures and, unless ``blind``, map, regions, the map's threshold."""
    found: dict[str, dict[str, Any]] = {}
    for each in attachments:
        if each["role"] == "dropped" or (blind and each["role"] == "map"):
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
    return list(found.values())


def stages(timing: dict[str, Any]) -> list[tuple[str, float]]:
    """(stage, milliseconds since capture) for every stage that was reached."""
    start = timing.get("t_capture_ns") or 0
    reached = [(name, timing.get(key) or 0) for key, name in STAGES]
    return [(name, (at - start) / 1e6) for name, at in reached if start and at]


def _last(request: Request, number: int) -> dict[str, Any] | None:
    """The part decided just before, to offer its undo."""
    found = host_of(request).reader.part(number) if number else None
    return found if found is not None and found["review"] else None


def _preload(request: Request, number: int | None) -> list[str]:
    """What the next part's page will fetch, so that it stands there at once."""
    reader = host_of(request).reader
    found = reader.part(number) if number is not None else None
    if found is None:
        return []
    return [
        f"/api/attachments/{each['id']}"
        for each in reader.attachments(found["edge_id"], found["part_id"])
        if each["sha256"]
    ]


def _now_ns() -> int:
    return int(datetime.now(UTC).timestamp() * 1e9)
