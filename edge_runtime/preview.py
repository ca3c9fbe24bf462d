"""Live preview: the newest frame of each camera as JPEG, for who watches; it loses frames and says so (beside hop 1).

A thread of its own with a low priority. While nobody watches nothing is made small, encoded or sent; a watcher that is
slow loses frames and holds up nobody.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import Annotated, Literal

import cv2
import numpy as np
import zmq
from pydantic import Field, ValidationError
from zmq.utils import z85

from contract.curve import ZAP_DOMAIN, keep_alive, secure_server
from contract.errors import KeyFileError
from contract.event import Count, Name, Result, Verdict, Wire
from contract.images import PixelFormat, Pixels
from contract.keys import HOST, SECRET, KeyPair, load_pair, read_authorised
from edge_runtime.glimpse import Glimpse, Seen
from edge_runtime.settings import PreviewSettings

SCHEMA = "flawline.preview/1.0"
WATCHED_S = 2.0
"""A capture process writes frames for so long after it was last asked to."""

LOOK_S = 1.0
HIGH_WATER = 2
MAX_HEADER_BYTES = 8192
MAX_JPEG_BYTES = 8 << 20
NICE = 10
COLOURS = {
    Verdict.PASS: (60, 160, 60),
    Verdict.REVIEW: (0, 190, 230),
    Verdict.REJECT: (40, 40, 220),
    Verdict.NOT_INSPECTED: (130, 130, 130),
}

log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]
Box = tuple[int, int, int, int]


class LastVerdict(Wire):
    """The last verdict of this camera. Its part is in the picture where ``frame_no`` is the picture's."""

    part_id: Name
    frame_no: Count
    verdict: Verdict
    score: float | None = None
    reason: str | None = Field(None, max_length=500)
    box_px: Box | None = Field(None, description="x, y, width, height in the camera's frame")


class PreviewHeader(Wire):
    """What goes with one picture. Pictures are lost by design: ``dropped`` frames so far are in none of them.

    ``number`` counts the pictures of this camera: a hole in it is what this watcher lost.
    """

    schema_id: Annotated[str, Field(alias="schema", max_length=50)] = SCHEMA
    edge_id: Name
    camera_id: Name
    lossy: Literal[True] = True
    number: Count
    dropped: Count
    frame_no: Count
    age_ms: float = Field(description="capture to sending")
    width: Count
    height: Count
    frame_width: Count
    frame_height: Count
    last: LastVerdict | None = None


class _Camera:
    """One camera's glimpse, and what of it was sent."""

    def __init__(self, glimpse: Glimpse) -> None:
        self.glimpse = glimpse
        self.last: LastVerdict | None = None
        self.seen = self.number = self.dropped = 0
        self.frame_no: int | None = None


