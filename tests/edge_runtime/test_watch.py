"""A watched folder: each picture once, when it is whole, in order, over restarts; and what is wrong is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.images import PixelFormat, is_whole
from edge_runtime.cameras import make_camera
from edge_runtime.cameras.base import BadFrame, Camera, CameraFrame
from edge_runtime.cameras.watch import Memory, Seen, WatchedFolder
from edge_runtime.capture import CameraProcess
from edge_runtime.errors import CameraError
from edge_runtime.settings import CameraSettings
from tests.processes import until

Got = CameraFrame | BadFrame


def encoded(level: int, suffix: str = ".png", size: tuple[int, int] = (32, 24)) -> bytes:
    ok, data = cv2.imencode(suffix, np.full((size[1], size[0], 3), level, np.uint8))
    assert ok
    return data.tobytes()


def put(folder: Path, name: str, level: int, when_s: float | None = None) -> Path:
    """A picture that appears whole, with a time of its own."""
    draft = folder / f".{name}"
    draft.write_bytes(encoded(level, Path(name).suffix))
    if when_s is not None:
        os.utime(draft, (when_s, when_s))
    draft.rename(folder / name)
    return folder / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def watcher(folder: Path, options: str = "fps=200&settle=0.1&wait=0.6", **more: object) -> WatchedFolder:
    camera = make_camera(f"watch://{folder}?{options}", "top", folder.parent / "state", **more)  # type: ignore[arg-type]
    assert isinstance(camera, WatchedFolder)
    camera.open()
    return camera


def collect(camera: Camera, wanted: int, limit_s: float = 10.0) -> list[Got]:
    """So many frames, each said to be announced, as the capture process does."""
    found: list[Got] = []
    deadline = time.monotonic() + limit_s
    while len(found) < wanted:
        assert time.monotonic() < deadline, found
        frame = camera.read()
        if frame is not None:
            camera.taken()
            found.append(frame)
    return found


def nothing_for(camera: Camera, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert camera.read() is None


def levels(frames: list[Got]) -> list[int]:
    return [int(frame.pixels.flat[0]) if isinstance(frame, CameraFrame) else -1 for frame in frames]


def test_each_picture_once_in_the_order_of_their_times(folder: Path) -> None:
    for name, level, when_s in (("b.png", 10, 100.0), ("a.png", 20, 100.0), ("z.bmp", 5, 50.0), ("c.jpg", 40, 200.0)):
        put(folder, name, level, when_s)
    camera = watcher(folder)
    assert not camera.live and camera.waits
    frames = collect(camera, 4)
    assert levels(frames) == [5, 20, 10, 40], "by time, then by name"
    assert [frame.frame_no for frame in frames] == [0, 1, 2, 3]
    assert all(isinstance(frame, CameraFrame) and frame.pixel_format is PixelFormat.RGB8 for frame in frames)
    for number in range(5):
        put(folder, f"{number}.png", 100 + number)
        assert levels(collect(camera, 1)) == [100 + number]
    nothing_for(camera, 0.4)
    camera.close()


def test_no_picture_twice_over_restarts(folder: Path) -> None:
    for number in range(3):
        put(folder, f"{number}.png", number)
        camera = watcher(folder)
        assert levels(collect(camera, 1)) == [number]
        camera.close()
    camera = watcher(folder)
    nothing_for(camera, 0.4)
    put(folder, "1.png", 77)  # another picture under an old name
    assert levels(collect(camera, 1)) == [77]
    camera.close()


def test_a_file_that_is_still_written_is_waited_for(folder: Path) -> None:
    camera, data = watcher(folder, "fps=200&settle=0.1&wait=20"), encoded(60, ".jpg", (640, 480))
    with (folder / "slow.jpg").open("wb") as file:
        for start in range(0, len(data), len(data) // 4):
            file.write(data[start : start + len(data) // 4])
            file.flush()
            last = start + len(data) // 4 >= len(data)
            if not last:
                nothing_for(camera, 0.3)
    assert levels(collect(camera, 1)) == [60]
    camera.close()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_room_that_was_reserved_is_no_picture(suffix: str, folder: Path) -> None:
    """As a copy over the network does it: the size at once, the bytes later, at times without a new date."""
    camera, data = watcher(folder, "fps=200&settle=0.1&wait=20"), encoded(60, suffix, (200, 100))
    path = folder / f"copied{suffix}"
    with path.open("wb") as file:
        if suffix in (".bmp", ".webp"):  # whose length is all that it tells
            file.write(data[:-100])
        else:
            file.write(data[: len(data) // 2])
            file.truncate(len(data))
    os.utime(path, (1000, 1000))
    nothing_for(camera, 0.4)
    path.write_bytes(data)
    os.utime(path, (1000, 1000))
    assert levels(collect(camera, 1)) == [60]
    camera.close()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_only_a_whole_picture_has_an_end(suffix: str) -> None:
    data = encoded(90, suffix, (40, 30))
    assert is_whole(data) is True
    for length in range(0, len(data) - 2, 7):
        assert is_whole(data[:length]) is False
    assert is_whole(encoded(90, ".tif")) is None


def test_broken_vanished_and_too_large_are_said_and_not_skipped(folder: Path) -> None:
    camera = watcher(folder, max_frame_bytes=100_000)
    (folder / "torn.jpg").write_bytes(encoded(50, ".jpg", (160, 120))[:-100])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "wide.png").write_bytes(encoded(50, ".png", (2000, 1000)))
    frames = collect(camera, 4)
    assert all(isinstance(frame, BadFrame) for frame in frames)
    reasons = {frame.reason.partition(":")[0]: frame.reason for frame in frames if isinstance(frame, BadFrame)}
    assert "is it truncated" in reasons["torn.jpg"]
    assert "the file is empty" in reasons["empty.png"]
    assert "not a readable image" in reasons["text.png"]
    assert "declares 2000 x 1000 pixels, and at most 0.1 MB are taken: raise max_frame_mb" in reasons["wide.png"]
    assert sorted(frame.frame_no for frame in frames) == [0, 1, 2, 3]
    (folder / "gone.jpg").write_bytes(encoded(50, ".jpg")[:-10])
    deadline = time.monotonic() + 60
    while "gone.jpg" not in camera._waiting:
        assert camera.read() is None and time.monotonic() < deadline
    (folder / "gone.jpg").unlink()
    (frame,) = collect(camera, 1)
    assert isinstance(frame, BadFrame) and frame.reason == "gone.jpg: it was taken away before it could be read"
    nothing_for(camera, 0.9)
    camera.close()


def test_names_that_are_no_text_are_no_trouble(folder: Path) -> None:
    for name, data in ((b"\xff\xfe.png", b"no picture"), (b"\xfd a\nb.png", encoded(30))):
        (folder / os.fsdecode(name)).write_bytes(data)
        camera = watcher(folder)
        (frame,) = collect(camera, 1)
        camera.close()
        assert levels([frame]) == [30] or (isinstance(frame, BadFrame) and frame.reason.encode())
    camera = watcher(folder)
    nothing_for(camera, 0.8)
    camera.close()


def test_what_is_renamed_while_it_is_waited_for_is_not_lost_and_not_said_twice(folder: Path) -> None:
    camera = watcher(folder, "fps=200&settle=0.3")
    (folder / "tmp1.png").write_bytes(encoded(70))
    deadline = time.monotonic() + 60
    while "tmp1.png" not in camera._waiting:
        assert camera.read() is None and time.monotonic() < deadline
    (folder / "tmp1.png").rename(folder / "part.png")
    assert levels(collect(camera, 1)) == [70]
    nothing_for(camera, 0.5)
    camera.close()


def test_hidden_files_other_suffixes_folders_and_pipes_are_left_alone(folder: Path) -> None:
    (folder / ".draft.png").write_bytes(encoded(1))
    (folder / "part.png.tmp").write_bytes(encoded(2))
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    camera = watcher(folder)
    nothing_for(camera, 0.4)
    camera.close()


def test_a_picture_that_was_being_inspected_when_all_stopped_is_not_inspected_twice(folder: Path) -> None:
    put(folder, "a.png", 10)
    put(folder, "b.png", 20, time.time() + 5)
    camera = watcher(folder)
    while (frame := camera.read()) is None:
        pass
    assert levels([frame]) == [10]
    camera.close()  # as a kill leaves it: taken, and not said to be announced
    camera = watcher(folder)
    first, second = collect(camera, 2)
    assert isinstance(first, BadFrame) and "a.png: the edge stopped while it was being inspected" in first.reason
    assert levels([second]) == [20]
    camera.close()
    camera = watcher(folder)
    nothing_for(camera, 0.4)
    camera.close()


def test_not_more_a_second_than_asked_for(folder: Path) -> None:
    for number in range(6):
        put(folder, f"{number}.png", number)
    camera = watcher(folder, "fps=10&settle=0.05")
    times = [frame.t_capture_ns for frame in collect(camera, 6)]
    camera.close()
    assert times[-1] - times[0] > 0.45e9


def test_a_folder_that_is_unmounted_fails_and_what_was_given_stays_known(folder: Path) -> None:
    put(folder, "a.png", 10)
    camera = watcher(folder)
    collect(camera, 1)
    kept = folder.parent / "kept"
    folder.rename(kept)
    with pytest.raises(CameraError, match=r"cannot be listed \(No such file or directory\); is the share mounted"):
        nothing_for(camera, 5)
    camera.close()
    with pytest.raises(CameraError, match="no such folder"):
        watcher(folder)
    folder.mkdir()  # the bare mount point
    camera = watcher(folder)
    nothing_for(camera, 0.3)
    camera.close()
    folder.rmdir()
    kept.rename(folder)
    camera = watcher(folder)
    nothing_for(camera, 0.4)
    camera.close()


def test_a_folder_that_is_exchanged_fails(folder: Path) -> None:
    """As an unmounted share leaves it: the bare mount point, an empty folder of the same name."""
    camera = watcher(folder)
    nothing_for(camera, 0.2)
    folder.rename(folder.parent / "share")
    folder.mkdir()
    with pytest.raises(CameraError, match="it is another folder than when it was opened; is the share mounted"):
        nothing_for(camera, 10)
    camera.close()


def test_a_share_that_is_not_mounted_is_no_empty_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the process that comes after, until it is mounted again or the memory of it is removed."""
    mounted = [str(folder), "/"]
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in mounted)
    watcher(folder).close()
    mounted.remove(str(folder))
    memory = folder.parent / "state" / "camera-top.mount"
    with pytest.raises(CameraError, match=rf"on the share {folder}, which is not mounted now.*remove {memory}"):
        watcher(folder)
    mounted.append(str(folder))
    watcher(folder).close()
    mounted.remove(str(folder))
    memory.unlink()
    watcher(folder).close()
    assert memory.read_text() == "/\n"


