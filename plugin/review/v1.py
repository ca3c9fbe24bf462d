"""The HTTP API for programs, with typed answers, paging and filters: /api/v1 (hop 11; decisions are hop 12)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response

from contract.event import Verdict
from contract.verdicts import MAX_PAGE, VerdictPage
from plugin import datasets
from plugin.datasets import Wanted
from plugin.feed import Cursor
from plugin.finder import LARGEST, Filter
from plugin.models import Alarm, Decided, Event, Image, Output, Page, Part, PartDetail, Problem, Review, iso
from plugin.review import api, archive
from plugin.review.api import TOLD, After, Limit, PageLimit, Row, VerdictBody, host_of
from plugin.review.host import Host
from plugin.review.signin import ENGINEER, INSPECTOR, INSPECTOR_REVIEWS

WORDS = {
    401: "Nobody is signed in, and there is no valid token.",
    403: "The account's role or the token's scope does not reach so far, or it came from elsewhere.",
    404: "There is no such thing.",
    409: "As things stand this cannot be done.",
    413: "The body is too large, or its length is not stated; or more is asked for than one answer holds.",
    422: "The request is not understood.",
    503: "Not now; nothing was changed.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text} for status, text in WORDS.items()
}
KINDS = Literal["trigger", "result", "missed", "attachment", "shadow", "gap", "drift"]
Text = Annotated[str | None, Query(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Behind = Annotated[int | None, Query(ge=0, le=LARGEST, description="`next` of the page before")]
Order = Annotated[Literal["oldest", "newest"], Query(description="which come first")]
Since = Annotated[datetime | None, Query(description="captured then or later; ISO 8601, without a zone it is UTC")]
Until = Annotated[datetime | None, Query(description="captured before")]

router = APIRouter(prefix="/api/v1", responses=PROBLEMS)


@router.get("/parts", dependencies=[ENGINEER])
def parts(
    request: Request,
    since: Since = None,
    until: Until = None,
    line: Text = None,
    edge: Text = None,
    recipe: Text = None,
    verdict: Annotated[list[Verdict] | None, Query(max_length=4)] = None,
    serial: Text = None,
    lot: Text = None,
    review: Annotated[
        str | None, Query(pattern=r"^[a-z]{1,20}$", description="the decision that stands; none: nobody decided")
    ] = None,
    order: Order = "oldest",
    after: Behind = None,
    limit: Limit = 100,
) -> Page[Part]:
    """Parts in the order in which the host first heard of them."""
    host = host_of(request)
    wanted = Filter(since, until, _edges(host, line, edge), recipe, verdict, serial, lot, review)
    rows = host.reader.find_parts(wanted, after, limit, order == "newest")
    return Page(items=[host.feed.part(row) for row in rows], next=_next(rows, limit))


@router.get("/parts/{number}", dependencies=[INSPECTOR])
def part(request: Request, number: Row) -> PartDetail:
    """One part with its event, pictures, decisions and what the line was told."""
    host = host_of(request)
    row = host.reader.judged_part(number)
    if row is None:
        raise HTTPException(404, f"there is no part {number}")
    blind = api._unseen(request, row)
    shown = {**row, **dict.fromkeys(TOLD), "blind": True} if blind else row
    found = host.reader.attachments(row["edge_id"], row["part_id"])
    output = None if blind else host.ledger.output_of(row["edge_id"], row["part_id"])
    return PartDetail(
        **host.feed.part(shown).model_dump(),
        header=None if blind else host.reader.header_of(row) or None,
        images=[_image(each) for each in found if each["role"] not in ("dropped", *(["map"] if blind else []))],
        images_dropped=any(each["role"] == "dropped" for each in found),
        reviews=[] if blind else [Review.model_validate(each) for each in host.reader.reviews(number)],
        output=None if output is None else Output.model_validate(output),
    )


@router.get("/parts/{number}/verdicts", dependencies=[INSPECTOR])
def verdicts_of(request: Request, number: Row) -> Page[Review]:
    """What was decided of a part, oldest first; opinions given blindly are not among it. Blind parts tell nothing."""
    host = host_of(request)
    row = host.reader.part(number)
    if row is None:
        raise HTTPException(404, f"there is no part {number}")
    if api._unseen(request, row):
        return Page(items=[], next=None)
    return Page(items=[Review.model_validate(each) for each in host.reader.reviews(number)], next=None)


@router.post("/parts/{number}/verdicts", status_code=201, dependencies=[INSPECTOR_REVIEWS])
def decide(request: Request, number: Row, body: VerdictBody) -> Decided:
    """Record a decision; one that stands is superseded, never changed."""
    return Decided(review=api.decide(request, number, body)["review"])


@router.get("/verdicts", dependencies=[ENGINEER])
def verdicts(request: Request, order: Order = "oldest", after: Behind = None, limit: Limit = 100) -> Page[Review]:
    """Every record of inspectors, those of opinions given blindly too: see `purpose`."""
    rows = host_of(request).reader.find_reviews(after, limit, newest_first=order == "newest")
    return Page(items=[Review.model_validate(row) for row in rows], next=_next(rows, limit))


@router.get("/events", dependencies=[ENGINEER])
def events(
    request: Request,
    line: Text = None,
    edge: Text = None,
    kind: KINDS | None = None,
    part_id: Text = None,
    order: Order = "oldest",
    after: Behind = None,
    limit: Limit = 100,
) -> Page[Event]:
    """Events as edges sent them, in the order in which they were stored."""
    host = host_of(request)
    rows = host.reader.find_events(after, limit, _edges(host, line, edge), kind, part_id, order == "newest")
    return Page(items=[_event(row) for row in rows], next=_next(rows, limit))


@router.get("/events/{number}", dependencies=[ENGINEER])
def event(request: Request, number: Row) -> Event:
    """One event."""
    row = host_of(request).reader.find_event(number)
    if row is None:
        raise HTTPException(404, f"there is no event {number}")
    return _event(row)


@router.get("/images/{number}", response_class=Response, responses=api.BYTES, dependencies=[INSPECTOR])
def image(request: Request, number: Row) -> Response:
    """A picture (PNG, JPEG) or a map (raw) of a part."""
    return api.attachment(request, number)


@router.get("/export/verdicts", dependencies=[ENGINEER])
def export_verdicts(request: Request, after: After = 0, limit: PageLimit = MAX_PAGE) -> VerdictPage:
    """What inspectors said, for calibration: ask again behind ``next`` until it is null."""
    return host_of(request).reader.verdicts(after, limit)


@router.get(
    "/export/dataset",
    dependencies=[ENGINEER],
    response_class=Response,
    responses={
        200: {
            "description": "A zip archive; its manifest.json, the last file, says where each other one is from.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
def export_dataset(
    request: Request,
    kind: Annotated[Literal["mvtec", "coco", "fiftyone"], Query(description="how it is laid out")] = "mvtec",
    since: Since = None,
    until: Until = None,
    line: Text = None,
    edge: Text = None,
    recipe: Text = None,
    lot: Text = None,
    test_share: Annotated[float, Query(ge=0, le=1, description="of good parts, kept for tests")] = 0.2,
    machine_masks: Annotated[bool, Query(description="mvtec: the machine's maps as ground_truth")] = False,
) -> Response:
    """Parts that inspectors called good or defective, with pictures and provenance, for training.

    What nobody has settled is left out and counted in the manifest. More than 10 000 pictures or 2 GiB are refused:
    ask for a shorter time, or use the command `flawline host export`.
    """
    host = host_of(request)
    parts = Filter(since, until, _edges(host, line, edge), recipe, lot=lot)
    pictures, size = host.reader.settled_size(parts)
    if pictures > archive.MOST_PICTURES or size > archive.MOST_BYTES:
        raise HTTPException(
            413, f"{pictures} pictures, {size >> 20} MiB with their maps: ask for a shorter time, or run "
            "flawline host export where the host is"
        )  # fmt: skip
    found = datasets.files(host.reader, host.blobs.read, Wanted(kind, parts, test_share, machine_masks, host.classes))
    return archive.Archive(datasets.zipped(found), f"flawline-{kind}.zip", host.exports)


@router.get("/alarms", dependencies=[INSPECTOR])
def alarms(request: Request) -> Page[Alarm]:
    """What keeps the host or a line from its work at this moment."""
    return Page(items=host_of(request).feed.alarms.standing(), next=None)


@router.get(
    "/stream",
    dependencies=[ENGINEER],
    response_class=Response,
    responses={
        200: {
            "description": "`hello`, `result` (a Part), `review` (a Review), `alarm` (an Alarm), `dropped`, `end`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def stream(
    request: Request,
    last_event_id: Annotated[str | None, Header(max_length=60)] = None,
    after: Annotated[str | None, Query(max_length=60, description="the same, for who cannot set a header")] = None,
) -> Response:
    """Results, decisions and alarms as they come. ``Last-Event-ID`` goes on behind what was read last."""
    host = host_of(request)
    given = last_event_id or after
    cursor = Cursor.parse(given) if given else None
    if given and cursor is None:
        raise HTTPException(422, "Last-Event-ID is none that this host gave.")
    return host.streams.open(cursor, lambda: host.sign_in is None or host.sign_in.viewer(request) is not None)


def _edges(host: Host, line: str | None, edge: str | None) -> list[str] | None:
    """The edges that are meant; None: all."""
    if line is None:
        return None if edge is None else [edge]
    of_line = [each for each in host.reader.edges_heard() if host.line_of(each) == line]
    return of_line if edge is None else [each for each in of_line if each == edge]


def _next(rows: list[dict[str, Any]], limit: int) -> int | None:
    return int(rows[-1]["id"]) if len(rows) == limit else None


def _image(row: dict[str, Any]) -> Image:
    return Image.model_validate({**row, "url": f"/api/v1/images/{row['id']}"})


def _event(row: dict[str, Any]) -> Event:
    return Event.model_validate({**row, "time": iso(row["t_wall_ns"])})
