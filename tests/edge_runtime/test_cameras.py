"""Every camera of the table: frames, real time, the end, and what is said when something is wrong."""

from __future__ import annotations

import ast
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.images import PixelFormat
from edge_runtime.cameras import CAMERAS, make_camera
from edge_runtime.cameras.base import MAX_LAG_S, BadFrame, Camera, CameraFrame, forget_playhead, playhead_file, redacted
from edge_runtime.errors import CameraError
from edge_runtime.synthetic import SyntheticLine

TESTED = {
    "file": "test_cameras",
    "synthetic": "test_cameras",
    "replay": "test_cameras",
    "usb": "test_cameras",
    "rtsp": "test_cameras",
    "http": "test_mjpeg",
    "https": "test_mjpeg",
    "watch": "test_watch",
    "gentl": "test_gentl",
}
"""Which file beside this one tests which camera; the colours of all of them: test_colours."""


def test_every_camera_of_the_table_is_tested_and_documented() -> None:
    assert set(CAMERAS) == set(TESTED)
    page = (Path(__file__).parents[2] / "docs" / "cameras.md").read_text()
    for scheme, module in TESTED.items():
        assert f"{scheme}://" in Path(__file__).with_name(f"{module}.py").read_text()
        assert f"`{scheme}://" in page, f"docs/cameras.md says nothing of {scheme}://"


@pytest.mark.parametrize("module", ["capture", "ring", "presence", *CAMERAS])
def test_no_camera_reads_the_clock_on_the_wall(module: str) -> None:
    """A clock that is set must not kill a camera, nor keep a dead one alive: durations are monotonic everywhere."""
    target = CAMERAS[module].partition(":")[0] if module in CAMERAS else f"edge_runtime.{module}"
    path = Path(__file__).parents[2] / f"{target.replace('.', '/')}.py"
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"time_ns", "now", "utcnow", "today", "CLOCK_REALTIME", "gmtime", "localtime"}
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(ast.unparse(each) == "time.time" for each in called)


def write_video(path: Path, frames: int = 30, fps: float = 25.0) -> Path:
    """A video whose frame ``i`` is grey of level 8 i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 8 * number % 256, np.uint8))
    writer.release()
    return path


def play(camera: Camera) -> list[CameraFrame]:
    """All frames from now to the end."""
    frames = []
    while camera.ended is None:
        frame = camera.read()
        if frame is not None:
            assert not isinstance(frame, BadFrame)
            frames.append(frame)
    return frames


def camera_for(url: str, state: Path, stall_s: float = 2.0) -> Camera:
    return make_camera(url, "top", state, stall_s)


def backdate(state: Path, seconds: float) -> None:
    """As if the recording had begun earlier."""
    path = playhead_file(state, "top")
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"start_ns": held["start_ns"] - int(seconds * 1e9)}))


def test_a_video_in_real_time(tmp_path: Path) -> None:
    camera = camera_for(f"file://{write_video(tmp_path / 'v.avi')}", tmp_path)
    camera.open()
    started = time.monotonic()
    frames = play(camera)
    took = time.monotonic() - started
    camera.close()
    assert took > 1.1, "30 frames at 25 a second"
    assert [frame.frame_no for frame in frames] == list(range(30))
    assert all(frame.pixel_format is PixelFormat.BGR8 for frame in frames)
    assert [round(float(frame.pixels.mean()) / 8) for frame in frames] == list(range(30))
    steps = {after.t_capture_ns - before.t_capture_ns for before, after in pairwise(frames)}
    assert all(abs(step - 40_000_000) < 10 for step in steps)
    assert camera.ended is not None and "to its end" in camera.ended


@pytest.mark.parametrize("address", [Path.as_uri, "file://{}".format], ids=["as a URI", "as it is"])
def test_a_video_with_signs_in_its_name(tmp_path: Path, address: Callable[[Path], str]) -> None:
    name = "a#1 b%.avi" if address == Path.as_uri else "a b%.avi"
    camera = camera_for(f"{address(write_video(tmp_path / name))}?fps=100", tmp_path)
    camera.open()
    assert len(play(camera)) == 30
    camera.close()


@pytest.mark.parametrize(("fps", "beyond_s"), [(10, 0.5), (25, 2.0)], ids=["by decoding", "by seeking"])
def test_it_goes_on_where_real_time_is(tmp_path: Path, fps: int, beyond_s: float) -> None:
    url = f"file://{write_video(tmp_path / 'v.avi', 250, fps)}"
    first = camera_for(url, tmp_path)
    first.open()
    assert first.read() is not None
    first.close()
    backdate(tmp_path, MAX_LAG_S + beyond_s)
    again = camera_for(url, tmp_path)
    again.open()
    frame = again.read()
    again.close()
    assert frame is not None and frame.frame_no >= int((MAX_LAG_S + beyond_s) * fps)
    assert abs(float(frame.pixels.mean()) - 8 * frame.frame_no % 256) < 4


def test_a_reader_that_is_a_little_late_gets_every_frame(tmp_path: Path) -> None:
    """As from a camera's own buffer: in order, each with the time at which it was due."""
    camera = camera_for(f"file://{write_video(tmp_path / 'v.avi', 20)}?fps=100", tmp_path)
    camera.open()
    frames = [camera.read()]
    time.sleep(0.15)  # the lateness itself, fifteen frames of it
    frames += play(camera)
    camera.close()
    assert [frame.frame_no for frame in frames if frame is not None] == list(range(20))
    steps = {after.t_capture_ns - before.t_capture_ns for before, after in pairwise(f for f in frames if f is not None)}
    assert all(abs(step - 10_000_000) < 10 for step in steps)


