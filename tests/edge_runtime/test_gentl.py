"""GenICam cameras: frames from genicam's own simulated producer, features on GenApi's own node map, holes in the count.

The simulated producer gives Mono8 and RGBa8, and has neither exposure nor trigger. A trigger is added by a library of
our own before it (triggered.c); exposure and gain are tried on registers behind GenApi, without frames. No camera was
on the bench.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.camera import CameraControls
from contract.images import PixelFormat
from edge_runtime.cameras import make_camera
from edge_runtime.cameras.base import BadFrame, CameraFrame
from edge_runtime.cameras.gentl import FORMATS, NODES, Features, FrameIds, GentlCamera, _pixels_of
from edge_runtime.capture import CameraProcess
from edge_runtime.errors import CameraError
from edge_runtime.settings import CameraSettings
from tests.needs import lacking
from tests.processes import until


@pytest.fixture(scope="module")
def producer() -> Path:
    """The simulated producer that comes with genicam: three cameras that show a ball, a red, a green and a blue one."""
    found = importlib.util.find_spec("genicam")
    if found is None or importlib.util.find_spec("harvesters") is None or found.origin is None:
        lacking("genicam and harvesters are not installed: pip install 'flawline[gentl]'")
    return Path(found.origin).with_name("viky.cti")


def opened(url: str, state: Path) -> GentlCamera:
    camera = make_camera(url, "top", state)
    assert isinstance(camera, GentlCamera)
    camera.open()
    return camera


def frames_of(camera: GentlCamera, wanted: int) -> list[CameraFrame]:
    found: list[CameraFrame] = []
    deadline = time.monotonic() + 60
    while len(found) < wanted:
        assert time.monotonic() < deadline
        frame = camera.read()
        if frame is not None:
            assert isinstance(frame, CameraFrame), frame
            found.append(frame)
    return found


@pytest.mark.parametrize(("name", "shape"), [("Mono8", (400, 400)), ("RGBa8", (400, 400, 4))])
def test_frames_in_order_in_the_format_asked_for(
    name: str, shape: tuple[int, ...], producer: Path, tmp_path: Path
) -> None:
    camera = opened(f"gentl://{producer}?serial=0&pixel_format={name}", tmp_path)
    assert camera.live and not camera.waits
    assert camera.reported() == {"pixel_format": name, "width": 400.0, "height": 400.0, "fps": 20.0}
    frames = frames_of(camera, 6)
    camera.close()
    assert [frame.frame_no for frame in frames] == list(range(6))
    assert all(frame.pixel_format is FORMATS[name] and frame.pixels.shape == shape for frame in frames)
    assert all(0 <= time.monotonic_ns() - frame.t_capture_ns < 10e9 for frame in frames)
    kept = [frame.pixels.copy() for frame in frames]
    assert all(np.array_equal(one, frame.pixels) for one, frame in zip(kept, frames, strict=True)), "own memory"


def test_a_ball_has_the_colour_that_its_camera_is_named_by(producer: Path, tmp_path: Path) -> None:
    """From a foreign maker's bytes to red, green, blue: no order is swapped on the way."""
    from contract.images import to_channels

    for serial in range(3):
        camera = opened(f"gentl://{producer}?serial={serial}&pixel_format=RGBa8", tmp_path)
        (frame,) = frames_of(camera, 1)
        camera.close()
        rgb = to_channels(frame.pixels, frame.pixel_format, 3).astype(int)
        coloured = rgb[np.ptp(rgb, axis=2) > 100]
        assert len(coloured) > 100
        assert int(np.argmax(coloured.mean(axis=0))) == serial


def test_settings_of_a_bundle_are_set_and_read_back(producer: Path, tmp_path: Path) -> None:
    camera = make_camera(f"gentl://{producer}?serial=1", "top", tmp_path)
    camera.controls = CameraControls(pixel_format="Mono8", width=400, fps=10)
    camera.open()
    assert camera.fps == 10 and frames_of(camera, 2)[0].pixel_format is PixelFormat.MONO8  # type: ignore[arg-type]
    camera.close()
    camera.controls = CameraControls(exposure=5000, pixel_format="Mono8")
    with pytest.raises(CameraError, match="exposure asked 5000, not reported"):
        camera.open()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("", r"finds 3 camera\(s\), serial numbers: 0, 1, 2; say which: \?serial="),
        ("?serial=7", "expected one with serial=7"),
        (
            "?serial=0&pixel_format=BayerRG8",
            "gives .*, asked for BayerRG8; taken are: Mono8, .*it offers: RGBa8, Mono8",
        ),
        ("?serial=0&pixel_format=Mono12p", "pixel_format='Mono12p' is not taken; there are: Mono8, BGR8"),
        ("?serial=0&gain=3", "unknown option 'gain'"),
    ],
)
def test_what_is_wrong_is_said(options: str, says: str, producer: Path, tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=says):
        opened(f"gentl://{producer}{options}", tmp_path)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CameraError, match=r"needs genicam and harvesters: pip install 'flawline\[gentl\]'"):
        make_camera("gentl:///x.cti", "top", tmp_path)


