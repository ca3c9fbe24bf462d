"""What is counted of a running edge: each event once, whatever is not reached left out, and never an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from contract.event import CameraState, Gap, Header, Missed, Result, State, Timing, Trigger, Verdict
from edge_runtime import observer as module
from edge_runtime.observer import BOUNDS_S, RECENT, UNMATCHED, Histogram, Observer

BASE: dict[str, Any] = {"edge_id": "e", "spool_id": "s", "seq": 1, "run_id": "r", "t_wall_ns": 1}
PART = BASE | {"part_id": "p", "camera_id": "top", "trigger_id": 1, "frame_no": 1}
MS = 1_000_000
TIMING = Timing(
    t_capture_ns=10 * MS,
    t_trigger_ns=12 * MS,
    t_taken_ns=15 * MS,
    t_prepared_ns=16 * MS,
    t_inferred_ns=20 * MS,
    t_decided_ns=21 * MS,
    t_spooled_ns=22 * MS,
)


def result(verdict: Verdict = Verdict.PASS, timing: Timing = TIMING) -> Result:
    return Result(
        **PART,
        timing=timing,
        verdict=verdict,
        recipe="r",
        bundle_id="b",
        model_sha256="ab" * 32,
        engine="x",
    )


def gap(camera: str | None) -> Gap:
    return Gap(**BASE, reason="x", camera_id=camera, from_wall_ns=0, to_wall_ns=1, duration_ns=1_500_000_000)


def heartbeat(frames: int) -> State:
    camera = CameraState(camera_id="top", state="running", frames=frames)
    return State(**BASE, state="running", cameras=(camera,))


def test_events_are_counted_by_camera() -> None:
    seen = Observer()
    headers: list[Header] = [
        Trigger(**PART),
        result(),
        result(Verdict.REJECT),
        Missed(**PART, reason="x"),
        gap("top"),
        gap(None),
    ]
    seen.recorded(headers, range(1, 7))
    found = seen.snapshot()
    assert found.results == {("top", "PASS"): 1, ("top", "REJECT"): 1}
    assert found.missed == {"top": 1} and found.gaps == {"top": 1, "": 1} and found.gap_s["top"] == 1.5


def test_each_stage_has_its_time_and_what_was_not_reached_none() -> None:
    seen = Observer()
    unreached = TIMING.model_copy(update={"t_prepared_ns": 0, "t_inferred_ns": 0})
    seen.recorded([result(), result(Verdict.NOT_INSPECTED, unreached)], (1, 2))
    recent = {stage: times for stage, times in seen.snapshot().recent.items() if times}
    expected = {
        "trigger": [2, 2],
        "queue": [3, 3],
        "preprocess": [1],
        "inference": [4],
        "decision": [1],
        "record": [1, 1],
    }
    assert {stage: [round(1e3 * time, 6) for time in times] for stage, times in recent.items()} == expected


@pytest.mark.parametrize("emitter_first", [False, True])
def test_sending_is_timed_whichever_thread_comes_first(emitter_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "monotonic_ns", lambda: 25 * MS)
    seen = Observer()
    steps: list[Callable[[], None]] = [lambda: seen.recorded([result()], [7]), lambda: seen.sent(7)]
    for step in reversed(steps) if emitter_first else steps:
        step()
    recent = seen.snapshot().recent
    assert recent["send"] == [pytest.approx(0.003)] and recent["total"] == [pytest.approx(0.015)]
    seen.sent(7)  # sent again: not a second time
    assert len(seen.snapshot().recent["send"]) == 1


def test_memory_is_bounded_whatever_is_never_matched() -> None:
    seen = Observer()
    for seq in range(UNMATCHED + 100):
        seen.sent(seq)
        seen.recorded([result()], [10**9 + seq])
    assert len(seen._sent) == len(seen._recorded) == UNMATCHED
    assert len(seen.snapshot().recent["queue"]) == RECENT


def test_nothing_that_it_is_told_raises(caplog: pytest.LogCaptureFixture) -> None:
    seen = Observer()
    for _ in range(3):
        seen.recorded([None], [1])  # type: ignore[list-item]
        seen.recorded([result()], [])
    seen.heartbeat(None)  # type: ignore[arg-type]
    assert seen.snapshot().results == {}
    assert sum("figures are incomplete" in record.message for record in caplog.records) <= 2, "said once each"


def test_histogram_is_cumulative_and_its_bounds_inclusive() -> None:
    times = Histogram()
    for seconds in (0.0, BOUNDS_S[0], 0.0151, 99.0):
        times.add(seconds)
    found = dict(zip((*BOUNDS_S, None), times.cumulative(), strict=True))
    assert found[BOUNDS_S[0]] == 2 and found[0.015] == 2 and found[0.02] == 3 and found[10.0] == 3 and found[None] == 4


def test_frame_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Observer()
    for second in range(20):
        monkeypatch.setattr(module.time, "monotonic_ns", lambda now=second: (100 + now) * 1_000_000_000)
        seen.heartbeat(heartbeat(10 * second if second < 12 else 110 + 30 * (second - 11)))
    assert seen.snapshot().fps == {"top": pytest.approx(30.0)}


def test_a_part_costs_little() -> None:
    """Against encoding the same result once, which every part pays anyhow: a ratio, in turns."""
    seen, told = Observer(), result()
    ratios = []
    for turn in range(9):
        start = time.perf_counter()
        for seq in range(200):
            seen.recorded([told], [1000 * turn + seq])
            seen.sent(1000 * turn + seq)
        middle = time.perf_counter()
        for _ in range(200):
            told.model_dump_json(by_alias=True, exclude_none=True)
            Result.model_validate(told.model_dump())
        ratios.append((middle - start) / (time.perf_counter() - middle))
    assert min(ratios) < 3
