"""Parts that the host asks for: each stands in the spool before the request is answered (beside hop 1)."""

from __future__ import annotations

import threading
import time

from contract.control import Part
from contract.event import Timing, Trigger
from edge_runtime.emitter import Emitter
from edge_runtime.errors import EdgeError
from edge_runtime.joining import Joining
from edge_runtime.settings import EdgeSettings
from edge_runtime.spool import Draft, Spool

MAX_WAITING = 256
"""Parts that may wait for their frame; a host that asks for more asks faster than the line can move."""


class Triggers:
    """Takes requests from the control socket's thread until it is closed."""

    def __init__(self, settings: EdgeSettings, spool: Spool, emitter: Emitter, joining: Joining) -> None:
        self._edge_id = settings.edge_id
        self._cameras = tuple(camera.id for camera in settings.cameras if camera.trigger == "software")
        self._spool = spool
        self._emitter = emitter
        self._joining = joining
        self._counts = dict.fromkeys(self._cameras, 0)
        self._lock = threading.Lock()
        self._closed = False
        self._held: str | None = None

    def take(self, part: Part, arrived_ns: int) -> tuple[str, ...]:
        """Announce one part for each camera that is asked for; when this returns they stand in the spool.

        ``arrived_ns``: when the request came, CLOCK_MONOTONIC. Returns the parts' ids. Raises EdgeError where
        nothing was announced.
        """
        with self._lock:
            if self._closed:
                raise EdgeError("the edge is stopping")
            if self._held is not None:
                raise EdgeError(f"no part is taken: {self._held}")
            headers = [self._header(camera, part, arrived_ns) for camera in self._asked(part)]
            if len(self._joining.headers()) + len(headers) > MAX_WAITING:
                raise EdgeError(f"{MAX_WAITING} parts wait for their frame already")
            self._spool.require_room()
            self._spool.append([Draft(header, t_ref_ns=arrived_ns) for header in headers])
            for header in headers:
                self._counts[header.camera_id] = header.trigger_id
            self._joining.requested(headers)
        self._emitter.wake()
        return tuple(header.part_id for header in headers)

    def hold(self, reason: str | None) -> None:
        """Refuse what comes for ``reason``, until None is given; whatever was taken before has reached ``Joining``."""
        with self._lock:
            self._held = reason

    def close(self) -> None:
        """Refuse what comes from now on; whatever was taken before has reached ``Joining``."""
        with self._lock:
            self._closed = True

    def _asked(self, part: Part) -> tuple[str, ...]:
        if not self._cameras:
            raise EdgeError('no camera of this edge has trigger = "software"')
        unknown = [camera for camera in part.cameras if camera not in self._cameras]
        if unknown:
            raise EdgeError(f"no camera {unknown[0]!r} is triggered by request; there are: {', '.join(self._cameras)}")
        return tuple(dict.fromkeys(part.cameras)) or self._cameras

    def _header(self, camera: str, part: Part, arrived_ns: int) -> Trigger:
        number = self._counts[camera] + 1
        now_ns = time.monotonic_ns()
        return Trigger(
            edge_id=self._edge_id,
            spool_id=self._spool.spool_id,
            seq=1,
            run_id=self._spool.run_id,
            t_wall_ns=time.time_ns() - (now_ns - arrived_ns),
            part_id=f"{camera}-{self._spool.run_id}-{number:06d}",
            camera_id=camera,
            trigger_id=number,
            frame_no=0,
            timing=Timing(t_trigger_ns=arrived_ns, t_taken_ns=now_ns),
            **part.model_dump(include={"serial", "lot", "encoder"}),
        )
