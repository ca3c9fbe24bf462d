"""Where a browser is sent that asks for a part which is shown blindly, or may be given another look (hop 11)."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request

from plugin.looks import count_disputed, open_for
from plugin.review.api import host_of
from plugin.review.signin import Viewer, viewer_of
from plugin.review.slips import Quality, Slip
from plugin.review.texts import texts_of


def offered(request: Request) -> str | None:
    """The page of a look that waits for whoever asks, if there is one."""
    quality, viewer = host_of(request).quality, viewer_of(request)
    if quality is None or viewer is None:
        return None
    found = quality.ask(lambda connection: open_for(connection, viewer.name))
    return None if not found else _page(request, Slip(found[0].part, found[0].purpose, viewer.name))


def disputes(request: Request) -> int:
    """How many parts wait for whoever asks to settle them; 0 for who may not."""
    return 0 if arbiter_of(request) is None else _quality(request).ask(count_disputed)


def arbiter_of(request: Request) -> Viewer | None:
    """Who asks, where that is an arbiter."""
    quality, viewer = host_of(request).quality, viewer_of(request)
    may = quality is not None and viewer is not None and quality.may_arbitrate(viewer.name, viewer.may("engineer"))
    return viewer if may else None


def blindly(request: Request, part: dict[str, Any]) -> str | None:
    """The page on which a blind part is judged by somebody who is signed in; None where its own page is shown."""
    host, viewer = host_of(request), viewer_of(request)
    if host.quality is None or viewer is None:
        return None
    if part["review"] in (None, "unsure"):
        return _page(request, Slip(part["id"], None, viewer.name))
    if not host.is_unseen(part, viewer):
        return None
    for look in host.quality.ask(lambda connection: open_for(connection, viewer.name)):
        if look.part == part["id"]:
            return _page(request, Slip(look.part, look.purpose, viewer.name))
    raise HTTPException(403, texts_of(request)("look_page.sealed"))


def _page(request: Request, slip: Slip) -> str:
    return f"/looks/{_quality(request).slips.issue(slip)}"


def _quality(request: Request) -> Quality:
    quality = host_of(request).quality
    if quality is None:
        raise HTTPException(404, texts_of(request)("error.no_page"))
    return quality
