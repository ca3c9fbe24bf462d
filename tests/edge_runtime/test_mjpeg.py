"""Motion JPEG over HTTP from a real server process: pictures, sign-in, and everything that a server may do wrong."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import trustme

from contract.images import PixelFormat
from edge_runtime.cameras import make_camera
from edge_runtime.cameras.base import BadFrame, Camera, CameraFrame, redacted
from edge_runtime.cameras.mjpeg import PartError, Parts
from edge_runtime.capture import CameraProcess
from edge_runtime.errors import CameraError
from edge_runtime.settings import CameraSettings
from tests.edge_runtime.mjpeg_server import COLOUR, PASSWORD, USER, part, picture
from tests.processes import until

SERVER = Path(__file__).with_name("mjpeg_server.py")


class Server:
    """The server's process; ``again`` starts another one on the same port."""

    def __init__(self, *certificate: str) -> None:
        self.port, self.certificate = 0, certificate
        self.again()

    def again(self) -> None:
        words = [sys.executable, str(SERVER), str(self.port), *self.certificate]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def url(self, path: str, who: str = "") -> str:
        return f"http://{who}127.0.0.1:{self.port}/{path}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def own() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


def frames_of(camera: Camera, wanted: int, limit_s: float = 10.0) -> list[CameraFrame | BadFrame]:
    found: list[CameraFrame | BadFrame] = []
    deadline = time.monotonic() + limit_s
    while len(found) < wanted:
        assert time.monotonic() < deadline
        frame = camera.read()
        if frame is not None:
            found.append(frame)
    return found


def opened(url: str, state: Path, stall_s: float = 2.0) -> Camera:
    camera = make_camera(url, "top", state, stall_s)
    try:
        camera.open()
    except CameraError:
        camera.close()
        raise
    return camera


@pytest.mark.parametrize("path", ["good", "good?stream=1&x=@", "quoted", "no-length", "junk"])
def test_pictures_come_in_order_in_their_colours(path: str, shared: Server, tmp_path: Path) -> None:
    camera = opened(shared.url(path), tmp_path)
    assert camera.live and camera.reported() == {"width": 64.0, "height": 48.0}
    frames = frames_of(camera, 8)
    camera.close()
    numbers = [frame.frame_no for frame in frames]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
    for frame in frames:
        assert isinstance(frame, CameraFrame), frame
        assert frame.pixel_format is PixelFormat.RGB8 and frame.pixels.shape == (48, 64, 3)
        assert np.abs(frame.pixels.mean((0, 1)) - COLOUR).max() < 4
        assert 0 <= time.monotonic_ns() - frame.t_capture_ns < 5e9
    assert not any(thread.name == "drain" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("truncated", "is it truncated"),
        ("short", "is it truncated"),
        ("no-jpeg", "bytes are no JPEG"),
        ("bomb", "declares 60000 x 60000 pixels, and at most 16 MB are taken: raise max_frame_mb"),
        ("large", "declares 2400 x 2400 pixels, and at most 16 MB"),
    ],
)
def test_one_bad_picture_is_said_and_the_next_is_read(path: str, says: str, shared: Server, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    camera = opened(shared.url(path), tmp_path)
    frames = frames_of(camera, 12)
    camera.close()
    bad = [frame for frame in frames if isinstance(frame, BadFrame)]
    assert 1 <= len(bad) <= 3
    assert all(says in frame.reason and len(frame.reason) < 300 for frame in bad), bad
    numbers = [frame.frame_no for frame in frames]
    assert numbers == sorted(set(numbers)), "a bad picture has a number of its own"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "huge-length",
            r"a part that declares 1152921504606846976 bytes, at most 16000000 are taken: raise max_frame_mb",
        ),
        ("odd-length", r"a part of '-5' bytes; expected a number"),
        ("ends", "stopped giving pictures: it ended the connection"),
        ("stops", "stopped giving pictures"),
    ],
)
def test_a_stream_of_no_more_use_is_given_up(path: str, says: str, shared: Server, tmp_path: Path) -> None:
    camera = opened(shared.url(path), tmp_path, 1.0)
    started = time.monotonic()
    with pytest.raises(CameraError, match=says):
        while True:
            camera.read()
    camera.close()
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("page", "answers with text/html, expected multipart"),
        ("still", "answers with image/jpeg, expected multipart"),
        ("no-boundary", "with a boundary"),
        ("away", "answers 302"),
        ("nowhere", "answers 404; is the path right"),
        ("mute", "no answer within 1 s"),
        ("signed", "answers 401; are user and password accepted"),
        ("endless-part", "no boundary b'frame' within 16000000 bytes"),
        ("endless-header", "more than 64 lines of header"),
        ("endless-picture", "more than 16000000 bytes without an end"),
    ],
)
def test_what_is_no_stream_is_refused_in_words(path: str, says: str, shared: Server, tmp_path: Path) -> None:
    camera = make_camera(shared.url(path), "top", tmp_path, 1.0)
    with pytest.raises(CameraError, match=says):
        camera.open()
    camera.close()


