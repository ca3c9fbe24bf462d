"""Encodes maps and pictures of parts beside the station, and spools them behind the verdicts (hop 5 to hop 6)."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from contract.decision import ViewMap, map_to_part
from contract.event import MAX_PARTS, Attachment, PartRef, Result, Verdict, part_ref
from contract.images import Pixels, encode_png
from contract.preprocess import Picture
from edge_runtime.emitter import Emitter
from edge_runtime.inspector import Inspector, Outcome
from edge_runtime.settings import EdgeSettings
from edge_runtime.spool import Draft, Spool

MOST = 32
"""Parts whose pictures may wait; each holds its pixels."""

GATHER_S, TOGETHER_BYTES = 0.02, 256 << 10
"""Nobody waits for pictures: those of so long are spooled together, but not so many that a verdict waits for them."""

NICER = 5
"""How much less urgent than verdicts, in steps of the scheduler's niceness."""

STOP_S = 5.0
STEP_S = 0.05

log = logging.getLogger(__name__)


class _Picture(NamedTuple):
    result: Result
    part: Picture | None
    maps: list[ViewMap]
    reconstruction: dict[str, Pixels]


class Pictures:
    """A thread that no verdict waits for: what it has no time for is dropped and counted."""

    def __init__(self, spool: Spool, emitter: Emitter, settings: EdgeSettings) -> None:
        self._spool = spool
        self._emitter = emitter
        self._images = settings.images
        self._queue: queue.SimpleQueue[_Picture | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._left = 0
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def offer(self, result: Result, outcome: Outcome, part: Picture | None, inspector: Inspector) -> None:
        """Take what belongs to the verdict given last; where the encoder is behind, it is dropped and counted."""
        shown = result.verdict is not Verdict.PASS or result.audited
        wanted = self._images == "all" or (self._images == "flagged" and shown)
        maps = [] if outcome.part is None else outcome.part.maps
        if not maps and (part is None or not wanted):
            return
        if self._left >= MOST:
            self._drop(1)
            return
        try:
            reconstruction = inspector.reconstruction() if wanted and maps and shown else {}
        except Exception:  # the verdict stands; a picture must not end the station
            self._drop(1)
            log.exception("pictures of part %s", result.part_id)
            return
        with self._lock:
            self._left += 1
        self._queue.put(_Picture(result, part if wanted else None, maps, reconstruction))

    def _drop(self, count: int) -> None:
        with self._lock:
            self.dropped += count

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICER)
        while self._spool_some():
            pass

    def _spool_some(self) -> bool:
        """Encode and spool what waits, up to TOGETHER_BYTES; sleeps until there is something. False at the end."""
        picture = self._queue.get()
        if picture is not None and self._queue.empty():
            time.sleep(GATHER_S)
        encoded: list[list[Draft]] = []
        size = 0
        while picture is not None and not self._given_up.is_set():
            if drafts := self._encoded(picture):
                encoded.append(drafts)
                size += sum(len(part) for draft in drafts for part in draft.parts)
            if size >= TOGETHER_BYTES or self._queue.empty():
                break
            picture = self._queue.get()
        if encoded:
            self._spool_them(encoded)
        return picture is not None and not self._given_up.is_set()

    def _spool_them(self, encoded: list[list[Draft]]) -> None:
        with self._lock:
            if self._given_up.is_set():
                return  # counted already, and the spool may be closed
            self._left -= len(encoded)
        try:
            self._spool.append([draft for drafts in encoded for draft in drafts])
            self._emitter.wake()
        except Exception:  # whatever these do, the next ones are tried
            self._drop(len(encoded))
            log.exception("pictures of %d part(s)", len(encoded))

    def _encoded(self, picture: _Picture) -> list[Draft]:
        try:
            return _attachments(picture)
        except Exception:
            with self._lock:
                self._left -= 1
                self.dropped += 1
            log.exception("pictures of part %s", picture.result.part_id)
            return []

    def stop(self, between: Callable[[], None] = lambda: None) -> None:
        """Finish what waits, within STOP_S; what is left then is dropped and counted.

        ``between`` is called again and again meanwhile: whoever stops has a heart that must go on beating.
        """
        deadline = time.monotonic() + STOP_S
        self._queue.put(None)
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(STEP_S)
            between()
        if self._thread.is_alive():
            with self._lock:
                self._given_up.set()
                self.dropped += self._left
            log.warning("%d part(s) without maps and pictures: they were not encoded in time", self._left)


def _attachments(picture: _Picture) -> list[Draft]:
    """In as many messages as they need; the maps in some of their own, so that they go before the pictures."""
    images = []
    for role, view, pixels in _pictures_of(picture):
        data = encode_png(pixels)
        images.append((part_ref(role, data, view=view, codec="png", shape=pixels.shape), data))
    maps = [_map_part(view_map) for view_map in picture.maps]
    return [
        _attachment(picture.result, several[at : at + MAX_PARTS])
        for several in (maps, images)
        for at in range(0, len(several), MAX_PARTS)
    ]


def _map_part(view_map: ViewMap) -> tuple[PartRef, bytes]:
    data = np.ascontiguousarray(view_map.values, dtype="<f2").tobytes()
    shape, to_part = view_map.values.shape, map_to_part(view_map)
    reference = part_ref("map", data, view=view_map.view, codec="raw", dtype="float16", shape=shape, to_part=to_part)
    return reference, data


def _attachment(result: Result, parts: list[tuple[PartRef, bytes]]) -> Draft:
    header = Attachment(
        **result.model_dump(include={"edge_id", "spool_id", "seq", "run_id", "part_id"}),
        t_wall_ns=time.time_ns(),
        result_seq=result.seq,
        parts=tuple(reference for reference, _ in parts),
    )
    return Draft(header, tuple(data for _, data in parts))


def _pictures_of(picture: _Picture) -> list[tuple[Literal["image", "reconstruction"], str, Pixels]]:
    part = picture.part
    whole: dict[str, Pixels] = {} if part is None else dict(part) if isinstance(part, Mapping) else {"main": part}
    found: list[tuple[Literal["image", "reconstruction"], str, Pixels]] = [
        ("image", view, pixels) for view, pixels in whole.items()
    ]
    found += [("reconstruction", view, pixels) for view, pixels in picture.reconstruction.items()]
    return found
