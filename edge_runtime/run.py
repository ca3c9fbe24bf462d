"""Starts an edge: verifies the bundle, proves the engine on its golden images, then lets the station run."""

from __future__ import annotations

import fcntl
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import zmq

from contract.bundle import Bundle, open_bundle
from contract.errors import BundleError, ConfigError
from contract.event import Result, Verdict
from edge_runtime.cameras import make_camera
from edge_runtime.emitter import Emitter
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.settings import EdgeSettings, load_settings
from edge_runtime.spool import Spool
from edge_runtime.station import Station

FLUSH_S = 30.0

log = logging.getLogger(__name__)


def run_edge(config: Path, quiet: bool = False) -> int:
    """Run until asked to stop or every camera has ended; 0 where the host has committed everything, else 3."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(config)
    bundle = open_bundle(settings.bundle)
    _refuse_unfit(bundle, settings)
    engine = open_engine(settings.engine, bundle, settings.threads, settings.precision)
    check_golden(engine, bundle)
    _warn_of_precision(bundle, settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(settings.state_dir), zmq.Context() as context:
        spool = Spool(settings.state_dir / "spool.sqlite", int(settings.spool.max_mb * 1e6), settings.spool.sync_ms)
        emitter = Emitter(spool, settings.host, context)
        station = Station(settings, bundle, engine, spool, emitter, None if quiet else _say)
        _stop_on_signals(station)
        _echo(f"edge {settings.edge_id}: bundle {bundle.manifest.name} ({bundle.manifest.id}), {engine.describe()}")
        emitter.start()
        clean = False
        try:
            station.run()
            clean = True
            return _flush(spool, emitter, FLUSH_S if not station.stop_event.is_set() else 2.0)
        finally:
            emitter.stop()
            spool.close(clean)


def _refuse_unfit(bundle: Bundle, settings: EdgeSettings) -> None:
    manifest = bundle.manifest
    for camera in settings.cameras:
        make_camera(camera.url, camera.id, settings.state_dir, camera.stall_s)  # raises for what can never work
    if manifest.thresholds is None or manifest.quality is None:
        raise BundleError(
            f"{bundle.root}: the bundle is not calibrated, so no part could pass; "
            f"run: flawline calibrate thresholds {bundle.root} --data DIR"
        )
    elsewhere = sorted(
        {view.camera for view in manifest.recipe.views if view.camera} - {c.id for c in settings.cameras}
    )
    if elsewhere:
        raise ConfigError(f"the recipe's views need camera(s) {elsewhere}, which the configuration does not have")
    if len({view.camera for view in manifest.recipe.views}) > 1:
        raise ConfigError("the recipe's views come from several cameras; this version joins views of one camera only")


def _warn_of_precision(bundle: Bundle, settings: EdgeSettings) -> None:
    measured = bundle.manifest.thresholds.engine if bundle.manifest.thresholds else ""
    if f" {settings.precision} " not in f" {measured} ":
        log.warning(
            "the limits were measured with %s, the line runs in %s: better measure them again, flawline calibrate "
            "thresholds %s --data DIR --precision %s",
            measured,
            settings.precision,
            bundle.root,
            settings.precision,
        )


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Two edges on one spool would number events twice."""
    with (state_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{state_dir}: another edge runs on this state_dir; stop it or give another one"
            ) from error
        yield


def _stop_on_signals(station: Station) -> None:
    def stop(signum: int, frame: FrameType | None) -> None:
        station.stop_event.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _flush(spool: Spool, emitter: Emitter, timeout_s: float) -> int:
    if emitter.wait_until_empty(timeout_s):
        return 0
    rows, _ = spool.size
    log.warning(
        "%d event(s) wait in %s: the host has not taken them; they are sent at the next start", rows, spool.path
    )
    return 3


def _say(result: Result) -> None:
    mark = "" if result.verdict is Verdict.PASS else f"  {result.reason or ''}"
    score = "" if result.score is None else f"{result.score:10.4f}"
    _echo(f"{result.part_id:<28} {result.verdict.value:<14}{score}{mark}")


def _echo(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
