"""The HTTP API: JSON for programs, bytes for the pages' canvas (hop 11; verdicts are hop 12)."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import AfterValidator, BeforeValidator, Field

from contract.config import Strict
from contract.verdicts import MAX_PAGE, VerdictPage
from plugin.metrics import MEDIA_TYPE
from plugin.review.host import MOST_WAITING, Host
from plugin.review.signin import (
    ENGINEER,
    INSPECTOR,
    INSPECTOR_BACKGROUND,
    INSPECTOR_REVIEWS,
    OPEN,
    address_of,
    viewer_of,
)
from plugin.reviews import Decision

MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "raw": "application/octet-stream"}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes, of which the part says codec, dtype and shape.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA.values()},
    }
}
FOREVER = "private, max-age=31536000, immutable"
DEFAULT_NAME = "inspector"
TOLD = (
    "verdict",
    "reason",
    "score",
    "threshold",
    "severity",
    "audited",
    "audit_share",
    "review",
    "review_by",
    "review_class",
)
"""What of a part's row says, or gives away, what the machine or an inspector thought of it."""

Row = Annotated[int, Path(ge=0, le=2**63 - 1)]
After = Annotated[int, Query(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Query(ge=1, le=1000)]
PageLimit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Bears = Annotated[str | None, Query(min_length=1, max_length=100)]
Inspector = Annotated[str, Field(min_length=1, max_length=60)]


def _plain(text: str | None) -> str | None:
    """What people type, without control characters and lone surrogates that no database takes."""
    return None if text is None else "".join(each for each in text if each.isprintable()).strip() or None


Comment = Annotated[str | None, Field(max_length=500), AfterValidator(_plain)]
Dwell = Annotated[int | None, Field(ge=0, le=86_400_000), BeforeValidator(lambda value: None if value == "" else value)]
Seen = Annotated[int | None, Field(ge=0, le=2**63 - 1)]
Station = Annotated[str | None, Field(max_length=60), AfterValidator(_plain)]


class VerdictBody(Strict):
    """An inspector's verdict as JSON; with sign-in the name is the session's and is left out here.

    ``seen``: the part's last record that whoever decides knows, 0 for none; where another came since, it is refused.
    """

    decision: Decision
    inspector: Annotated[Inspector | None, AfterValidator(_plain)] = None
    defect_class: str | None = Field(None, max_length=60, description="of `[review] classes`; with a defect")
    comment: Comment = None
    dwell_ms: Dwell = None
    station: Station = None
    seen: Seen = None


router = APIRouter()


def host_of(request: Request) -> Host:
    """The host that this application shows."""
    host: Host = request.app.state.host
    return host


def desk_of(request: Request) -> str:
    """The browser that asks, by a name that it was given; empty where it has none."""
    found = request.cookies.get("desk", "")
    return found if re.fullmatch(r"[0-9a-f]{32}", found) else ""


def station_of(request: Request) -> str:
    """Where a verdict is given: what the desk is called, or else its address."""
    return _plain(unquote(request.cookies.get("station", ""))[:60]) or address_of(request)


def _unseen(request: Request, part: dict[str, Any] | None) -> bool:
    """Whether a part must not tell who asks what the machine said of it: inspectors judge such parts by themselves."""
    return part is not None and host_of(request).is_unseen(part, viewer_of(request))


def _blinded(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in TOLD} | {"blind": True}


@router.get("/healthz", dependencies=[OPEN])
def healthz(request: Request) -> JSONResponse:
    """Whether the host works; why not, and what was counted, is not for strangers."""
    host = host_of(request)
    health = host.health()
    stranger = host.sign_in is not None and viewer_of(request) is None
    return JSONResponse({"ok": health["ok"]} if stranger else health, 200 if health["ok"] else 503)


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[ENGINEER])
def metrics(request: Request) -> Response:
    """The host's figures for Prometheus."""
    return Response(host_of(request).metrics(), media_type=MEDIA_TYPE)


@router.get("/api/openapi.json", include_in_schema=False, dependencies=[ENGINEER])
def openapi(request: Request) -> dict[str, Any]:
    app: FastAPI = request.app
    return app.openapi()


@router.get("/api/session", dependencies=[INSPECTOR])
def session(request: Request) -> dict[str, str | None]:
    """Who is signed in, and the token that a program sends as X-CSRF-Token with what it writes."""
    viewer = viewer_of(request)
    return {"name": None, "role": None, "csrf": None} if viewer is None else viewer._asdict()


@router.get("/api/summary", dependencies=[ENGINEER])
def summary(request: Request) -> dict[str, Any]:
    return host_of(request).summary()


@router.get("/api/waiting", dependencies=[INSPECTOR_BACKGROUND])
def waiting(request: Request) -> dict[str, int]:
    return {"waiting": host_of(request).reader.waiting(MOST_WAITING)}