def test_what_is_no_producer_is_refused_in_words(producer: Path, tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=r"none\.cti: no such file; expected the GenTL producer"):
        opened(f"gentl://{tmp_path}/none.cti?serial=1", tmp_path)
    (tmp_path / "text.cti").write_text("no library")
    with pytest.raises(CameraError, match=r"text\.cti"):
        opened(f"gentl://{tmp_path}/text.cti?serial=1", tmp_path)


def test_the_simulated_camera_cannot_be_triggered_and_says_so(producer: Path, tmp_path: Path) -> None:
    camera = make_camera(f"gentl://{producer}?serial=1&pixel_format=Mono8", "top", tmp_path)
    camera.triggered = True
    with pytest.raises(CameraError, match="has no TriggerMode"):
        camera.open()


def test_in_the_capture_process_killed_and_replaced(producer: Path, tmp_path: Path) -> None:
    url = f"gentl://{producer}?serial=2&pixel_format=RGBa8"
    made = CameraSettings(id="top", url=url, trigger="every-frame", fixture="region", region=(0, 0, 64, 64))
    camera = CameraProcess(made, tmp_path)
    formats = set()

    def serve() -> CameraProcess:
        for trigger in camera.drain():
            if trigger.lost is None:
                formats.add(camera.cut(trigger)[1])
            camera.release(trigger)
        camera.supervise()
        return camera

    try:
        camera.start()
        until(lambda: serve().status().frames > 5, "frames")
        frames, child = camera.status().frames, camera._child
        assert child is not None
        child.kill()
        until(lambda: serve().status().frames > frames + 5, "frames again")
        assert camera.status().restarts == 1
        assert formats == {PixelFormat.RGB8}, "developed before it is shared"
    finally:
        camera.stop()


# A trigger input before the simulated cameras ------------------------------------------------------------------------

FEATURES = """
<Enumeration Name="{name}">{entries}<pValue>{name}Register</pValue></Enumeration>
<IntReg Name="{name}Register"><Address>0x{address:X}</Address><Length>4</Length><AccessMode>RW</AccessMode>
<pPort>Device</pPort><Cachable>NoCache</Cachable><Sign>Unsigned</Sign><Endianess>LittleEndian</Endianess></IntReg>
"""
INPUT = {"TriggerSelector": ("FrameStart",), "TriggerMode": ("Off", "On"), "TriggerSource": ("Line0", "Line1")}


class Pulses:
    """The wire to the trigger input, and to the camera's plug."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        self._words = np.memmap(path, np.uint64, "r+")

    def pulse(self, times: int = 1) -> int:
        self._words[0] += np.uint64(times)
        return int(self._words[0])

    def next_is_incomplete(self) -> None:
        self._words[1] = self._words[0] + np.uint64(1)

    def plug(self, plugged: bool) -> None:
        self._words[2] = not plugged


@pytest.fixture
def triggered(producer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Pulses]:
    """genicam's simulated producer behind a library that gives its cameras a trigger; see triggered.c."""
    if platform.machine() != "x86_64" or shutil.which("gcc") is None:
        lacking("a GenTL producer with a trigger is built with gcc for x86_64")
    library = tmp_path / "triggered.cti"
    source = Path(__file__).with_name("triggered.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"], check=True)
    features = [
        FEATURES.format(
            name=name,
            address=0xE0000000 + 4 * number,
            entries="".join(f'<EnumEntry Name="{c}"><Value>{at}</Value></EnumEntry>' for at, c in enumerate(choices)),
        )
        for number, (name, choices) in enumerate(INPUT.items())
    ]
    plain = description_of(producer)
    (tmp_path / "description.xml").write_text(plain.replace("</RegisterDescription>", "".join(features)) + plain[-22:])
    monkeypatch.setenv("TRIGGERED_PRODUCER", str(producer))
    monkeypatch.setenv("TRIGGERED_DESCRIPTION", str(tmp_path / "description.xml"))
    monkeypatch.setenv("TRIGGERED_PULSES", str(tmp_path / "pulses"))
    return library, Pulses(tmp_path / "pulses")