def test_a_clean_stop_begins_at_the_beginning(tmp_path: Path) -> None:
    url = f"file://{write_video(tmp_path / 'v.avi')}"
    for _ in range(2):
        camera = camera_for(url, tmp_path)
        camera.open()
        frame = camera.read()
        camera.close()
        assert frame is not None and frame.frame_no == 0
        backdate(tmp_path, 0.9)
        forget_playhead(tmp_path, "top")


def test_a_recording_that_is_over_stays_over(tmp_path: Path) -> None:
    url = f"file://{write_video(tmp_path / 'v.avi')}"
    camera_for(url, tmp_path).open()
    backdate(tmp_path, 60)
    camera = camera_for(url, tmp_path)
    camera.open()
    assert camera.read() is None and camera.ended is not None
    camera.close()


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"boot_id": "other", "url": "x", "start_ns": 1}', "[1]"])
def test_a_playhead_of_no_use_is_a_beginning(tmp_path: Path, text: str) -> None:
    playhead_file(tmp_path, "top").write_text(text)
    camera = camera_for(f"file://{write_video(tmp_path / 'v.avi')}", tmp_path)
    camera.open()
    frame = camera.read()
    camera.close()
    assert frame is not None and frame.frame_no == 0


def test_a_truncated_video_gives_what_it_holds_and_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    camera = camera_for(f"file://{path}?fps=400", tmp_path)
    camera.open()
    frames = play(camera)
    camera.close()
    assert 5 < len(frames) < 40
    assert camera.ended is not None and camera.ended.startswith("ended early: ")
    assert f"{len(frames)} of 40 frames" in camera.ended


def test_a_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((20, 30), 50 * number, np.uint8))
    cv2.imwrite(str(folder / "3.png"), np.dstack([np.full((20, 30), level, np.uint8) for level in (10, 20, 200)]))
    camera = camera_for(f"file://{folder}?fps=100", tmp_path)
    assert not camera.live
    camera.open()
    frames = play(camera)
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [0, 50, 100, 200]
    assert [frame.pixel_format for frame in frames] == [PixelFormat.RGB8] * 4
    assert frames[3].pixels[0, 0].tolist() == [200, 20, 10]
    camera.close()


def test_grey_where_it_is_asked_for(tmp_path: Path) -> None:
    camera = camera_for(f"file://{write_video(tmp_path / 'v.avi', 2)}?channels=1", tmp_path)
    camera.open()
    frames = play(camera)
    camera.close()
    assert [(frame.pixel_format, frame.pixels.shape) for frame in frames] == [(PixelFormat.MONO8, (48, 64))] * 2


def test_a_damaged_image_in_a_folder_is_a_frame_that_cannot_be_used_and_the_next_one_follows(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"no image")
    cv2.imwrite(str(folder / "1.png"), np.zeros((20, 30), np.uint8))
    camera = camera_for(f"file://{folder}?fps=100", tmp_path)
    camera.open()
    while (bad := camera.read()) is None:
        pass
    assert isinstance(bad, BadFrame) and bad.frame_no == 0 and "0.png: not a readable image" in bad.reason
    assert [frame.frame_no for frame in play(camera)] == [1]
    camera.close()


def test_the_synthetic_line(tmp_path: Path) -> None:
    url = "synthetic://line?seed=2&parts=1&fps=200&speed=20"
    camera = camera_for(url, tmp_path)
    camera.open()
    frames = play(camera)
    camera.close()
    line = SyntheticLine(seed=2, parts=1, fps=200, speed=20)
    assert frames[-1].frame_no == line.frames - 1
    assert np.array_equal(frames[-1].pixels, line.render(frames[-1].frame_no))


WRONG = [
    ("file:///no/such/video.avi", "no such file"),
    ("file://{empty}", r"empty \(0 bytes\)"),
    ("file://{text}", "not a video"),
    ("file://{folder}", "holds no images"),
    ("file://{text}?speed=3", "unknown option 'speed'"),
    ("file://{video}?fps=fast", "expected a number"),
    ("flie:///x.avi", r"did you mean file://\?"),
    ("synthetc://line", r"did you mean synthetic://\?"),
    ("/some/path.avi", "write file:// before it"),
    ("synthetic://belt", "synthetic://line only"),
    ("synthetic://line?prats=3", "unknown option 'prats'"),
    ("usb://63", "no such device"),
    ("usb://front", "expected usb:// and the device's number"),
]


