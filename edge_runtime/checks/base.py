"""What every check of `flawline doctor` speaks of: a subject, findings, the configuration (before hop 1)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from contract.errors import FlawlineError

if TYPE_CHECKING:
    from edge_runtime.settings import EdgeSettings

GIB = 1 << 30


class Status(StrEnum):
    """How a check ended; only ``fail`` makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """One line: what was looked at, how it is, what was found, and the way out where there is something to do."""

    name: str
    status: Status
    found: str
    way_out: str = ""


class Subject(NamedTuple):
    """What is examined beside the machine: a bundle and an edge configuration, where given.

    ``open_cameras``: each camera may be opened for a moment, which takes it from whoever else reads it.
    """

    bundle: Path | None
    config: Path | None
    open_cameras: bool = True


def settings_of(subject: Subject) -> EdgeSettings | None:
    """The configuration where one is given. Raises ConfigError."""
    from edge_runtime.settings import load_settings

    return None if subject.config is None else load_settings(subject.config)


def settings_or_none(subject: Subject) -> EdgeSettings | None:
    """For the other checks: what is wrong with the file is said once, by ``config``."""
    try:
        return settings_of(subject)
    except FlawlineError:
        return None


def existing(path: Path) -> Path:
    """The nearest folder above ``path`` that there is."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path.cwd())


def edge_runs(settings: EdgeSettings) -> bool:
    """Whether an edge holds the lock of this state folder now."""
    import fcntl

    try:
        with (settings.state_dir / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # it never ran, or its folder cannot be read, which the check of the disk says
    return False
