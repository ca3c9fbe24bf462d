"""Parts that wait for a frame: of the camera that a request triggered, or of others that see the same part (hop 2).

A part stands in the spool before it waits here. Whatever its cameras do, it leaves again: with its frames, or with the
reason why one is missing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from contract.correction import Correction
from contract.errors import FlawlineError
from contract.event import Timing, Trigger
from contract.fixture import Placer
from contract.recipe import Recipe
from edge_runtime.capture import CameraProcess, CapturedTrigger
from edge_runtime.codes import CodeReader
from edge_runtime.control import Order
from edge_runtime.cutting import CutPart, cut_part, joined
from edge_runtime.errors import RingError
from edge_runtime.settings import EdgeSettings
from edge_runtime.wanted import Wanted

WAY_S = 0.25
"""Longest way of a frame from its capture into shared memory; one that takes longer is not waited for."""


class Pending(NamedTuple):
    """A part that was announced and waits for its verdict; ``others``: what further cameras saw of it."""

    camera: CameraProcess
    trigger: CapturedTrigger
    header: Trigger
    others: tuple[tuple[CameraProcess, CapturedTrigger], ...] = ()

    def cut(
        self, recipe: Recipe, placer: Placer | None, codes: CodeReader | None, correction: Correction | None = None
    ) -> CutPart:
        """Own copies of the cut-out part: one picture, or one by the name of each view where cameras are several.

        Raises RingError, naming the view, where a picture is missing.
        """
        lead = self.camera.settings.id
        if self.trigger.lost is not None:
            raise RingError(f"camera {lead}: trigger {self.trigger.trigger_id} has no picture: {self.trigger.lost}")
        views = cameras_of(recipe, lead)
        if set(views.values()) <= {lead}:
            return cut_part(self.camera, self.trigger, recipe.channels, placer, codes, correction)
        taken = {lead: (self.camera, self.trigger)} | {other.settings.id: (other, by) for other, by in self.others}
        cut: dict[str, CutPart] = {}
        for view, camera in views.items():
            if camera not in cut:
                try:
                    cut[camera] = cut_part(*taken[camera], recipe.channels, None, codes if camera == lead else None)
                except FlawlineError as error:
                    raise type(error)(f"view {view!r}: {error}") from error
        return joined({view: cut[camera] for view, camera in views.items()})

    def release(self) -> None:
        """Its frames may go."""
        for camera, trigger in ((self.camera, self.trigger), *self.others):
            camera.release(trigger)


def cameras_of(recipe: Recipe, lead: str) -> dict[str, str]:
    """Which camera each view is of, where ``lead`` triggered the part."""
    return {view.name: view.camera or lead for view in recipe.views}


class _Want(NamedTuple):
    camera: CameraProcess
    wanted: Wanted


class _Part:
    """A part and what it still wants."""

    def __init__(
        self, header: Trigger, camera: CameraProcess, lead: CapturedTrigger | None, wants: list[_Want]
    ) -> None:
        self.header = header
        self._camera = camera
        self._lead = lead
        self._wants = wants
        self._others: list[tuple[CameraProcess, CapturedTrigger]] = []

    @property
    def waits(self) -> bool:
        return bool(self._wants)

    def cameras(self) -> set[str]:
        """Of whose next frames one may be wanted."""
        return {want.camera.settings.id for want in self._wants}

    def look(self, followers: Mapping[str, list[_Follower]], last: bool) -> None:
        """Take what has come; ``last``: nothing more will."""
        still = []
        for want in self._wants:
            taken = want.camera.take(self.header.trigger_id, want.wanted)
            if taken is None and (last or _too_late(want.wanted)):
                taken = self._without(want)
            if taken is None:
                still.append(want)
            elif want.camera is self._camera:
                self._lead = taken
                if taken.lost is None:
                    self.header = _with_frame(self.header, taken)
                    still += [follower.want(taken.t_capture_ns) for follower in followers[want.camera.settings.id]]
            else:
                self._others.append((want.camera, taken))
        self._wants = still

    def _without(self, want: _Want) -> CapturedTrigger:
        status = want.camera.status()
        how = status.state if not status.detail else f"{status.state}, {status.detail}"
        lost = f"no frame {want.wanted.words()}; the camera is {how}"
        return CapturedTrigger(self.header.trigger_id, 0, 0, time.monotonic_ns(), None, lost)

    def release(self) -> None:
        """The frames that it has may go."""
        held = [] if self._lead is None else [(self._camera, self._lead)]
        for camera, taken in (*held, *self._others):
            camera.release(taken)

    def pending(self) -> Pending | None:
        """The part, once it wants nothing more."""
        if self._wants or self._lead is None:
            return None
        return Pending(self._camera, self._lead, self.header, tuple(self._others))


class _Follower(NamedTuple):
    camera: CameraProcess
    offset_ns: int
    within_ns: int

    def want(self, t_capture_ns: int) -> _Want:
        return _Want(self.camera, Wanted(t_capture_ns + self.offset_ns, self.within_ns, nearest=True))


class Joining:
    """Parts and orders in the order in which they came; a request may come from any thread, the rest is the station's.

    An order leaves when every part that came before it has left, and no part that came after it leaves before: the
    recipe that was asked for last judges what came last.
    """

    def __init__(self, settings: EdgeSettings, cameras: Iterable[CameraProcess]) -> None:
        self._cameras = {camera.settings.id: camera for camera in cameras}
        self._followers = {
            lead: [
                _Follower(self._cameras[each.camera], int(each.offset_ms * 1e6), int(each.within_ms * 1e6))
                for each in settings.group_of(lead)
            ]
            for lead in self._cameras
        }
        self._items: list[_Part | Order] = []
        self.has_news = False
        """Whether a camera's part has come since ``ready`` was called last."""
        self._lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable when a request has come; ``ready`` clears it."""
        return self._wake_fd

    def close(self) -> None:
        os.close(self._wake_fd)

    def headers(self) -> list[Trigger]:
        """The parts that wait here, oldest first."""
        with self._lock:
            return [item.header for item in self._items if isinstance(item, _Part)]

    def taken(self, part: Pending) -> None:
        """A camera has triggered a part: it waits for what the others saw of it, where there are others."""
        begin_ns = part.trigger.t_capture_ns
        wants = [each.want(begin_ns) for each in self._followers[part.camera.settings.id]]
        with self._lock:
            self._items.append(_Part(part.header, part.camera, part.trigger, wants))
            self.has_news = True

    def requested(self, headers: list[Trigger]) -> None:
        """Parts were triggered by request; each waits for a frame of its camera."""
        parts = []
        for header in headers:
            camera = self._cameras[header.camera_id]
            offset_ms = camera.settings.exposure_offset_ms
            begin_ns = header.timing.t_trigger_ns + int((offset_ms or 0.0) * 1e6)
            wanted = Wanted(begin_ns, int(camera.settings.within_ms * 1e6), nearest=offset_ms is not None)
            parts.append(_Part(header, camera, None, [_Want(camera, wanted)]))
        with self._lock:
            self._items += parts
        os.eventfd_write(self._wake_fd, 1)

    def ordered(self, orders: list[Order]) -> None:
        """What the host asks for takes its place behind the parts that came before."""
        if orders:
            with self._lock:
                self._items += orders

    def drop(self) -> None:
        """Forget the parts that wait here; orders stay."""
        with self._lock:
            for item in self._items:
                if isinstance(item, _Part):
                    item.release()
            self._items = [item for item in self._items if not isinstance(item, _Part)]
            self.has_news = False
            self._await_frames()

    def ready(self, last: bool = False) -> list[Pending | Order]:
        """What may go on, in order; with ``last`` everything does, as no frame will come any more."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        if not self._items:
            return []
        with self._lock:
            found: list[Pending | Order] = []
            left: list[_Part | Order] = []
            barred = False
            for item in self._items:
                if isinstance(item, _Part):
                    item.look(self._followers, last)
                    if last and item.waits:  # now for the followers of the frame that it has got
                        item.look(self._followers, last)
                    pending = item.pending()
                    if pending is None or barred:
                        left.append(item)
                    else:
                        found.append(pending)
                elif left:
                    barred = True
                    left.append(item)
                else:
                    found.append(item)
            self._items = left
            self.has_news = False
            self._await_frames()
        return found

    def _await_frames(self) -> None:
        awaited = {name for item in self._items if isinstance(item, _Part) for name in item.cameras()}
        for name, camera in self._cameras.items():
            if camera.settings.by_time:
                camera.await_frames(name in awaited)


def _too_late(wanted: Wanted) -> bool:
    return time.monotonic_ns() > wanted.until_ns + int(WAY_S * 1e9)


def _with_frame(header: Trigger, taken: CapturedTrigger) -> Trigger:
    timing = Timing(**header.timing.model_dump() | {"t_capture_ns": taken.t_capture_ns})
    return header.model_copy(update={"frame_no": taken.frame_no, "box_px": taken.box, "timing": timing})
