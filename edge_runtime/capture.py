"""One killable process per camera, and the supervisor's side of it (hop 1 -> hop 2).

``cv2.VideoCapture.read`` can hang for ever, and only a process can be killed. The child reads frames, decides when a
part is taken and announces it in shared memory; the supervisor fetches triggers, and replaces a child that died or
fell silent. Whatever was announced before stands.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pydantic import BaseModel

from contract.camera import CameraControls
from contract.errors import FlawlineError
from contract.images import PixelFormat, Pixels, developed, same_pixels
from contract.locate import Box, find_parts
from edge_runtime.cameras import make_camera
from edge_runtime.cameras.base import BadFrame, Camera, CameraFrame, forget_playhead
from edge_runtime.clock import boot_id
from edge_runtime.errors import CameraError, RingError
from edge_runtime.glimpse import Glimpse
from edge_runtime.presence import Lost, Outcome, Tracker
from edge_runtime.ring import ChildState, Live, Record, Ring
from edge_runtime.settings import CameraSettings
from edge_runtime.wanted import KeptFrame, Wanted

START_S = 15.0  # longest time from the start of a child to its first sign of life
LAST_START_S = (
    120.0  # it doubles up to this: on a box that is too busy for the first try the camera starts all the same
)
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0
HEALTHY_S = 10.0  # a child that lived so long starts the back-off anew
GONE_S = 0.5  # longest wait for the end of a child that was killed: a driver may hold it in the kernel
FROZEN_AFTER = 5  # equal frames in a row from a live camera until it counts as frozen
FEW_ROWS = 64  # every so-manyth row of a frame tells most that differ
OVERRUN = "overrun: every slot holds a part that is not inspected yet"
MEMORY = 8  # parts taken last that outlive the edge's process
PR_SET_PDEATHSIG = 1
MISSED_MOST = 256  # pictures that a hardware trigger missed are announced one by one up to so many, then as a gap
LEARN_S = 5.0  # a camera's rate is learnt from its first so many seconds
SLOW_S = 2.0  # and compared over so many
SLOW_SHARE = 0.5  # a camera under this share of its rate is slow
SEARCH_PX = 8  # around the part that presence found, for the fixture to find it in
PAUSE_S = 0.5  # a live camera silent for so long has missed frames, whatever their numbers say

log = logging.getLogger(__name__)


class CapturedTrigger(NamedTuple):
    """A part that was seen. ``trigger_id`` counts up without gaps; with ``lost`` there is no picture."""

    trigger_id: int
    frame_no: int
    t_capture_ns: int
    t_trigger_ns: int
    box: tuple[int, int, int, int] | None
    lost: str | None


class CameraStatus(NamedTuple):
    """``state``: starting, running, stalled, ended or failed. ``skipped``: frames that nobody looked at.

    ``ready``: a frame came or, of a camera that waits for parts, it answers.
    """

    state: str
    frames: int
    triggers: int
    frame_age_ms: float
    restarts: int
    detail: str
    skipped: int = 0
    ready: bool = False


class ChildOrder(BaseModel):
    """What a child is told on its standard input: one line of JSON, so that no address shows in the process list.

    ``after_stop``: the first child after a clean stop, which takes nothing that stands in a live camera's view.
    """

    settings: CameraSettings
    state_dir: Path
    parent_pid: int
    after_stop: bool = False
    controls: CameraControls | None = None


class CameraProcess:
    """The supervisor's side of one camera. Not for several threads.

    ``start`` and ``supervise`` belong in a thread that lives as long as the camera: the kernel kills a child when the
    thread that made it ends.
    """

    def __init__(
        self,
        settings: CameraSettings,
        state_dir: Path,
        first_trigger_id: int = 1,
        resumed: bool = True,
        after_stop: bool = False,
        controls: CameraControls | None = None,
        glimpse: Glimpse | None = None,
    ) -> None:
        """``resumed``: the last run was cut short, so that a recording goes on where real time is, and a part that
        was taken then and is still in view is not taken again. False: begin anew. ``after_stop``: the last run was
        stopped in order, so that what stands in a live camera's view may have its verdict already. ``controls``: what
        the camera must be set to, and say that it is, before it gives frames. ``glimpse``: for who watches."""
        self.settings = settings
        self._glimpse = glimpse
        self._controls = controls
        self._controls_ns = 0
        self._state_dir = state_dir
        self._first_id = first_trigger_id
        self._after_stop = after_stop
        self._ring = Ring.create(settings.slots, int(settings.max_frame_mb * 1e6), settings.policy == "freshest")
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._child: subprocess.Popen[bytes] | None = None
        self._slots: dict[int, int] = {}
        self._taken_by_time = 0
        self._restarts = 0
        self._retry_s = FIRST_RETRY_S
        self._start_s = START_S
        self._started_at = 0.0
        self._dying: str | None = None  # why the child was killed, while the kernel does not let it go
        self._next_start: float | None = None
        self._stopped = False
        self._trouble = ""
        self._last: CameraStatus | None = None
        self._memory = TakenMemory(state_dir, settings.id)
        if resumed:
            self._memory.give_to(self._ring)
        else:
            self._forget()

    def fileno(self) -> int:
        """Readable when there may be something new; ``drain`` clears it."""
        return self._wake_read

    @property
    def pid(self) -> int | None:
        """The child's process id while there is a child."""
        return None if self._child is None else self._child.pid

    # What the station does --------------------------------------------------------------------------------------------

    def drain(self) -> list[CapturedTrigger]:
        """New triggers in order, each exactly once.

        From here on a part counts as taken even after a crash: one that dies before it is recorded lies in the gap
        that the edge declares, and a second verdict for the same part would be worse.
        """
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        try:
            records = self._ring.drain()
        except RingError as error:  # the child was stopped inside its critical section: supervise() will replace it
            self._trouble = str(error)
            return []
        found = []
        for record in records:
            trigger_id = self._first_id + record.trigger_id
            if record.slot >= 0:
                self._slots[trigger_id] = record.slot
            found.append(CapturedTrigger(trigger_id, *record[1:5], lost=record.lost))
        self._memory.note(records)
        self._memory.save(self._ring)
        return found

    def take(self, trigger_id: int, wanted: Wanted) -> CapturedTrigger | None:
        """The frame of a part that something else has triggered; None while it may still come.

        With ``lost`` there is none, and none will come. ``trigger_id`` is the caller's own count for this camera.
        """
        try:
            found = self._ring.hold(wanted)
        except RingError as error:  # the child was stopped inside its critical section: supervise() will replace it
            self._trouble = str(error)
            return None
        now = time.monotonic_ns()
        if found is None:
            return None
        if isinstance(found, str):
            return CapturedTrigger(trigger_id, 0, 0, now, None, found)
        self._slots[trigger_id] = found.slot
        self._taken_by_time += 1
        taken = CapturedTrigger(trigger_id, found.frame_no, found.t_capture_ns, now, None, None)
        return self._located(taken, found) if self.settings.fixture == "foreground" else taken

    def _located(self, taken: CapturedTrigger, found: KeptFrame) -> CapturedTrigger:
        """With the largest part of the frame; without one it is lost."""
        try:
            box = max(find_in(self._ring.read(found.slot)[0], self.settings), key=lambda box: box.area, default=None)
        except Exception as error:  # noqa: BLE001 - one picture must not end the station
            return taken._replace(lost=str(error) or type(error).__name__)
        if box is None:
            return taken._replace(lost="no part found in the frame")
        return taken._replace(box=(box.x, box.y, box.w, box.h))

    def await_frames(self, awaited: bool) -> None:
        """Whether each further frame makes this object readable, as a trigger does."""
        self._ring.await_frames(awaited)

    def cut(self, trigger: CapturedTrigger, region: Box | None = None) -> tuple[Pixels, PixelFormat]:
        """An own copy of the part's pixels: the fixed region, or the box with the margin around it.

        ``region``: what of the frame to give instead. Raises RingError where there is no picture (any more).
        """
        slot = self._slot_of(trigger)
        return self._ring.read(slot, self._cut_box(trigger, slot, region))

    def whole(self, trigger: CapturedTrigger) -> tuple[Pixels, PixelFormat]:
        """An own copy of the whole frame. Raises RingError where there is no picture (any more)."""
        return self._ring.read(self._slot_of(trigger))

    def search(self, trigger: CapturedTrigger) -> Box | None:
        """Where in the frame the part of a trigger is to be looked for; None: anywhere."""
        slot = self._slots.get(trigger.trigger_id)
        if slot is None or trigger.box is None:
            return None
        header = self._ring.slot(slot)
        margin_px = max(self.settings.presence.margin_px, SEARCH_PX)
        return Box(*trigger.box).padded(margin_px, (header.height, header.width))

    def _slot_of(self, trigger: CapturedTrigger) -> int:
        slot = self._slots.get(trigger.trigger_id)
        if trigger.t_capture_ns < self._controls_ns:
            raise RingError(
                f"camera {self.settings.id}: trigger {trigger.trigger_id} was taken with the camera settings of the "
                "recipe before"
            )
        if slot is None or trigger.lost is not None:
            reason = trigger.lost or "its frame has been released"
            raise RingError(f"camera {self.settings.id}: trigger {trigger.trigger_id} has no picture: {reason}")
        return slot

    def origin(self, trigger: CapturedTrigger) -> tuple[int, int]:
        """Where in the frame the part's pixels begin (x, y), as ``cut`` gives them; (0, 0) where it has no picture."""
        slot = self._slots.get(trigger.trigger_id)
        box = None if slot is None else self._cut_box(trigger, slot)
        return (0, 0) if box is None else (box.x, box.y)

    def _cut_box(self, trigger: CapturedTrigger, slot: int, region: Box | None = None) -> Box | None:
        header = self._ring.slot(slot)
        fixture, margin_px = self.settings.fixture, self.settings.presence.margin_px
        if region is None and self.settings.region is not None:
            fixed = fixture == "region" or (fixture == "template" and trigger.box is None)
            region = Box(*self.settings.region) if fixed else None
        if region is not None:
            box = region
            if box.x < 0 or box.y < 0 or box.x + box.w > header.width or box.y + box.h > header.height:
                raise RingError(
                    f"camera {self.settings.id}: region {tuple(box)} leaves the frame of {header.width} x "
                    f"{header.height} pixels"
                )
            return box
        if trigger.box is None:
            return None
        if fixture == "template":
            margin_px = max(margin_px, SEARCH_PX)
        return Box(*trigger.box).padded(margin_px, (header.height, header.width))

    def release(self, trigger: CapturedTrigger) -> None:
        """The trigger is dealt with; its frame may go. A second time does nothing."""
        slot = self._slots.pop(trigger.trigger_id, None)
        if slot is None:
            return
        try:
            self._ring.release(slot)
        except RingError as error:  # the child was stopped inside its critical section: supervise() will replace it
            self._trouble = str(error)

    def status(self) -> CameraStatus:
        """How the camera is; after ``stop`` what it was at last."""
        if self._last is not None:
            return self._last
        live = self._ring.live()
        age = (time.monotonic_ns() - live.frame_ns) / 1e6 if live.frame_ns else 0.0
        return CameraStatus(
            self._state(live),
            live.frames,
            self._ring.counts()[0] + self._taken_by_time,
            age,
            self._restarts,
            self._ring.detail() or self._trouble,
            live.skipped,
            live.frames > 0 or (live.waits > 0 and live.state == ChildState.RUNNING),
        )

    def _state(self, live: Live) -> str:
        if live.state == ChildState.RUNNING and self._silent():
            return "stalled"
        if live.state == ChildState.RUNNING and self._child is None and not self._stopped:
            return "failed"
        return ChildState(live.state).name.lower()

    # Life and death of the child --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the child. Raises nothing that concerns the camera: that shows in ``status``."""
        if self._stopped:
            raise RingError(f"camera {self.settings.id} was stopped and cannot be started again; make a new one")
        self._state_dir.mkdir(parents=True, exist_ok=True)
        self._ring.set_live(self._ring.live()._replace(alive_ns=0, state=ChildState.STARTING))
        ring_fd, wake_fd = self._ring.fd, self._wake_write
        glimpse_fd = -1 if self._glimpse is None else self._glimpse.fd
        code = f"from edge_runtime.capture import child_main; child_main({ring_fd}, {wake_fd}, {glimpse_fd})"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENCV_FFMPEG_LOGLEVEL": os.environ.get("OPENCV_FFMPEG_LOGLEVEL", "-8"),  # it logs whole addresses
            "OPENCV_LOG_LEVEL": os.environ.get("OPENCV_LOG_LEVEL", "SILENT"),
        }
        self._started_at, self._next_start = time.monotonic(), None
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                pass_fds=[fd for fd in (ring_fd, wake_fd, glimpse_fd) if fd >= 0],
                env=environment,
            )
        except OSError as error:  # no process, memory or descriptor is to be had: the other cameras go on
            self._bury(f"the capture process cannot be started ({error.strerror})")
            return
        order = ChildOrder(
            settings=self.settings,
            state_dir=self._state_dir.absolute(),
            parent_pid=os.getpid(),
            after_stop=self._after_stop and self._restarts == 0,
            controls=self._controls,
        )
        self._tell(order.model_dump_json().encode() + b"\n")

    def _tell(self, line: bytes) -> None:
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it is dead already: supervise() finds out
                self._child.stdin.write(line)
                self._child.stdin.flush()

    def supervise(self) -> None:
        """Replace a child that died or fell silent, with a growing pause; to be called often, never waits long."""
        if self._stopped:
            return
        if self._child is None:
            if self._next_start is not None and time.monotonic() >= self._next_start:
                self._restarts += 1
                self.start()
            return
        code = self._child.poll()
        if code is not None:
            self._bury(self._dying or f"the capture process ended with {_exit_words(code)}")
        elif self._dying is None and self._silent():
            reason = f"no frame for {self.settings.stall_s:g} s: the capture process was replaced"
            if self._ring.live().alive_ns == 0:
                reason = f"the capture process did not start within {self._start_limit_s:g} s and was replaced"
                self._start_s = min(LAST_START_S, 2 * self._start_limit_s)
            if self._kill(self._child, reason):
                self._bury(reason)

    def _kill(self, child: subprocess.Popen[bytes], reason: str) -> bool:
        """Whether the killed child has ended. One that hangs in a driver never runs again, but ends when that lets go;
        until then it has no successor, which could not open the camera either, and nothing else waits for it."""
        child.kill()
        try:
            child.wait(GONE_S)
        except subprocess.TimeoutExpired:
            self._dying = reason
            self._ring.set_detail(f"{reason}; it was killed and a driver does not let it end")
            self._ring.set_live(self._ring.live()._replace(state=ChildState.FAILED))
            return False
        return True

    def hold_to(self, controls: CameraControls | None) -> None:
        """Go on with other camera settings: where they differ the child is replaced, and the new one reads them back.

        A picture taken before has no place under the new recipe: ``cut`` refuses it.
        """
        if controls == self._controls or self._stopped:
            return
        self._controls = controls
        replaced = self._child is not None and self._ring.live().state != ChildState.ENDED
        reason, gone = "the camera settings of another recipe are being set", True
        if self._child is not None and replaced:
            gone = self._kill(self._child, reason)
            self._ring.set_live(self._ring.live()._replace(learnt_mhz=0))  # another exposure gives another rate
        self._controls_ns = time.monotonic_ns()  # only now can no picture of the old settings follow
        if replaced and gone:
            self._bury(reason)
        if self._next_start is not None:
            self._next_start = time.monotonic()

    def _silent(self) -> bool:
        if self._child is None:
            return False
        alive_ns = self._ring.live().alive_ns
        if alive_ns == 0:
            return time.monotonic() - self._started_at > self._start_limit_s
        return (time.monotonic_ns() - alive_ns) / 1e9 > self.settings.stall_s

    @property
    def _start_limit_s(self) -> float:
        return max(self._start_s, self.settings.stall_s)

    def _bury(self, reason: str) -> None:
        """Take the dead child's affairs in order, and set the time for the next one."""
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
        self._child = self._dying = None
        self._ring.reclaim()
        live = self._ring.live()
        if live.state == ChildState.ENDED:
            return
        if live.state != ChildState.FAILED:
            self._ring.set_detail(reason)
            self._ring.set_live(live._replace(state=ChildState.FAILED))
        if live.alive_ns != 0:
            self._start_s = START_S
        if time.monotonic() - self._started_at > HEALTHY_S:
            self._retry_s = FIRST_RETRY_S
        self._next_start = time.monotonic() + self._retry_s
        self._retry_s = min(LAST_RETRY_S, 2 * self._retry_s)

    def stop_capture(self) -> None:
        """No more frames: the child is told, joined, killed if it must be. Triggers can still be fetched and cut."""
        self._next_start, child = None, self._child
        if child is None:
            return
        self._tell(b"stop\n")
        try:
            child.wait(2.0)
        except subprocess.TimeoutExpired:
            if not self._kill(child, "it did not stop when it was told to"):
                log.warning("camera %s: %s", self.settings.id, self._ring.detail())
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        self._child = self._dying = None
        try:
            self._ring.reclaim()
        except RingError as error:  # held by a child that does not end; what was announced can still be fetched
            self._trouble = str(error)

    def stop(self, forget: bool = True) -> None:
        """The child ends and the memory goes. ``forget``: a clean stop, a recording begins anew next time."""
        if self._stopped:
            return
        self.stop_capture()
        self._stopped = True
        self._last = self.status()
        if forget:
            self._forget()
        self._slots.clear()
        self._ring.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _forget(self) -> None:
        forget_playhead(self._state_dir, self.settings.id)
        self._memory.forget()


