"""The capture process: killed, stalled, orphaned, ended; every part of the truth accounted for exactly once."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from contract.camera import CameraControls
from contract.images import PixelFormat, same_pixels
from contract.locate import Box
from edge_runtime.cameras.base import BadFrame, Camera, CameraFrame, Source, playhead_file
from edge_runtime.capture import (
    FROZEN_AFTER,
    MISSED_MOST,
    CameraProcess,
    Capture,
    CapturedTrigger,
    FrozenCheck,
    TakenMemory,
    saturated,
)
from edge_runtime.errors import CameraError, RingError
from edge_runtime.ring import ChildState, Ring
from edge_runtime.settings import CameraSettings
from edge_runtime.synthetic import PART_LENGTH_PX, SyntheticLine

URL = "synthetic://line?seed=3&parts={parts}&fps={fps}"


def settings(url: str, **more: Any) -> CameraSettings:
    presence = {"part_length_px": PART_LENGTH_PX} | more.pop("presence", {})
    return CameraSettings.model_validate({"id": "top", "url": url, "presence": presence} | more)


@contextlib.contextmanager
def running(made: CameraSettings, state: Path, **more: Any) -> Iterator[CameraProcess]:
    camera = CameraProcess(made, state, **more)
    try:
        camera.start()
        yield camera
    finally:
        camera.stop()


def collect(
    camera: CameraProcess, until: Callable[[list[CapturedTrigger]], bool], limit_s: float = 150.0
) -> list[CapturedTrigger]:
    """Serve the camera as a station does, until the condition holds."""
    found: list[CapturedTrigger] = []
    deadline = time.monotonic() + limit_s
    while not until(found):
        assert time.monotonic() < deadline, (camera.status(), found)
        select.select([camera], [], [], 0.02)
        found += fetch(camera)
        camera.supervise()
    return found + fetch(camera)


def fetch(camera: CameraProcess) -> list[CapturedTrigger]:
    """What is new, cut and released."""
    triggers = camera.drain()
    for trigger in triggers:
        if trigger.lost is None:
            pixels, _ = camera.cut(trigger)
            assert pixels.shape[:2] == (trigger.box[3], trigger.box[2])  # type: ignore[index]
        camera.release(trigger)
    return triggers


def ended(camera: CameraProcess) -> Callable[[list[CapturedTrigger]], bool]:
    """True once the camera has ended; ``collect`` fetches what it announced last."""
    return lambda found: camera.status().state == "ended"


def parts_of(line: SyntheticLine, triggers: list[CapturedTrigger]) -> Counter[int]:
    """How often each part of the line was announced; a trigger that shows no part is a failure."""
    counts: Counter[int] = Counter()
    for trigger in triggers:
        assert trigger.box is not None
        box = Box(*trigger.box)
        seen = max(line.seen(trigger.frame_no), key=lambda part: part.box.overlap(box))
        assert seen.box.overlap(box) > 0.6, (trigger, seen)
        counts[seen.part.number] += 1
    return counts


def test_every_part_of_a_line_once_and_in_order(tmp_path: Path) -> None:
    line = SyntheticLine(seed=3, parts=8)
    with running(settings(URL.format(parts=8, fps=100)), tmp_path, first_trigger_id=41) as camera:
        triggers = collect(camera, ended(camera))
        status = camera.status()
    assert [trigger.trigger_id for trigger in triggers] == list(range(41, 49))
    assert all(trigger.lost is None for trigger in triggers)
    assert parts_of(line, triggers) == Counter(range(8))
    assert all(trigger.t_capture_ns <= trigger.t_trigger_ns for trigger in triggers)
    assert status.frames + status.skipped >= line.frames - 1 and status.restarts == 0
    assert "have passed" in status.detail


def test_killed_again_and_again_nothing_announced_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    """Three kills of the child; parts that could not be seen whole in between may be missing, others may not."""
    line = SyntheticLine(seed=3, parts=14)
    goals, kills = [2, 4, 6], 0
    with running(settings(URL.format(parts=14, fps=25)), tmp_path) as camera:
        triggers: list[CapturedTrigger] = []
        over = ended(camera)
        for goal in goals:
            wanted = goal - len(triggers)
            triggers += collect(camera, lambda found, wanted=wanted: len(found) >= wanted or over(found))
            frames, pid = camera.status().frames, camera.pid
            if over(triggers) or pid is None:
                break  # the line does not wait for a machine that is busy
            os.kill(pid, signal.SIGKILL)
            kills += 1
            triggers += collect(camera, lambda found, before=frames: camera.status().frames > before or over(found))
        triggers += collect(camera, over)
        status = camera.status()
    assert 1 <= kills == status.restarts
    assert [trigger.trigger_id for trigger in triggers] == list(range(1, len(triggers) + 1))
    counts = parts_of(line, triggers)
    assert max(counts.values()) == 1
    assert len(counts) >= 14 - missable(line, status.skipped) - kills
    assert status.frames + status.skipped >= line.frames - 2, "the line did not wait"


def missable(line: SyntheticLine, frames: int) -> int:
    """Most parts that can pass by in so many frames that nobody looks at."""
    first = [line.first_frame(part) for part in line.parts]
    return frames // min(after - before for before, after in itertools.pairwise(first))


def test_a_part_whose_trigger_was_not_fetched_survives_the_kill(tmp_path: Path) -> None:
    with running(settings(URL.format(parts=3, fps=50)), tmp_path) as camera:
        deadline = time.monotonic() + 30
        while camera.status().triggers == 0 and time.monotonic() < deadline:
            select.select([camera], [], [], 0.02)
        assert camera.pid is not None
        os.kill(camera.pid, signal.SIGKILL)
        while camera.status().restarts == 0 and time.monotonic() < deadline:
            camera.supervise()
        first = camera.drain()[0]
        assert first.trigger_id == 1 and first.lost is None
        assert camera.cut(first)[0].mean() > 60


def test_the_whole_edge_killed_and_started_again(tmp_path: Path) -> None:
    """A supervisor that is gone with its memory: the next one goes on, and takes no part a second time."""
    line, made = SyntheticLine(seed=3, parts=20), settings(URL.format(parts=20, fps=50))
    first = CameraProcess(made, tmp_path)
    first.start()
    triggers = collect(first, lambda found: len(found) >= 3)
    triggers += fetch(first)  # what was fetched before is on record by now
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    looked_at = first.status().frames
    first.stop()
    for name, data in held.items():  # as a kill leaves it
        (tmp_path / name).write_bytes(data)
    with running(made, tmp_path) as second:
        triggers += collect(second, ended(second))
        looked_at += second.status().frames
    counts = parts_of(line, triggers)
    assert max(counts.values()) == 1
    # The line does not wait for a machine that is busy: only what passed while nobody looked can be missing.
    assert len(counts) >= 20 - missable(line, line.frames - looked_at) - 1


def test_not_resumed_begins_anew(tmp_path: Path) -> None:
    playhead_file(tmp_path, "top").write_text(json.dumps({"boot_id": "x", "url": "y", "start_ns": 1}))
    camera = CameraProcess(settings(URL.format(parts=1, fps=50)), tmp_path, resumed=False)
    assert not list(tmp_path.iterdir())
    camera.stop()


def test_a_clean_stop_leaves_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with running(settings(URL.format(parts=3, fps=50)), tmp_path) as camera:
        collect(camera, lambda found: camera.status().state == "running")
        pid = camera.pid
    assert not list(tmp_path.iterdir())
    assert not Path(f"/proc/{pid}").exists()
    assert set(os.listdir("/proc/self/fd")) == before
    camera.stop()
    assert camera.status().frames > 0, "the last status stays"
    with pytest.raises(RingError, match="make a new one"):
        camera.start()


def test_triggers_can_be_fetched_and_cut_after_the_capture_has_stopped(tmp_path: Path) -> None:
    camera = CameraProcess(settings(URL.format(parts=3, fps=50)), tmp_path)
    camera.start()
    deadline = time.monotonic() + 30
    while camera.status().triggers == 0 and time.monotonic() < deadline:
        select.select([camera], [], [], 0.02)
    camera.stop_capture()
    assert camera.pid is None
    (trigger, *_) = camera.drain()
    assert camera.cut(trigger)[0].size > 0
    camera.supervise()
    assert camera.pid is None, "a stopped camera is not started again"
    camera.stop()


SUPERVISOR = """
import sys, time
from pathlib import Path
from edge_runtime.capture import CameraProcess
from edge_runtime.settings import CameraSettings
camera = CameraProcess(CameraSettings(id="top", url="synthetic://line?parts=50"), Path(sys.argv[1]))
camera.start()
while camera.status().state != "running":
    time.sleep(0.01)