def test_without_its_marker_a_folder_is_refused(folder: Path) -> None:
    options = "fps=200&settle=0.1&marker=.mounted"
    with pytest.raises(CameraError, match=r"its marker '\.mounted' is missing; is the share mounted"):
        watcher(folder, options)
    (folder / ".mounted").touch()
    camera = watcher(folder, options)
    put(folder, "a.png", 9)
    assert levels(collect(camera, 1)) == [9]
    (folder / ".mounted").unlink()
    with pytest.raises(CameraError, match="marker"):
        nothing_for(camera, 10)
    camera.close()


def test_a_picture_that_is_renamed_after_it_was_given_is_not_given_again(folder: Path) -> None:
    put(folder, "a.png", 9, 1000.5)
    camera = watcher(folder)
    assert levels(collect(camera, 1)) == [9]
    (folder / "a.png").rename(folder / "b.png")
    nothing_for(camera, 0.4)
    camera.close()
    (folder / "b.png").rename(folder / "c.png")
    camera = watcher(folder)
    nothing_for(camera, 0.4)
    os.link(folder / "c.png", folder / "d.png")  # two at once are two
    assert levels(collect(camera, 1)) == [9]
    put(folder, "e.png", 7, 2000.0)  # its time does not tell it from another one of the same size
    assert levels(collect(camera, 1)) == [7]
    (folder / "e.png").rename(folder / "f.png")
    assert levels(collect(camera, 1)) == [7], "rather twice than never"
    camera.close()


