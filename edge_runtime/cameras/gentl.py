"""GenICam cameras (GigE Vision, USB3 Vision, CoaXPress) through a vendor's GenTL producer and harvesters (hop 1).

``gentl:///opt/vendor/producer.cti?serial=40012345&pixel_format=BayerRG8``
"""

from __future__ import annotations

import importlib.util
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from contract.camera import Value
from contract.images import PixelFormat, Pixels
from edge_runtime.cameras.base import NAP_S, BadFrame, Camera, CameraFrame, Source
from edge_runtime.errors import CameraError

# The names of the GenICam Pixel Format Naming Convention that are taken.
FORMATS = {
    "Mono8": PixelFormat.MONO8,
    "BGR8": PixelFormat.BGR8,
    "RGB8": PixelFormat.RGB8,
    "BGRa8": PixelFormat.BGRA8,
    "RGBa8": PixelFormat.RGBA8,
    "BayerRG8": PixelFormat.BAYER_RG8,
    "BayerGR8": PixelFormat.BAYER_GR8,
    "BayerGB8": PixelFormat.BAYER_GB8,
    "BayerBG8": PixelFormat.BAYER_BG8,
}

# name in CameraControls -> the camera's feature, by the standard and as cameras called it before
NODES = {
    "pixel_format": ("PixelFormat",),
    "width": ("Width",),
    "height": ("Height",),
    "fps": ("AcquisitionFrameRate", "AcquisitionFrameRateAbs"),
    "auto_exposure": ("ExposureAuto",),
    "exposure": ("ExposureTime", "ExposureTimeAbs"),
    "gain": ("Gain", "GainRaw"),
    "auto_white_balance": ("BalanceWhiteAuto",),
    "brightness": ("BlackLevel", "BlackLevelRaw"),
    "saturation": ("Saturation",),
    "gamma": ("Gamma",),
    "sharpness": ("Sharpness",),
}
AUTOMATIC = ("Off", "Once", "Continuous")  # in settings the place in this tuple

BUFFERS = 8
WRAP_16 = 0xFFFF  # GigE Vision counts frames in 16 bits and leaves 0 out
MOST_MISSED, MOST_MISSED_AT_WRAP = 100_000, 1000


class Features:
    """A camera's features by name: what harvesters calls a node map, with values of Python."""

    def __init__(self, node_map: Any) -> None:
        self._map = node_map

    def node(self, *names: str) -> Any | None:
        """The first that the camera has, as an object with ``value``; None: it has none of them, or not now."""
        for name in names:
            if not self._map.has_node(name):
                continue
            node = self._map.get_node(name)
            if node.get_access_mode() in (3, 4):  # read only, read and write
                return node
        return None

    def get(self, *names: str) -> Value | None:
        """The value now, asked of the camera itself. Raises what GenICam raises."""
        node = self.node(*names)
        if node is None:
            return None
        value = node.get_value(False, True)  # not verified, not from GenApi's own cache
        return value if isinstance(value, str) else float(value)

    def set(self, value: Value, *names: str) -> None:
        """Ask for a value in the feature's own type; what the camera does not take reads back as it was."""
        node = self.node(*names)
        if node is None:
            return
        held = node.value
        with suppress(IndexError, *_genicam_errors()):
            if isinstance(held, str):
                node.value = value if isinstance(value, str) else AUTOMATIC[int(value)]
            elif not isinstance(value, str):
                node.value = bool(value) if isinstance(held, bool) else type(held)(value)

    def choices(self, name: str) -> tuple[str, ...]:
        node = self.node(name)
        return () if node is None else tuple(node.symbolics)


class FrameIds:
    """A camera's own count of frames as one without end, so that a hole in it is a frame that never came.

    A count of 16 bits begins anew after 65535, at 1 or at 0. Frames lost just there look like a camera that was reset,
    until it has once gone over that end without a hole.

    ``from_start``: the count began with the acquisition, at 0 or 1 as the camera has it, so that a first number over 1
    is a hole as well; one that is absurdly high is of a camera that counts on, and says nothing.
    """

    def __init__(self, from_start: bool = False) -> None:
        self._from_start = from_start
        self._last: int | None = None
        self._number = 0
        self._first_again: int | None = None  # what follows 65535, once that was seen

    def number(self, frame_id: int) -> int | None:
        """The frame's number from 0; None where nobody knows how many are missing: a reset, or an unclear jump."""
        last, self._last = self._last, frame_id
        if last is None:
            if self._from_start and frame_id <= MOST_MISSED:
                self._number = max(0, frame_id - 1)
            return self._number
        step = frame_id - last
        if step <= 0:
            step = self._over_the_end(last, frame_id)
        if not 0 < step <= MOST_MISSED:
            return None
        self._number += step
        return self._number

    def _over_the_end(self, last: int, frame_id: int) -> int:
        """Frames from ``last`` to a smaller id; 0: that cannot be told."""
        if last == WRAP_16 and frame_id in (0, 1):
            self._first_again = frame_id
            return 1
        if self._first_again is None or last > WRAP_16:
            return 0
        step = frame_id - last + WRAP_16 + 1 - self._first_again
        return step if step <= MOST_MISSED_AT_WRAP else 0


