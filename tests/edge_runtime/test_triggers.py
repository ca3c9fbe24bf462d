"""Parts that are asked for: exactly one for each request, with the frame that was meant, or the reason for none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.bundle import Bundle, open_bundle
from contract.control import Part
from contract.event import Trigger, Verdict
from edge_runtime.settings import CameraSettings
from edge_runtime.station import STOPPED
from edge_runtime.triggers import MAX_WAITING
from edge_runtime.wanted import GONE, KeptFrame, Wanted, choose
from tests.edge_runtime.asked import LONG_S, Asked, ends
from tests.processes import freeze, until

MS = 1_000_000
FPS = 20
TOP = {"id": "top", "url": f"synthetic://line?seed=2&parts=2000&fps={FPS}", "trigger": "software"}


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture
def start(opened: Bundle, tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    made: list[Asked] = []

    def make(*cameras: dict[str, Any], **more: Any) -> Asked:
        made.append(Asked(tmp_path, opened, list(cameras) or [TOP], **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def frames(*times_ms: int) -> list[KeptFrame]:
    return [KeptFrame(slot, 10 + slot, at * MS) for slot, at in enumerate(times_ms)]


@pytest.mark.parametrize(
    ("at_ms", "nearest", "kept_ms", "gone_ms", "expected"),
    [
        (100, False, (60, 90), 0, None),  # the first one after it is still to come
        (100, False, (90, 110, 120), 0, 110),
        (100, False, (100, 110), 0, 100),
        (100, False, (90, 170), 0, "no frame within 50 ms after it was asked for: the next best lies 70 ms from it"),
        (100, False, (120, 130), 99, 120),
        (100, False, (120, 130), 105, GONE),
        (100, False, (), 105, GONE),
        (100, True, (60, 90), 0, None),  # a nearer one may come
        (100, True, (90, 120), 0, 90),
        (100, True, (70, 110), 0, 110),
        (100, True, (120, 130), 85, GONE),
        (100, True, (120, 130), 75, 120),
        (100, True, (110, 130), 105, GONE),
        (100, True, (), 105, GONE),
        (100, True, (30, 170), 0, "no frame within 50 ms of the time asked for: the next best lies 70 ms from it"),
    ],
)
def test_the_frame_that_was_meant_or_none(
    at_ms: int, nearest: bool, kept_ms: tuple[int, ...], gone_ms: int, expected: int | str | None
) -> None:
    found = choose(Wanted(at_ms * MS, 50 * MS, nearest), frames(*kept_ms), gone_ms * MS)
    assert (found.t_capture_ns // MS if isinstance(found, KeptFrame) else found) == expected


def test_a_request_is_one_part_with_the_first_frame_after_it(start: Callable[..., Asked]) -> None:
    edge = start()
    edge.sees()
    parts = [Part(serial=f"SN-{n}", lot="L7", encoder=-40 * n) for n in (1, 2, 3)]
    replies = [edge.ask(part) for part in parts]
    assert [reply.outcome for reply in replies] == ["ok"] * 3
    results = edge.wait_results(3)
    assert [(each.serial, each.lot, each.encoder) for each in results] == [
        (part.serial, part.lot, part.encoder) for part in parts
    ]
    assert [each.part_id for each in results] == [part_id for reply in replies for part_id in reply.part_ids]
    for each in results:
        after_ns = each.timing.t_capture_ns - each.timing.t_trigger_ns
        assert 0 <= after_ns < 1e9 / FPS, "the first one, so it lies less than a frame's time behind the request"
        assert each.timing.t_capture_ns <= each.timing.t_decided_ns
        assert each.frame_no > 0 and "no picture" not in (each.reason or "")
    headers = edge.end()
    triggered, ended = ends(headers)
    assert triggered == ended == sorted(each.part_id for each in results)
    assert {each.serial for each in headers if isinstance(each, Trigger)} == {"SN-1", "SN-2", "SN-3"}


def test_the_same_request_twice_is_one_part_and_the_same_serial_twice_is_two(start: Callable[..., Asked]) -> None:
    edge = start()
    edge.sees()
    first, again = (edge.ask(Part(serial="SN-1"), key="once") for _ in range(2))
    other = edge.ask(Part(serial="SN-1"), key="another")
    assert first.part_ids == again.part_ids != other.part_ids
    edge.wait_results(2)
    triggered, ended = ends(edge.end())
    assert triggered == ended == sorted([*first.part_ids, *other.part_ids])
    assert [each.serial for each in edge.results] == ["SN-1", "SN-1"]


def test_with_an_offset_the_frame_nearest_to_it(start: Callable[..., Asked]) -> None:
    edge = start(TOP | {"exposure_offset_ms": -100, "within_ms": 40})
    until(lambda: edge.station._cameras[0].status().frames > 5, "there are frames from before the request", LONG_S)
    assert edge.ask().outcome == "ok"
    (result,) = edge.wait_results(1)
    offset_ms = (result.timing.t_capture_ns - result.timing.t_trigger_ns) / MS
    assert abs(offset_ms + 100) <= 1000 / FPS / 2 + 1e-3
    assert result.timing.t_begin_ns == result.timing.t_capture_ns, "its age counts from what came first"


def test_each_camera_that_is_named_or_all_of_them(start: Callable[..., Asked]) -> None:
    edge = start(TOP, TOP | {"id": "side"}, TOP | {"id": "back", "trigger": "presence"})
    edge.sees()
    assert [each.rpartition("-")[0].rpartition("-")[0] for each in edge.ask().part_ids] == ["top", "side"]
    assert len(edge.ask(Part(cameras=("side", "side"))).part_ids) == 1
    refused = edge.ask(Part(cameras=("side", "back")))
    assert (refused.outcome, refused.part_ids) == ("refused", ())
    assert refused.reason == "no camera 'back' is triggered by request; there are: top, side"
    until(lambda: sum(each.camera_id != "back" for each in edge.results) == 3, "three parts", LONG_S)
    triggered, ended = ends(edge.end())
    assert triggered == ended


def test_a_part_whose_camera_is_blind_has_its_end_with_the_reason(start: Callable[..., Asked]) -> None:
    edge = start(TOP | {"within_ms": 100})
    edge.sees()
    pid = edge.station._cameras[0].pid
    assert pid is not None
    freeze(pid)
    try:
        reply = edge.ask(Part(serial="SN-9"))
        (result,) = edge.wait_results(1)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert reply.outcome == "ok"
    assert (result.verdict, result.serial) == (Verdict.NOT_INSPECTED, "SN-9")
    assert "has no picture: no frame within 100 ms after it was asked for; the camera is" in (result.reason or "")


def test_a_part_waits_for_the_process_that_replaces_a_killed_camera(start: Callable[..., Asked]) -> None:
    edge = start(TOP | {"within_ms": 30_000})
    edge.sees()
    pid = edge.station._cameras[0].pid
    assert pid is not None
    freeze(pid)  # from here on it gives no frame, so the request lies between the trigger and its frame
    reply = edge.ask(Part(serial="SN-9"))
    os.kill(pid, signal.SIGKILL)
    (result,) = edge.wait_results(1)
    assert result.part_id in reply.part_ids
    assert "no picture" not in (result.reason or "")
    assert edge.station._cameras[0].pid not in (None, pid)
    assert result.timing.t_capture_ns >= result.timing.t_trigger_ns


def test_while_stopped_it_is_not_inspected_and_after_its_deadline_not_taken(start: Callable[..., Asked]) -> None:
    edge = start()
    edge.sees()
    assert edge.host.stop_inspecting("edge", LONG_S).result(LONG_S).outcome == "ok"
    assert edge.ask().outcome == "ok"
    (result,) = edge.wait_results(1)
    assert (result.verdict, result.reason) == (Verdict.NOT_INSPECTED, STOPPED)
    late = edge.host.trigger("edge", Part(), 0.0).result(LONG_S)
    assert late.outcome in ("refused", "unknown") and not late.part_ids
    triggered, ended = ends(edge.end())
    assert triggered == ended == [result.part_id]


def test_a_frame_later_than_the_part_s_deadline_is_no_verdict(start: Callable[..., Asked]) -> None:
    slow = {"id": "top", "url": "synthetic://line?seed=2&parts=2000&fps=2", "trigger": "software", "within_ms": 5000}
    edge = start(slow, deadline_ms=10)
    edge.sees()
    replies = [edge.ask() for _ in range(3)]
    results = edge.wait_results(3)
    assert [reply.outcome for reply in replies] == ["ok"] * 3
    late = [each for each in results if each.timing.t_capture_ns - each.timing.t_trigger_ns > 10 * MS]
    assert all((each.verdict, "deadline: " in (each.reason or "")) == (Verdict.NOT_INSPECTED, True) for each in late)


def test_more_than_may_wait_and_what_no_camera_takes_are_refused(start: Callable[..., Asked]) -> None:
    edge = start(TOP | {"within_ms": 60_000})
    edge.sees()
    pid = edge.station._cameras[0].pid
    assert pid is not None
    freeze(pid)
    asked = [edge.host.trigger("edge", Part(), LONG_S) for _ in range(MAX_WAITING + 1)]
    replies = [each.result(LONG_S) for each in asked]
    os.kill(pid, signal.SIGKILL)
    assert [reply.outcome for reply in replies] == ["ok"] * MAX_WAITING + ["refused"]
    assert replies[-1].reason == f"{MAX_WAITING} parts wait for their frame already"
    triggered, ended = ends(edge.end())
    assert triggered == ended and len(set(triggered)) == MAX_WAITING, "a stop gives each its end"


def test_an_edge_without_such_a_camera_says_so(start: Callable[..., Asked]) -> None:
    edge = start(TOP | {"trigger": "presence"})
    edge.sees()
    assert edge.ask().reason == 'no camera of this edge has trigger = "software"'


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"exposure_offset_ms": 5, "trigger": "presence"}, "belongs to trigger = 'software'"),
        ({"line_triggered": True}, "line_triggered belongs to trigger = 'follow'"),
        ({"line_triggered": True, "trigger": "follow"}, "needs a GenICam camera"),
        ({"url": "watch:///tmp"}, "each picture of a watched folder is a part"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CameraSettings.model_validate(TOP | fields)