print(camera.pid, flush=True)
time.sleep(60)
"""


def test_the_child_goes_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    handle = os.pidfd_open(child)
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    gone, _, _ = select.select([handle], [], [], 10)
    os.close(handle)
    assert gone, "the capture process outlives its supervisor"


def test_a_stalled_child_is_replaced(tmp_path: Path) -> None:
    with running(settings(URL.format(parts=40, fps=25), stall_s=0.5), tmp_path) as camera:
        collect(camera, lambda found: camera.status().frames > 3)
        assert camera.pid is not None
        stopped = camera.pid
        os.kill(stopped, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while camera.status().state != "stalled":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        frames = camera.status().frames
        collect(camera, lambda found: camera.status().frames > frames)
        assert camera.status().restarts == 1 and camera.pid != stopped


def test_a_child_that_the_kernel_does_not_let_go_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, and deaf to SIGKILL, as one that hangs in a driver; replaced once that has let it go."""
    with running(settings(URL.format(parts=40, fps=25), stall_s=0.5), tmp_path) as camera:
        collect(camera, lambda found: camera.status().frames > 3)
        assert camera.pid is not None
        stuck = camera.pid
        with monkeypatch.context() as deaf:
            deaf.setattr(subprocess.Popen, "kill", lambda self: None)
            os.kill(stuck, signal.SIGSTOP)
            collect(camera, lambda found: camera.status().state == "failed")
            assert "a driver does not let it end" in camera.status().detail
            for _ in range(100):
                camera.supervise()
            assert camera.pid == stuck and camera.status().restarts == 0, "it has no successor yet"
        frames = camera.status().frames
        os.kill(stuck, signal.SIGKILL)
        collect(camera, lambda found: camera.status().frames > frames)
        assert camera.status().restarts == 1 and camera.pid != stuck