def test_a_memory_without_inodes_holds(folder: Path) -> None:
    seen = put(folder, "a.png", 9).stat()
    (folder.parent / "state").mkdir()
    line = json.dumps(["a.png", [seen.st_size, seen.st_mtime_ns], "done"])
    (folder.parent / "state" / "camera-top.watched.jsonl").write_text(f"{line}\n")
    camera = watcher(folder)
    nothing_for(camera, 0.4)
    camera.close()


def test_a_long_first_look_is_taken_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the capture process shows life between them, however slow the share."""
    for number in range(5):
        put(folder, f"{number}.png", number, 1000.0 + number)
    monkeypatch.setattr("edge_runtime.cameras.watch.LOOK_MOST_S", -1.0)
    camera, looks = watcher(folder), 0
    while len(camera._found) < 5:
        assert camera.read() is None
        looks += 1
        assert len(camera._found) == looks
    monkeypatch.undo()
    assert levels(collect(camera, 5)) == list(range(5))
    camera.close()


def test_without_a_memory_nothing_is_given(folder: Path) -> None:
    put(folder, "a.png", 10)
    camera = watcher(folder)
    memory = camera._memory
    assert memory is not None
    memory._file.close()
    full = Path("/dev/full").open("w")  # noqa: SIM115
    memory._file = full
    with pytest.raises(CameraError, match=r"No space left on device.*none is"):
        collect(camera, 1)
    with pytest.raises(OSError, match="No space"):
        full.close()
    memory._file = (folder.parent / "state" / "other").open("w")
    camera.close()
    shutil.rmtree(folder.parent / "state")
    (folder.parent / "state").touch()
    with pytest.raises(CameraError, match="cannot be written"):
        watcher(folder)


def test_the_memory_forgets_only_what_is_gone_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    memory = Memory(path)
    for number in range(40):
        memory.take(f"{number}.png", Seen(number, number, 1))
        memory.finish(f"{number}.png")
        memory.forget_beyond(5, {f"{kept}.png": Seen(kept, kept, 1) for kept in (0, 1)})
    assert len(path.read_text().splitlines()) < 20
    for name in ("0.png", "1.png", "39.png"):
        assert memory.knows(name, Seen(int(name[:-4]), int(name[:-4]), 9), {})
    assert not memory.knows("10.png", Seen(10, 10, 1), {})
    memory.close()
    path.write_text(path.read_text() + '["torn.png", [1')
    again = Memory(path)
    assert again.knows("0.png", Seen(0, 0, 1), {}) and not again.knows("torn.png", Seen(1, 1, 9), {})
    again.close()
    for text in ("nonsense\n", "[1, 2]\n", '["a.png", ["x", 1], "done"]\n', "\0\0\n"):
        path.write_text(text)
        Memory(path).close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("watch:///no/such/folder", "no such folder"),
        ("watch://{folder}?speed=3", "unknown option 'speed'"),
        ("file://{folder}?watch=1", "a folder that is being filled is watch://"),
    ],
)
def test_what_is_wrong_with_the_address_is_said(url: str, says: str, folder: Path) -> None:
    with pytest.raises(CameraError, match=says):
        make_camera(url.format(folder=folder), "top", folder.parent)


# In the real capture process ------------------------------------------------------------------------------------------


def process(folder: Path) -> CameraProcess:
    url = f"watch://{folder}?fps=100&settle=0.1&wait=60"  # however long a writer is held up, its file is not broken
    made = {"id": "top", "url": url, "trigger": "every-frame", "fixture": "region", "region": (0, 0, 8, 8)}
    return CameraProcess(CameraSettings.model_validate(made | {"stall_s": 1.0}), folder.parent / "state")


def serve(camera: CameraProcess, seen: list[int | str]) -> bool:
    """What a station does all the time: the grey level of each picture, or why there is none."""
    for trigger in camera.drain():
        if trigger.lost is None:
            seen.append(int(camera.cut(trigger)[0][0, 0, 0]))
        else:
            seen.append(trigger.lost)
        camera.release(trigger)
    camera.supervise()
    return True


def served(camera: CameraProcess, seen: list[int | str], condition: Callable[[], bool], what: str) -> None:
    until(lambda: serve(camera, seen) and condition(), what)


def test_an_empty_folder_is_a_camera_that_is_ready(folder: Path) -> None:
    """The line's heartbeat must not wait for the first part, nor stop between two."""
    camera, seen = process(folder), list[int | str]()
    try:
        camera.start()
        served(camera, seen, lambda: camera.status().ready, "it is ready")
        assert camera.status().frames == 0
        waited = time.monotonic() + 1.5  # longer than stall_s
        served(camera, seen, lambda: time.monotonic() > waited, "it waits")
        status = camera.status()
        assert (status.state, status.restarts, seen) == ("running", 0, [])
        served(camera, seen, lambda: camera.status().frame_age_ms < 700, "its age is renewed without a frame")
        put(folder, "a.png", 9)
        served(camera, seen, lambda: bool(seen), "the picture")
        assert seen == [9]
    finally:
        camera.stop()


