"""Disk, shared memory and clock of the box, measured where the edge will use them (before hop 1)."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.checks.base import GIB, Finding, Status, Subject, existing, settings_or_none

DISK_FAIL_GIB = 1.0
DISK_WARN_GIB = 10.0
SYNCS = 15
SYNC_WARN_MS, SYNC_FAIL_MS = 50.0, 1000.0
SHM_WARN_GIB = 0.25
MEMINFO = Path("/proc/meminfo")
CGROUPS = (  # limit and use, as a container sees its own; version 2, then 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
EARLIEST_UNIX_S = 1_700_000_000  # a clock before November 2023 was never set


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Room for the spool, whether it can be written, and how long a sync takes."""
    settings = settings_or_none(subject)
    place = existing(settings.state_dir) if settings else Path.cwd()
    usage = shutil.disk_usage(place)
    free, spool = usage.free / GIB, settings.spool.max_mb * 1e6 / GIB if settings else 0.0
    wanted = max(DISK_WARN_GIB, spool)
    status = Status.FAIL if free < DISK_FAIL_GIB else Status.WARN if free < wanted else Status.OK
    way_out = "" if status is Status.OK else f"free space or choose another state_dir; {wanted:.0f} GiB are comfortable"
    if spool and DISK_FAIL_GIB <= free < spool:
        way_out = f"free space, or let the spool take less: max_mb = {0.8 * usage.free / 1e6:.0f} under [spool]"
    may_take = f"; the spool may take {spool:.1f}" if spool else ""
    yield Finding("disk", status, f"{free:.1f} GiB free at {place}{may_take}", way_out)
    yield _try_sync(place)


def _try_sync(place: Path) -> Finding:
    """A few small writes, each synced, as the spool does it."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            took_ms = []
            for _ in range(SYNCS):
                start = time.perf_counter()
                file.write(b"x" * 4096)
                file.flush()
                os.fdatasync(file.fileno())
                took_ms.append(1e3 * (time.perf_counter() - start))
    except OSError as error:
        way_out = f"let this user write there (chown, or mount it read-write), or choose another state_dir: {place}"
        return Finding("disk write", Status.FAIL, f"{place}: cannot be written ({error.strerror or error})", way_out)
    middle, worst = statistics.median(took_ms), max(took_ms)
    status = Status.FAIL if middle > SYNC_FAIL_MS else Status.WARN if middle > SYNC_WARN_MS else Status.OK
    way_out = (
        "" if status is Status.OK else "put state_dir on a local SSD: what is not synced is a gap after a power cut"
    )
    return Finding("disk write", status, f"{middle:.1f} ms a sync, {worst:.1f} ms at worst of {SYNCS}", way_out)


def check_shared_memory(subject: Subject) -> Iterator[Finding]:
    """Frames travel between processes in anonymous shared memory: what the machine and the container leave free."""
    settings = settings_or_none(subject)
    cameras = settings.cameras if settings else []
    wanted = sum(camera.slots * camera.max_frame_mb for camera in cameras) * 1e6 / GIB or SHM_WARN_GIB
    free = free_memory()
    if free is None:
        yield Finding("shared memory", Status.WARN, f"how much is free is unknown on {platform.system()}")
        return
    good = free >= wanted
    way_out = (
        "" if good else "raise the memory limit of the container or unit; else fewer slots or a smaller max_frame_mb"
    )
    slots = f" by {sum(camera.slots for camera in cameras)} slot(s)" if cameras else ""
    found = f"{free:.2f} GiB free, {wanted:.2f} wanted{slots}"
    yield Finding("shared memory", Status.OK if good else Status.FAIL if cameras else Status.WARN, found, way_out)


def free_memory() -> float | None:
    """GiB that this process may still take: the machine's or, where that is less, its control group's."""
    rooms = [_available_memory(), *(_room(*files) for files in CGROUPS)]
    return min((room for room in rooms if room is not None), default=None)


def _room(limit: Path, used: Path) -> float | None:
    try:
        return (int(limit.read_text()) - int(used.read_text())) / GIB
    except (OSError, ValueError):  # "max": not bounded
        return None


def _available_memory() -> float | None:
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        return float(lines["MemAvailable"].split()[0]) * 1024 / GIB
    except (OSError, KeyError, ValueError, IndexError):
        return None


def check_clock(subject: Subject) -> Iterator[Finding]:
    """Durations use the monotonic clock; the wall clock only labels events, but it should be right."""
    resolution = time.get_clock_info("monotonic").resolution
    status = Status.OK if resolution <= 1e-3 else Status.WARN
    yield Finding("monotonic clock", status, f"resolution {resolution:.0e} s")
    now = time.time()
    if now < EARLIEST_UNIX_S:
        yield Finding("wall clock", Status.FAIL, time.strftime("%Y-%m-%d", time.gmtime(now)), "set the clock; use NTP")
        return
    yield _kept_right()
    yield from _stepped(subject)


def _kept_right() -> Finding:
    from edge_runtime.clock import synchronised

    kept = synchronised()
    if kept:
        return Finding("wall clock", Status.OK, "synchronised, as the kernel was told by NTP or PTP")
    way_out = "timedatectl set-ntp true, or chrony with the plant's time server"
    if kept is None:
        return Finding("wall clock", Status.OK, "plausible; whether NTP keeps it right cannot be told from here")
    return Finding("wall clock", Status.WARN, "not synchronised: nothing (NTP, PTP) keeps it right", way_out)


def _stepped(subject: Subject) -> Iterator[Finding]:
    """What the edge that runs, or ran since this boot, saw of the clock."""
    settings = settings_or_none(subject)
    if settings is None:
        return
    from pydantic import ValidationError

    from contract.event import State
    from edge_runtime.clock import boot_id
    from edge_runtime.station import STATE_FILE

    try:
        state = State.model_validate_json((settings.state_dir / STATE_FILE).read_bytes())
    except (OSError, ValidationError):
        return
    if state.boot_id != boot_id():
        return
    if state.clock_steps:
        found = f"set {state.clock_steps} time(s) while the edge ran, last by {state.clock_step_ms / 1e3:+.1f} s"
        way_out = "let NTP slew it (chrony: no makestep after the start); verdicts do not depend on it, their labels do"
        yield Finding("clock steps", Status.WARN, found, way_out)
    else:
        yield Finding("clock steps", Status.OK, "none seen by the edge in its last run")
