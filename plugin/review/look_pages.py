"""Looks that tell nothing but the picture, what an arbiter settles, and known parts (hops 11 and 12)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, HTTPException, Path, Request, Response
from fastapi.responses import RedirectResponse

from plugin import looks
from plugin.review.api import DEFAULT_NAME, MEDIA, Comment, Dwell, Row, desk_of, host_of, station_of
from plugin.review.offers import arbiter_of, offered
from plugin.review.pages import HOME, after, page
from plugin.review.signin import ENGINEER, INSPECTOR, viewer_of
from plugin.review.slips import Quality, Slip
from plugin.review.texts import texts_of

DISPUTED_LENGTH = 30
SHOWN = ("image", "thumbnail")
Word = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{8,40}$")]
router = APIRouter(include_in_schema=False)


@router.get("/looks/{word}", dependencies=[INSPECTOR])
def look(request: Request, word: Word) -> Response:
    slip = _slip(request, word)
    if slip is None:
        return RedirectResponse(HOME, 303)
    pictures = _pictures(request, slip)
    host = host_of(request)
    views: dict[str, dict[str, Any]] = {}
    for n, each in enumerate(pictures):
        entry = {"url": f"/looks/{word}/pictures/{n}", "toPart": each["to_part"], "shape": each["shape"]}
        view = views.setdefault(each["view"], {"name": each["view"], "pictures": {}, "map": None, "regions": []})
        view["pictures"].setdefault("image" if "image" not in view["pictures"] else each["role"], entry)
    return page(request, "look.html", tab="queue", word=word, views=list(views.values()), classes=host.classes)


@router.get("/looks/{word}/pictures/{n}", dependencies=[INSPECTOR])
def picture(request: Request, word: Word, n: Annotated[int, Path(ge=0, le=1000)]) -> Response:
    slip = _slip(request, word)
    if slip is None:
        return RedirectResponse(HOME, 303)
    pictures = _pictures(request, slip)
    if n >= len(pictures):
        raise HTTPException(404, texts_of(request)("error.no_page"))
    try:
        data = host_of(request).blobs.read(pictures[n]["sha256"])
    except OSError as error:
        raise HTTPException(503, texts_of(request)("error.no_picture")) from error
    if data is None:
        raise HTTPException(404, texts_of(request)("error.no_page"))
    # No headers of the file: its time, or a mark of its content, would tell how old the part is.
    return Response(data, media_type=MEDIA[pictures[n]["codec"]])


@router.post("/looks/{word}", dependencies=[INSPECTOR])
def decide(
    request: Request,
    word: Word,
    decision: Annotated[Literal["defect", "good", "unsure"] | None, Form()] = None,
    defect_class: Annotated[str | None, Form(max_length=60)] = None,
    comment: Annotated[Comment, Form()] = None,
    dwell_ms: Annotated[Dwell, Form()] = None,
) -> Response:
    """One verdict for a slip, whatever it stands for; where it goes on to does not tell what it was."""
    host, texts, slip = host_of(request), texts_of(request), _slip(request, word)
    if slip is None:
        return RedirectResponse(HOME, 303)
    if (defect_class is not None and defect_class not in host.classes) or (decision is None and defect_class is None):
        raise HTTPException(422, texts("error.no_class"))
    if slip.purpose is None and slip.part in host.holds.others(desk_of(request)):
        return RedirectResponse(HOME, 303)
    seen = None
    if slip.purpose is None:
        reviews = host.reader.reviews(slip.part)
        # Who comes back to the slip may correct it, as with any other.
        own = reviews and (reviews[-1]["decision"] == "unsure" or reviews[-1]["inspector"] == slip.inspector)
        seen = reviews[-1]["id"] if own else 0
    host.decide(
        slip.part,
        decision or "defect",
        slip.inspector,
        defect_class=defect_class,
        comment=comment,
        dwell_ms=dwell_ms,
        station=station_of(request),
        seen=seen,
        purpose=slip.purpose,
    )
    # A part of the queue between two looks, where there is one.
    following = after(request, None)
    return RedirectResponse(offered(request) or following if following == HOME else following, 303)


@router.get("/disputed", dependencies=[INSPECTOR])
def disputed(request: Request) -> Response:
    quality, viewer = _quality(request), arbiter_of(request)
    if viewer is None:
        return RedirectResponse(HOME, 303)
    rows = quality.ask(lambda connection: looks.disputed(connection, DISPUTED_LENGTH))
    host = host_of(request)
    for row in rows:
        row["mine"] = viewer.name in {call.inspector for call in row["calls"]}
    return page(
        request,
        "disputed.html",
        tab="disputed",
        parts=rows,
        pictures=host.reader.thumbnails(rows),
        classes=host.classes,
    )


@router.post("/disputed/{number}", dependencies=[INSPECTOR])
def settle(
    request: Request,
    number: Row,
    decision: Annotated[Literal["defect", "good"] | None, Form()] = None,
    defect_class: Annotated[str | None, Form(max_length=60)] = None,
    comment: Annotated[Comment, Form()] = None,
) -> Response:
    """An arbiter's word; whoever called the part before is not its arbiter."""
    quality, viewer = _quality(request), arbiter_of(request)
    if viewer is None:
        raise HTTPException(403, texts_of(request)("disputed.right"))
    host, texts = host_of(request), texts_of(request)
    if (defect_class is not None and defect_class not in host.classes) or (decision is None and defect_class is None):
        raise HTTPException(422, texts("error.no_class"))
    found = host.reader.part(number)
    if found is None or found["review"] != "disputed":
        raise HTTPException(409, texts("disputed.not"))
    if viewer.name in {call.inspector for call in quality.ask(lambda connection: looks.calls(connection, number))}:
        raise HTTPException(403, texts("disputed.own"))
    said = {"defect_class": defect_class, "comment": comment, "station": station_of(request), "purpose": "arbiter"}
    host.decide(number, decision or "defect", viewer.name, **said)
    return RedirectResponse("/disputed", 303)


