"""Each station live: what its edge last said of itself, and its newest parts as they come (hop 11)."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse

from plugin.queries import NEWEST_PARTS
from plugin.review.api import host_of
from plugin.review.pages import page
from plugin.review.signin import INSPECTOR, INSPECTOR_BACKGROUND
from plugin.review.texts import texts_of

LOOKED_AT = 120
"""Of an edge's newest parts, for those that have pictures: most pass, and passed parts have none."""

SILENT_S = 5.0
"""An edge says something several times a second."""

Edge = Annotated[str, Query(max_length=200)]
router = APIRouter(include_in_schema=False)


@router.get("/stations", dependencies=[INSPECTOR])
def stations(request: Request) -> Response:
    return page(request, "stations.html", tab="stations", **_all(request))


@router.get("/stations/latest", dependencies=[INSPECTOR_BACKGROUND])
def stations_latest(request: Request) -> Response:
    """What of the page changes, for its script."""
    return page(request, "stations_live.html", tab="stations", **_all(request))


@router.get("/station", dependencies=[INSPECTOR])
def station(request: Request, edge: Edge = "") -> Response:
    if not edge:
        return RedirectResponse("/stations")
    return page(request, "station.html", tab="stations", **_one(request, edge))


@router.get("/station/latest", dependencies=[INSPECTOR_BACKGROUND])
def station_latest(request: Request, edge: Edge = "") -> Response:
    """What of the page changes, for its script."""
    if not edge:
        return RedirectResponse("/stations/latest")
    return page(request, "station_live.html", tab="stations", **_one(request, edge))


def _all(request: Request) -> dict[str, Any]:
    reader = host_of(request).reader
    edges = reader.edges()
    latest = {edge["edge_id"]: reader.latest(edge["edge_id"], LOOKED_AT) for edge in edges}
    shown = [part for parts in latest.values() for part in parts]
    return {"edges": edges, "latest": latest, **_shown(request, shown)}


def _one(request: Request, edge_id: str) -> dict[str, Any]:
    reader = host_of(request).reader
    edge = next((edge for edge in reader.edges() if edge["edge_id"] == edge_id), None)
    if edge is None:
        raise HTTPException(404, texts_of(request)("error.no_station"))
    parts = reader.latest(edge_id, LOOKED_AT)
    return {"edge": edge, "parts": parts, "window": NEWEST_PARTS, **_shown(request, parts)}


def _shown(request: Request, parts: list[dict[str, Any]]) -> dict[str, Any]:
    host = host_of(request)
    return {
        "pictures": host.reader.thumbnails(parts),
        "blind": {part["id"] for part in parts if host.is_blind(part)},
        "now_ns": time.time_ns(),
        "silent_s": SILENT_S,
    }
