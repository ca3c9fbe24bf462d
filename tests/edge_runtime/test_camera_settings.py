"""Camera settings of a bundle: set, read back in the real capture process, and refused where they are not as asked."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.bundle import open_bundle
from contract.camera import CameraControls, agrees, controls_of
from contract.images import PixelFormat
from edge_runtime.cameras import CAMERAS, make_camera
from edge_runtime.cameras.base import CameraFrame, Source
from edge_runtime.cameras.device import ABSENT, DEVICE, UsbCamera
from edge_runtime.capture import CameraProcess
from edge_runtime.errors import CameraError
from edge_runtime.settings import CameraSettings
from flawline import main
from tests.edge_runtime.test_cameras import write_video
from tests.needs import lacking
from tests.processes import until
from tests.signed import write_calibrated


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """A camera's URL for each kind that needs no hardware."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((40, 56, 3), 60, np.uint8))
    return {
        "video": f"file://{write_video(tmp_path / 'video.avi', 200)}",
        "folder": f"file://{tmp_path / 'images'}",
        "synthetic": "synthetic://line?seed=1&parts=3&fps=50",
    }


TRUTH = {
    "video": CameraControls(width=64, height=48, fps=25),
    "folder": CameraControls(width=56, height=40, fps=5),
    "synthetic": CameraControls(width=640, height=480, fps=50),
}


@pytest.mark.parametrize("kind", TRUTH)
def test_what_reads_back_as_asked_is_taken_by_the_capture_process(
    kind: str, places: dict[str, str], tmp_path: Path
) -> None:
    status, frames = watch(places[kind], TRUTH[kind], tmp_path)
    assert status in ("running", "ended")
    assert frames > 0


WRONG = [
    ("video", {"width": 65}, "width asked 65, found 64"),
    ("video", {"fps": 30}, "fps asked 30, found 25"),
    ("folder", {"height": 41, "width": 56}, "height asked 41, found 40"),
    ("synthetic", {"fps": 25}, "fps asked 25, found 50"),
    ("synthetic", {"exposure": 120}, "exposure asked 120, not reported"),
    ("video", {"pixel_format": "MJPG"}, "pixel_format asked MJPG, not reported"),
]


@pytest.mark.parametrize(("kind", "asked", "says"), WRONG)
def test_what_does_not_is_refused_by_the_capture_process(
    kind: str, asked: dict[str, float], says: str, places: dict[str, str], tmp_path: Path
) -> None:
    camera = process(places[kind], CameraControls.model_validate(asked), tmp_path)
    try:
        camera.start()
        until(lambda: camera.status().state == "failed", "it is refused")
        status = camera.status()
        assert f"camera top: {places[kind]}: settings of the bundle do not read back: {says}" in status.detail
        assert "flawline bundle camera BUNDLE --config edge.toml" in status.detail
        assert (status.frames, status.triggers) == (0, 0)
    finally:
        camera.stop()


def process(url: str, controls: CameraControls | None, state: Path) -> CameraProcess:
    settings = CameraSettings(id="top", url=url, trigger="every-frame", fixture="region", region=(0, 0, 40, 40))
    return CameraProcess(settings, state, controls=controls)


def watch(url: str, controls: CameraControls | None, state: Path) -> tuple[str, int]:
    """State and frames of a capture process as soon as there is a frame."""
    camera = process(url, controls, state)
    try:
        camera.start()
        until(lambda: camera.status().frames or camera.status().state == "failed", "a frame")
        return camera.status().state, camera.status().frames
    finally:
        camera.stop()


def test_other_settings_take_another_process_and_the_same_do_not(places: dict[str, str], tmp_path: Path) -> None:
    camera = process(places["video"], TRUTH["video"], tmp_path)
    try:
        camera.start()
        until(lambda: camera.status().frames, "a frame")
        first = camera.pid
        camera.hold_to(TRUTH["video"].model_copy())
        assert camera.pid == first
        camera.hold_to(CameraControls(width=65))
        assert camera.pid is None
        assert until(lambda: camera.supervise() or camera.pid, "the next process") != first
        until(lambda: "width asked 65" in camera.status().detail, "it is refused")
        until(lambda: camera.supervise() or camera.pid is None, "it ended")
        camera.hold_to(None)
        until(lambda: camera.supervise() or camera.status().state == "running", "it runs without")
    finally:
        camera.stop()