@router.get("/known", dependencies=[ENGINEER])
def known(request: Request) -> Response:
    quality = _quality(request)
    return page(request, "known.html", tab="known", parts=quality.ask(looks.known_parts), share=quality.known_share)


@router.post("/known", dependencies=[ENGINEER])
def change_known(
    request: Request,
    part: Annotated[int, Form(ge=1, le=2**63 - 1)],
    change: Annotated[Literal["register", "retire"], Form()],
) -> Response:
    viewer = viewer_of(request)
    by = DEFAULT_NAME if viewer is None else viewer.name
    if change == "register":
        host_of(request).write(lambda store: store.run(lambda connection: looks.register(connection, part, by)))
    else:
        host_of(request).write(lambda store: store.run(lambda connection: looks.retire(connection, part)))
    return RedirectResponse("/known", 303)


def _quality(request: Request) -> Quality:
    quality = host_of(request).quality
    if quality is None:
        raise HTTPException(404, texts_of(request)("error.no_page"))
    return quality


def _slip(request: Request, word: str) -> Slip | None:
    quality, viewer = host_of(request).quality, viewer_of(request)
    return None if quality is None or viewer is None else quality.slips.find(word, viewer.name)


def _pictures(request: Request, slip: Slip) -> list[dict[str, Any]]:
    reader = host_of(request).reader
    found = reader.part(slip.part)
    if found is None:
        return []
    shown = [each for each in reader.attachments(found["edge_id"], found["part_id"]) if each["role"] in SHOWN]
    shown = [each for each in shown if each["sha256"] and not each["removed_ns"] and each["codec"] in ("png", "jpeg")]
    whole = {each["view"] for each in shown if each["role"] == "image"}
    return [each for each in shown if each["role"] == "image" or each["view"] not in whole]