class GentlCamera(Camera):
    """Options: ``serial`` (needed where there are several), ``pixel_format``, ``trigger_source`` (Line1).

    Frames are given in order, one by one; the camera's own count says what is missing. With ``triggered`` the camera
    exposes when its trigger input says so, and between parts it is asked now and then whether it is still there.
    """

    settable = True

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        source.only("serial", "pixel_format", "trigger_source")
        self._harvester: Any = None
        self._acquirer: Any = None
        self._monitor: Any = None
        self._features: Features | None = None
        self._ids = FrameIds()
        self._counted = 0
        self._producer = Path(source.place)
        self._trigger_source = source.options.get("trigger_source", "Line1")
        missing = [name for name in ("genicam", "harvesters") if importlib.util.find_spec(name) is None]
        if missing:
            raise self.error(f"gentl:// needs {' and '.join(missing)}: pip install 'flawline[gentl]'")
        wanted = source.options.get("pixel_format")
        if wanted is not None and wanted not in FORMATS:
            raise self.error(f"pixel_format={wanted!r} is not taken; there are: {', '.join(FORMATS)}")

    def open(self) -> None:
        self.waits = self.triggered
        self._ids = FrameIds(from_start=self.triggered)
        try:
            self._connect()
            self._set_up()
            self._acquirer.num_buffers = max(BUFFERS, self._acquirer.min_num_buffers)
            self._acquirer.start()
            # Not `fetch`: it measures its wait by the wall clock, and drops incomplete frames without a word.
            (self._monitor,) = self._acquirer._new_buffer_event_monitor_dict.values()
            self.proven_ns = time.monotonic_ns()
        except _genicam_errors() as error:
            self.close()
            raise self.error(f"{self._producer.name}: {_said(error)}") from error
        except CameraError:
            self.close()
            raise

    def _connect(self) -> None:
        from harvesters.core import Harvester

        if not self._producer.is_file():
            raise self.error(
                f"{self._producer}: no such file; expected the GenTL producer (.cti) that came with the camera's driver"
            )
        self._harvester = Harvester()
        self._harvester.add_file(str(self._producer))
        self._harvester.update()
        devices = self._harvester.device_info_list
        serials = [str(device.serial_number) for device in devices]
        wanted = self.source.options.get("serial")
        if wanted is None and len(devices) == 1:
            wanted = serials[0]
        if wanted is None or serials.count(wanted) != 1:
            way_out = "say which: ?serial=..." if wanted is None else f"expected one with serial={wanted}"
            raise self.error(
                f"{self._producer.name} finds {len(devices)} camera(s), serial numbers: "
                f"{', '.join(serials) or 'none'}; {way_out}"
            )
        self._acquirer = self._harvester.create(serials.index(wanted))
        self._features = Features(self._acquirer.remote_device.node_map)

    def _set_up(self) -> None:
        """Pixel format, trigger, and the bundle's settings, before the camera streams."""
        features = self._opened()
        wanted = self.source.options.get("pixel_format")
        if wanted is not None:
            features.set(wanted, "PixelFormat")
        self._set_trigger(features)
        if self.controls is not None and self.controls.fps is not None:
            features.set(1.0, "AcquisitionFrameRateEnable", "AcquisitionFrameRateEnabled")
        self.hold_to_controls()
        found = str(features.get("PixelFormat"))
        held_to = self.controls is not None and self.controls.pixel_format is not None
        if found not in FORMATS or (wanted not in (None, found) and not held_to):
            raise self.error(
                f"the camera gives {found}{'' if wanted is None else f', asked for {wanted}'}; taken are: "
                f"{', '.join(FORMATS)}; it offers: {', '.join(features.choices('PixelFormat'))}: set ?pixel_format="
            )
        height, width = features.get("Height"), features.get("Width")
        if isinstance(height, float) and isinstance(width, float):
            self.announced_hw = (int(height), int(width))
        fps = features.get(*NODES["fps"])
        if isinstance(fps, float) and 0 < fps <= 1000:
            self.fps = fps

    def _set_trigger(self, features: Features) -> None:
        """A trigger that another program left on would stop a free-running camera, and the other way round."""
        self._insist(features, "AcquisitionMode", "Continuous")
        for other in features.choices("TriggerSelector"):
            if other != "FrameStart":  # left on, it would hold back every frame, or end the acquisition
                features.set(other, "TriggerSelector")
                features.set("Off", "TriggerMode")
                if features.get("TriggerSelector") == other:
                    self._insist(features, "TriggerMode", "Off", f" of {other}")
        self._insist(features, "TriggerSelector", "FrameStart")
        if self.triggered:
            features.set(self._trigger_source, "TriggerSource")
        features.set("On" if self.triggered else "Off", "TriggerMode")
        mode, by = features.get("TriggerMode"), features.get("TriggerSource")
        if not self.triggered:
            if mode not in (None, "Off"):
                raise self.error(f"TriggerMode asked Off, found {mode}")
        elif mode is None or by is None:
            raise self.error("trigger = 'hardware': the camera has no TriggerMode and TriggerSource")
        elif (mode, by) != ("On", self._trigger_source):
            raise self.error(
                f"trigger asked On by {self._trigger_source}, found {mode} by {by}; there are: "
                f"{', '.join(features.choices('TriggerSource'))}: set ?trigger_source="
            )

    def _insist(self, features: Features, name: str, value: str, of: str = "") -> None:
        """Set a feature, where the camera has it, and hold the camera to it. Raises CameraError."""
        features.set(value, name)
        found = features.get(name)
        if found not in (None, value):
            raise self.error(f"{name}{of} asked {value}, found {found}; there are: {', '.join(features.choices(name))}")

    def reported(self) -> dict[str, Value]:
        found: dict[str, Value] = {}
        if self._features is not None:
            for name, nodes in NODES.items():
                with suppress(*_genicam_errors()):
                    value = self._features.get(*nodes)
                    if value in AUTOMATIC:
                        value = float(AUTOMATIC.index(str(value)))
                    if value is not None:
                        found[name] = value
        return found

    def set_control(self, name: str, value: Value) -> None:
        if name in NODES:
            self._opened().set(value, *NODES[name])

    def read(self) -> CameraFrame | BadFrame | None:
        if self._monitor is None:
            raise self.error("read before it was opened")
        from genicam.gentl import TimeoutException

        try:
            self._monitor.update_event_data(int(NAP_S * 1000))
        except TimeoutException:
            self._prove()
            return None
        except _genicam_errors() as error:
            raise self.error(f"stopped giving frames: {_said(error)}") from error
        t_capture_ns = self.proven_ns = time.monotonic_ns()
        raw = self._monitor.buffer
        try:
            return self._frame(raw, t_capture_ns)
        except _genicam_errors() as error:
            raise self.error(f"stopped giving frames: {_said(error)}") from error
        finally:
            with suppress(*_genicam_errors()):
                raw.parent.queue_buffer(raw)

    def _frame(self, raw: Any, t_capture_ns: int) -> CameraFrame | BadFrame:
        number = self._number(raw)
        if not raw.is_complete():
            return BadFrame("the frame arrived incomplete", number, t_capture_ns)
        from harvesters.core import Buffer

        try:
            components = Buffer(module=raw, node_map=self._acquirer.remote_device.node_map, acquire=None)
            part = components.payload.components[0]
            name, pixels = part.data_format, _pixels_of(part)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            return BadFrame(f"the frame does not hold what it declares: {error}", number, t_capture_ns)
        if name not in FORMATS:
            return BadFrame(
                f"a frame of the pixel format {name}; taken are: {', '.join(FORMATS)}", number, t_capture_ns
            )
        return CameraFrame(pixels, FORMATS[name], number, t_capture_ns)

    def _number(self, raw: Any) -> int:
        from genicam.gentl import NotAvailableException, NotImplementedException

        try:
            number = self._ids.number(int(raw.frame_id))
        except (NotAvailableException, NotImplementedException) as error:
            if self.triggered:
                raise self.error("the producer numbers no frames: a trigger that was missed would not show") from error
            self._counted += 1
            return self._counted - 1
        if number is None:
            raise self.error("its count of frames jumped: it was reset or lost some, and how many is unknown")
        return number

    def _prove(self) -> None:
        """A camera that waits for its trigger is silent while the line stands; one that is gone does not answer."""
        if not self.waits:
            return
        asked_ns = time.monotonic_ns()
        try:
            self._opened().get("Width")
        except _genicam_errors() as error:
            raise self.error(f"does not answer: {_said(error)}") from error
        self.proven_ns = asked_ns

    def _opened(self) -> Features:
        if self._features is None:
            raise self.error("it is not open")
        return self._features

    def close(self) -> None:
        self._monitor = self._features = None
        acquirer, self._acquirer = self._acquirer, None
        harvester, self._harvester = self._harvester, None
        for step in (getattr(acquirer, "stop", None), getattr(acquirer, "destroy", None)):
            if step is not None:
                with suppress(*_genicam_errors()):
                    step()
        if harvester is not None:
            with suppress(*_genicam_errors()):
                harvester.reset()


def _pixels_of(part: Any) -> Pixels:
    """An own copy of a component's pixels, what pads its rows left out; raises KeyError or ValueError."""
    planes = FORMATS[part.data_format].planes if part.data_format in FORMATS else 1
    height, width = int(part.height), int(part.width)
    data = np.asarray(part.data)
    row = width * planes + int(part.x_padding)
    if data.dtype != np.uint8 or min(height, width) < 1 or data.size < height * row:
        raise ValueError(f"{data.size} values of {data.dtype} for {width} x {height} pixels of {part.data_format}")
    rows = data[: height * row].reshape(height, row)[:, : width * planes]
    return rows.reshape(height, width, planes).copy() if planes > 1 else rows.copy()


def _genicam_errors() -> tuple[type[Exception], ...]:
    """What GenICam's two libraries raise; they are imported when a camera of theirs is opened."""
    from genicam import genapi, gentl

    return (gentl.GenericException, genapi.GenericException, OSError)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