def description_of(producer: Path) -> str:
    """The XML that the first camera of a producer describes itself by."""
    from harvesters.core import Harvester

    harvester = Harvester()
    harvester.add_file(str(producer))
    harvester.update()
    acquirer = harvester.create(0)
    port = acquirer.remote_device.port
    _name, address, size = port.url_info_list[0].url.split(";")[:3]
    _, data = port.read(int(address, 16), int(size, 16))
    acquirer.destroy()
    harvester.reset()
    return str(bytes(data).decode().rstrip())


def test_each_pulse_is_one_part_and_each_that_gave_no_picture_is_announced(
    triggered: tuple[Path, Pulses], tmp_path: Path
) -> None:
    library, wire = triggered
    url = f"gentl://{library}?serial=0&pixel_format=Mono8"
    made = CameraSettings(id="top", url=url, trigger="hardware", fixture="region", region=(0, 0, 64, 64), stall_s=1)
    camera, seen = CameraProcess(made, tmp_path / "state"), list[tuple[int, str | None]]()

    def serve() -> CameraProcess:
        for trigger in camera.drain():
            assert trigger.lost is not None or camera.cut(trigger)[0].shape == (64, 64)
            seen.append((trigger.frame_no, trigger.lost))
            camera.release(trigger)
        camera.supervise()
        return camera

    never = "the camera took frame {}, which never came"
    try:
        camera.start()
        until(lambda: serve().status().ready, "it waits for its trigger")
        assert camera.status().frames == 0 and camera.status().state == "running"
        waited = time.monotonic() + 1.5  # longer than stall_s: a line that stands still is no fault
        until(lambda: serve() and time.monotonic() > waited, "it waits")
        until(lambda: serve().status().frame_age_ms < 900, "its age is renewed without a frame")
        assert (camera.status().restarts, seen) == (0, [])
        wire.pulse(2)  # before there was any frame
        until(lambda: serve() and len(seen) == 2, "the picture, and what has none")
        wire.pulse()
        until(lambda: serve() and len(seen) == 3, "its picture")
        wire.pulse(3)  # faster than it can expose
        until(lambda: serve() and len(seen) == 6, "the picture, and what has none")
        wire.next_is_incomplete()
        wire.pulse()
        until(lambda: serve() and len(seen) == 7, "it is announced")
        wire.pulse()
        until(lambda: serve() and len(seen) == 8, "its picture")
        lost = {0: never.format(0), 3: never.format(3), 4: never.format(4), 6: "the frame arrived incomplete"}
        assert seen == [(number, lost.get(number)) for number in range(8)]
        assert camera.status().restarts == 0 and camera.status().skipped == 0
        unplugged_ns = time.monotonic_ns()
        wire.plug(False)
        until(lambda: serve().status().state == "failed" and "does not answer" in camera.status().detail, "noticed")
        assert camera._ring.live().frame_ns <= unplugged_ns, (
            "its gap begins at its last answer, not when it was noticed"
        )
        until(lambda: serve().status().restarts >= 2, "tried again")
        wire.plug(True)
        until(lambda: serve().status().state == "running", "it is back")
        wire.pulse()
        until(lambda: serve() and len(seen) == 9, "its picture")
        assert seen[-1][1] is None
    finally:
        camera.stop()


# Features on GenApi's own node map ------------------------------------------------------------------------------------


@pytest.fixture
def registers(producer: Path, tmp_path: Path) -> tuple[GentlCamera, Any]:
    from tests.edge_runtime.genicam_registers import camera as make

    nodes, port = make()
    camera = make_camera(f"gentl://{producer}?serial=0", "top", tmp_path)
    assert isinstance(camera, GentlCamera)
    camera._features = Features(nodes)
    return camera, port


def test_exposure_and_gain_are_set_in_order_and_read_back(registers: tuple[GentlCamera, Any]) -> None:
    camera, _ = registers
    assert camera.reported()["auto_exposure"] == 2
    camera.controls = CameraControls(auto_exposure=0, exposure=156.5, gain=6, width=800, pixel_format="BayerRG8")
    camera.hold_to_controls()
    found = camera.reported()
    assert (found["auto_exposure"], found["exposure"], found["gain"]) == (0, 156.5, 6)
    assert (found["pixel_format"], found["width"]) == ("BayerRG8", 800)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"exposure": 200_000}, "exposure asked 200000, found 5000"),
        ({"width": 801}, "width asked 801, found 640"),
        ({"auto_exposure": 7}, "auto_exposure asked 7, found 2"),
        ({"auto_exposure": -1}, "auto_exposure asked -1, found 2"),
        ({"pixel_format": "RGB8"}, "pixel_format asked RGB8, found Mono8"),
        ({"focus": 3}, "focus asked 3, not reported"),
    ],
)
def test_what_a_camera_does_not_take_is_refused(
    asked: dict[str, Any], says: str, registers: tuple[GentlCamera, Any]
) -> None:
    camera, _ = registers
    camera.controls = CameraControls.model_validate(asked)
    with pytest.raises(CameraError, match=says):
        camera.hold_to_controls()


