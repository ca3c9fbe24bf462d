"""The box's own cache of built TensorRT plans, never part of a bundle: found, verified or built anew (start of hop 4).

A plan serves one graph, library version, card, driver, shape and set of options alone; all of them are its key. Beside
each plan lies a JSON file with the key and the plan's sha256, written last: a plan without it does not count. Whatever
does not fit exactly is deleted and built anew, and the log says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from contract.bundle import sha256_of
from contract.config import Strict, validate
from contract.errors import ConfigError
from edge_runtime.errors import EngineError

FORMAT = "flawline.plan/1"
MAX_PLAN_BYTES = 4 << 30
MAX_SIDECAR_BYTES = 1 << 16
WAIT_S = 2400.0  # for another process that builds the same plan
LOOK_S = 0.05
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
# What an upgrade of the box changes; a plan that differs in these alone has had its day.
OF_THE_BOX = frozenset({"library_version", "driver", "cuda"})

log = logging.getLogger(__name__)


class PlanKey(Strict):
    """Everything that decides whether a plan may be used."""

    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    library: str
    library_version: str
    card: str
    capability: str
    driver: str
    cuda: str
    input_shape: list[int]
    options: dict[str, str | int]

    def digest(self) -> str:
        """Name of the plan's files."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def differences(self, other: PlanKey) -> dict[str, str]:
        """Field -> "theirs -> ours" for each field in which ``other`` differs."""
        ours, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return {name: f"{theirs[name]} -> {ours[name]}" for name in ours if ours[name] != theirs[name]}


class Sidecar(Strict):
    """The JSON file beside a plan."""

    format: Literal["flawline.plan/1"] = FORMAT  # type: ignore[assignment]
    key: PlanKey
    plan_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(gt=0, le=MAX_PLAN_BYTES)
    built: str
    seconds: float


class Plan(NamedTuple):
    """A verified plan's bytes, and whether this call has built it."""

    data: bytes
    built: bool


class UnfitError(Exception):
    """Why an entry of the cache is not used."""


def cache_folder() -> Path:
    """Where plans are kept: the service's cache folder under systemd, else the user's."""
    service = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if service:
        return Path(service) / "engines"
    user = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(user) if user else Path.home() / ".cache") / "flawline" / "engines"


def obtain(folder: Path, key: PlanKey, make: Callable[[Path], None], wait_s: float = WAIT_S) -> Plan:
    """The plan of ``key``, from the cache or made now; ``make`` writes it to the file that it is given.

    Of several processes one makes it, the others wait and take what it made. Raises EngineError, also what ``make``
    raises; then nothing is kept.
    """
    _own(folder)
    with _locked(folder / f"{key.digest()}.lock", wait_s):
        try:
            return Plan(_read(folder, key), built=False)
        except UnfitError as fault:
            log.warning("engine cache: %s; the plan is built, which takes up to some minutes, once", fault)
        _remove(folder, key.digest())
        _make(folder, key, make)
        _forget_outdated(folder, key)
        try:
            return Plan(_read(folder, key), built=True)
        except UnfitError as fault:
            raise EngineError(
                f"{folder}: a plan built just now cannot be read again: {fault}; is the disk well?"
            ) from None


def why_not_built(folder: Path, key: PlanKey) -> str | None:
    """Why ``obtain`` would have to make the plan of ``key``; None where it would not. Raises EngineError."""
    _own(folder)
    try:
        _read(folder, key)
    except UnfitError as fault:
        return str(fault)
    return None


def forget(folder: Path, key: PlanKey, wait_s: float = WAIT_S) -> None:
    """Delete the plan of ``key``: it fits its key, and yet the library does not load it."""
    with _locked(folder / f"{key.digest()}.lock", wait_s):
        _remove(folder, key.digest())


def _own(folder: Path) -> None:
    """Make the folder, and refuse one that somebody else could write to: a plan is code that will run."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.lstat()
    except OSError as error:
        raise EngineError(f"{folder}: the engine cache cannot be written ({error.strerror or error})") from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & OTHERS_MAY_WRITE:
        raise EngineError(
            f"{folder}: not a folder that this user alone can write to (owner {info.st_uid}, mode "
            f"{stat.S_IMODE(info.st_mode):o}); remove it, or chown and chmod 700 it"
        )


@contextlib.contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock of one key; it goes with the process that holds it, however that ends."""
    deadline = time.monotonic() + wait_s
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{path}: another process has been building this engine for {wait_s:.0f} s; "
                        "look whether it hangs, end it and start again"
                    ) from None
                time.sleep(LOOK_S)
        yield


