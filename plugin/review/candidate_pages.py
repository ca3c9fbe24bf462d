"""The page of candidates in shadow: what each would change, and the parts that it would change (hop 11)."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request, Response

from plugin import shadows
from plugin.review.api import host_of
from plugin.review.pages import page
from plugin.review.signin import ENGINEER
from plugin.review.texts import texts_of

SHOWN = 200
router = APIRouter(include_in_schema=False)


@router.get("/candidates", dependencies=[ENGINEER])
def page_of_candidates(request: Request) -> Response:
    """For engineers alone: it tells what the machine said of parts that inspectors are to judge without that."""
    quality = host_of(request).quality
    if quality is None:
        raise HTTPException(404, texts_of(request)("error.no_page"))
    return page(
        request,
        "candidates.html",
        tab="candidates",
        candidates=quality.ask(shadows.candidates),
        runs=quality.ask(shadows.runs),
        changes=quality.ask(lambda connection: shadows.changes(connection, SHOWN)),
        shown=SHOWN,
    )
