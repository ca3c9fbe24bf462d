"""Removes pictures by class and age, and the oldest first where the disk runs full; their rows stay (beside hop 8).

A row says that its picture was removed, when and by which rule, before the file goes; a file goes with the last row
that names it. What a crash left over is found by looking through all files now and then. Rows are removed never.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from plugin.backup import pictures_stay
from plugin.blobs import Blobs
from plugin.errors import FlawlineError
from plugin.logs import LimitedLog
from plugin.queries import Reader
from plugin.settings import RetentionSettings
from plugin.store import Store

Due = Callable[[Mapping[str, Any]], str | None]
Class = Literal["pass", "not_inspected", "reviewed", "waiting"]
FIRST_TO_GO: tuple[Class, ...] = ("pass", "not_inspected", "reviewed", "waiting")
"""What a full disk takes first; inspectors need the pictures of what waits for them."""

LOOK_S = 30.0
PASS_S = 3600.0
SLICE = 1000
BATCH = 100
PAUSE_S = 0.02
"""Between two batches: the writer has events to commit."""

FULL = "the disk"
DAY_NS = 86_400 * 10**9
log = logging.getLogger(__name__)


def class_of(part: Mapping[str, Any]) -> Class:
    """By what became of the part; ``waiting`` are those that inspectors are to judge: unsure is no judgement."""
    if part["review"] in ("defect", "good"):
        return "reviewed"
    if part["review"] is not None or part["audited"] or part["verdict"] in ("REJECT", "REVIEW"):
        return "waiting"
    return "pass" if part["verdict"] == "PASS" else "not_inspected"


def _full(name: Class, row: Mapping[str, Any]) -> str | None:
    return FULL if class_of(row) == name else None


class Retention:
    """``run`` on a thread of its own; removes on the writer's thread alone, a few at a time."""

    def __init__(
        self,
        settings: RetentionSettings,
        state_dir: Path,
        reader: Reader,
        blobs: Blobs,
        write: Callable[[Callable[[Store], int]], int],
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._reader = reader
        self._blobs = blobs
        self._write = write
        self._stopping = threading.Event()
        self._log = LimitedLog(log)
        self.removed = 0
        self.trouble: str | None = None

    def run(self) -> None:
        """Look until stopped. Whatever fails is tried again: no line waits for this."""
        next_pass = 0.0
        while not self._stopping.is_set():
            try:
                with pictures_stay(self._state_dir, wait=False) as free:
                    if free:
                        self.keep_the_floor()
                        if time.monotonic() >= next_pass:
                            next_pass = time.monotonic() + PASS_S
                            self.remove_by_age()
                            self.remove_unnamed()
            except (OSError, FlawlineError, sa.exc.SQLAlchemyError) as error:
                self._log.warning("retention", f"pictures are not removed now: {error}")
            self._stopping.wait(LOOK_S)

    def stop(self) -> None:
        """End ``run`` after the batch under way."""
        self._stopping.set()

    def remove_by_age(self) -> None:
        """Every picture that is older than its class is kept."""
        kept_ns = {name: days * DAY_NS for name, days in self._settings.days().items()}
        if not kept_ns:
            return
        now_ns = time.time_ns()

        def due(row: Mapping[str, Any]) -> str | None:
            name = class_of(row)
            if name not in kept_ns or row["received_ns"] is None or now_ns - row["received_ns"] <= kept_ns[name]:
                return None
            return f"{name}_days = {self._settings.days()[name]:g}"

        youngest_ns = now_ns - min(kept_ns.values())
        for rows in self._slices():
            self._remove(rows, due)
            if rows[-1]["received_ns"] is not None and rows[-1]["received_ns"] > youngest_ns:
                return

    def keep_the_floor(self) -> None:
        """The oldest of the classes of least use first, until so much is free again."""
        floor = self._settings.free_gb * 1e9
        if not floor or self._free() >= floor:
            self.trouble = None
            return
        for name in FIRST_TO_GO:
            for rows in self._slices():
                mine = [row for row in rows if class_of(row) == name]
                for first in range(0, len(mine), BATCH):
                    self._remove(mine[first : first + BATCH], partial(_full, name))
                    if self._stopping.is_set() or self._free() >= floor:
                        return
        self.trouble = f"less than {self._settings.free_gb:g} GB are free, and there is no picture left to remove"

    def remove_unnamed(self) -> None:
        """Files that no row names: left by a crash, or by a commit that failed."""
        for names in self._blobs.groups():
            if self._stopping.is_set():
                return
            left = self._reader.unnamed(names)
            for first in range(0, len(left), BATCH):
                some = left[first : first + BATCH]
                self._write(partial(_remove_unnamed, some))
                self._stopping.wait(PAUSE_S)

    def _free(self) -> int:
        return shutil.disk_usage(self._state_dir).free

    def _slices(self) -> Iterator[list[dict[str, Any]]]:
        after = 0
        while not self._stopping.is_set() and (rows := self._reader.pictures(after, SLICE)):
            yield rows
            after = rows[-1]["id"]

    def _remove(self, rows: list[dict[str, Any]], due: Due) -> None:
        ids = [row["id"] for row in rows if due(row) is not None]
        for first in range(0, len(ids), BATCH):
            some = ids[first : first + BATCH]
            self.removed += self._write(partial(_remove_pictures, some, due))
            self._stopping.wait(PAUSE_S)


def _remove_pictures(rows: list[int], due: Due, store: Store) -> int:
    return store.remove_pictures(rows, due)


def _remove_unnamed(names: list[str], store: Store) -> int:
    return store.remove_unnamed(names)