def test_each_start_that_was_too_short_gives_the_next_one_twice_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a box so busy that no process starts in time, a fixed limit would kill every try, for ever."""
    monkeypatch.setattr("edge_runtime.capture.START_S", 0.2)
    with running(settings(URL.format(parts=40, fps=25), stall_s=0.2), tmp_path) as camera:
        said, held = [], None
        while len(said) < 3:
            if camera.pid is not None and camera.pid != held:
                held = camera.pid
                os.kill(held, signal.SIGSTOP)
            camera.supervise()
            if camera.status().detail and camera.status().detail not in said:
                said.append(camera.status().detail)
    assert ["0.2 s" in said[0], "0.4 s" in said[1], "0.8 s" in said[2]] == [True] * 3, said


def test_neither_a_stop_nor_other_settings_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(settings(URL.format(parts=40, fps=25)), tmp_path) as camera:
        collect(camera, lambda found: camera.status().frames > 3)
        stuck = camera._child
        assert stuck is not None
        with monkeypatch.context() as deaf:
            deaf.setattr(subprocess.Popen, "kill", lambda self: None)
            stuck.send_signal(signal.SIGSTOP)
            camera.hold_to(CameraControls(width=640))
            assert (camera.pid, camera.status().state) == (stuck.pid, "failed")
            camera.stop()
        assert camera.pid is None
        stuck.kill()
        stuck.wait()


def test_a_camera_that_cannot_be_opened_is_tried_again_for_ever_with_growing_pauses(tmp_path: Path) -> None:
    with running(settings(f"file://{tmp_path}/later.avi"), tmp_path / "state") as camera:
        collect(camera, lambda found: camera.status().restarts >= 2)
        status = camera.status()
        assert "no such file" in status.detail
        video = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
        for _ in range(5):
            video.write(np.zeros((48, 64, 3), np.uint8))
        video.release()
        (tmp_path / "whole.avi").rename(tmp_path / "later.avi")
        collect(camera, ended(camera))
        assert camera.status().frames == 5


def test_interrupts_from_the_keyboard_do_not_reach_the_child(tmp_path: Path) -> None:
    with running(settings(URL.format(parts=40, fps=25)), tmp_path) as camera:
        collect(camera, lambda found: camera.status().frames > 0)
        assert camera.pid is not None
        os.kill(camera.pid, signal.SIGINT)
        frames = camera.status().frames
        collect(camera, lambda found: camera.status().frames > frames + 5)
        assert camera.status().restarts == 0


def test_an_address_with_a_password_does_not_show_in_the_process_list(tmp_path: Path) -> None:
    with running(settings("rtsp://user:hidden@127.0.0.1:9/x"), tmp_path) as camera:
        assert b"hidden" not in Path(f"/proc/{camera.pid}/cmdline").read_bytes()
        collect(camera, lambda found: "no stream" in camera.status().detail)
        assert "hidden" not in camera.status().detail


# The child's loop, without a process ----------------------------------------------------------------------------------


class HandFed(Camera):
    """A camera that the test feeds by hand."""

    def open(self) -> None:
        """Nothing to do."""

    def read(self) -> CameraFrame | None:
        return None

    def close(self) -> None:
        """Nothing to do."""


class Bench:
    """A capture loop on a ring of its own."""

    def __init__(self, tmp_path: Path, live: bool = False, **more: Any) -> None:
        self.settings = settings(more.pop("url", "synthetic://line"), **more)
        self.ring = Ring.create(self.settings.slots, 640 * 480 * 3, self.settings.policy == "freshest")
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK)
        self.camera = HandFed(Source("synthetic://line", "line", {}, "top", tmp_path, 1.0))
        self.camera.live = live
        self.capture = self.successor()

    def successor(self) -> Capture:
        return Capture(self.camera, self.ring, self.settings, self.write_end)

    def feed(
        self, pixels: np.ndarray, number: int, t_ns: int | None = None, pixel_format: PixelFormat | None = None
    ) -> None:
        pixel_format = pixel_format or (PixelFormat.MONO8 if pixels.ndim == 2 else PixelFormat.RGB8)
        self.capture.take(CameraFrame(pixels, pixel_format, number, 1000 + number if t_ns is None else t_ns))

    def close(self) -> None:
        self.ring.close()
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**more: Any) -> Bench:
        made.append(Bench(tmp_path, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("killed_every", [1, 3, 7, 20])
def test_a_new_loop_at_any_frame_takes_every_part_once(bench: Callable[..., Bench], killed_every: int) -> None:
    """The loop thrown away and begun anew after every few frames, with all slots released late."""
    line, made = SyntheticLine(seed=6, parts=12), bench()
    records = []
    for number in range(line.frames):
        if number % killed_every == 0:
            made.ring.reclaim()
            made.capture = made.successor()
        made.feed(line.render(number), number)
        fetched = made.ring.drain()
        records += fetched
        for record in fetched:
            if record.slot >= 0:
                assert made.ring.read(record.slot)[0].shape == (480, 640)
                made.ring.release(record.slot)
    found = [CapturedTrigger(record.trigger_id, *record[1:5], lost=record.lost) for record in records]
    assert all(trigger.lost is None for trigger in found)
    assert parts_of(line, found) == Counter(range(12))
    assert not made.ring.kept()


@pytest.mark.parametrize(("policy", "losers"), [("every-part", [3, 4, 5]), ("freshest", [0, 1, 2])])
def test_more_parts_than_slots(bench: Callable[..., Bench], policy: str, losers: list[int]) -> None:
    line, made = SyntheticLine(seed=6, parts=6), bench(policy=policy, slots=3)
    for number in range(line.frames):
        made.feed(line.render(number), number)
    records = made.ring.drain()
    assert [record.trigger_id for record in records if record.lost] == losers
    word = "overrun" if policy == "every-part" else "superseded"
    assert all(word in (records[place].lost or "") for place in losers)


def test_a_part_that_vanished_is_announced_with_the_frame_that_showed_it(bench: Callable[..., Bench]) -> None:
    line, made = SyntheticLine(seed=6, parts=1), bench(presence={"settle_frames": 10})
    first = line.first_frame(line.parts[0])
    for number in range(first - 3, first + 2):
        made.feed(line.render(number), number)
    empty = SyntheticLine(seed=6, parts=1).render(0)
    for number in range(first + 2, first + 10):
        made.feed(empty, number)
    (record,) = made.ring.drain()
    assert record.frame_no == first + 1 and record.t_capture_ns == 1000 + first + 1
    assert np.array_equal(made.ring.read(record.slot)[0], line.render(first + 1))


def test_every_frame_with_a_fixed_region(bench: Callable[..., Bench]) -> None:
    made = bench(trigger="every-frame", fixture="region", region=(10, 20, 30, 40))
    for number in range(3):
        made.feed(np.full((480, 640, 3), number, np.uint8), number)
    records = made.ring.drain()
    assert [(record.frame_no, record.box, record.lost) for record in records] == [(n, None, None) for n in range(3)]


def test_every_frame_without_a_part_is_accounted_for(bench: Callable[..., Bench]) -> None:
    made = bench(trigger="every-frame")
    made.feed(np.full((480, 640), 40, np.uint8), 0)
    assert [record.lost for record in made.ring.drain()] == ["no part found in the frame"]


def test_a_frozen_camera_gives_no_pictures(bench: Callable[..., Bench]) -> None:
    made, frame = bench(trigger="every-frame", live=True), SyntheticLine(parts=2).render(25)
    for number in range(FROZEN_AFTER + 2):
        made.feed(frame, number)
    lost = [record.lost for record in made.ring.drain()]
    assert lost[:FROZEN_AFTER] == [None] * FROZEN_AFTER
    assert lost[FROZEN_AFTER:] == ["frozen camera"] * 2


def test_a_camera_that_stays_frozen_is_given_up(bench: Callable[..., Bench]) -> None:
    """And what it has shown last is as old as its last new frame."""
    made, frame = bench(trigger="every-frame", live=True, frozen_s=0.5), SyntheticLine(parts=2).render(25)
    second = 1_000_000_000
    made.feed(frame, 0, second)
    for number in range(1, 6):
        made.feed(frame, number, second + number * second // 10)
    live = made.ring.live()
    assert (live.frame_ns, live.frames, live.skipped) == (second, 6, 0)
    with pytest.raises(CameraError, match=r"frozen: the same picture for 0\.6 s"):
        made.feed(frame, 6, second + 6 * second // 10)


COMPRESSED = ["rtsp://10.0.0.1/x", "http://10.0.0.1/x", "https://10.0.0.1/x"]


@pytest.mark.parametrize(
    ("url", "frozen_s", "noticed"),
    [("usb://0", None, True), ("usb://0", 0.0, False), *((url, None, False) for url in COMPRESSED)]
    + [(url, 1.0, True) for url in COMPRESSED],
)  # fmt: skip
def test_what_repeats_a_still_scene_exactly_is_not_frozen(
    bench: Callable[..., Bench], url: str, frozen_s: float | None, noticed: bool
) -> None:
    """A compressed stream, unless it is asked for; and with 0 no camera."""
    made = bench(url=url, trigger="every-frame", live=True, slots=40, frozen_s=frozen_s)
    frame, second = SyntheticLine(parts=2).render(25), 1_000_000_000
    with pytest.raises(CameraError, match="frozen") if noticed else contextlib.nullcontext():
        for number in range(30):
            made.feed(frame, number, second + number * second // 10)
    lost = [record.lost for record in made.ring.drain()]
    assert ("frozen camera" in lost) is noticed
    assert noticed or made.ring.live().frame_ns == second + 29 * second // 10, "its frames are new ones"


@pytest.mark.parametrize("level", [0, 255])
def test_a_picture_without_noise_tells_nothing_of_the_sensor(bench: Callable[..., Bench], level: int) -> None:
    """Black and white ones fail the quality gate; the camera is no worse for it."""
    made = bench(url="usb://0", trigger="every-frame", fixture="region", region=(0, 0, 8, 8), live=True, slots=40)
    frame, second = np.full((480, 640), level, np.uint8), 1_000_000_000
    for number in range(40):
        made.feed(frame, number, second + number * second // 10)
    assert [record.lost for record in made.ring.drain()][:38] == [None] * 38
    assert saturated(frame)
    frame[100, 100] = 1
    assert not saturated(frame)


@pytest.mark.parametrize(("asked", "steady"), [(None, True), (25.0, False)], ids=["as learnt", "as asked for"])
def test_a_slow_camera_is_given_up(bench: Callable[..., Bench], asked: float | None, steady: bool) -> None:
    """From 25 frames a second to 10; frames that we were too late for do not count against it."""
    made, frame = bench(live=True, fps=asked), SyntheticLine(parts=2)
    times = [number * 40_000_000 for number in range(150 if steady else 1)]
    for number, t_ns in enumerate(times):
        if number % 3 == 0:  # two of three frames pass while we are busy
            made.feed(frame.render(number % 20), number, 10**9 + t_ns)
    made.ring.set_live(made.ring.live()._replace(alive_ns=1))
    assert not steady or 24.5 < made.ring.live().learnt_mhz / 1000 < 25.5
    made.capture = made.successor() if steady else made.capture  # what was learnt outlives the process
    first = len(times)
    with pytest.raises(CameraError, match=r"slow: 10 frames a second over 2 s, (it gave at first|`fps` asks for) 25"):
        for number in range(1, 60):
            made.feed(frame.render(number % 20), first + number, 10**9 + times[-1] + number * 100_000_000)
    assert number <= 25, "within two seconds and a few frames"


def test_a_camera_that_is_triggered_itself_may_be_as_slow_as_its_parts(bench: Callable[..., Bench]) -> None:
    made, frame = bench(live=True, trigger="every-frame"), SyntheticLine(parts=2)
    for number in range(60):
        made.feed(frame.render(number % 20), number, 10**9 + number * (40_000_000 if number < 50 else 10**9))
        for record in made.ring.drain():
            if record.slot >= 0:
                made.ring.release(record.slot)


def test_triggers_that_the_camera_missed_are_announced(bench: Callable[..., Bench]) -> None:
    made = bench(live=True, url="gentl:///x.cti", trigger="hardware", fixture="region", region=(0, 0, 8, 8))
    made.camera.waits = made.camera.triggered = True
    rng = np.random.default_rng(0)
    for number in (0, 1, 4, 5):
        made.feed(rng.integers(0, 256, (48, 64), np.uint8), number)
    made.capture.spoilt(BadFrame("the frame arrived incomplete", 7, 5000))
    records = made.ring.drain()
    assert [record.frame_no for record in records] == list(range(8))
    never = "the camera took frame {}, which never came"
    assert {r.frame_no: r.lost for r in records if r.lost} == {
        2: never.format(2), 3: never.format(3), 6: never.format(6), 7: "the frame arrived incomplete"
    }  # fmt: skip
    assert made.ring.live().skipped == 0, "each is announced, none a gap besides"
    made.feed(rng.integers(0, 256, (48, 64), np.uint8), 5007)
    assert len(made.ring.drain()) == MISSED_MOST + 1
    assert made.ring.live().skipped == 4999 - MISSED_MOST


def test_a_camera_that_waits_is_alive_between_parts(bench: Callable[..., Bench]) -> None:
    made = bench(live=True, url="gentl:///x.cti", trigger="hardware", fixture="region", region=(0, 0, 8, 8))
    made.camera.waits = True
    made.capture._beat(ChildState.RUNNING)
    live = made.ring.live()
    assert live.waits == 1 and live.frame_ns == live.alive_ns > 0 and live.frames == 0


def test_a_bad_frame_is_a_part_or_a_gap_and_never_nothing(bench: Callable[..., Bench]) -> None:
    rng = np.random.default_rng(0)
    for trigger, lost, skipped in (("every-frame", ["it is torn"], 0), ("presence", [], 1)):
        made = bench(trigger=trigger, fixture="region", region=(0, 0, 8, 8))
        for number in (0, 1, 3):
            made.feed(rng.integers(0, 256, (48, 64), np.uint8), number)
            if number == 1:
                made.capture.spoilt(BadFrame("it is torn", 2, 9000))
                assert made.ring.detail() == "it is torn"
        assert [record.lost for record in made.ring.drain() if record.lost] == lost
        assert made.ring.live().skipped == skipped
        assert made.ring.detail() == "", "it is over"


def test_a_recording_s_frame_that_no_slot_takes_is_not_inspected_and_the_next_one_is(
    bench: Callable[..., Bench],
) -> None:
    made = bench(trigger="every-frame", fixture="region", region=(0, 0, 8, 8))
    for number, shape in enumerate([(48, 64), (2000, 2000), (48, 64)]):
        made.feed(np.full(shape, number, np.uint8), number)
    lost = [record.lost for record in made.ring.drain()]
    assert lost[0] is None and lost[2] is None and "raise max_frame_mb" in (lost[1] or "")


@pytest.mark.parametrize("trigger", ["presence", "every-frame"])
def test_a_live_camera_that_changes_its_size_is_opened_again(bench: Callable[..., Bench], trigger: str) -> None:
    rng = np.random.default_rng(0)
    made = bench(live=True, trigger=trigger, fixture="region", region=(0, 0, 8, 8))
    made.feed(rng.integers(0, 256, (48, 64), np.uint8), 0)
    with pytest.raises(CameraError, match="gave a frame of 32 x 48, mono8, and had announced 64 x 48, mono8"):
        made.feed(rng.integers(0, 256, (48, 32), np.uint8), 1)
    with pytest.raises(CameraError, match="gave a frame of 64 x 48, rgb8, and had announced 64 x 48, mono8"):
        made.feed(rng.integers(0, 256, (48, 64, 3), np.uint8), 2)
    lost = [record.lost for record in made.ring.drain() if record.lost]
    assert len(lost) == (2 if trigger == "every-frame" else 0)
    made.camera.announced_hw = (100, 100)
    made.capture = made.successor()
    with pytest.raises(CameraError, match="gave a frame of 64 x 48, mono8, and had announced 100 x 100:"):
        made.feed(rng.integers(0, 256, (48, 64), np.uint8), 3)


def test_what_a_sensor_gives_is_developed_before_it_is_shared(bench: Callable[..., Bench]) -> None:
    made = bench(trigger="every-frame", fixture="region", region=(0, 0, 8, 8))
    made.feed(np.full((48, 64), 9, np.uint8), 0, pixel_format=PixelFormat.BAYER_GB8)
    made.feed(np.full((48, 64, 4), 9, np.uint8), 1, pixel_format=PixelFormat.RGBA8)
    for record in made.ring.drain():
        pixels, pixel_format = made.ring.read(record.slot)
        assert pixel_format is PixelFormat.RGB8 and pixels.shape == (48, 64, 3)


def test_equal_images_in_a_folder_are_not_frozen(bench: Callable[..., Bench]) -> None:
    made, frame = bench(trigger="every-frame", slots=16), SyntheticLine(parts=2).render(25)
    for number in range(FROZEN_AFTER + 5):
        made.feed(frame, number)
    assert [record.lost for record in made.ring.drain()] == [None] * (FROZEN_AFTER + 5)


def test_frames_are_the_same_in_every_byte_or_not_at_all() -> None:
    frame = np.full((100, 100), 7, np.uint8)
    other = frame.copy()
    other[77, 77] = 1
    assert same_pixels(frame, frame.copy())
    assert not same_pixels(other, frame)
    assert not same_pixels(frame, None)
    check = FrozenCheck(after=2)
    assert [check.stands_still(picture) for picture in (frame, frame, frame, other, frame)] == [False] * 2 + [
        True,
        False,
        False,
    ]
    assert not any(check.stands_still(picture) for picture in (other, frame) * 5), "one pixel differs each time"
    assert not any(check.stands_still(picture) for picture in (frame[:90], frame) * 5), "nor does the size agree"
    buffer = frame.copy()
    assert [check.stands_still(buffer) for _ in range(4)][-1]
    buffer[77, 77] = 2
    assert not check.stands_still(buffer), "a camera that gives the same memory again and again"


def test_the_end_decides_what_is_open(bench: Callable[..., Bench]) -> None:
    line, made = SyntheticLine(seed=6, parts=1), bench(presence={"settle_frames": 50})
    made.feed(line.render(line.first_frame(line.parts[0])), 0)
    made.capture._end("ended: over")
    (record,) = made.ring.drain()
    assert record.lost is None and record.slot >= 0
    assert made.ring.live().state == ChildState.ENDED


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot_id": "another"}'])
def test_a_memory_of_no_use_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "camera-top.taken.json").write_text(text)
    ring = Ring.create(3, 4096)
    TakenMemory(tmp_path, "top").give_to(ring)
    assert ring.load_state() is None
    ring.close()


def test_a_region_outside_the_frame_is_explained(tmp_path: Path) -> None:
    made = settings(URL.format(parts=2, fps=50), trigger="every-frame", fixture="region", region=(600, 0, 100, 100))
    with running(made, tmp_path) as camera:
        deadline = time.monotonic() + 30
        triggers: list[CapturedTrigger] = []
        while not triggers and time.monotonic() < deadline:
            select.select([camera], [], [], 0.02)
            triggers = camera.drain()
        with pytest.raises(RingError, match="leaves the frame of 640 x 480"):
            camera.cut(triggers[0])
        camera.release(triggers[0])
        with pytest.raises(RingError, match="has been released"):
            camera.cut(triggers[0])
