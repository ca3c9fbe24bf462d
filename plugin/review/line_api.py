"""Lines through the API: stop, challenge, master parts, containment (beside hops 9 and 11)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, Field

from contract.config import Strict
from contract.event import Label
from plugin import containment
from plugin.review.api import DEFAULT_NAME, After, Limit, Row, host_of
from plugin.review.archive import Archive
from plugin.review.host import LineDesk
from plugin.review.signin import ENGINEER, INSPECTOR, viewer_of

KINDS = (
    "stop",
    "stop_cleared",
    "challenge_due",
    "challenge_begun",
    "challenge_abandoned",
    "challenge_failed",
    "challenge_passed",
    "master_added",
    "master_removed",
)
Line = Annotated[str, Path(min_length=1, max_length=63)]
Model = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _printable(text: str) -> str:
    """What people type, without control characters and lone surrogates that no database takes."""
    plain = "".join(each for each in text if each.isprintable()).strip()
    if not plain:
        raise ValueError("it says nothing")
    return plain


By = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_printable)]
AlarmText = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_printable)]
Note = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_printable)]
router = APIRouter()


class OrderBody(Strict):
    """What is asked of a line; with sign-in the name is the session's and ``by`` is left out."""

    what: Literal["clear_stop", "require_challenge", "begin_challenge"]
    by: By | None = None


class AlarmBody(Strict):
    """An alarm that another program raises."""

    text: AlarmText
    by: By | None = None


class MasterBody(Strict):
    """A part whose verdict is known."""

    name: Label
    expected: Literal["pass", "reject"]
    defect_class: Label | None = None
    recipe: Annotated[int, Field(ge=0, le=65535)] | None = None
    edge: Label | None = None
    serial: Label | None = None
    by: By | None = None


class RemoveBody(Strict):
    """A master that is to be none any more."""

    name: Label
    by: By | None = None


class ContainBody(Strict):
    """Which parts: up to a failed challenge or past a stop (``event``), or what a model judged, else up to now."""

    event: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    model: Model | None = None
    by: By | None = None


class NoteBody(Strict):
    """What was decided about contained parts."""

    text: Note
    by: By | None = None


def lines_of(request: Request) -> LineDesk:
    """The host's lines."""
    desk = host_of(request).line_desk
    if desk is None:
        raise HTTPException(404, "This application shows no lines.")
    return desk


def known_line(request: Request, line: str) -> str:
    """``line``, where it is one of the host's."""
    if line not in lines_of(request).ids:
        raise HTTPException(404, f"There is no line {line}.")
    return line


def who(request: Request, given: str | None) -> str:
    """Whom it is recorded under: the account that is signed in, else the name that is given."""
    viewer = viewer_of(request)
    return (given or DEFAULT_NAME) if viewer is None else viewer.name


def line_row(request: Request, line: str) -> dict[str, Any]:
    """How a line stands."""
    desk, ledger = lines_of(request), host_of(request).ledger
    state = desk.state(line)._asdict()
    run = ledger.kept(line).get("run")
    readings = [] if run is None else run["readings"]
    return {"line": line, "trouble": desk.trouble(line), **state, "masters": ledger.masters(line), "readings": readings}


@router.get("/api/lines", dependencies=[INSPECTOR])
def lines(request: Request) -> list[dict[str, Any]]:
    """How each line stands: its stop, its challenge, its masters."""
    return [line_row(request, line) for line in lines_of(request).ids]


@router.post("/api/lines/{line}", dependencies=[INSPECTOR])
def order(request: Request, line: Line, body: OrderBody) -> dict[str, Any]:
    """Clear a stop, make a challenge due, begin it."""
    lines_of(request).do(known_line(request, line), body.what, who(request, body.by))
    return line_row(request, line)


@router.post("/api/lines/{line}/alarm", dependencies=[ENGINEER])
def alarm(request: Request, line: Line, body: AlarmBody) -> dict[str, Any]:
    """Ask for a stop of the line."""
    lines_of(request).do(known_line(request, line), "alarm", who(request, body.by), text=body.text)
    return line_row(request, line)


