"""The HTTP API: JSON for programs, bytes for the pages' canvas (hop 11; verdicts are hop 12)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field

from contract.config import Strict
from plugin.blobs import BlobStore
from plugin.review.host import Host
from plugin.store import Decision

MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "raw": "application/octet-stream"}
FOREVER = "private, max-age=31536000, immutable"
Row = Annotated[int, Path(ge=0, le=2**63 - 1)]
After = Annotated[int, Query(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Inspector = Annotated[str, Field(min_length=1, max_length=60)]


class VerdictBody(Strict):
    """An inspector's verdict as JSON."""

    decision: Decision
    inspector: Inspector = "inspector"


router = APIRouter()


def host_of(request: Request) -> Host:
    """The host that this application shows."""
    host: Host = request.app.state.host
    return host


@router.get("/healthz")
def healthz(request: Request) -> JSONResponse:
    health = host_of(request).health()
    return JSONResponse(health, 200 if health["ok"] else 503)


@router.get("/api/summary")
def summary(request: Request) -> dict[str, Any]:
    return host_of(request).summary()


@router.get("/api/waiting")
def waiting(request: Request) -> dict[str, int]:
    return {"waiting": host_of(request).reader.waiting()}


@router.get("/api/parts")
def parts(request: Request, after: After = 0, limit: Limit = 500) -> list[dict[str, Any]]:
    return host_of(request).reader.parts(after, limit)


@router.get("/api/parts/{number}")
def part(request: Request, number: Row) -> dict[str, Any]:
    host = host_of(request)
    found = host.reader.part(number)
    if found is None:
        raise HTTPException(404, f"there is no part {number}")
    return {
        **found,
        "header": host.reader.header_of(found),
        "attachments": host.reader.attachments(found["edge_id"], found["part_id"]),
        "reviews": host.reader.reviews(number),
        "line": host.ledger.output_of(found["edge_id"], found["part_id"]),
    }


@router.post("/api/parts/{number}/verdict", status_code=201)
def decide(request: Request, number: Row, body: VerdictBody) -> dict[str, int]:
    host = host_of(request)
    if host.reader.part(number) is None:
        raise HTTPException(404, f"there is no part {number}")
    return {"review": host.decide(number, body.decision, body.inspector)}


@router.get("/api/attachments/{number}")
def attachment(request: Request, number: Row) -> Response:
    """The bytes of a picture (PNG, JPEG) or a map (raw, C order, little endian; dtype and shape stand in the part)."""
    host = host_of(request)
    found = host.reader.attachment(number)
    path = None if found is None or found["sha256"] is None else BlobStore(host.blobs).find(found["sha256"])
    if found is None or path is None:
        raise HTTPException(404, f"there is no attachment {number}")
    return FileResponse(path, media_type=MEDIA[found["codec"]], headers={"cache-control": FOREVER})


@router.get("/api/queue")
def queue(request: Request, limit: Limit = 100) -> list[dict[str, Any]]:
    return host_of(request).reader.queue(limit)


@router.get("/api/gaps")
def gaps(request: Request) -> list[dict[str, Any]]:
    return host_of(request).reader.gaps()


@router.get("/api/line")
def line(request: Request, after: After = 0, limit: Limit = 500) -> list[dict[str, Any]]:
    return host_of(request).ledger.outputs(after, limit)
