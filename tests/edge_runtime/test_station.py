"""The station with real capture processes: each trigger has one end, and whatever fails is NOT_INSPECTED."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zmq

from contract.bundle import Bundle, open_bundle
from contract.event import HEADER, Attachment, Gap, Header, Missed, Result, State, Trigger, Verdict
from edge_runtime.capture import CameraStatus
from edge_runtime.emitter import Emitter
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import Engine
from edge_runtime.engines.worker import Outputs, WorkerEngine
from edge_runtime.errors import CardLostError, SpoolError
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink, PresenceSettings
from edge_runtime.shadow import Shadow
from edge_runtime.spool import Spool
from edge_runtime.spool_tables import PRIORITIES
from edge_runtime.station import Station, is_drawn
from edge_runtime.synthetic import PART_LENGTH_PX, SyntheticLine
from tests.edge_runtime.test_mjpeg import Server
from tests.processes import until

URL = "synthetic://line?seed=2&parts=6&fps=50"


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


class Run:
    """One station in this process; nobody listens, so that everything stays in its spool."""

    def __init__(self, folder: Path, bundle: Bundle, engine: Engine, url: str = URL, **settings: Any) -> None:
        camera, max_rows = settings.pop("camera", {}), settings.pop("max_rows", 1_000_000)
        settings = {"deadline_ms": 20_000, "images": "all"} | settings
        self.settings = EdgeSettings(
            edge_id="edge",
            bundle=bundle.root,
            state_dir=folder,
            host=HostLink(endpoint=f"ipc://{folder}/nobody"),
            cameras=[
                CameraSettings(id="top", url=url, presence=PresenceSettings(part_length_px=PART_LENGTH_PX), **camera)
            ],
            **settings,
        )
        self.results: list[Result] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.spool = Spool(folder / "spool.sqlite", max_rows=max_rows)
        self._emitter = Emitter(self.spool, self.settings.host, self._context)
        shadow = Shadow(self.settings, self.spool, self._emitter) if self.settings.shadow.bundle else None
        self.station = Station(
            self.settings, bundle, engine, self.spool, self._emitter, self.results.append, shadow=shadow
        )

    def run(self, beside: Callable[[], None] | None = None) -> list[Header]:
        """Run to the line's end and return everything that was spooled, in order."""
        helper = threading.Thread(target=beside) if beside is not None else None
        self._emitter.start()
        if helper is not None:
            helper.start()
        self.station.run()
        if helper is not None:
            helper.join()
        return self.spooled()

    def spooled(self) -> list[Header]:
        rows = sorted(row for priority in PRIORITIES for row in self.spool.pending(priority, 0, 10_000))
        return [HEADER.validate_json(row.header) for row in rows]

    def close(self) -> None:
        self._emitter.stop()
        with suppress(sqlite3.ProgrammingError):  # closed by the test itself
            self.spool.close()
        self._context.term()