def _read(folder: Path, key: PlanKey) -> bytes:
    """The plan's bytes, if sidecar, key, size and sha256 are what they should be. Raises UnfitError."""
    name = key.digest()
    sidecar = _read_sidecar(folder / f"{name}.json", _why_missing(folder, key))
    if sidecar.key != key:
        raise UnfitError(f"{name}.json is of another engine: {key.differences(sidecar.key)}")
    data = _read_private(folder / f"{name}.plan", MAX_PLAN_BYTES, f"{name}.plan is missing")
    if len(data) != sidecar.size:
        raise UnfitError(f"{name}.plan has {len(data)} bytes, {sidecar.size} were written: it is cut off or foreign")
    if hashlib.sha256(data).hexdigest() != sidecar.plan_sha256:
        raise UnfitError(f"{name}.plan is not what was written: its sha256 differs")
    return data


def _read_sidecar(path: Path, missing: str) -> Sidecar:
    data = _read_private(path, MAX_SIDECAR_BYTES, missing)
    try:
        return validate(Sidecar, json.loads(data), path.name)
    except (ValueError, RecursionError, ConfigError) as error:
        raise UnfitError(f"{path.name} is not readable as one: {str(error).splitlines()[0][:200]}") from error


def _read_private(path: Path, most: int, missing: str) -> bytes:
    """A regular file that is ours and that nobody else can write. Raises UnfitError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UnfitError(missing) from None
    except OSError as error:
        raise UnfitError(f"{path.name} cannot be opened ({error.strerror})") from error
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & OTHERS_MAY_WRITE:
            raise UnfitError(f"{path.name} is not a file that this user alone can write to")
        if info.st_size > most:
            raise UnfitError(f"{path.name} has {info.st_size} bytes, at most {most} are plausible")
        try:
            return file.read(most)
        except OSError as error:
            raise UnfitError(f"{path.name} cannot be read ({error.strerror})") from error


def _why_missing(folder: Path, key: PlanKey) -> str:
    """What distinguishes the nearest plan of the same graph, so that an upgrade explains the wait that it causes."""
    near = [key.differences(other.key) for _, other in _others(folder, key)]
    if not near:
        return f"no plan of graph {key.graph_sha256[:12]} yet"
    nearest = min(near, key=len)
    return "no plan for what has changed: " + ", ".join(f"{name} {change}" for name, change in nearest.items())


def _others(folder: Path, key: PlanKey) -> Iterator[tuple[str, Sidecar]]:
    """Entries of the same graph under other keys."""
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(UnfitError):
            sidecar = _read_sidecar(path, "")
            if sidecar.key.graph_sha256 == key.graph_sha256 and sidecar.key != key:
                yield path.stem, sidecar


def _forget_outdated(folder: Path, key: PlanKey) -> None:
    """Delete plans of this graph, card and shape that an upgrade of library or driver has left behind."""
    for name, other in list(_others(folder, key)):
        if key.differences(other.key).keys() <= OF_THE_BOX:
            log.info("engine cache: %s.plan is outdated and removed", name)
            _remove(folder, name)


def _remove(folder: Path, name: str) -> None:
    """Delete an entry and what a killed builder left of it, the sidecar first: without it the plan does not count."""
    for path in (folder / f"{name}.json", folder / f"{name}.plan", *folder.glob(f".{name}.*")):
        path.unlink(missing_ok=True)


def _make(folder: Path, key: PlanKey, make: Callable[[Path], None]) -> None:
    """Let ``make`` write a temporary file, then move it and its sidecar into place, each whole or not at all."""
    started = time.monotonic()
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{key.digest()}.")
    os.close(handle)
    work = Path(name)
    try:
        make(work)
        size = work.stat().st_size
        if not 0 < size <= MAX_PLAN_BYTES:
            raise EngineError(f"{key.library}: the builder wrote a plan of {size} bytes")
        sidecar = Sidecar(
            key=key,
            plan_sha256=sha256_of(work),
            size=size,
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
        )
        _publish(work, folder / f"{key.digest()}.plan")
        work.write_text(sidecar.model_dump_json(indent=1))
        _publish(work, folder / f"{key.digest()}.json")
    except OSError as error:
        raise EngineError(f"{folder}: the plan cannot be kept ({error.strerror or error})") from error
    finally:
        work.unlink(missing_ok=True)


def _publish(work: Path, target: Path) -> None:
    """Sync, rename, sync the folder: after a power cut the old name is absent or whole."""
    work.chmod(0o600)
    for path, then in ((work, target), (target.parent, None)):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if then is not None:
            work.replace(then)