class TakenMemory:
    """The parts taken last, in a small file, for an edge that is killed and started again at once."""

    def __init__(self, state_dir: Path, camera_id: str) -> None:
        self._path = state_dir / f"camera-{camera_id}.taken.json"
        self._taken: list[tuple[int, list[int]]] = []
        self._changed = False

    def note(self, records: list[Record]) -> None:
        found = [(record.frame_no, list(record.box)) for record in records if record.box is not None]
        self._taken = (self._taken + found)[-MEMORY:]
        self._changed = self._changed or bool(found)

    def save(self, ring: Ring) -> None:
        """Write what was noted since the last time; not synced, a crash of the machine empties the belt's view."""
        state = ring.load_state() if self._changed else None
        if state is None:
            return
        self._changed = False
        tracker, live = state["tracker"] | {"tracks": []}, ring.live()
        value = {
            "boot_id": boot_id(),
            "frame_no": live.frame_no,
            "frame_ns": live.frame_ns,
            "state": {"recorded": 0, "tracker": tracker, "taken": self._taken},
        }
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps(value))
            new.replace(self._path)
        except OSError as error:  # it only helps after a crash; the verdict must not wait for a disk that is full
            log.warning("%s: what was taken cannot be noted (%s)", self._path, error.strerror)

    def give_to(self, ring: Ring) -> None:
        """Put what the last run took into a new ring, where its first child looks for it."""
        try:
            value = json.loads(self._path.read_text())
            if value["boot_id"] != boot_id():
                return
            ring.save_state(value["state"])
            ring.set_live(Live(frame_ns=int(value["frame_ns"]), frame_no=int(value["frame_no"])))
        except (OSError, ValueError, KeyError, TypeError):
            return  # none, or of no use: nothing was taken

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def _exit_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


