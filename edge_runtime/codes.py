"""Reads the code on a part as its serial, in a thread beside the inspection (beside hops 3 to 5)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from contract.errors import ConfigError
from contract.images import Pixels
from edge_runtime.errors import CodeError
from edge_runtime.settings import CodeSettings

MAX_PIXELS = 4_000_000  # a larger picture is reduced first, so that the time is bounded
SMALL_PX = 300  # pictures under this side are enlarged where nothing is read at first

LINEAR = ("code128",)
_FORMATS = {"datamatrix": "DataMatrix", "qr": "QRCode", "code128": "Code128"}


class Code(NamedTuple):
    """What was read: printable text, and the kind of code that held it."""

    text: str
    symbology: str


def load_reader() -> Any:
    """The module that decodes; raises ConfigError with the way out where it is missing."""
    try:
        import zxingcpp
    except ImportError as error:
        raise ConfigError(
            "codes need the package zxing-cpp, which is missing: pip install 'flawline[codes]' (or leave out "
            "[cameras.code])"
        ) from error
    return zxingcpp


def read_code(pixels: Pixels, settings: CodeSettings) -> Code | None:
    """The one code of the asked symbology in ``pixels``, uint8 [H, W] or [H, W, 3]; None where none is readable.

    Several that say the same are one. Raises CodeError where two differ, or where it is too long or no text.
    """
    zxing = load_reader()
    grey = _prepared(pixels)
    asked = getattr(zxing.BarcodeFormat, _FORMATS[settings.symbology])
    attempts = (zxing.read_barcodes(each, formats=asked) for each in _attempts(grey, settings.symbology in LINEAR))
    found: list[Any] = next(filter(None, attempts), [])
    texts = sorted({each.text for each in found})
    if len(texts) > 1:
        shown = ", ".join(repr(_shown(text)) for text in texts[:3])
        raise CodeError(f"code: {len(texts)} different ones in view ({shown}): set the region of the part's own")
    if not texts:
        return None
    text = texts[0]
    if not 0 < len(text) <= settings.max_length:
        raise CodeError(f"code: {len(text)} characters ({_shown(text)!r}), expected 1 to {settings.max_length}")
    if not text.isprintable():
        raise CodeError(f"code: holds control characters ({_shown(text)!r}), expected text")
    return Code(text, settings.symbology)


def _shown(text: str) -> str:
    return text[:40]


def _prepared(pixels: Pixels) -> Pixels:
    """Grey, of at most MAX_PIXELS."""
    if pixels.ndim == 3:  # the plain mean does not depend on the order of the channels
        pixels = np.asarray(cv2.transform(pixels, np.full((1, 3), 1 / 3, np.float32)), np.uint8)
    scale = (pixels.size / MAX_PIXELS) ** 0.5
    if scale > 1:
        size = (round(pixels.shape[1] / scale), round(pixels.shape[0] / scale))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(pixels)


def _attempts(grey: Pixels, linear: bool) -> Iterator[Pixels]:
    """The picture as it is, then clearer; bars are read nearly upright alone, so that they are turned as well."""
    yield grey
    clearer = _clearer(grey)
    yield clearer
    if linear:
        for angle_deg in (30.0, 60.0):
            yield _turned(clearer, angle_deg)


def _clearer(grey: Pixels) -> Pixels:
    """Without the sensor's noise; what is small, twice as large. Stretched contrast reads less: it lifts the noise."""
    smooth = cv2.medianBlur(grey, 3)
    small = min(grey.shape) <= SMALL_PX
    return np.asarray(cv2.resize(smooth, None, fx=2, fy=2) if small else smooth, np.uint8)


def _turned(grey: Pixels, angle_deg: float) -> Pixels:
    height, width = grey.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = (round(width * cos + height * sin), round(width * sin + height * cos))
    matrix[0, 2] += (size[0] - width) / 2
    matrix[1, 2] += (size[1] - height) / 2
    return np.asarray(cv2.warpAffine(grey, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


class Reading:
    """One part's code while it is read."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels: Pixels | None = pixels
        self.started = time.monotonic()
        self.done = threading.Event()
        self.text: str | None = None
        self.fault: str | None = None


class CodeReader:
    """Reads codes for one camera in a thread of its own; the decoder lets go of Python's lock."""

    def __init__(self, settings: CodeSettings) -> None:
        """Raises ConfigError where the decoder is not installed."""
        load_reader()
        self.settings = settings
        self._queue: queue.SimpleQueue[Reading] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="codes", daemon=True).start()

    def begin(self, pixels: Pixels) -> Reading:
        """Start reading ``pixels``, which must not be changed until it is done."""
        reading = Reading(pixels)
        self._queue.put(reading)
        return reading

    def result(self, reading: Reading) -> tuple[str | None, str | None]:
        """The serial, and why the part must not pass; waits until the budget is over, and raises nothing.

        Where no code is required an unreadable one is no serial and no reason.
        """
        left = reading.started + self.settings.budget_ms / 1000 - time.monotonic()
        if reading.done.wait(max(0.0, left)):
            fault = reading.fault or (None if reading.text else f"code: no readable {self.settings.symbology} in view")
        else:
            reading.pixels = None  # one that waits behind another need not be read any more
            fault = f"code: not read within {self.settings.budget_ms} ms"
        if fault is None:
            return reading.text, None
        return None, fault if self.settings.required else None

    def _run(self) -> None:
        while True:
            reading = self._queue.get()
            pixels = reading.pixels
            try:
                code = None if pixels is None else read_code(pixels, self.settings)
                reading.text = None if code is None else code.text
            except Exception as error:  # noqa: BLE001 - whatever a picture does to the decoder, the next one is read
                reading.fault = str(error) or type(error).__name__
            reading.pixels = None
            reading.done.set()