@pytest.fixture
def device(tmp_path: Path) -> UsbCamera:
    return UsbCamera(Source("usb://0", "0", {}, "top", tmp_path, 2.0))


def test_a_capture_that_ignores_what_it_is_told_is_found_out(tmp_path: Path, device: UsbCamera) -> None:
    """OpenCV's own capture, of a video: like a driver that takes every setting and keeps none."""
    device.controls = CameraControls(width=64, exposure=156, gain=8)
    with pytest.raises(CameraError, match="exposure asked 156, not reported; gain asked 8, not"):
        device._start(cv2.VideoCapture(str(write_video(tmp_path / "video.avi"))))
    assert device._thread is None, "no frame was read"


class Sensor:
    """A driver as Video4Linux's: whole steps, what it has not is -1, and gain by hand ends the automatic."""

    def __init__(self) -> None:
        self.held = {cv2.CAP_PROP_EXPOSURE: 100.0, cv2.CAP_PROP_GAIN: 0.0, cv2.CAP_PROP_AUTO_EXPOSURE: 3.0}
        self.held[cv2.CAP_PROP_FOURCC] = float(cv2.VideoWriter.fourcc(*"YUYV"))
        self.order: list[int] = []

    def set(self, prop: int, value: float) -> bool:
        self.order.append(prop)
        if prop not in self.held:
            return False
        self.held[prop] = float(round(value / 4) * 4) if prop == cv2.CAP_PROP_EXPOSURE else value
        return True

    def get(self, prop: int) -> float:
        return self.held.get(prop, ABSENT)

    def release(self) -> None:
        """Nothing is held."""


def test_settings_are_made_in_order_and_read_back_with_steps(device: UsbCamera) -> None:
    """The arithmetic of a driver, by hand: there is no camera where this runs."""
    sensor = Sensor()
    device._capture = sensor  # type: ignore[assignment]
    device.controls = CameraControls(exposure=156, auto_exposure=1, pixel_format="MJPG", gain=8)
    device.hold_to_controls()
    wanted = [DEVICE[name] for name in ("pixel_format", "auto_exposure", "exposure", "gain")]
    assert sensor.order == wanted, "automatic first, then the value"
    assert device.reported() == {"pixel_format": "MJPG", "auto_exposure": 1.0, "exposure": 156.0, "gain": 8.0}
    device.controls = CameraControls(exposure=150)
    with pytest.raises(CameraError, match="exposure asked 150, found 152"):
        device.hold_to_controls()
    device.controls = CameraControls(white_balance=4600)
    with pytest.raises(CameraError, match="white_balance asked 4600, not reported"):
        device.hold_to_controls()


@pytest.mark.parametrize(
    ("shape", "grey", "found"),
    [
        ((4, 6, 3), False, PixelFormat.BGR8),
        ((4, 6), True, PixelFormat.MONO8),
        ((4, 6), False, None),
        ((4, 6, 2), True, None),
    ],
)
def test_what_a_device_gives_is_what_its_format_says_or_nothing(
    device: UsbCamera, shape: tuple[int, ...], grey: bool, found: PixelFormat | None
) -> None:
    device._newest, device._grey = (np.zeros(shape, np.uint8), 0, 1), grey
    if found is None:
        with pytest.raises(CameraError, match="OpenCV gave an array of shape"):
            device.read()
        return
    frame = device.read()
    assert isinstance(frame, CameraFrame) and frame.pixel_format is found


def test_every_control_has_a_property_of_the_device() -> None:
    assert set(DEVICE) == set(CameraControls.model_fields) - {"region"}