# The child -----------------------------------------------------------------------------------------------------------


def child_main(ring_fd: int, wake_fd: int, glimpse_fd: int = -1) -> None:
    """A capture process from its beginning to its end; never returns."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor says when to stop
    order = ChildOrder.model_validate_json(sys.stdin.buffer.readline())
    if os.getppid() != order.parent_pid:  # it died before the kernel was asked to tell
        os._exit(1)
    cv2.setNumThreads(1)  # the frames are small; more threads only get in the engine's way
    stop = threading.Event()
    threading.Thread(target=_await_stop, args=(stop,), name="await-stop", daemon=True).start()
    ring = Ring.attach(ring_fd)
    camera: Camera | None = None
    try:
        made = order.settings
        camera = make_camera(made.url, made.id, order.state_dir, made.stall_s, int(made.max_frame_mb * 1e6))
        camera.controls, camera.triggered = order.controls, made.triggered
        camera.open()
        glimpse = Glimpse(glimpse_fd) if glimpse_fd >= 0 else None
        Capture(camera, ring, order.settings, wake_fd, order.after_stop, glimpse).run(stop)
        code = 0
    except FlawlineError as error:
        code = _failed(ring, str(error))
    except Exception as error:  # noqa: BLE001 - the last words of this process; the supervisor starts another
        code = _failed(ring, f"{type(error).__name__}: {error}")
    if camera is not None:
        camera.close()
    os._exit(code)  # a thread may hang in a camera's read


def _failed(ring: Ring, reason: str) -> int:
    ring.set_detail(reason)
    ring.set_live(ring.live()._replace(state=ChildState.FAILED))
    return 2


def _await_stop(stop: threading.Event) -> None:
    """Wait for the supervisor's word. Its end without one closes the pipe, which is a word too: die at once."""
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(1)
    stop.set()


