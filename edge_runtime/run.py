"""Starts an edge: verifies the bundle, proves the engine on its golden images, then lets the station run."""

from __future__ import annotations

import fcntl
import gc
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import zmq

from contract.errors import ConfigError
from contract.event import Result, Verdict
from contract.notify import Notifier
from contract.overseer import Overseer
from edge_runtime.build import build_beside
from edge_runtime.cameras import make_camera
from edge_runtime.control import Control
from edge_runtime.desk import Desk
from edge_runtime.emitter import Emitter
from edge_runtime.errors import CardLostError, SpoolBlockedError
from edge_runtime.figures import published
from edge_runtime.link import load_keys
from edge_runtime.logs import set_up
from edge_runtime.preview import Preview
from edge_runtime.recipes import Judge, faults_of_others, load_judge, read_choice, refuse_uneven
from edge_runtime.settings import EdgeSettings, load_settings
from edge_runtime.shadow import Shadow
from edge_runtime.spool import Spool
from edge_runtime.spool_room import Limits
from edge_runtime.spool_tables import SPOOL_FILE
from edge_runtime.station import Station

FLUSH_S = 30.0
STOP_FLUSH_S = 2.0
STOPPED_S = 60.0
"""Longest time from the station's end to the process's, the flush included."""
LOCK = "lock"
SWITCH_S = 0.0005
"""How long one thread keeps Python's lock from another: a verdict must not wait 5 ms for a heartbeat."""

log = logging.getLogger(__name__)


def run_edge(config: Path, quiet: bool = False) -> int:
    """Run until asked to stop or every camera has ended; 0 where the host has committed everything, else 3.

    CardLostError.exit_code where the graphics card does not compute for this process any more.
    """
    settings = load_settings(config)
    set_up(settings.log)
    keys = load_keys(settings.host)
    for camera in settings.cameras:
        make_camera(camera.url, camera.id, settings.state_dir, camera.stall_s)  # raises for what can never work
    _make_folder(settings.state_dir)
    overseer = Overseer(settings.hang_s, settings.start_s, Notifier.from_environment())
    with (
        overseer,
        only_one(settings.state_dir),
        published(settings) as observer,
        zmq.Context() as context,
    ):
        choice = read_choice(settings)  # only now: an edge that is still stopping may be asked for another one
        refuse_uneven(settings)
        judge = load_judge(settings, choice.number)
        if settings.mode == "production":
            for fault in faults_of_others(settings, choice.number):
                log.warning("%s", fault)
        preview = _open_preview(settings)
        spool = _open_spool(settings)
        emitter = Emitter(spool, settings.host, context, keys, observer)
        control = None
        if settings.host.control is not None:
            load = partial(load_judge, settings)
            control = Control(context, settings.host.control, keys, settings.edge_id, spool.run_id, load)
        glimpses = None if preview is None else preview.glimpses

        def hear(result: Result) -> None:
            if preview is not None:
                preview.note(result)
            if not quiet:
                _say(result)

        desk = Desk(settings, spool.run_id, control)
        shadow = None if settings.shadow.bundle is None else Shadow(settings, spool, emitter)
        station = Station(
            settings, judge.bundle, judge.engine, spool, emitter, hear, desk, choice, observer, glimpses, shadow
        )
        _stop_on_signals(station)
        _echo(f"edge {settings.edge_id}: {_named(judge)}, {judge.engine_name}")
        del judge  # the station alone holds its engine, which must go when another recipe takes over
        station.pulse, emitter.pulse = overseer.watch("station"), overseer.watch("emitter")
        emitter.start()
        if control is not None:
            control.pulse = overseer.watch("control")
            control.start()
        if preview is not None:
            preview.start()
        desk.start()
        overseer.status = lambda: station.summary
        overseer.complete()
        clean = False
        try:
            build_beside(settings, config, choice.number, station.stop_event)
            settle()
            station.run()
            clean = True
            overseer.stopping(STOPPED_S)
            return _flush(spool, emitter, FLUSH_S if not station.stop_event.is_set() else STOP_FLUSH_S)
        except CardLostError as error:
            _flush(spool, emitter, STOP_FLUSH_S)
            log.error("the edge ends with code %d, to be started again", error.exit_code)
            return error.exit_code
        finally:
            overseer.stopping(STOPPED_S)
            station.stop_event.set()
            if shadow is not None:
                shadow.stop()
            desk.stop()
            if control is not None:
                control.stop()
            if preview is not None:
                preview.stop()
            emitter.stop()
            spool.close(clean)


def settle() -> None:
    """Once everything is loaded: threads take turns quickly, and what stays for good is not searched for garbage."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()


def _open_preview(settings: EdgeSettings) -> Preview | None:
    if settings.preview.listen is None:
        return None
    return Preview(settings.preview, settings.edge_id, [camera.id for camera in settings.cameras])


def _make_folder(folder: Path) -> None:
    """Raises SpoolBlockedError where it cannot be written: whoever supervises the edge starts it again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise SpoolBlockedError(f"{folder}: cannot be written ({error.strerror}); is the disk full?") from error


def _open_spool(settings: EdgeSettings) -> Spool:
    limits = settings.spool
    dead = Limits(limits.dead_rows, int(limits.dead_mb * 1e6))
    path = settings.state_dir / SPOOL_FILE
    return Spool(path, int(limits.max_mb * 1e6), limits.sync_ms, limits.max_rows, dead)


@contextmanager
def only_one(state_dir: Path) -> Iterator[None]:
    """Two edges on one spool would number events twice."""
    with (state_dir / LOCK).open("w") as file:
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


def _named(judge: Judge) -> str:
    manifest = judge.bundle.manifest
    name = f"bundle {manifest.name} ({manifest.id})"
    if judge.bundle_state is None:
        return name
    released = manifest.history[-1]
    return f"{name}, released by {released.who} on {released.when}"


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
