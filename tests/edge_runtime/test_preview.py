"""The live preview: what a watcher gets, who may watch, and that nobody is held up."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq

from contract.errors import ConfigError
from contract.event import Result, Verdict
from contract.images import PixelFormat
from contract.keys import authorise, load_pair, load_public, new_pair, revoke
from edge_runtime.preview import Preview, picture_of, topic_of
from edge_runtime.preview_cli import Watcher, Where, save, serve, where_of
from edge_runtime.settings import PreviewSettings, load_settings
from tests.processes import until

BOX = (100, 80, 200, 120)


class Cameras:
    """Stands for the capture processes: offers a frame every few milliseconds."""

    def __init__(self, preview: Preview) -> None:
        self.preview = preview
        self.written = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stopping.wait(0.005):
            number += 1
            for glimpse in self.preview.glimpses.values():
                pixels = np.full((480, 640), 40, np.uint8)
                self.written += glimpse.offer(pixels, PixelFormat.MONO8, number, time.monotonic_ns(), part=False)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def start() -> Iterator[Callable[..., Cameras]]:
    made: list[Cameras] = []

    def begin(**settings: object) -> Cameras:
        chosen = PreviewSettings(**({"listen": "tcp://127.0.0.1:*", "fps": 25, "width": 320} | settings))  # type: ignore[arg-type]
        preview = Preview(chosen, "edge-1", ["top", "top2"])
        preview.start()
        made.append(Cameras(preview))
        return made[-1]

    yield begin
    for each in made:
        each.stop()
        each.preview.stop()


def where(cameras: Cameras, **more: object) -> Where:
    assert cameras.preview.endpoint is not None
    return Where(**({"endpoint": cameras.preview.endpoint, "keys": None, "cameras": ["top", "top2"]} | more))  # type: ignore[arg-type]


def result(frame_no: int) -> Result:
    return Result(
        edge_id="edge-1", spool_id="s", seq=1, run_id="r", t_wall_ns=1, part_id="top-1", camera_id="top", trigger_id=1,
        frame_no=frame_no, box_px=BOX, verdict=Verdict.REJECT, recipe="part", bundle_id="b", model_sha256="0" * 64,
        engine="none",
    )  # fmt: skip


def test_nothing_is_made_until_somebody_watches_and_again_after(start: Callable[..., Cameras]) -> None:
    cameras = start()
    assert cameras.written == 0
    with closing(Watcher(where(cameras), "top")) as watcher:
        got = watcher.next(10)
        assert got is not None
        header, jpeg = got
        assert (header.edge_id, header.camera_id, header.lossy) == ("edge-1", "top", True)
        assert (header.frame_width, header.frame_height, header.width) == (640, 480, 320)
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and picture.shape[:2] == (header.height, header.width)
        assert cameras.preview._cameras["top2"].number == 0, "top2 is watched by nobody"
    until(lambda: not cameras.preview._topics, "the watcher has gone", 20)


def test_every_picture_says_what_was_left_out_and_the_last_verdict(start: Callable[..., Cameras]) -> None:
    cameras = start()
    cameras.preview.note(result(frame_no=1))
    with closing(Watcher(where(cameras), "top")) as watcher:
        pictures = [got for _ in range(4) if (got := watcher.next(10)) is not None]
    headers = [header for header, _ in pictures]
    assert [header.number for header in headers] == sorted({header.number for header in headers})
    first, last = headers[0], headers[-1]
    frames, shown = last.frame_no - first.frame_no, last.number - first.number
    assert last.dropped - first.dropped == frames - shown, "each frame was in a picture or is counted"
    assert last.last is not None and (last.last.verdict, last.last.part_id) == (Verdict.REJECT, "top-1")
    assert last.height == 240 + 18, "the verdict stands beneath the picture"


def test_the_box_is_drawn_where_its_part_is_in_the_very_picture(start: Callable[..., Cameras]) -> None:
    from edge_runtime.glimpse import Seen
    from edge_runtime.preview import LastVerdict, drawn

    last = LastVerdict(part_id="p", frame_no=5, verdict=Verdict.REJECT, box_px=BOX)
    for frame_no, there in ((5, True), (6, False)):
        seen = Seen(1, frame_no, 1, np.zeros((240, 320), np.uint8), PixelFormat.MONO8, (640, 480))
        picture = drawn(seen, last)
        assert bool(picture[40, 50].any()) == there
        assert picture[241, 319].any()


def test_a_watcher_that_does_not_read_holds_up_nobody(start: Callable[..., Cameras]) -> None:
    cameras = start()
    with zmq.Context() as context, context.socket(zmq.SUB) as lazy:
        lazy.set(zmq.LINGER, 0)
        lazy.set(zmq.RCVHWM, 1)
        lazy.connect(cameras.preview.endpoint or "")
        lazy.subscribe(b"")
        with closing(Watcher(where(cameras), "top")) as watcher:
            numbers = [got[0].number for _ in range(30) if (got := watcher.next(10)) is not None]
        assert len(numbers) == 30
        _, body, jpeg = lazy.recv_multipart()
        assert picture_of([topic_of("top"), body, jpeg])[0].number <= numbers[-1]


def test_with_keys_only_who_is_authorised_watches_and_a_revoked_key_is_cut(
    start: Callable[..., Cameras], tmp_path: Path
) -> None:
    folder = tmp_path / "preview-keys"
    new_pair(folder, "host")
    mine, other = new_pair(tmp_path / "mine", "laptop"), new_pair(tmp_path / "other", "stranger")
    authorise(folder, tmp_path / "mine" / "laptop.key")
    cameras = start(keys=folder)
    server = load_public(folder / "host.key")
    with closing(Watcher(where(cameras, keys=(mine, server)), "top")) as watcher:
        assert watcher.next(10) is not None
        for keys in ((other, server), None):
            with closing(Watcher(where(cameras, keys=keys), "top")) as stranger:
                assert stranger.next(0.5) is None
        revoke(folder, "laptop")
        until(lambda: watcher.next(0.3) is None, "the revoked watcher gets nothing more", 20)
    assert load_pair(folder / "host.key_secret").public == server


def test_an_address_in_use_costs_the_preview_and_not_the_line(
    start: Callable[..., Cameras], caplog: pytest.LogCaptureFixture
) -> None:
    taken = start().preview.endpoint
    second = start(listen=taken)
    assert second.preview.endpoint is None and "no preview" in caplog.text
    second.preview.note(result(1))


def test_a_picture_is_saved_and_the_page_shows_it_on_this_machine_alone(
    start: Callable[..., Cameras], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cameras = start()
    save(where(cameras), "top", tmp_path / "top.jpg")
    assert cv2.imread(str(tmp_path / "top.jpg")) is not None
    assert "not shown" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"expected 127\.0\.0\.1:PORT"):
        serve(where(cameras), "0.0.0.0:8080")
    servers: list[object] = []
    thread = threading.Thread(target=serve, args=(where(cameras), "127.0.0.1:0", servers.append))
    thread.start()
    server = until(lambda: servers and servers[0], "the page is served")
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with urllib.request.urlopen(address, timeout=10) as page:
            assert b"/top2.mjpg" in page.read()
        with urllib.request.urlopen(f"{address}/top.mjpg", timeout=10) as stream:
            head = stream.read(400)
        assert b"image/jpeg" in head and b"\xff\xd8" in head
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/none.mjpg", timeout=10)
        foreign = urllib.request.Request(address, headers={"Host": "evil.example:80"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=10)
    finally:
        server.shutdown()
        thread.join(10)


EDGE = """
edge_id = "edge-1"
bundle = "bundle"
{preview}
[[cameras]]
id = "top"
url = "synthetic://line"
"""


def test_settings_refuse_an_open_preview_and_a_missing_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(EDGE.format(preview='[preview]\nlisten = "tcp://0.0.0.0:5705"'))
    with pytest.raises(ConfigError, match="flawline keys new host --dir preview-keys"):
        load_settings(path)
    path.write_text(EDGE.format(preview='[preview]\nlisten = "tcp://0.0.0.0:5705"\nkeys = "preview-keys"'))
    assert load_settings(path).preview.keys == tmp_path / "preview-keys"
    with pytest.raises(ConfigError, match="only to watchers with keys"):
        where_of(path, None, None, None)
    path.write_text(EDGE.format(preview=""))
    with pytest.raises(ConfigError, match="has no preview"):
        where_of(path, None, None, None)


@pytest.mark.parametrize("frames", [[], [b"top/"], [b"top/", b"{}", b""], [b"top/", b"x" * 10_000, b""]])
def test_what_is_no_picture_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(ValueError):
        picture_of(frames)