class Capture:
    """The child's loop: frames in, triggers out."""

    def __init__(
        self,
        camera: Camera,
        ring: Ring,
        settings: CameraSettings,
        wake_fd: int,
        after_stop: bool = False,
        glimpse: Glimpse | None = None,
    ) -> None:
        self._glimpse = glimpse
        self._camera, self._ring, self._settings, self._wake_fd = camera, ring, settings, wake_fd
        self._pass_over = after_stop and camera.live
        self._tracker = Tracker(settings.presence.direction, settings.presence.settle_frames)
        self._kept: dict[int, int] = {}  # frame number -> slot
        self._times: dict[int, int] = {}  # frame number -> t_capture_ns, of the frames that may yet be taken
        self._first_no = 0
        self._frozen = FrozenCheck()
        self._rate = RateCheck(settings.fps, ring.live().learnt_mhz / 1000)
        self._form: tuple[tuple[int, int], PixelFormat | None] | None = None
        if camera.live and camera.announced_hw is not None:
            self._form = (camera.announced_hw, None)
        self._seen_no = ring.live().frame_no
        self._recorded = ring.counts()[0]
        self._restore()

    def run(self, stop: threading.Event) -> None:
        """Until told to stop or the camera ends."""
        self._ring.set_detail("")
        self._beat(ChildState.RUNNING)
        while not stop.is_set():
            frame = self._camera.read()
            if isinstance(frame, BadFrame):
                self.spoilt(frame._replace(frame_no=frame.frame_no + self._first_no))
                self._camera.taken()
            elif frame is not None:
                self.take(frame._replace(frame_no=frame.frame_no + self._first_no))
                self._camera.taken()
            elif self._camera.ended is not None:
                self._end(self._camera.ended)
                return
            elif self._camera.waits or not self._camera.live:
                self._beat(ChildState.RUNNING)  # what waits for its next frame is well

    def take(self, frame: CameraFrame) -> None:
        """One frame: develop, look, keep, announce.

        Raises CameraError for a live camera whose frames change their size, stand still or come too slowly, RingError
        for one whose frames no slot can take; the process is replaced then.
        """
        pixels, pixel_format = developed(frame.pixels, frame.pixel_format)
        frame = frame._replace(pixels=pixels, pixel_format=pixel_format)
        fault = self._fault_of(frame)
        if fault is not None:
            self.spoilt(BadFrame(fault, frame.frame_no, frame.t_capture_ns))
            if self._camera.live or not self._settings.each_frame:
                raise CameraError(f"camera {self._settings.id}: {fault}")
            return
        watched = self._camera.live and self._settings.frozen_after_s > 0
        frozen = watched and self._frozen.stands_still(frame.pixels, frame.t_capture_ns)
        recorded = self._recorded
        if self._settings.trigger == "presence":
            self._watch(frame, frozen)
        elif self._settings.by_time:
            self._keep_by_time(frame, frozen)
        else:
            self._announce_missing(frame)
            self._every_frame(frame, frozen)
        self._save(frame)
        if self._glimpse is not None:
            self._glimpse.offer(*frame, part=self._recorded > recorded)
        if self._camera.live:
            self._hold_to_its_pace(frame, frozen)

    def spoilt(self, bad: BadFrame) -> None:
        """A frame that cannot be used. Where each frame is a part, this one is announced without a picture.

        Otherwise its number is skipped, and what is skipped becomes a gap. A live camera that gives nothing else shows
        no sign of life, and is replaced.
        """
        self._ring.set_detail(bad.reason)
        if self._settings.each_frame:
            self._announce_missing(bad)
            passed_over = bad.frame_no - self._seen_no - 1 if self._seen_no >= 0 else 0
            self._announce(bad.frame_no, bad.t_capture_ns, None, bad.reason, None)
            self._seen_no = bad.frame_no
            live = self._ring.live()
            self._ring.set_live(live._replace(frame_no=bad.frame_no, skipped=live.skipped + max(0, passed_over)))
        if self._camera.waits or not self._camera.live:
            self._beat(ChildState.RUNNING)

    def _fault_of(self, frame: CameraFrame) -> str | None:
        """Why a frame is not what the camera announced, or what its first frame was; None: it is."""
        hw = (frame.pixels.shape[0], frame.pixels.shape[1])
        if self._camera.live:
            self._form = self._form or (hw, None)
            form_hw, form = self._form
            if form is None and form_hw == hw:
                form = frame.pixel_format
                self._form = (hw, form)
            if (hw, frame.pixel_format) != (form_hw, form):
                of_old = f"{form_hw[1]} x {form_hw[0]}{'' if form is None else f', {form.value}'}"
                return (
                    f"the camera gave a frame of {hw[1]} x {hw[0]}, {frame.pixel_format.value}, and had announced "
                    f"{of_old}: it is opened again"
                )
        if frame.pixels.nbytes > self._ring.slot_bytes:
            return self._ring.too_large(frame.pixels, frame.pixel_format)
        return None

    def _announce_missing(self, frame: CameraFrame | BadFrame) -> None:
        """Parts that triggered the camera, by its own count of frames, and whose pictures never came."""
        if self._settings.trigger != "hardware":
            return
        first = max(self._seen_no + 1, frame.frame_no - MISSED_MOST)
        for number in range(first, frame.frame_no):
            self._announce(number, frame.t_capture_ns, None, f"the camera took frame {number}, which never came", None)
        if first < frame.frame_no:
            missed = first - self._seen_no - 1
            live = self._ring.live()
            self._ring.set_live(live._replace(skipped=live.skipped + missed))
            self._seen_no = frame.frame_no - 1

    def _hold_to_its_pace(self, frame: CameraFrame, frozen: bool) -> None:
        still_s = self._frozen.still_ns(frame.t_capture_ns) / 1e9
        if frozen and still_s > self._settings.frozen_after_s:
            raise CameraError(f"camera {self._settings.id}: frozen: the same picture for {still_s:.1f} s")
        if self._camera.waits or (self._settings.fps is None and self._settings.each_frame):
            return  # the parts set the pace
        slow = self._rate.slow(frame.frame_no, frame.t_capture_ns)
        if slow is not None:
            raise CameraError(f"camera {self._settings.id}: slow: {slow}")

    def _every_frame(self, frame: CameraFrame, frozen: bool) -> None:
        box, lost = None, "frozen camera" if frozen else None
        if lost is None and self._settings.fixture == "foreground":
            box = max(self._find(frame.pixels), key=lambda found: found.area, default=None)
            lost = None if box is not None else "no part found in the frame"
        self._announce(frame.frame_no, frame.t_capture_ns, box, lost, frame)
        self._forget_all_but(set())

    def _keep_by_time(self, frame: CameraFrame, frozen: bool) -> None:
        """Keep a frame for whoever asks for its time, and give up the oldest where room is short."""
        while len(self._kept) >= self._ring.slots - 1:
            self._give_up_oldest()
        while not frozen and self._keep(frame) is None:
            if not self._kept:  # every slot holds a part that is not inspected yet
                self._ring.note_gone(frame.t_capture_ns)
                break
            self._give_up_oldest()
        if self._ring.awaited:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_fd, b"!")

    def _give_up_oldest(self) -> None:
        self._ring.give_up(self._kept.pop(min(self._kept)))

    def _watch(self, frame: CameraFrame, frozen: bool) -> None:
        hw = (frame.pixels.shape[0], frame.pixels.shape[1])
        boxes = self._find(frame.pixels)
        if self._pass_over:
            self._tracker.pass_over(frame.frame_no, boxes, hw)
            self._pass_over = False
        outcomes = self._tracker.update(frame.frame_no, boxes, hw)
        wanted = self._tracker.wanted()
        # What is not wanted any more goes first: a part that settles must not need a second slot.
        self._forget_all_but(wanted | {outcome.frame_no for outcome in outcomes})
        for outcome in outcomes:
            self._decide(outcome, frame, frozen)
        if frame.frame_no in wanted:
            self._times[frame.frame_no] = frame.t_capture_ns
            self._keep(frame)
        self._forget_all_but(wanted)

    def _find(self, pixels: Pixels) -> list[Box]:
        return find_in(pixels, self._settings)

    def _decide(self, outcome: Outcome, frame: CameraFrame | None, frozen: bool) -> None:
        current = frame if frame is not None and frame.frame_no == outcome.frame_no else None
        last_ns = self._ring.live().frame_ns if frame is None else frame.t_capture_ns
        captured_ns = current.t_capture_ns if current else self._times.get(outcome.frame_no, last_ns)
        lost = outcome.reason if isinstance(outcome, Lost) else ("frozen camera" if frozen else None)
        self._announce(outcome.frame_no, captured_ns, outcome.box, lost, current)

    def _announce(
        self, frame_no: int, captured_ns: int, box: Box | None, lost: str | None, frame: CameraFrame | None
    ) -> None:
        slot = None
        if lost is None:
            slot = self._keep(frame) if frame is not None else self._kept.get(frame_no)
            if slot is None:
                known = frame is not None or frame_no in self._times
                lost = OVERRUN if known else "its frame went with the capture process that was replaced"
        plain = None if box is None else (box.x, box.y, box.w, box.h)
        record = Record(0, frame_no, captured_ns, time.monotonic_ns(), plain, -1 if slot is None else slot, lost)
        self._recorded = self._ring.announce(record) + 1
        with contextlib.suppress(BlockingIOError):  # full: the supervisor is awake already
            os.write(self._wake_fd, b"!")

    def _keep(self, frame: CameraFrame) -> int | None:
        if frame.frame_no not in self._kept:
            slot = self._ring.put(frame.pixels, frame.pixel_format, frame.frame_no, frame.t_capture_ns)
            if slot is None:
                return None
            self._kept[frame.frame_no] = slot
        return self._kept[frame.frame_no]

    def _forget_all_but(self, wanted: set[int]) -> None:
        for frame_no in [number for number in self._kept if number not in wanted]:
            self._ring.unkeep(self._kept.pop(frame_no))
        for frame_no in [number for number in self._times if number not in wanted]:
            del self._times[frame_no]

    def _end(self, reason: str) -> None:
        for outcome in self._tracker.finish():
            self._decide(outcome, None, frozen=False)
        if not self._settings.by_time:  # what was asked for may be among the last frames
            self._forget_all_but(set())
        self._ring.set_detail(reason)
        self._beat(ChildState.ENDED)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_fd, b"!")

    # Signs of life, and what a successor must know --------------------------------------------------------------------

    def _beat(self, state: ChildState) -> None:
        now, live = time.monotonic_ns(), self._ring.live()
        if self._camera.waits:
            # What happened after the last proof may have been missed, should it turn out to be gone.
            proven_ns = self._camera.proven_ns
            live = live._replace(frame_ns=now if proven_ns is None else max(live.frame_ns, proven_ns), waits=1)
        self._ring.set_live(live._replace(alive_ns=now, state=state))

    def _save(self, frame: CameraFrame) -> None:
        if self._settings.trigger == "presence":
            self._ring.save_state({"recorded": self._recorded, "tracker": self._tracker.state()})
        live = self._ring.live()
        # Where frames are asked for by their time, one that nobody looked at hides no part.
        missed = frame.frame_no - self._seen_no - 1 if self._seen_no >= 0 and not self._settings.by_time else 0
        still_ns = self._frozen.still_ns(frame.t_capture_ns)
        pause_s = (frame.t_capture_ns - live.frame_ns) / 1e9 if live.frame_ns and not still_ns else 0.0
        counts = self._camera.live and not self._camera.waits and not self._settings.by_time
        if counts and pause_s > PAUSE_S:  # its driver numbers on without a hole
            missed = max(missed, round(pause_s * self._camera.fps) - 1)
        if live.frames and self._ring.detail():
            self._ring.set_detail("")  # of a frame that could not be used
        self._seen_no = frame.frame_no
        self._ring.set_live(
            Live(
                time.monotonic_ns(),
                frame.t_capture_ns - still_ns,
                frame.frame_no,
                live.frames + 1,
                live.skipped + max(0, missed),
                ChildState.RUNNING,
                int(self._camera.waits),
                round(1000 * self._rate.learnt),
            )
        )

    def _restore(self) -> None:
        """Go on where a killed predecessor stood: parts that it took are not taken again."""
        live = self._ring.live()
        if self._camera.waits:
            self._first_no = live.frame_no + 1
        elif self._camera.live and live.frame_no >= 0:  # a live camera counts from 0 again; the line did not
            away_s = (time.monotonic_ns() - live.frame_ns) / 1e9
            self._first_no = live.frame_no + max(1, round(away_s * self._camera.fps))
        state = self._ring.load_state()
        since = 0
        if state is not None:
            self._tracker.restore(state["tracker"])
            since = state["recorded"]
            for frame_no, box in state.get("taken", ()):
                self._tracker.note_taken(frame_no, Box(*box), self._tracker.frame_hw)
        # Announced after the state was saved: the predecessor died between the two.
        for record in self._ring.recent(since):
            if record.box is not None:
                hw = self._tracker.frame_hw
                self._tracker.note_taken(record.frame_no, Box(*record.box), hw)
        self._kept = self._ring.kept()
        self._times = {number: self._ring.slot(slot).t_capture_ns for number, slot in self._kept.items()}
        if not self._settings.by_time:
            self._forget_all_but(self._tracker.wanted())


