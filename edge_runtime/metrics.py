"""The edge's metrics as Prometheus reads them: one table of names, filled from the observer (beside hops 2 to 6)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from contract.event import CameraState, State, Verdict
from contract.versions import installed
from edge_runtime.observer import BOUNDS_S, Histogram, Observer, Snapshot

PREFIX = "flawline_edge_"
FRESH_S = 0.5
"""An answer serves so long: whoever asks all the time costs no more than that."""

STATES = ("starting", "running", "stopping", "stopped", "failed")
CAMERA_STATES = ("starting", "running", "stalled", "ended", "failed")
Value = tuple[tuple[str, ...], float]
Values = Callable[[Snapshot], Iterator[Value]]
PerCamera = Callable[[CameraState], float]


class Entry(NamedTuple):
    """One metric: gauge or counter, what it says, its labels, and its values in a snapshot."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    text: str
    labels: tuple[str, ...]
    values: Values


def _state(value: Callable[[State], float | None]) -> Values:
    """One value of the newest heartbeat; nothing before the first, or where it is not known."""

    def values(snapshot: Snapshot) -> Iterator[Value]:
        found = None if snapshot.state is None else value(snapshot.state)
        if found is not None:
            yield (), float(found)

    return values


def _cameras(value: PerCamera) -> Values:
    def values(snapshot: Snapshot) -> Iterator[Value]:
        for camera in () if snapshot.state is None else snapshot.state.cameras:
            yield (camera.camera_id,), value(camera)

    return values


def _age(since_ns: Callable[[Snapshot], int]) -> Values:
    def values(snapshot: Snapshot) -> Iterator[Value]:
        if since_ns(snapshot):
            yield (), (time.monotonic_ns() - since_ns(snapshot)) / 1e9

    return values


def _by_camera(counted: Callable[[Snapshot], dict[str, float] | dict[str, int]]) -> Values:
    def values(snapshot: Snapshot) -> Iterator[Value]:
        for camera, count in counted(snapshot).items():
            yield (camera,), count

    return values


def _info(snapshot: Snapshot) -> Iterator[Value]:
    state = snapshot.state
    if state is not None:
        said = (
            state.edge_id,
            installed("flawline") or "",
            state.engine,
            state.recipe,
            state.bundle_id,
            state.bundle_state,
        )
        yield (*(word or "" for word in said), (state.model_sha256 or "")[:16]), 1.0


def _station_state(snapshot: Snapshot) -> Iterator[Value]:
    if snapshot.state is not None:
        for name in STATES:
            yield (name,), float(snapshot.state.state == name)


def _camera_state(snapshot: Snapshot) -> Iterator[Value]:
    for camera in () if snapshot.state is None else snapshot.state.cameras:
        for name in CAMERA_STATES:
            yield (camera.camera_id, name), float(camera.state == name)


def _results(snapshot: Snapshot) -> Iterator[Value]:
    """Every verdict of every camera from the beginning: a count that appears only with its first part has no rate."""
    cameras = {camera for camera, _ in snapshot.results}
    if snapshot.state is not None:
        cameras |= {camera.camera_id for camera in snapshot.state.cameras}
    for camera in sorted(cameras):
        for verdict in Verdict:
            yield (camera, verdict.value), snapshot.results.get((camera, verdict.value), 0)


def _gauge(text: str, values: Values, *labels: str) -> Entry:
    return Entry(GaugeMetricFamily, text, labels, values)


def _counter(text: str, values: Values, *labels: str) -> Entry:
    return Entry(CounterMetricFamily, text, labels, values)