WRITER = """
import pathlib, sys, time
folder, data = pathlib.Path(sys.argv[1]), [pathlib.Path(p).read_bytes() for p in sys.argv[2:]]
for number in range(len(data)):
    with (folder / f"{number:03d}.png").open("wb") as file:
        half = len(data[number]) // 2
        file.write(data[number][:half]); file.flush(); time.sleep(0.03)
        file.write(data[number][half:])
"""


def test_killed_again_and_again_each_picture_is_seen_once_or_said_to_be_interrupted(folder: Path) -> None:
    """Another process writes; the capture process is killed four times, and the whole edge replaced once."""
    pictures = []
    for number in range(40):
        pictures.append(folder.parent / f"source{number}.png")
        pictures[-1].write_bytes(encoded(number + 1, ".png", (64, 48)))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), *map(str, pictures)])
    seen: list[int | str] = []

    def kill_after_some_more(camera: CameraProcess) -> None:
        goal = min(len(accounted(seen)) + 5, 40)
        served(camera, seen, lambda: len(accounted(seen)) >= goal and camera.pid is not None, "some more")
        assert camera.pid is not None
        os.kill(camera.pid, signal.SIGKILL)

    try:
        for last in (False, True):
            camera = process(folder)
            camera.start()
            kill_after_some_more(camera)
            kill_after_some_more(camera)
            if last:
                served(camera, seen, lambda: set(range(1, 41)) <= accounted(seen), "all are accounted for")
            camera.stop_capture()
            serve(camera, seen)
            camera.stop(forget=last)
    finally:
        writer.wait()
    whole = [each for each in seen if isinstance(each, int)]
    assert len(whole) == len(set(whole)), "none twice"
    said = [each for each in seen if isinstance(each, str)]
    assert all("stopped while it was being inspected" in reason for reason in said), said


def accounted(seen: list[int | str]) -> set[int]:
    return {each if isinstance(each, int) else int(each.partition(".png")[0]) + 1 for each in seen}


def test_the_memory_is_readable(folder: Path) -> None:
    put(folder, "a.png", 9)
    camera = watcher(folder)
    collect(camera, 1)
    camera.close()
    lines = (folder.parent / "state" / "camera-top.watched.jsonl").read_text().splitlines()
    assert [json.loads(line)[2] for line in lines] == ["taken", "done"]