def find_in(pixels: Pixels, settings: CameraSettings) -> list[Box]:
    """The parts in a frame, as the camera's settings tell a part from the belt."""
    presence = settings.presence
    return find_parts(
        pixels,
        foreground=presence.foreground,
        threshold=presence.threshold,
        min_area=presence.min_area,
        direction=presence.direction,
        part_length_px=presence.part_length_px,
    )


class FrozenCheck:
    """Notices a live camera that gives the same frame again and again: real sensors have noise.

    A few rows of each frame are kept; all of it only once two in a row agree in those, and compared from then on.
    """

    def __init__(self, after: int = FROZEN_AFTER) -> None:
        self._after = after
        self._rows: Pixels | None = None
        self._whole: Pixels | None = None
        self._same = 0
        self._new_ns = 0

    def stands_still(self, pixels: Pixels, t_capture_ns: int = 0) -> bool:
        """True from the ``after``-th equal frame on; one that is wholly black or white says nothing of the sensor."""
        rows = pixels[::FEW_ROWS]
        same = self._rows is not None and np.array_equal(rows, self._rows) and not saturated(pixels)
        if same and self._whole is None:
            self._whole = pixels.copy()
        elif same:
            same = same_pixels(pixels, self._whole)
        self._same = self._same + 1 if same else 0
        if not same:
            self._rows, self._whole, self._new_ns = rows.copy(), None, t_capture_ns
        return self._same >= self._after

    def still_ns(self, t_capture_ns: int) -> int:
        """For how long the picture has been the same."""
        return t_capture_ns - self._new_ns if self._same else 0