def test_the_trigger_is_set_and_read_back_and_undone(registers: tuple[GentlCamera, Any]) -> None:
    camera, _ = registers
    features = camera._opened()
    camera.triggered = True
    camera._set_trigger(features)
    assert [features.get(f"Trigger{name}") for name in ("Selector", "Mode", "Source")] == ["FrameStart", "On", "Line1"]
    camera._trigger_source = "Line9"
    with pytest.raises(CameraError, match="asked On by Line9, found On by Line1; there are: Line1, Line2, Software"):
        camera._set_trigger(features)
    camera.triggered = False
    camera._set_trigger(features)
    assert features.get("TriggerMode") == "Off"


def test_what_another_program_left_is_undone_or_refused(registers: tuple[GentlCamera, Any]) -> None:
    camera, _ = registers
    features = camera._opened()
    asked = []
    put = features.set

    def noted(value: Any, *names: str) -> None:
        asked.append((names[0], value))
        put(value, *names)

    features.set = noted  # type: ignore[method-assign]
    camera._set_trigger(features)
    assert [each for each in asked if each[0] != "TriggerSource"] == [
        ("AcquisitionMode", "Continuous"),
        ("TriggerSelector", "AcquisitionStart"), ("TriggerMode", "Off"), ("TriggerMode", "Off"),
        ("TriggerSelector", "FrameStart"), ("TriggerMode", "Off"),
    ]  # fmt: skip
    features.set = lambda value, *names: None  # type: ignore[method-assign, assignment]
    put("AcquisitionStart", "TriggerSelector")
    put("On", "TriggerMode")
    with pytest.raises(CameraError, match=r"TriggerMode of AcquisitionStart asked Off, found On; there are: Off, On"):
        camera._set_trigger(features)
    put("Off", "TriggerMode")
    with pytest.raises(CameraError, match=r"TriggerSelector asked FrameStart, found AcquisitionStart; there are: "):
        camera._set_trigger(features)


def test_a_camera_that_waits_for_its_trigger_is_asked_whether_it_is_there(registers: tuple[GentlCamera, Any]) -> None:
    camera, port = registers
    camera.waits = True
    camera._prove()
    asked_ns = camera.proven_ns
    assert asked_ns is not None
    port.plugged = False
    with pytest.raises(CameraError, match="does not answer: the cable is out"):
        camera._prove()
    assert camera.proven_ns == asked_ns, "until then it was there, and no longer"


def test_formats_that_are_not_taken_are_named(registers: tuple[GentlCamera, Any]) -> None:
    camera, _ = registers
    camera._opened().set("Mono12p", "PixelFormat")
    with pytest.raises(CameraError, match=r"gives Mono12p; taken are: Mono8.*it offers: Mono8, BayerRG8, Mono12p"):
        camera._set_up()


def test_every_feature_is_a_setting_of_the_contract() -> None:
    assert set(NODES) <= set(CameraControls.model_fields)


# Frames ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "numbers"),
    [
        ([7, 8, 9, 12, 13], [0, 1, 2, 5, 6]),
        ([65_534, 65_535, 1, 2], [0, 1, 2, 3]),  # GigE Vision leaves 0 out
        ([65_534, 65_535, 0, 1], [0, 1, 2, 3]),
        ([65_535, 1, 65_530, 3], [0, 1, 65_530, 65_538]),  # known to have 16 bits
        ([65_535, 0, 65_530, 3], [0, 1, 65_531, 65_540]),
        ([65_530, 65_535, 3], [0, 5, None]),  # frames lost at the end of 16 bits, or a camera that was reset
        ([65_535, 1, 65_000, 2000], [0, 1, 65_000, None]),
        ([(1 << 40), (1 << 40) + 2], [0, 2]),
        ([100, 1], [0, None]),  # a camera that was reset
        ([40_000, 1], [0, None]),
        ([5, 5], [0, None]),
        ([1 << 40, 1], [0, None]),
        ([1, 1 << 50], [0, None]),
    ],
)
def test_holes_in_the_count_are_frames_that_never_came(ids: list[int], numbers: list[int | None]) -> None:
    counter = FrameIds()
    assert [counter.number(each) for each in ids] == numbers