@pytest.fixture
def start(opened: Bundle, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(engine: Engine | None = None, **settings: Any) -> Run:
        runs.append(Run(tmp_path, opened, engine or open_engine("onnxruntime", opened), **settings))
        return runs[-1]

    yield make
    for made in runs:
        made.close()


def kinds(headers: list[Header]) -> Counter[str]:
    return Counter(header.kind for header in headers)


def test_every_trigger_is_announced_then_ended_and_its_map_follows(start: Callable[..., Run]) -> None:
    headers = start().run()
    assert kinds(headers) == {"trigger": 6, "result": 6, "attachment": 12}
    place = {(header.kind, header.part_id): n for n, header in enumerate(headers) if not isinstance(header, Gap)}  # type: ignore[union-attr]
    pictures = {header.part_id: header for header in headers if isinstance(header, Attachment)}
    maps = {header.part_id: header for header in reversed(headers) if isinstance(header, Attachment)}
    for result in (header for header in headers if isinstance(header, Result)):
        assert place["trigger", result.part_id] < place["result", result.part_id] < place["attachment", result.part_id]
        assert result.verdict is not Verdict.NOT_INSPECTED
        assert result.score is not None
        t = result.timing
        stages = (t.t_capture_ns, t.t_trigger_ns, t.t_taken_ns, t.t_prepared_ns, t.t_inferred_ns, t.t_decided_ns)
        assert list(stages) == sorted(stages)
        assert stages[0] > 0
        assert {part.role for part in maps[result.part_id].parts} == {"map"}, "maps go in a message of their own"
        assert {part.role for part in pictures[result.part_id].parts} >= {"image"}
        assert {maps[result.part_id].result_seq, pictures[result.part_id].result_seq} == {result.seq}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_passed_part_that_is_drawn_comes_with_its_picture(start: Callable[..., Run], share: float) -> None:
    headers = start(images="flagged", audit_share=share).run()
    results = [header for header in headers if isinstance(header, Result)]
    assert {result.audit_share for result in results} == {share}
    passed = [result for result in results if result.verdict is Verdict.PASS]
    assert passed and all(result.audited == (share == 1) for result in passed)
    assert not any(result.audited for result in results if result.verdict is not Verdict.PASS)
    roles: dict[str, set[str]] = {}
    for header in headers:
        if isinstance(header, Attachment):
            roles.setdefault(header.part_id, set()).update(part.role for part in header.parts)
    like_flagged = {"map", "image", "reconstruction"}
    assert all(roles[result.part_id] == (like_flagged if share else {"map"}) for result in passed)


def test_chance_draws_the_share_that_was_asked_for() -> None:
    drawn = sum(is_drawn(0.02) for _ in range(100_000))
    assert 1700 < drawn < 2300  # 2 000, give or take 6.8 standard deviations
    assert not any(is_drawn(0.0) for _ in range(1000)) and all(is_drawn(1.0) for _ in range(1000))


def test_an_audit_without_pictures_is_refused(start: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match="cannot judge a part without its picture"):
        start(images="none", audit_share=0.02)


def failing(engine: WorkerEngine, fault: str) -> Engine:
    """A real engine that works once and then fails, or returns what is no number."""
    run, calls = engine._run, []

    def broken(tiles: np.ndarray) -> Outputs:
        calls.append(1)
        if len(calls) == 1:
            return run(tiles)
        if fault == "raises":
            raise RuntimeError("the card fell off the bus")
        return run(tiles)._replace(scores=np.full(1, np.nan, np.float32))

    engine._run = broken  # type: ignore[method-assign]
    return engine


@pytest.mark.parametrize(("fault", "reason"), [("raises", "fell off the bus"), ("nan", "are not finite")])
def test_an_engine_that_fails_gives_no_verdict_but_never_pass(
    start: Callable[..., Run], opened: Bundle, fault: str, reason: str
) -> None:
    run = start(failing(open_engine("onnxruntime", opened), fault))
    run.run()
    assert len(run.results) == 6
    later = run.results[1:]
    assert {result.verdict for result in later} == {Verdict.NOT_INSPECTED}
    # Between two parts the station may have found out by itself; then that is the reason.
    assert all(reason in (result.reason or "") or "computes wrongly" in (result.reason or "") for result in later)


def test_what_is_later_than_its_deadline_is_not_inspected(start: Callable[..., Run], opened: Bundle) -> None:
    slow = open_engine("onnxruntime", opened)
    run_once = slow._run
    released = threading.Event()

    def wait(tiles: np.ndarray) -> Outputs:
        released.wait(0.08)  # the engine's own slowness
        return run_once(tiles)

    slow._run = wait  # type: ignore[method-assign]
    run = start(slow, deadline_ms=60)
    run.run()
    assert len(run.results) == 6
    assert {result.verdict for result in run.results} == {Verdict.NOT_INSPECTED}
    assert all("deadline" in (result.reason or "") for result in run.results)


def test_a_killed_camera_process_is_replaced_and_its_blindness_declared(start: Callable[..., Run]) -> None:
    run = start(url="synthetic://line?seed=2&parts=14")

    def kill() -> None:
        until(lambda: len(run.results) >= 2, "two parts were inspected")
        pid = run.station._cameras[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    headers = run.run(kill)
    gaps = [header for header in headers if isinstance(header, Gap)]
    assert gaps
    assert {gap.camera_id for gap in gaps} == {"top"}
    ends = Counter(header.part_id for header in headers if isinstance(header, Result | Missed))
    begun = Counter(header.part_id for header in headers if isinstance(header, Trigger))
    missed = {header.part_id for header in headers if isinstance(header, Missed)}
    assert set(begun) <= set(ends) <= set(begun) | missed, "a part that is lost at once is told in one message"
    assert set(ends.values()) == {1}
    assert len(ends) >= 10


def test_triggers_that_the_last_run_left_open_become_missed(start: Callable[..., Run], opened: Bundle) -> None:
    run = start()
    header = run.station._trigger_header(
        run.station._cameras[0],
        type("T", (), {"trigger_id": 9, "frame_no": 1, "box": None, "t_capture_ns": 1, "t_trigger_ns": 2})(),
    )
    from edge_runtime.spool import Draft

    run.spool.append([Draft(header)])
    headers = run.run()
    missed = [header for header in headers if isinstance(header, Missed)]
    assert [(m.trigger_id, m.reason) for m in missed] == [(9, "the edge stopped before its verdict")]
    assert not run.spool.open_triggers()


def test_a_camera_that_never_sees_is_a_gap_even_where_the_stop_is_clean(start: Callable[..., Run]) -> None:
    run = start(url="rtsp://127.0.0.1:1/nothing")

    def stop() -> None:
        until(lambda: run.station._watch["top"].blind_since_ns is not None, "the camera's failure is noticed")
        run.station.stop_event.set()

    gaps = [header for header in run.run(stop) if isinstance(header, Gap)]
    assert [gap.camera_id for gap in gaps] == ["top"]


def test_the_time_between_a_clean_stop_and_the_next_start_is_declared(start: Callable[..., Run]) -> None:
    first = start(url="synthetic://line?seed=2&parts=1&fps=100")
    assert not [header for header in first.run() if isinstance(header, Gap)]
    first.spool.close()
    again = start(url="synthetic://line?seed=2&parts=1&fps=100")
    gaps = [header for header in again.run() if isinstance(header, Gap)]
    assert [(gap.camera_id, gap.reason) for gap in gaps] == [(None, "the edge was stopped")]
    assert len(again.results) == 1


def test_an_idle_station_whose_engine_is_lost_ends_with_a_verdict_for_every_part(
    start: Callable[..., Run], opened: Bundle
) -> None:
    """Found out by a proof between two parts; what the cameras take until they are stopped has its end as well."""
    engine = open_engine("onnxruntime", opened)
    run = start(engine, url="synthetic://line?seed=2&parts=400&fps=50")

    def lose() -> None:
        until(lambda: len(run.results) >= 2, "two parts were inspected")
        engine._lost = lambda: "the card is gone"  # type: ignore[method-assign]
        engine._run = lambda tiles: 1 / 0  # type: ignore[method-assign,assignment,return-value]

    with pytest.raises(CardLostError, match="the card is gone"):
        run.run(lose)
    headers = run.spooled()
    triggers = {header.part_id for header in headers if isinstance(header, Trigger)}
    assert triggers == {header.part_id for header in headers if isinstance(header, Result | Missed)}
    assert not run.spool.open_triggers()
    after = [result for result in run.results if result.verdict is Verdict.NOT_INSPECTED]
    assert all(result.reason == "the card is gone" for result in after)
    state = State.model_validate_json((run.settings.state_dir / "state.json").read_bytes())
    assert (state.state, state.inference, state.detail) == ("failed", "failed", "the card is gone")


def test_a_station_whose_emitter_has_ended_stops_instead_of_judging_for_nobody(start: Callable[..., Run]) -> None:
    run = start()
    run._emitter._stopping.set()
    with pytest.raises(SpoolError, match="emitter has ended"):
        run.run()


def test_a_watched_folder_is_ready_before_its_first_picture_and_a_broken_one_has_no_verdict(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    camera = {"trigger": "every-frame", "fixture": "region", "region": (0, 0, 64, 64)}
    run = start(url=f"watch://{folder}?fps=50&settle=0.05&wait=0.3", camera=camera)

    def write() -> None:
        try:
            until(lambda: run.station._state == "running", "it runs while the folder is empty")
            line = SyntheticLine(seed=2, parts=2)
            for number in range(2):
                cv2.imwrite(str(folder / f"{number}.png"), line.render(line.first_frame(line.parts[number])))
            (folder / "torn.jpg").write_bytes(cv2.imencode(".jpg", line.render(0))[1].tobytes()[:-100])
            until(lambda: run.station._cameras[0].status().triggers == 3 and len(run.results) == 2, "all are taken")
        finally:
            run.station.stop_event.set()

    headers = run.run(write)
    (missed,) = [header for header in headers if isinstance(header, Missed)]
    assert missed.reason.startswith("torn.jpg: its content: not a readable image")
    assert kinds(headers)["result"] == 2 and not kinds(headers)["gap"]


def test_a_camera_that_is_opened_anew_is_blind_until_it_sees_again(start: Callable[..., Run]) -> None:
    """A camera that waits for parts counts nothing as skipped: what it did not see has to be declared by its state."""
    run = start()
    run._emitter.start()
    camera = run.station._cameras[0]
    states = iter(["starting", "running", "starting", "starting", "running", "running"])
    run.station._watch["top"].blind_since_ns = None
    camera.status = lambda: CameraStatus(  # type: ignore[method-assign]
        state := next(states), 0, 0, 20.0, 1, "other settings", ready=state == "running"
    )
    blind = []
    for _ in range(6):
        run.station._watch_camera(camera)
        blind.append(run.station._watch["top"].blind_since_ns is not None)
    assert blind == [False, False, True, True, False, False], "before its first frame it is the edge's own outage"
    (gap,) = (header for header in run.spooled() if isinstance(header, Gap))
    assert (gap.camera_id, gap.reason) == ("top", "camera top: other settings")
    assert gap.duration_ns >= 20_000_000, "from its last sign of life on"


def test_a_spool_that_fills_again_and_again_ends_every_part_and_keeps_no_frame(start: Callable[..., Run]) -> None:
    run = start(url="synthetic://line?seed=2&parts=40&fps=50", images="none", max_rows=12)
    taken: list[Header] = []
    over = threading.Event()

    def host() -> None:
        """Away until the spool is full, then it takes everything, as often as that comes."""
        while not over.is_set():
            if run.station._blocked is not None:
                rows = run.spool.pending(0, 0, 1000)
                taken.extend(HEADER.validate_json(row.header) for row in rows)
                run.spool.forget(run.spool.spool_id, [row.seq for row in rows])
            over.wait(0.02)

    helper = threading.Thread(target=host)
    helper.start()
    try:
        headers = run.run()
    finally:
        over.set()
        helper.join()
    headers += taken
    ends = Counter(header.part_id for header in headers if isinstance(header, Result | Missed))
    assert set(ends.values()) == {1}
    assert {header.part_id for header in headers if isinstance(header, Trigger)} <= set(ends)
    full = [header for header in headers if isinstance(header, Gap) and "the spool is full" in header.reason]
    assert len(full) >= 2, "it has to fill more than once to be worth the test"
    assert run.station._cameras[0]._slots == {}, "slots of the ring that nobody gives back"


def test_a_frozen_camera_is_told_while_it_is_frozen_and_a_gap_when_it_sees_again(start: Callable[..., Run]) -> None:
    """A real server that gives the same picture from the tenth on, to every connection anew."""
    server = Server()
    camera = {"trigger": "every-frame", "fixture": "region", "region": (0, 0, 40, 40), "frozen_s": 0.6}
    run = start(url=server.url("frozen"), camera=camera)
    told: list[str] = []

    def watch() -> None:
        try:
            one = run.station._cameras[0]
            until(lambda: one.status().frame_age_ms > 300, "its last new picture grows old")
            until(lambda: one.status().state == "failed" and not told.append(one.status().detail), "it is replaced")
            until(lambda: one.status().restarts >= 1 and one.status().state == "running", "it sees again")
            until(lambda: run.station._watch["top"].blind_since_ns is None, "the gap is declared")
        finally:
            run.station.stop_event.set()

    try:
        headers = run.run(watch)
    finally:
        server.kill()
    assert "camera top: frozen: the same picture for" in told[0]
    gap = next(header for header in headers if isinstance(header, Gap))
    assert "frozen: the same picture for" in gap.reason and gap.camera_id == "top" and gap.duration_ns > 0.6e9
    assert {header.reason for header in headers if isinstance(header, Missed)} == {"frozen camera"}