def test_every_camera_of_the_table_reports(places: dict[str, str], tmp_path: Path) -> None:
    """Before it is opened a device reports nothing; what needs no hardware reports what it will give."""
    if importlib.util.find_spec("harvesters") is None:
        lacking("harvesters is not installed: pip install 'flawline[gentl]'")
    urls = {"usb": "usb://0", "rtsp": "rtsp://127.0.0.1/x", "file": places["video"], "synthetic": places["synthetic"]}
    urls |= {"http": "http://127.0.0.1/x", "https": "https://127.0.0.1/x", "gentl": "gentl:///x.cti"}
    urls |= {"watch": f"watch://{tmp_path}", "replay": f"replay://{places['folder'].removeprefix('file://')}"}
    assert set(urls) == set(CAMERAS)
    for url in urls.values():
        camera = make_camera(url, "top", tmp_path)
        if camera.live:
            assert camera.reported() == {}
            continue
        camera.open()
        assert set(camera.reported()) == (set() if camera.waits else {"width", "height", "fps"})
        camera.close()


def test_values_agree_to_a_thousandth() -> None:
    assert agrees(30.0, 29.99)
    assert not agrees(30.0, 29.9)
    assert agrees(0.0, 0.0) and not agrees(0.0, 1.0)
    assert agrees("MJPG", "MJPG") and not agrees("MJPG", "YUYV") and not agrees("MJPG", None)
    one, every = CameraControls(width=1), CameraControls(width=2)
    assert controls_of({"top": one, "any": every}, "top") is one
    assert controls_of({"top": one, "any": every}, "side") is every
    assert controls_of({"top": one}, "side") is None


CONFIG = """edge_id = "e1"
bundle = "bundle"
[[cameras]]
id = "top"
url = "{url}"
fixture = "region"
region = [0, 0, 40, 40]
"""


def test_command_reads_them_from_the_camera_or_from_a_file(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_calibrated(tmp_path / "bundle")
    (tmp_path / "edge.toml").write_text(CONFIG.format(url=places["video"]))
    assert main(["bundle", "camera", str(bundle), "--config", str(tmp_path / "edge.toml")]) == 0
    expected = TRUTH["video"].model_copy(update={"region": (0, 0, 40, 40)})
    assert open_bundle(bundle).manifest.cameras == {"top": expected}
    assert not list((tmp_path / "state").glob("*")) if (tmp_path / "state").exists() else True
    (tmp_path / "camera.toml").write_text("[cameras.any]\nexposure = 156\npixel_format = 'MJPG'\n")
    assert main(["bundle", "camera", str(bundle), "--file", str(tmp_path / "camera.toml")]) == 0
    assert open_bundle(bundle).manifest.cameras == {"any": CameraControls(exposure=156, pixel_format="MJPG")}
    assert main(["bundle", "show", str(bundle)]) == 0
    assert "camera any   pixel_format MJPG, exposure 156" in capsys.readouterr().out
    assert main(["bundle", "camera", str(bundle), "--clear"]) == 0
    assert open_bundle(bundle).manifest.cameras == {}
    (tmp_path / "camera.toml").write_text("[cameras.any]\nexposrue = 156\n")
    assert main(["bundle", "camera", str(bundle), "--file", str(tmp_path / "camera.toml")]) == 2
    assert "did you mean `exposure`" in capsys.readouterr().err
    for words in ([], ["--clear", "--file", str(tmp_path / "camera.toml")]):
        assert main(["bundle", "camera", str(bundle), *words]) == 2
    assert "give one of --config" in capsys.readouterr().err


def test_a_video_that_is_looked_at_has_not_begun(places: dict[str, str], tmp_path: Path) -> None:
    bundle = write_calibrated(tmp_path / "bundle")
    (tmp_path / "edge.toml").write_text(CONFIG.format(url=places["video"]))
    before = time.monotonic()
    assert main(["bundle", "camera", str(bundle), "--config", str(tmp_path / "edge.toml")]) == 0
    assert time.monotonic() - before < 20
    assert not list(tmp_path.glob("**/camera-*.json"))