@router.post("/api/lines/{line}/masters", dependencies=[ENGINEER])
def add_master(request: Request, line: Line, body: MasterBody) -> dict[str, Any]:
    """Register a master behind those that are there; the line's challenge is due then."""
    values = body.model_dump(exclude={"by"})
    return lines_of(request).do(known_line(request, line), "add_master", who(request, body.by), **values)


@router.post("/api/lines/{line}/masters/remove", dependencies=[ENGINEER])
def remove_master(request: Request, line: Line, body: RemoveBody) -> dict[str, Any]:
    """Take a master out; without masters a line has no challenge."""
    lines_of(request).do(known_line(request, line), "remove_master", who(request, body.by), name=body.name)
    return line_row(request, line)


@router.get("/api/lines/{line}/journal", dependencies=[ENGINEER])
def journal(request: Request, line: Line, limit: Limit = 100) -> list[dict[str, Any]]:
    """Stops, challenges and masters of a line, newest first."""
    return host_of(request).ledger.journal_of(known_line(request, line), KINDS, limit)


@router.get("/api/gate", dependencies=[ENGINEER])
def gate(request: Request, after: After = 0, limit: Limit = 500) -> list[dict[str, Any]]:
    """What sensors behind the gates saw, in order, each with its part's number, serial and lot."""
    return host_of(request).reader.gate(after, limit)


def contain_parts(request: Request, line: str, event: int | None, model: str | None, by: str) -> int:
    """Find the parts, record who asked for them; returns the containment's number."""
    host = host_of(request)
    if model is not None:
        interval = containment.judged_by(host.ledger, line, model)
    else:
        interval = containment.since_good_check(host.ledger, line, event)
    return host.write(lambda store: store.run(lambda connection: containment.open_one(connection, interval, by)))


def contained(request: Request, number: int) -> dict[str, Any]:
    """A containment's row. Raises HTTPException."""
    found = host_of(request).reader.containment(number)
    if found is None:
        raise HTTPException(404, f"There is no containment {number}.")
    return found


@router.post("/api/lines/{line}/containments", dependencies=[ENGINEER])
def contain(request: Request, line: Line, body: ContainBody) -> dict[str, Any]:
    """Every part since the last good check; recorded with who asked."""
    number = contain_parts(request, known_line(request, line), body.event, body.model, who(request, body.by))
    return contained(request, number)


@router.get("/api/containments/{number}", dependencies=[ENGINEER])
def containment_row(request: Request, number: Row, after: After = 0, limit: Limit = 500) -> dict[str, Any]:
    """A containment, what was decided, and its parts behind number ``after`` of the line."""
    host, found = host_of(request), contained(request, number)
    return {**found, "parts": list(containment.parts_of(host.ledger, host.reader, found, after, limit))}


@router.post("/api/containments/{number}/notes", dependencies=[ENGINEER])
def add_note(request: Request, number: Row, body: NoteBody) -> dict[str, Any]:
    """Append what was decided."""
    write_note(request, number, body.text, who(request, body.by))
    return contained(request, number)


def write_note(request: Request, number: int, text: str, by: str) -> None:
    """Append a note to a containment that is there."""
    contained(request, number)
    host_of(request).write(lambda store: store.run(lambda connection: containment.note(connection, number, text, by)))


@router.get("/api/containments/{number}/parts.csv", dependencies=[ENGINEER])
def export_csv(request: Request, number: Row) -> Response:
    """Every part of a containment as a table."""
    host, found = host_of(request), contained(request, number)
    rows = containment.parts_of(host.ledger, host.reader, found)
    headers = {"content-disposition": f'attachment; filename="containment-{number}.csv"'}
    return StreamingResponse(containment.as_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/api/containments/{number}/parts.zip", dependencies=[ENGINEER])
def export_zip(request: Request, number: Row) -> Response:
    """The same with every picture; few are made at once, and one that takes too long is broken off."""
    host, found = host_of(request), contained(request, number)
    rows = partial(containment.parts_of, host.ledger, host.reader, found)
    rows()  # a refusal is an answer of its own, no archive that breaks off
    return Archive(containment.as_zip(rows, host.reader, host.blobs, found), f"containment-{number}.zip", host.exports)
