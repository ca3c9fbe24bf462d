"""Shows the observer's figures to others: a file for `flawline edge top`, metrics for Prometheus (beside hop 6)."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edge_runtime.account import percentile
from edge_runtime.clock import boot_id, boot_ns
from edge_runtime.observer import Observer
from edge_runtime.settings import EdgeSettings

FIGURES_FILE = "figures.json"
EVERY_S = 1.0
log = logging.getLogger(__name__)


class Latency(BaseModel):
    """Milliseconds of the newest parts in one stage, nearest rank; ``n``: how many they are."""

    p50: float
    p99: float
    n: int


class Figures(BaseModel):
    """What `flawline edge top` shows beside the heartbeat. ``since_boot_ns``: the start of this run."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    boot_id: str = ""
    t_boot_ns: int = 0
    since_boot_ns: int = 0
    results: dict[str, dict[str, int]] = {}
    missed: int = 0
    gaps: int = 0
    gap_s: float = 0.0
    latency_ms: dict[str, Latency] = {}
    fps: dict[str, float] = {}
    acknowledged_s: float | None = None


def figures_of(observer: Observer, since_boot_ns: int) -> Figures:
    """The figures as they are now; ``results`` by camera and verdict."""
    snapshot = observer.snapshot()
    results: dict[str, Counter[str]] = {}
    for (camera, verdict), count in snapshot.results.items():
        results.setdefault(camera, Counter())[verdict] += count
    acknowledged_ns = snapshot.acknowledged_ns
    return Figures(
        boot_id=boot_id(),
        t_boot_ns=boot_ns(),
        since_boot_ns=since_boot_ns,
        results={camera: dict(counts) for camera, counts in results.items()},
        missed=sum(snapshot.missed.values()),
        gaps=sum(snapshot.gaps.values()),
        gap_s=sum(snapshot.gap_s.values()),
        latency_ms={stage: _latency(times) for stage, times in snapshot.recent.items() if times},
        fps=snapshot.fps,
        acknowledged_s=(time.monotonic_ns() - acknowledged_ns) / 1e9 if acknowledged_ns else None,
    )


def _latency(times_s: list[float]) -> Latency:
    return Latency(p50=1e3 * percentile(times_s, 50), p99=1e3 * percentile(times_s, 99), n=len(times_s))


@contextmanager
def published(settings: EdgeSettings) -> Iterator[Observer]:
    """An observer whose figures others can read for as long as the block lasts.

    Raises ConfigError where the metrics' port is taken, before the block begins.
    """
    observer = Observer()
    server = None
    if settings.metrics.listen is not None:
        from edge_runtime.metrics import Page
        from edge_runtime.metrics_http import MetricsServer

        server = MetricsServer(settings.metrics, Page(observer).render)
        server.start()
        log.info("metrics for Prometheus: http://%s/metrics", settings.metrics.listen)
    writer = _Writer(observer, settings.state_dir / FIGURES_FILE)
    try:
        yield observer
    finally:
        writer.stop()
        if server is not None:
            server.stop()


class _Writer:
    """Writes the figures every EVERY_S in a thread of its own: no part waits for a disk."""

    def __init__(self, observer: Observer, path: Path) -> None:
        self._observer, self._path = observer, path
        self._since_boot_ns = boot_ns()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write for the last time."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(EVERY_S)
            self._write()

    def _write(self) -> None:
        draft = self._path.with_suffix(".draft")
        try:
            text = figures_of(self._observer, self._since_boot_ns).model_dump_json(indent=1)
        except Exception:
            log.exception("the figures for `flawline edge top` could not be made")
            return
        with suppress(OSError):  # a full disk shows elsewhere
            draft.write_text(text)
            draft.replace(self._path)
