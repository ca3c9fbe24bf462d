"""The host's figures as Prometheus reads them: receiver, store, ledger, connectors, reviews (beside hops 7 to 12)."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

PREFIX = "flawline_host_"
FRESH_S = 1.0
"""An answer serves so long: whoever asks all the time costs no more than that."""

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Value = tuple[tuple[str, ...], float]
Snapshot = dict[str, Any]
"""What the host says of itself at one moment: ``Service.figures``."""


class Entry(NamedTuple):
    """One metric: gauge or counter, what it says, its labels, and its values in a snapshot."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    text: str
    labels: tuple[str, ...]
    values: Callable[[Snapshot], Iterable[Value]]


def _one(name: str) -> Callable[[Snapshot], Iterable[Value]]:
    """One value; nothing where it is not known."""

    def values(snapshot: Snapshot) -> Iterator[Value]:
        if snapshot.get(name) is not None:
            yield (), float(snapshot[name])

    return values


def _each(name: str) -> Callable[[Snapshot], Iterable[Value]]:
    """A dict of labels to values."""

    def values(snapshot: Snapshot) -> Iterator[Value]:
        for labels, value in snapshot.get(name, {}).items():
            yield (labels if isinstance(labels, tuple) else (labels,)), float(value)

    return values


G, C = GaugeMetricFamily, CounterMetricFamily
ENTRIES: dict[str, Entry] = {
    "ok": Entry(G, "1 where everything can be stored and numbered", (), _one("ok")),
    "line_ok": Entry(G, "1 where the line is inspected now", ("line",), _each("lines")),
    "alarms": Entry(G, "alarms that stand", (), _one("alarms")),
    "receiver": Entry(C, "messages by what became of them since the start", ("what",), _each("receiver")),
    "writer_waiting_events": Entry(G, "events that wait for their commit", (), _one("waiting_events")),
    "writer_waiting_bytes": Entry(G, "their bytes", (), _one("waiting_bytes")),
    "parts": Entry(C, "parts that ended since the start", ("line", "verdict"), _each("parts")),
    "ledger_open_parts": Entry(G, "parts that were announced and have no number yet", (), _one("open")),
    "connector_waiting": Entry(G, "outputs that wait for this connector", ("connector",), _each("connector_waiting")),
    "outputs": Entry(C, "outputs by what became of them since the start", ("connector", "outcome"), _each("outputs")),
    "review_waiting": Entry(G, "parts that wait for an inspector", (), _one("review_waiting")),
    "review_oldest_seconds": Entry(G, "since the capture of the one that waits longest", (), _one("review_oldest_s")),
    "reviews": Entry(C, "decisions of inspectors in the store", ("decision",), _each("reviews")),
    "edge_silent_seconds": Entry(G, "since an edge's last heartbeat arrived", ("edge",), _each("edges")),
    "pages": Entry(G, "connections to the pages", ("what",), _each("pages")),
    "stream": Entry(G, "clients of the stream: now, longest unread, dropped and refused", ("what",), _each("streams")),
    "sign_in": Entry(C, "sign-ins and refusals since the start", ("what",), _each("sign_in")),
    "callbacks_dropped": Entry(C, "calls that an embedding program was too slow for", ("what",), _each("dropped")),
    "state_free_bytes": Entry(G, "free on the state folder's disk", (), _one("free_bytes")),
}


class Metrics:
    """``text`` for any thread; ``figures`` is asked at most every ``FRESH_S``."""

    def __init__(self, figures: Callable[[], Snapshot]) -> None:
        self._lock = threading.Lock()
        self._made = -FRESH_S
        self._text = b""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Host(figures))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The answer as text."""
        with self._lock:
            if time.monotonic() - self._made >= FRESH_S:
                self._text = generate_latest(self._registry)
                self._made = time.monotonic()
            return self._text


class _Host(Collector):
    def __init__(self, figures: Callable[[], Snapshot]) -> None:
        self._figures = figures

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        snapshot = self._figures()
        for name, entry in ENTRIES.items():
            family = entry.kind(PREFIX + name, entry.text, labels=entry.labels)
            for labels, value in entry.values(snapshot):
                family.add_metric(labels, value)
            yield family


def free_bytes(folder: str) -> int | None:
    """Free space of a folder's disk; None where it does not answer."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
