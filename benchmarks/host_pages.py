"""The review's next part, by HTTP, from a store of so many parts: one in ten is flagged and waits for an inspector."""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.host_edges import messages
from contract.event import from_frames
from plugin.store import Received, Store
from plugin.tally import SLICE, add_up

BATCH = 256
PAGES = 200
WARM = 10


class Pages(NamedTuple):
    """Milliseconds: the next part's page alone, and from a verdict's sending to the end of that page."""

    page_ms: list[float]
    verdict_and_page_ms: list[float]


def fill(state_dir: Path, parts: int) -> None:
    """A store of so many parts, as the writer would have made it; all flagged parts have one and the same picture."""
    state_dir.mkdir(parents=True)
    store = Store(state_dir)
    # Three events for a flagged part, two for any other.
    everything = itertools.islice(messages("edge-1", True, functools.cache(os.urandom)), 2 * parts + parts // 10)
    while batch := [_received(message) for message in itertools.islice(everything, BATCH)]:
        store.commit(batch)
    while store.run(add_up) == SLICE:  # what a host does beside: it is not behind with 100 000 parts
        pass
    store.close()


def _received(message: list[bytes]) -> Received:
    return Received(b"", from_frames(message), message[2].decode(), time.time_ns(), 0)


def walk(url: str, pages: int = PAGES) -> Pages:
    """Judge the queue's worst part, go where the host leads, and so on; raises SystemExit where it does not lead."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
    desk = {"Cookie": f"desk={0:032x}"}  # one browser: it may decide what it has open
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": url.rstrip("/"), **desk}
    path = _first(connection)
    alone, whole = [], []
    for number in range(pages + WARM):
        begun = time.monotonic()
        connection.request("POST", f"{path.partition('?')[0]}/verdict", b"decision=good", headers)
        answer = connection.getresponse()
        answer.read()
        path = answer.getheader("location") or ""
        if answer.status != 303 or not path.startswith("/parts/"):
            raise SystemExit(f"a verdict led to {answer.status} {path}")
        asked = time.monotonic()
        connection.request("GET", path, headers=desk)
        answer = connection.getresponse()
        body = answer.read()
        ended = time.monotonic()
        if answer.status != 200 or b"<html" not in body:
            raise SystemExit(f"{path}: {answer.status}")
        if number >= WARM:
            alone.append(1e3 * (ended - asked))
            whole.append(1e3 * (ended - begun))
    connection.close()
    return Pages(alone, whole)


def _first(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/api/queue?limit=1")
    (worst,) = json.load(connection.getresponse())
    return f"/parts/{worst['id']}"


def medians(pages: Pages) -> tuple[float, float]:
    """(page, verdict and page)."""
    return round(statistics.median(pages.page_ms), 1), round(statistics.median(pages.verdict_and_page_ms), 1)