class Preview:
    """``start``, ``note`` each result, ``stop``. ``glimpses`` go to the capture processes.

    Raises KeyFileError where the keys cannot be trusted.
    """

    def __init__(self, settings: PreviewSettings, edge_id: str, camera_ids: list[str]) -> None:
        self._settings = settings
        self._edge_id = edge_id
        self._pair: KeyPair | None = None if settings.keys is None else load_pair(settings.keys / f"{HOST}{SECRET}")
        self._cameras = {each: _Camera(Glimpse.create(settings.width)) for each in camera_ids}
        self._topics: set[bytes] = set()
        self._names: dict[str, str] = {}
        self._next_look = 0.0
        self._stopping = threading.Event()
        self._context: zmq.Context[Socket] = zmq.Context()
        self._thread = threading.Thread(target=self._run, name="preview", daemon=True)
        self.endpoint: str | None = None

    @property
    def glimpses(self) -> dict[str, Glimpse]:
        return {camera_id: camera.glimpse for camera_id, camera in self._cameras.items()}

    def start(self) -> None:
        """Bind and begin; an address that cannot be had costs the preview, never the line."""
        try:
            self._zap = self._context.socket(zmq.REP)
            self._zap.set(zmq.LINGER, 0)
            self._zap.bind("inproc://zeromq.zap.01")
            self._socket = self._bind(self._settings.listen or "")
        except zmq.ZMQError as error:
            log.error("no preview: %s cannot be bound (%s)", self._settings.listen, error.strerror)
            return
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._thread.start()

    def note(self, result: Result) -> None:
        """Remember a verdict; called on the station's thread, never waits."""
        camera = self._cameras.get(result.camera_id)
        if camera is not None:
            camera.last = LastVerdict(
                part_id=result.part_id,
                frame_no=result.frame_no,
                verdict=result.verdict,
                score=result.score,
                reason=result.reason,
                box_px=result.box_px,
            )

    def stop(self) -> None:
        """End, after the cameras have been stopped."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._context.destroy(linger=0)
        for camera in self._cameras.values():
            camera.glimpse.close()

    def _bind(self, endpoint: str) -> Socket:
        socket = self._context.socket(zmq.XPUB)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, HIGH_WATER)  # what a slow watcher does not take is dropped for that watcher
        socket.set(zmq.MAXMSGSIZE, 4096)  # watchers send topics alone, and the handshake
        keep_alive(socket)
        if self._pair is not None:
            self._look()
            secure_server(socket, self._pair)
        try:
            socket.bind(endpoint)
        except BaseException:
            socket.close(0)
            raise
        return socket

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        interval_s = 1 / self._settings.fps
        due = time.monotonic()
        while not self._stopping.is_set():
            wait_s = max(0.0, due - time.monotonic()) if self._topics else LOOK_S / 4
            ready = dict(poller.poll(int(wait_s * 1000)))
            try:
                if self._zap in ready:
                    self._authenticate()
                if self._socket in ready:
                    self._subscribe()
                if self._revoked():
                    poller.unregister(self._socket)
                    self._rebind()
                    poller.register(self._socket, zmq.POLLIN)
                if self._topics and time.monotonic() >= due:
                    due = time.monotonic() + interval_s
                    self._publish(interval_s)
            except Exception:  # a picture must not end the preview
                log.exception("the preview goes on after")
                self._stopping.wait(LOOK_S)

    def _subscribe(self) -> None:
        with suppress(zmq.Again):
            while True:
                said = self._socket.recv(zmq.NOBLOCK)
                if said[:1] == b"\1":
                    self._topics.add(said[1:])
                elif said[:1] == b"\0":
                    self._topics.discard(said[1:])

    def _publish(self, interval_s: float) -> None:
        for camera_id, camera in self._cameras.items():
            topic = topic_of(camera_id)
            if not any(topic.startswith(prefix) for prefix in self._topics):
                continue
            camera.glimpse.want(max(WATCHED_S, 2 * interval_s), interval_s, self._settings.width)
            seen = camera.glimpse.newest(camera.seen)
            if seen is not None:
                header, jpeg = self._picture(camera_id, camera, seen)
                with suppress(zmq.Again):
                    self._socket.send_multipart(
                        [topic, header.model_dump_json(by_alias=True).encode(), jpeg], zmq.NOBLOCK
                    )

    def _picture(self, camera_id: str, camera: _Camera, seen: Seen) -> tuple[PreviewHeader, bytes]:
        last = camera.last
        if camera.frame_no is not None:
            camera.dropped += max(0, seen.frame_no - camera.frame_no - 1)
        camera.seen, camera.frame_no, camera.number = seen.number, seen.frame_no, camera.number + 1
        shown = drawn(seen, last)
        done, jpeg = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, self._settings.quality])
        if not done:
            raise ValueError(f"a picture of {shown.shape} could not be encoded")
        header = PreviewHeader(
            edge_id=self._edge_id,
            camera_id=camera_id,
            number=camera.number,
            dropped=camera.dropped,
            frame_no=max(0, seen.frame_no),
            age_ms=(time.monotonic_ns() - seen.t_capture_ns) / 1e6,
            width=shown.shape[1],
            height=shown.shape[0],
            frame_width=seen.frame_wh[0],
            frame_height=seen.frame_wh[1],
            last=last,
        )
        return header, jpeg.tobytes()

    # Keys -------------------------------------------------------------------------------------------------------------

    def _authenticate(self) -> None:
        """One authentication request of ZeroMQ (RFC 27): a key that is authorised, or refused."""
        frames = self._zap.recv_multipart()
        request = frames[1] if len(frames) > 1 else b""
        known = False
        if len(frames) == 7 and frames[2] == ZAP_DOMAIN and frames[5] == b"CURVE" and len(frames[6]) == 32:
            self._look()
            known = z85.encode(frames[6]).decode() in self._names
        status = (b"200", b"OK") if known else (b"400", b"not authorised")
        self._zap.send_multipart([b"1.0", request, *status, b"", b""])
        if not known:
            log.warning("a watcher was refused: its key is not authorised by %s", self._settings.keys)

    def _look(self) -> None:
        """Read anew whose keys are authorised; a folder that cannot be trusted authorises nobody."""
        try:
            self._names = {} if self._settings.keys is None else read_authorised(self._settings.keys).names
        except KeyFileError as error:
            self._names = {}
            log.error("no watcher is let in: %s", error)

    def _revoked(self) -> bool:
        """Whether a key lost its authorisation since the last look."""
        if self._pair is None or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + LOOK_S
        before = self._names
        self._look()
        return not before.keys() <= self._names.keys()

    def _rebind(self) -> None:
        """Cut every watcher; who is authorised connects again."""
        log.warning("a watcher's key is no longer authorised: every watcher is cut")
        self._socket.close(0)
        self._topics.clear()
        while True:
            try:
                self._socket = self._bind(self.endpoint or "")
                return
            except zmq.ZMQError:  # the old socket is not gone yet
                if self._stopping.wait(0.05):
                    raise


def topic_of(camera_id: str) -> bytes:
    """What a watcher subscribes to; the end mark keeps ``top`` apart from ``top2``."""
    return f"{camera_id}/".encode()


def drawn(seen: Seen, last: LastVerdict | None) -> Pixels:
    """The picture as BGR, with the last verdict beneath it, and its box where its part is in this very frame."""
    picture = _bgr(seen)
    width = picture.shape[1]
    if last is None:
        return picture
    colour = COLOURS[last.verdict]
    same = last.frame_no == seen.frame_no
    if same and last.box_px is not None:
        scale = width / max(1, seen.frame_wh[0])
        x, y, w, h = (round(value * scale) for value in last.box_px)
        cv2.rectangle(picture, (x, y), (x + w, y + h), colour, 2)
    strip = np.full((18, width, 3), colour, np.uint8)
    when = "this frame" if same else f"frame {last.frame_no}, this is {seen.frame_no}"
    text = f"{last.verdict.value}  {last.part_id}  {when}"
    cv2.putText(strip, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([picture, strip])


def _bgr(seen: Seen) -> Pixels:
    if seen.pixel_format is PixelFormat.MONO8:
        return np.asarray(cv2.cvtColor(seen.pixels, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    if seen.pixel_format is PixelFormat.RGB8:
        return np.asarray(cv2.cvtColor(seen.pixels, cv2.COLOR_RGB2BGR), dtype=np.uint8)
    return seen.pixels


def picture_of(frames: list[bytes]) -> tuple[PreviewHeader, bytes]:
    """A message of the preview, checked. Raises ValueError for what is none."""
    if len(frames) != 3 or len(frames[1]) > MAX_HEADER_BYTES or len(frames[2]) > MAX_JPEG_BYTES:
        raise ValueError(f"{len(frames)} frame(s) are no picture of a preview")
    try:
        header = PreviewHeader.model_validate_json(frames[1])
    except ValidationError as error:
        raise ValueError(f"a picture's header: {error.errors()[0]['msg']}") from error
    if not header.schema_id.startswith("flawline.preview/1."):
        raise ValueError(f"schema {header.schema_id!r}; this side reads flawline.preview/1.x")
    return header, frames[2]