METRICS: dict[str, Entry] = {
    "info": _gauge(
        "what runs; always 1",
        _info,
        *("edge_id", "version", "engine", "recipe", "bundle_id", "bundle_state", "model"),
    ),
    "state": _gauge("1 for the state that the edge is in", _station_state, "state"),
    "inspecting": _gauge("0 while stopped by request", _state(lambda s: s.inspecting)),
    "inference_ok": _gauge("0 where the last inference failed", _state(lambda s: s.inference != "failed")),
    "trouble": _gauge(
        "1 while the host refuses this edge, or its card is lost", _state(lambda s: s.detail is not None)
    ),
    "heartbeat_age_seconds": _gauge("since the station last showed its state", _age(lambda s: s.heartbeat_ns)),
    "waiting_parts": _gauge("announced, without a verdict yet", _state(lambda s: s.waiting)),
    "waiting_seconds": _gauge("since the oldest of them was captured", _state(lambda s: s.waiting_ms / 1e3)),
    "results_total": _counter("verdicts", _results, "camera", "verdict"),
    "missed_total": _counter("triggers that were never inspected", _by_camera(lambda s: s.missed), "camera"),
    "gaps_total": _counter("declared gaps; camera empty: the whole edge", _by_camera(lambda s: s.gaps), "camera"),
    "gap_seconds_total": _counter("how long they were", _by_camera(lambda s: s.gap_s), "camera"),
    "pictures_dropped_total": _counter(
        "pictures and maps not sent, for want of room or time", _state(lambda s: s.attachments_dropped)
    ),
    "last_seq": _gauge("number of the newest event", _state(lambda s: s.last_seq)),
    "spool_rows": _gauge("events that the host has not committed", _state(lambda s: s.spool_rows)),
    "spool_bytes": _gauge("their size", _state(lambda s: s.spool_bytes)),
    "acknowledged_age_seconds": _gauge(
        "since the host last committed an event; absent: not yet", _age(lambda s: s.acknowledged_ns)
    ),
    "clock_synchronised": _gauge(
        "1 where NTP or PTP keeps the wall clock; absent: unknown", _state(lambda s: s.clock_synchronised)
    ),
    "clock_steps_total": _counter("how often the wall clock was set", _state(lambda s: s.clock_steps)),
    "clock_step_seconds": _gauge("the last of them, negative for back", _state(lambda s: s.clock_step_ms / 1e3)),
    "camera_state": _gauge("1 for the state that the camera is in", _camera_state, "camera", "state"),
    "camera_frames_total": _counter("frames taken", _cameras(lambda c: c.frames), "camera"),
    "camera_frames_skipped_total": _counter("frames that nobody looked at", _cameras(lambda c: c.skipped), "camera"),
    "camera_triggers_total": _counter("parts announced", _cameras(lambda c: c.triggers), "camera"),
    "camera_restarts_total": _counter("its process was replaced", _cameras(lambda c: c.restarts), "camera"),
    "camera_frame_age_seconds": _gauge(
        "of its newest frame at the last heartbeat; negative: none yet",
        _cameras(lambda c: c.frame_age_ms / 1e3),
        "camera",
    ),
    "camera_fps": _gauge("frames a second over the last 5 s", _by_camera(lambda s: s.fps), "camera"),
}
HISTOGRAM = "stage_seconds"
HISTOGRAM_TEXT = "time of each stage of a part; total: from capture to the first sending"


class EdgeCollector(Collector):
    """Makes metric families of an observer's snapshot whenever they are asked for."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def collect(self) -> Iterator[Metric]:
        """Every metric of the table, then the histogram of the stages."""
        snapshot = self._observer.snapshot()
        for name, entry in METRICS.items():
            family = entry.kind(PREFIX + name, entry.text, labels=entry.labels)
            for labels, value in entry.values(snapshot):
                family.add_metric(labels, value)
            yield family
        yield _histogram(snapshot.stages)


def _histogram(stages: dict[tuple[str, str], Histogram]) -> Metric:
    family = HistogramMetricFamily(PREFIX + HISTOGRAM, HISTOGRAM_TEXT, labels=("camera", "stage"))
    for key, histogram in stages.items():
        bounds = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
        family.add_metric(key, list(zip(bounds, histogram.cumulative(), strict=True)), histogram.sum_s)
    return family


class Page:
    """The text that is served, made anew at most every FRESH_S. Safe to use from several threads."""

    def __init__(self, observer: Observer) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EdgeCollector(observer))
        ProcessCollector(registry=self._registry)
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, bytes]] = {}

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for an ``Accept`` header: OpenMetrics where it is asked for, else Prometheus' text."""
        encode, content_type = choose_encoder(accept)
        with self._lock:
            at, body = self._made.get(content_type, (0.0, b""))
            if not body or time.monotonic() - at > FRESH_S:
                body = encode(self._registry)
                self._made = {content_type: (time.monotonic(), body)}
            return content_type, body