class RateCheck:
    """Notices a camera that gives under half as many frames as it must, or as it gave at first.

    Counted by the camera's own frame numbers: frames that we were too late for are not its fault.
    """

    def __init__(self, asked: float | None, learnt: float) -> None:
        """``learnt``: what a predecessor learnt in frames a second; 0: nothing yet."""
        self.learnt = learnt
        self._asked = asked
        self._first: tuple[int, int] | None = None
        self._marks: deque[tuple[int, int]] = deque()

    def slow(self, frame_no: int, t_capture_ns: int) -> str | None:
        """What is wrong over the last SLOW_S seconds, None: nothing."""
        self._marks.append((frame_no, t_capture_ns))
        self._first = self._first or self._marks[0]
        if not self.learnt and t_capture_ns - self._first[1] >= LEARN_S * 1e9:
            self.learnt = _rate(self._first, self._marks[-1])
        while len(self._marks) > 2 and t_capture_ns - self._marks[1][1] >= SLOW_S * 1e9:
            self._marks.popleft()
        expected = self._asked or self.learnt
        if t_capture_ns - self._marks[0][1] < SLOW_S * 1e9 or not expected:
            return None
        found = _rate(self._marks[0], self._marks[-1])
        if found >= SLOW_SHARE * expected:
            return None
        source = "`fps` asks for" if self._asked else "it gave at first"
        return f"{found:.2g} frames a second over {SLOW_S:g} s, {source} {expected:.3g}"


def _rate(first: tuple[int, int], last: tuple[int, int]) -> float:
    """Frames a second between two (frame number, time in ns)."""
    return (last[0] - first[0]) * 1e9 / (last[1] - first[1])


def saturated(pixels: Pixels) -> bool:
    """Whether every value is 0 or 255: the lens is covered or the light too strong, and noise does not show."""
    return not bool((pixels[::FEW_ROWS] + np.uint8(1) > 1).any()) and not bool((pixels + np.uint8(1) > 1).any())