def test_sign_in_by_digest_from_the_address_or_a_file(
    shared: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = f"{USER}:{quote(PASSWORD, safe='')}"
    camera = opened(shared.url("signed?a=b", f"{who}@"), tmp_path)
    assert len(frames_of(camera, 2)) == 2
    camera.close()
    (tmp_path / "secret").write_text(f"{who}\n")
    (tmp_path / "secret").chmod(0o600)
    monkeypatch.setenv("FLAWLINE_HTTP_TOP", str(tmp_path / "secret"))
    camera = opened(shared.url("signed"), tmp_path)
    assert len(frames_of(camera, 2)) == 2
    camera.close()
    (tmp_path / "secret").write_text(f"{USER}:{PASSWORD}\n")  # as it is typed
    camera = opened(shared.url("signed"), tmp_path)
    assert len(frames_of(camera, 2)) == 2
    camera.close()
    (tmp_path / "secret").write_text(f"{USER}:wrong0ne\n")
    with pytest.raises(CameraError, match="answers 401") as caught:
        opened(shared.url("signed"), tmp_path)
    assert "wrong0ne" not in str(caught.value)
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(CameraError, match=r"can be read by others \(mode 640\): chmod 600"):
        opened(shared.url("signed"), tmp_path)
    monkeypatch.setenv("FLAWLINE_HTTP_TOP", str(tmp_path / "none"))
    with pytest.raises(CameraError, match=r"FLAWLINE_HTTP_TOP names .*none: cannot be read"):
        opened(shared.url("signed"), tmp_path)


@pytest.mark.parametrize("password", ["plain", "p@ss", "a/b", "who?", "x@y/z?@"])
def test_no_password_is_shown_whatever_signs_it_has(password: str) -> None:
    for scheme in ("http", "https", "rtsp"):
        shown = redacted(f"{scheme}://user:{password}@10.0.0.1/x?token=abc")
        assert shown == f"{scheme}://***@10.0.0.1/x?..."
    assert redacted("http://10.0.0.1/x") == "http://10.0.0.1/x"


def test_over_tls_only_with_a_certificate_that_somebody_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "camera.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    server = Server(str(tmp_path / "camera.pem"))
    try:
        url = server.url("good").replace("http://", "https://")
        with pytest.raises(CameraError, match=r"no answer within .*CERTIFICATE_VERIFY_FAILED"):
            opened(url, tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        camera = opened(url, tmp_path)
        assert all(isinstance(frame, CameraFrame) for frame in frames_of(camera, 3))
        camera.close()
    finally:
        server.kill()


class Fed:
    """A connection that gives what it was fed, in pieces of any size."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step = data, step

    def read1(self, n: int = -1, /) -> bytes:
        piece, self.data = self.data[: self.step], self.data[self.step :]
        return piece


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_parts_do_not_depend_on_how_the_bytes_arrive(step: int) -> None:
    one, two = picture(1), picture(2)
    parts = Parts(Fed(part(one) + part(two, length=None) + part(one), step), b"frame", 100_000)
    found = [parts.next() for _ in range(4)]
    assert [None if each is None else each.data for each in found] == [one, two, one, None]
    assert all(each is None or each.fault is None for each in found)


def test_noise_of_any_kind_ends_in_words() -> None:
    rng = np.random.default_rng(3)
    whole = part(picture(1)) + part(picture(2), length=None) + part(picture(3))
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, 120, 4)] = rng.integers(0, 256, 4)
        parts = Parts(Fed(data.tobytes()[: int(rng.integers(1, len(data)))], 1000), b"frame", 50_000)
        try:
            while parts.next() is not None:
                pass
        except PartError as error:
            assert len(str(error)) < 200


# In the real capture process ------------------------------------------------------------------------------------------


def process(url: str, state: Path, **more: object) -> CameraProcess:
    made = {"id": "top", "url": url, "trigger": "every-frame", "fixture": "region", "region": (0, 0, 40, 40)}
    return CameraProcess(CameraSettings.model_validate(made | more), state)


def serve(camera: CameraProcess, reasons: list[str | None] | None = None) -> CameraProcess:
    """What a station does all the time."""
    for trigger in camera.drain():
        if reasons is not None:
            reasons.append(trigger.lost)
        camera.release(trigger)
    camera.supervise()
    return camera


def test_a_bad_picture_is_a_part_that_was_not_inspected(shared: Server, tmp_path: Path) -> None:
    camera, reasons = process(shared.url("truncated"), tmp_path), list[str | None]()
    try:
        camera.start()
        until(lambda: serve(camera, reasons) and len([r for r in reasons if r]) >= 2, "two bad pictures")
        assert camera.status().restarts == 0
        assert reasons.count(None) >= 4
        assert all(
            reason is None or "a picture that cannot be used: its picture: not a" in reason for reason in reasons
        )
        assert camera.status().skipped == 0, "it is announced, and not a gap besides"
    finally:
        camera.stop()


def test_with_presence_a_bad_picture_is_a_frame_that_nobody_looked_at(shared: Server, tmp_path: Path) -> None:
    camera = process(shared.url("truncated"), tmp_path, trigger="presence")
    try:
        camera.start()
        until(lambda: serve(camera).status().skipped >= 2, "two skipped")
        assert camera.status().state == "running" and camera.status().restarts == 0
    finally:
        camera.stop()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("drips", "no frame for 1 s: the capture process was replaced"),
        ("frozen", "frozen: the same picture for"),
        ("lies", "gave a frame of 128 x 48, rgb8, and had announced 64 x 48, rgb8: it is opened again"),
    ],
)
def test_the_process_is_replaced_and_the_line_is_told(path: str, says: str, shared: Server, tmp_path: Path) -> None:
    camera = process(shared.url(path), tmp_path, stall_s=1.0, frozen_s=0.5)
    details = set()
    try:
        camera.start()

        def replaced() -> bool:
            status = serve(camera).status()
            if status.state in ("stalled", "failed"):
                details.add(status.detail)
            return status.restarts >= 1

        until(replaced, "it was replaced")
        assert any(says in detail for detail in details), details
    finally:
        camera.stop()


def test_a_frozen_camera_s_age_grows_though_it_goes_on_giving(shared: Server, tmp_path: Path) -> None:
    """The line's heartbeat stops by the age of the last frame that showed something new."""
    camera = process(shared.url("frozen"), tmp_path, frozen_s=30)
    try:
        camera.start()
        until(lambda: serve(camera).status().frame_age_ms > 1200, "it has grown")
        assert camera.status().state == "running" and camera.status().frames > 30
    finally:
        camera.stop()


def test_a_server_that_comes_back_is_found_again(own: Server, tmp_path: Path) -> None:
    camera = process(own.url("good"), tmp_path)
    try:
        camera.start()
        until(lambda: serve(camera).status().frames > 5, "frames")
        own.kill()
        until(lambda: serve(camera).status().state == "failed", "it is noticed")
        until(lambda: serve(camera).status().restarts >= 1, "it is tried again")
        frames = camera.status().frames
        own.again()
        until(lambda: serve(camera).status().frames > frames + 5, "frames again")
        assert camera.status().state == "running"
    finally:
        camera.stop()
