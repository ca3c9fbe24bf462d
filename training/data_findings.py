"""What the data's doctor says: a level, a sentence, the way out (before hop 1)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Level(StrEnum):
    """How bad: an error makes figures or training wrong, a warning may, a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(NamedTuple):
    """One thing found: ``what`` is a sentence, ``way_out`` what to do; ``files`` are relative to the folder."""

    level: Level
    code: str
    what: str
    way_out: str
    files: list[str]


def named(root: Path, paths: Iterable[Path]) -> list[str]:
    """Paths as the report shows them."""
    return [path.relative_to(root).as_posix() for path in paths]


def plural(count: int, noun: str) -> str:
    """``1 mask``, ``2 masks``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