@pytest.mark.parametrize(("url", "says"), WRONG, ids=[url for url, _ in WRONG])
def test_what_is_wrong_is_said(tmp_path: Path, url: str, says: str) -> None:
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.avi").write_text("no video at all" * 100)
    (tmp_path / "folder").mkdir()
    write_video(tmp_path / "video.avi", 2)
    names = {"empty": "empty.avi", "text": "text.avi", "folder": "folder", "video": "video.avi"}
    places = {name: str(tmp_path / place) for name, place in names.items()}
    with pytest.raises(CameraError, match=says):
        camera_for(url.format(**places), tmp_path).open()


def test_credentials_are_never_shown(tmp_path: Path) -> None:
    assert redacted("rtsp://user:secret@10.0.0.1/x?token=abc") == "rtsp://***@10.0.0.1/x?..."
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    camera = camera_for(f"rtsp://user:secret@127.0.0.1:{port}/x", tmp_path)
    with pytest.raises(CameraError) as caught:
        camera.open()
    assert "secret" not in str(caught.value) and "no stream within" in str(caught.value)


def test_a_server_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(CameraError, match="no stream within 1 s"):
            camera_for(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path, 1.0).open()
        assert time.monotonic() - started < 5


RTSP_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(service=sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true " + sys.argv[2] + " ! video/x-raw,width=320,height=240,framerate=30/1 "
    "! videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/line", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def rtsp_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    yield from serve_rtsp("pattern=ball")


def serve_rtsp(pattern: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """GStreamer's RTSP server with a test picture, as (address, process); skips where it is not installed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    try:
        server = subprocess.Popen(
            ["/usr/bin/python3", "-c", RTSP_SERVER, str(port), pattern],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except FileNotFoundError:
        pytest.skip("no /usr/bin/python3, which has GStreamer's RTSP server")
    assert server.stdout is not None
    ready = select.select([server.stdout], [], [], 20)[0] and server.stdout.read(5) == b"ready"
    if ready:
        yield f"rtsp://127.0.0.1:{port}/line", server
    server.kill()
    server.wait()
    server.stdout.close()
    if not ready:
        pytest.skip("GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0) is not installed")


def test_a_network_camera(tmp_path: Path, rtsp_server: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, server = rtsp_server
    camera = camera_for(url, tmp_path, 10.0)
    camera.open()
    assert camera.live
    frames: list[CameraFrame] = []
    while len(frames) < 15:
        frame = camera.read()
        if frame is not None:
            assert not isinstance(frame, BadFrame)
            assert time.monotonic_ns() - frame.t_capture_ns < 10e9
            frames.append(frame)
    numbers = [frame.frame_no for frame in frames]
    assert numbers == sorted(set(numbers))
    assert frames[0].pixels.shape == (240, 320, 3) and frames[0].pixel_format is PixelFormat.BGR8
    server.kill()
    with pytest.raises(CameraError, match="stopped giving frames"):
        while True:
            camera.read()
    camera.close()
    assert not any(thread.name == "drain" for thread in threading.enumerate())


def test_pictures_from_memory_come_again_and_again_and_end_when_they_are_told(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((10, 20, 3), 10 * number, np.uint8))
    camera = make_camera(f"replay://{tmp_path}?fps=1000&frames=8", "top", tmp_path / "state")
    camera.open()
    found = []
    while camera.ended is None:
        frame = camera.read()
        if isinstance(frame, CameraFrame):
            found.append(frame)
    camera.close()
    assert [(frame.frame_no, int(frame.pixels[0, 0])) for frame in found] == [(n, 10 * (n % 3)) for n in range(8)]
    steps = np.diff([frame.t_capture_ns for frame in found])
    assert found[0].pixels.shape == (10, 20) and steps.tolist() == [1_000_000] * 7
    assert "all 8 frames" in camera.ended


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("replay:///no/such/folder", "no such folder"),
        ("replay://{folder}", "the folder holds no images"),
        ("replay://{folder}?speed=3", "unknown option 'speed'"),
    ],
)
def test_what_cannot_be_replayed_is_refused(url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=says):
        make_camera(url.format(folder=tmp_path), "top", tmp_path / "state").open()


def test_more_pictures_than_memory_is_meant_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((100, 100), np.uint8))
    monkeypatch.setattr("edge_runtime.cameras.replay.MOST_BYTES", 9_999)
    with pytest.raises(CameraError, match="take more than"):
        make_camera(f"replay://{tmp_path}", "top", tmp_path / "state").open()
