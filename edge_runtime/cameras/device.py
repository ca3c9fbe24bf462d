"""Cameras that OpenCV opens: USB (Video4Linux) and RTSP over the network (hop 1)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from contract.camera import Value
from contract.images import PixelFormat, Pixels
from edge_runtime.cameras.base import NAP_S, BadFrame, Camera, CameraFrame, Source, redacted, with_credentials
from edge_runtime.errors import CameraError

# name in CameraControls -> OpenCV's property
STREAM = {"width": cv2.CAP_PROP_FRAME_WIDTH, "height": cv2.CAP_PROP_FRAME_HEIGHT, "fps": cv2.CAP_PROP_FPS}
DEVICE = {
    "pixel_format": cv2.CAP_PROP_FOURCC,
    **STREAM,
    "auto_exposure": cv2.CAP_PROP_AUTO_EXPOSURE,
    "exposure": cv2.CAP_PROP_EXPOSURE,
    "gain": cv2.CAP_PROP_GAIN,
    "auto_white_balance": cv2.CAP_PROP_AUTO_WB,
    "white_balance": cv2.CAP_PROP_WB_TEMPERATURE,
    "auto_focus": cv2.CAP_PROP_AUTOFOCUS,
    "focus": cv2.CAP_PROP_FOCUS,
    "brightness": cv2.CAP_PROP_BRIGHTNESS,
    "contrast": cv2.CAP_PROP_CONTRAST,
    "saturation": cv2.CAP_PROP_SATURATION,
    "gamma": cv2.CAP_PROP_GAMMA,
    "sharpness": cv2.CAP_PROP_SHARPNESS,
}
GREY = ("GREY", "Y800")  # Video4Linux's names of one byte a pixel
ABSENT = -1.0  # what OpenCV gives for a property that the device does not have


class _OpencvCamera(Camera):
    """Drained by a thread of its own, so that the frame given is the newest and stamped when it was grabbed.

    A read that hangs takes this thread with it; the process around it is what gets killed.
    """

    properties = STREAM

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._capture: cv2.VideoCapture | None = None
        self._grey = False
        self._ready = threading.Condition()
        self._newest: tuple[Pixels, int, int] | None = None
        self._failed: str | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def reported(self) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for name, prop in self.properties.items():
            value = ABSENT if self._capture is None else self._capture.get(prop)
            if value == ABSENT:
                continue
            code = (int(value) & 0xFFFFFFFF).to_bytes(4, "little").decode("ascii", "replace")
            found[name] = code if name == "pixel_format" else value
        return found

    def _start(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        capture.set(cv2.CAP_PROP_CONVERT_RGB, 1)
        try:
            self.hold_to_controls()
        except CameraError:
            self.close()
            raise
        self._grey = self.reported().get("pixel_format") in GREY
        hw = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.announced_hw = hw if min(hw) > 0 else None
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0.5 <= fps <= 1000 else 25.0
        self._closing, self._failed, self._newest = False, None, None
        self._thread = threading.Thread(target=self._drain, args=(capture,), name="drain", daemon=True)
        self._thread.start()

    def _drain(self, capture: cv2.VideoCapture) -> None:
        number = 0
        while not self._closing:
            grabbed = capture.grab()
            stamp = time.monotonic_ns()
            ok, pixels = capture.retrieve() if grabbed else (False, None)
            with self._ready:
                if not ok or pixels is None:
                    self._failed = "the camera stopped giving frames"
                    self._ready.notify_all()
                    return
                self._newest = (np.asarray(pixels, dtype=np.uint8), number, stamp)
                self._ready.notify_all()
            number += 1

    def read(self) -> CameraFrame | BadFrame | None:
        with self._ready:
            if self._newest is None and self._failed is None:
                self._ready.wait(NAP_S)
            newest, self._newest = self._newest, None
            if newest is None and self._failed is not None:
                raise self.error(f"{redacted(self.source.url)}: {self._failed}")
        if newest is None:
            return None
        pixels, number, stamp = newest
        if pixels.ndim == 2 and self._grey:
            return CameraFrame(pixels, PixelFormat.MONO8, number, stamp)
        if pixels.ndim != 3 or pixels.shape[2] != 3:  # asked to convert, OpenCV gives blue, green, red and nothing else
            raise self.error(
                f"{redacted(self.source.url)}: OpenCV gave an array of shape {pixels.shape}, expected [H, W, 3] in the "
                "order blue, green, red, or [H, W] of a grey camera; ask the camera for another pixel format"
            )
        return CameraFrame(pixels, PixelFormat.BGR8, number, stamp)

    def close(self) -> None:
        self._closing = True
        if self._thread is not None:
            self._thread.join(self.source.stall_s + 1)
            if self._thread.is_alive():
                return  # it hangs in a read; releasing the capture under it would crash
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class UsbCamera(_OpencvCamera):
    """``usb://0`` for /dev/video0; options ``width``, ``height``, ``fps``."""

    properties = DEVICE
    settable = True

    def set_control(self, name: str, value: Value) -> None:
        if self._capture is not None:
            if isinstance(value, str) and len(value) != 4:  # a GenICam name: no such format here, and it reads back so
                return
            number = float(cv2.VideoWriter.fourcc(*value)) if isinstance(value, str) else value
            self._capture.set(self.properties[name], number)

    def open(self) -> None:
        self.source.only("width", "height", "fps")
        number = self.source.place.strip("/")
        if not number.isdigit():
            raise self.error(f"{self.source.url}: expected usb:// and the device's number, as in usb://0")
        device = Path(f"/dev/video{number}")
        if not device.exists():
            present = ", ".join(sorted(path.name for path in Path("/dev").glob("video*"))) or "none"
            raise self.error(f"{device}: no such device (present: {present}); is the camera plugged in?")
        if not os.access(device, os.R_OK | os.W_OK):
            raise self.error(f"{device}: this user may not open it; add the user to the group 'video'")
        capture = cv2.VideoCapture(int(number), cv2.CAP_V4L2)
        if not capture.isOpened():
            capture.release()
            raise self.error(f"{device}: cannot be opened; is another program using it?")
        for name, prop in STREAM.items():
            if name in self.source.options:
                capture.set(prop, self.source.option(name, 0, 1, 100_000))
        self._start(capture)


class RtspCamera(_OpencvCamera):
    """``rtsp://host:port/path``. User and password: in the URL, or the file that FLAWLINE_RTSP_<ID> names."""

    def open(self) -> None:
        wait_ms = int(self.source.stall_s * 1000)
        # The timeouts hold only as parameters of the opening, with the backend named.
        parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait_ms]
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
        capture = cv2.VideoCapture(with_credentials(self.source, "FLAWLINE_RTSP"), cv2.CAP_FFMPEG, parameters)
        if not capture.isOpened():
            capture.release()
            raise self.error(
                f"{redacted(self.source.url)}: no stream within {self.source.stall_s:g} s; "
                "is the camera on, the address right, and are user and password accepted?"
            )
        self._start(capture)
