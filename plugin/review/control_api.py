"""Edges asked through the API: status, another recipe, stop, start, trigger (beside hops 10 and 11)."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from contract.config import Strict
from contract.control import Kind, Number, Part
from contract.event import Encoder, Label, Name
from plugin.accounts import Actor
from plugin.control import TRIGGER_S
from plugin.review.api import host_of
from plugin.review.host import TERMINAL_HEADER, Asking
from plugin.review.signin import ENGINEER, address_of, viewer_of

log = logging.getLogger(__name__)
MAX_WAIT_S = 600.0
WAIT_S = 30.0
NO_CONTROL = (
    "This host has no [control]: add it to host.toml, with `control` under [host] of each edge, and start anew."
)
router = APIRouter()


class PartBody(Strict):
    """What ``trigger`` says of the part that is in view: the plant's own words for it, and which cameras take it."""

    serial: Label | None = None
    lot: Label | None = None
    encoder: Encoder | None = None
    cameras: tuple[Name, ...] = Field((), max_length=64)


class AskBody(Strict):
    """What is asked of which edge, and for how long it may be done."""

    edge: Name
    what: Kind
    number: Number | None = None
    timeout_s: Annotated[float, Field(ge=0.1, le=MAX_WAIT_S)] | None = None
    idempotency_key: Name | None = None
    part: PartBody | None = None


@router.get("/api/control", dependencies=[ENGINEER])
def edges(request: Request) -> dict[str, Any]:
    """The edges that this host knows; what each said last of itself, and how many seconds ago."""
    asking = host_of(request).asking
    if asking is None:
        return {"endpoint": None, "edges": []}
    return {"endpoint": asking.server.endpoint, "edges": [_row(asking, edge_id) for edge_id in asking.edges()]}


@router.post("/api/control", dependencies=[ENGINEER])
async def ask(request: Request, body: AskBody) -> dict[str, Any]:
    """Ask an edge and wait for its answer; ``outcome`` is ``ok``, ``refused`` or ``unknown``."""
    asking = host_of(request).asking
    if asking is None:
        raise HTTPException(409, NO_CONTROL)
    who = await run_in_threadpool(_who, request, asking, body)
    if body.what == "recipe" and body.number is None:
        raise HTTPException(422, "Say which recipe: its number.")
    if body.part is not None and body.what != "trigger":
        raise HTTPException(422, f"`{body.what}` takes no part.")
    known = asking.edges()
    if body.edge not in known:
        there = f"there are: {', '.join(known)}" if known else "none has connected yet"
        raise HTTPException(404, f"No edge {body.edge!r} is known to this host; {there}.")
    log.log(
        logging.DEBUG if body.what == "trigger" else logging.INFO,
        "%s asks edge %s: %s %s",
        who,
        body.edge,
        body.what,
        body.number or "",
    )
    number = body.number if body.what == "recipe" else None
    part = None if body.part is None else Part(**body.part.model_dump())
    wait_s = body.timeout_s or (TRIGGER_S if body.what == "trigger" else WAIT_S)
    future = asking.server.ask(body.edge, body.what, number, wait_s, body.idempotency_key, part)
    reply = await asyncio.wrap_future(future)
    return {"edge": body.edge, "what": body.what, "number": number, **reply.model_dump(exclude={"kind", "edge_id"})}


def _row(asking: Asking, edge_id: str) -> dict[str, Any]:
    known = asking.server.known(edge_id)
    row = {"edge": edge_id, "line": asking.line_of(edge_id), "connected": asking.server.is_there(edge_id)}
    if known is None:
        return {**row, "age_s": None, "status": None}
    return {**row, "age_s": round(known.age_s, 1), "status": known.status.model_dump()}


def _who(request: Request, asking: Asking, body: AskBody) -> str:
    """Who asks, written into the audit where people sign in; where nobody does, only this host's own terminal may."""
    sign_in, viewer = host_of(request).sign_in, viewer_of(request)
    if sign_in is None or viewer is None:
        token = request.headers.get(TERMINAL_HEADER, "")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), asking.token.encode()):
            raise HTTPException(403, "Where nobody signs in, an edge is asked from the host's own terminal alone.")
        return "this host's terminal"
    if body.what not in ("status", "trigger"):  # each trigger is a part in the store, and there are many
        by = Actor(viewer.name, address_of(request))
        sign_in.accounts.note(by, "asked an edge", body.edge[:60], f"{body.what} {body.number or ''}".strip())
    return viewer.name
