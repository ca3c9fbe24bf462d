"""The pages of the lines: stop, challenge, master parts, containment (beside hop 11)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from plugin import containment
from plugin.review.api import DEFAULT_NAME, After, Row, host_of
from plugin.review.line_api import (
    KINDS,
    ContainBody,
    Line,
    MasterBody,
    Note,
    OrderBody,
    contain_parts,
    contained,
    known_line,
    line_row,
    lines_of,
    write_note,
)
from plugin.review.pages import name_of, page
from plugin.review.signin import ENGINEER, INSPECTOR, viewer_of

PARTS, HAPPENINGS, CONTAINMENTS = 200, 30, 10
Text = Annotated[str, Form(max_length=100)]
router = APIRouter(include_in_schema=False)


@router.get("/lines", dependencies=[INSPECTOR])
def lines(request: Request) -> Response:
    host, viewer = host_of(request), viewer_of(request)
    rows = []
    for line in lines_of(request).ids:
        happenings = host.ledger.journal_of(line, KINDS, HAPPENINGS)
        contained = host.reader.containments(line, CONTAINMENTS)
        rows.append({**line_row(request, line), "journal": happenings, "containments": contained})
    engineer = viewer is None or viewer.may("engineer")
    return page(request, "lines.html", tab="lines", lines=rows, engineer=engineer, causes=containment.CAUSES)


@router.post("/lines/{line}/ask", dependencies=[INSPECTOR])
def ask(request: Request, line: Line, what: Text) -> Response:
    body = _checked(OrderBody, what=what)
    lines_of(request).do(known_line(request, line), body.what, _name(request))
    return RedirectResponse("/lines", 303)


@router.post("/lines/{line}/masters", dependencies=[ENGINEER])
def add_master(
    request: Request,
    line: Line,
    name: Text,
    expected: Text,
    defect_class: Text = "",
    recipe: Text = "",
    edge: Text = "",
    serial: Text = "",
) -> Response:
    given = {"defect_class": defect_class, "recipe": recipe, "edge": edge, "serial": serial}
    filled = {field: value.strip() for field, value in given.items() if value.strip()}
    body = _checked(MasterBody, name=name.strip(), expected=expected, **filled)
    values = body.model_dump(exclude={"by"})
    lines_of(request).do(known_line(request, line), "add_master", _name(request), **values)
    return RedirectResponse("/lines", 303)


@router.post("/lines/{line}/masters/remove", dependencies=[ENGINEER])
def remove_master(request: Request, line: Line, name: Text) -> Response:
    lines_of(request).do(known_line(request, line), "remove_master", _name(request), name=name)
    return RedirectResponse("/lines", 303)


@router.post("/lines/{line}/contain", dependencies=[ENGINEER])
def contain(request: Request, line: Line, event: Text = "", model: Text = "") -> Response:
    body = _checked(ContainBody, event=event or None, model=model.strip() or None)
    number = contain_parts(request, known_line(request, line), body.event, body.model, _name(request))
    return RedirectResponse(f"/containments/{number}", 303)


@router.get("/containments/{number}", dependencies=[ENGINEER])
def show(request: Request, number: Row, after: After = 0) -> Response:
    host, found = host_of(request), contained(request, number)
    rows = list(containment.parts_of(host.ledger, host.reader, found, after, PARTS))
    counts = host.ledger.count_between(found["line"], found["after"], found["last"], found["model"])
    stored = [{"id": row["part"], "edge_id": row["edge_id"], "part_id": row["part_id"]} for row in rows if row["part"]]
    return page(
        request,
        "containment.html",
        tab="lines",
        contained=found,
        parts=rows,
        counts=counts,
        pictures=host.reader.thumbnails(stored) if stored else {},
        more=rows[-1]["number"] if len(rows) == PARTS else None,
    )


@router.post("/containments/{number}/notes", dependencies=[ENGINEER])
def add_note(request: Request, number: Row, text: Annotated[Note, Form()]) -> Response:
    write_note(request, number, text, _name(request))
    return RedirectResponse(f"/containments/{number}", 303)


def _name(request: Request) -> str:
    return name_of(request) or DEFAULT_NAME


def _checked(kind: Any, /, **values: Any) -> Any:
    """A form's fields as the API takes them."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise HTTPException(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