@pytest.mark.parametrize(
    ("ids", "numbers"),
    [
        ([0, 1, 3], [0, 1, 3]),
        ([1, 2, 4], [0, 1, 3]),
        ([3, 4], [2, 3]),  # two frames of this acquisition never came
        ([9_000_000, 9_000_001], [0, 1]),  # it counts on from an acquisition before: nobody knows
    ],
)
def test_where_the_count_begins_with_the_acquisition_the_first_hole_shows(ids: list[int], numbers: list[int]) -> None:
    counter = FrameIds(from_start=True)
    assert [counter.number(each) for each in ids] == numbers


class HandMonitor:
    """A producer's event monitor by hand, for want of one that loses frames or has a trigger."""

    def __init__(self, ids: list[int | None]) -> None:
        self.ids, self.given_back = ids, 0
        self.buffer: Any = None

    def update_event_data(self, timeout_ms: int) -> None:
        from genicam.gentl import TimeoutException

        if not self.ids:
            raise TimeoutException("nothing came")
        self.buffer = HandBuffer(self, self.ids.pop(0))


class HandBuffer:
    """A buffer that arrived incomplete; ``frame_id`` None: the producer does not say."""

    def __init__(self, monitor: HandMonitor, frame_id: int | None) -> None:
        self._id, self._monitor, self.parent = frame_id, monitor, self

    @property
    def frame_id(self) -> int:
        from genicam.gentl import NotAvailableException

        if self._id is None:
            raise NotAvailableException("no frame ids")
        return self._id

    def is_complete(self) -> bool:
        return False

    def queue_buffer(self, _: object) -> None:
        self._monitor.given_back += 1


def test_what_arrived_incomplete_is_a_frame_that_cannot_be_used(registers: tuple[GentlCamera, Any]) -> None:
    camera, _ = registers
    camera._monitor = HandMonitor([7, 9, 10])
    frames = [camera.read() for _ in range(4)]
    assert [None if frame is None else frame.frame_no for frame in frames] == [0, 2, 3, None]
    assert all(isinstance(frame, BadFrame) and "incomplete" in frame.reason for frame in frames[:3])
    assert camera._monitor.given_back == 3
    camera._monitor = HandMonitor([3])
    with pytest.raises(CameraError, match="its count of frames jumped: it was reset"):
        camera.read()
    assert camera._monitor.given_back == 1


def test_a_trigger_needs_a_producer_that_numbers_frames(registers: tuple[GentlCamera, Any]) -> None:
    camera, port = registers
    camera._monitor = HandMonitor([None, None])
    assert [frame.frame_no for frame in (camera.read(), camera.read()) if frame is not None] == [0, 1]
    camera.triggered = camera.waits = True
    assert camera.read() is None, "it waits, and answers"
    camera._monitor = HandMonitor([None])
    with pytest.raises(CameraError, match="a trigger that was missed would not show"):
        camera.read()
    port.plugged = False
    with pytest.raises(CameraError, match="does not answer"):
        camera.read()


def component(name: str, data: np.ndarray, width: int, height: int, padding: int = 0) -> SimpleNamespace:
    return SimpleNamespace(data_format=name, data=data, width=width, height=height, x_padding=padding)


def test_rows_are_taken_without_what_pads_them() -> None:
    data = np.arange(4 * 10, dtype=np.uint8)
    pixels = _pixels_of(component("BayerRG8", data, 8, 4, padding=2))
    assert pixels.shape == (4, 8) and pixels[:, 0].tolist() == [0, 10, 20, 30] and pixels.base is None
    assert _pixels_of(component("RGB8", data[:36], 3, 4)).shape == (4, 3, 3)


@pytest.mark.parametrize(("width", "height"), [(9, 5), (0, 4), (8, 0), (1 << 30, 1 << 30), (-8, 4)])
def test_a_frame_that_lies_about_its_size_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="values of uint8 for"):
        _pixels_of(component("Mono8", np.zeros(32, np.uint8), width, height))


def test_a_hardware_trigger_needs_a_camera_that_has_one() -> None:
    with pytest.raises(ValueError, match=r"needs a GenICam camera \(gentl://\)"):
        CameraSettings(id="top", url="usb://0", trigger="hardware")
    assert CameraSettings(id="top", url="gentl:///x.cti", trigger="hardware").trigger == "hardware"