@router.get("/api/parts", dependencies=[ENGINEER])
def parts(
    request: Request, after: After = 0, limit: Limit = 500, serial: Bears = None, lot: Bears = None
) -> list[dict[str, Any]]:
    return host_of(request).reader.parts(after, limit, serial, lot)


@router.get("/api/parts/{number}", dependencies=[INSPECTOR])
def part(request: Request, number: Row) -> dict[str, Any]:
    host = host_of(request)
    found = host.reader.part(number)
    if found is None:
        raise HTTPException(404, f"there is no part {number}")
    if _unseen(request, found):
        pictures = host.reader.attachments(found["edge_id"], found["part_id"])
        return {**_blinded(found), "attachments": [each for each in pictures if each["role"] != "map"]}
    return {
        **found,
        "header": host.reader.header_of(found),
        "attachments": host.reader.attachments(found["edge_id"], found["part_id"]),
        "reviews": host.reader.reviews(number),
        "line": host.ledger.output_of(found["edge_id"], found["part_id"]),
        "gate": host.reader.gate_outcomes(found["edge_id"], found["part_id"]),
    }


@router.post("/api/parts/{number}/verdict", status_code=201, dependencies=[INSPECTOR_REVIEWS])
def decide(request: Request, number: Row, body: VerdictBody) -> dict[str, int]:
    host = host_of(request)
    if host.reader.part(number) is None:
        raise HTTPException(404, f"there is no part {number}")
    viewer = viewer_of(request)
    if host.sign_in is not None and viewer is not None and body.inspector not in (None, viewer.name):
        host.sign_in.count("beyond_role", f"refused: {viewer.name} sent a verdict in another name, part {number}")
        raise HTTPException(403, f"Verdicts of this session are {viewer.name}'s; leave `inspector` out.")
    inspector = (body.inspector or DEFAULT_NAME) if viewer is None else viewer.name
    if body.defect_class is not None and (body.decision != "defect" or body.defect_class not in host.classes):
        raise HTTPException(422, "`defect_class` belongs to a defect and is one of `[review] classes`.")
    if holder := host.holds.others(desk_of(request)).get(number):
        raise HTTPException(409, f"{holder} has part {number} open; nothing was written.")
    more = body.model_dump(include={"defect_class", "comment", "dwell_ms", "seen"})
    station = body.station or station_of(request)
    return {"review": host.decide(number, body.decision, inspector, station=station, **more)}


@router.get("/api/attachments/{number}", response_class=Response, responses=BYTES, dependencies=[INSPECTOR])
def attachment(request: Request, number: Row) -> Response:
    """The bytes of a picture (PNG, JPEG) or a map (raw, C order, little endian; dtype and shape stand in the part)."""
    host = host_of(request)
    found = host.reader.attachment(number)
    if found is not None and found["removed_ns"] is not None:
        raise HTTPException(410, f"this picture was removed at {found['removed_ns']} ns UTC by {found['removed_by']}")
    if found is None or found["sha256"] is None:
        raise HTTPException(404, f"there is no attachment {number}")
    if found["role"] == "map" and _unseen(request, host.reader.part_named(found["edge_id"], found["part_id"])):
        raise HTTPException(403, "The map of a part that is judged blindly is shown when you have decided.")
    media, headers = MEDIA[found["codec"]], {"cache-control": FOREVER}
    path = host.blobs.find(found["sha256"])
    if path is not None:
        return FileResponse(path, media_type=media, headers=headers)  # piece by piece, however slowly it is read
    try:
        data = host.blobs.read(found["sha256"])
    except OSError as error:
        raise HTTPException(503, f"the picture cannot be read now: {error}") from error
    if data is None:
        raise HTTPException(404, f"there is no attachment {number}")
    return Response(data, media_type=media, headers=headers)


@router.get("/api/queue", dependencies=[INSPECTOR])
def queue(request: Request, limit: Limit = 100) -> list[dict[str, Any]]:
    found = host_of(request).reader.queue(limit)
    return [_blinded(part) if _unseen(request, part) else part for part in found]


@router.get("/api/export/verdicts", dependencies=[ENGINEER])
def verdicts(request: Request, after: After = 0, limit: PageLimit = MAX_PAGE) -> VerdictPage:
    """What inspectors said, for calibration: ask again behind ``next`` until it is null."""
    return host_of(request).reader.verdicts(after, limit)


@router.get("/api/gaps", dependencies=[ENGINEER])
def gaps(request: Request) -> list[dict[str, Any]]:
    return host_of(request).reader.gaps()


@router.get("/api/line", dependencies=[ENGINEER])
def line(request: Request, after: After = 0, limit: Limit = 500) -> list[dict[str, Any]]:
    return host_of(request).ledger.outputs(after, limit)
