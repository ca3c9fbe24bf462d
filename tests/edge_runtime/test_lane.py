"""Parts under way in an engine while others are prepared: each gets its own verdict, once, in order."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import zmq

from calibration.quality import bounds_from, see
from contract.bundle import Bundle
from contract.control import Request
from contract.errors import FlawlineError
from contract.event import HEADER, Attachment, Header, Missed, Result, State, Timing, Trigger, Verdict
from contract.images import PixelFormat
from contract.preprocess import prepare
from contract.recipe import Recipe, Thresholds
from edge_runtime.capture import CapturedTrigger
from edge_runtime.control import Order
from edge_runtime.emitter import Emitter
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import SLOTS
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.engines.worker import Outputs
from edge_runtime.errors import CardLostError
from edge_runtime.inspector import Inspector
from edge_runtime.recipes import Judge
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink
from edge_runtime.spool import Row, Spool
from edge_runtime.station import BUSY_PROOF_S, PROOF_CPU, PROOF_S, RARE_PROOF_S, SUPERSEDED, Pending, Station
from tests.bundles import draw_part
from tests.graphs import write_bundle
from tests.processes import until

GOOD = [draw_part(number) for number in range(30)]
SCORES = Thresholds(reject=1e-6, map=1, method="t", false_reject_rate=0.1, groups=1, images=1, engine="onnxruntime")


class Held(OnnxRuntimeEngine):
    """The real engine, held at the beginning of each inference; what it reconstructs is the part itself."""

    def __init__(self, *given: Any) -> None:
        self.permits = threading.Semaphore(0)
        self.begun = 0
        self.fault: Exception | None = None
        super().__init__(*given)

    def _run(self, tiles: np.ndarray) -> Outputs:
        self.begun += 1
        self.permits.acquire()
        if self.fault is not None:
            raise self.fault
        return super()._run(tiles)._replace(reconstruction=tiles.copy())

    def let_go(self, count: int = 100) -> None:
        self.permits.release(count)


class Camera(NamedTuple):
    """What the station asks of a camera, with parts that are drawn."""

    settings: CameraSettings
    released: list[int]

    def cut(self, trigger: CapturedTrigger) -> tuple[np.ndarray, PixelFormat]:
        if trigger.trigger_id < 0:
            raise FlawlineError("no such picture")
        return GOOD[trigger.trigger_id].copy(), PixelFormat.MONO8

    def origin(self, trigger: CapturedTrigger) -> tuple[int, int]:
        return 0, 0

    def release(self, trigger: CapturedTrigger) -> None:
        self.released.append(trigger.trigger_id)


class Box:
    """A station whose cameras never start: parts are put where its cameras would put them."""

    def __init__(self, folder: Path, bundle: Bundle, **more: Any) -> None:
        self.settings = EdgeSettings(
            edge_id="edge",
            bundle=bundle.root,
            state_dir=folder,
            host=HostLink(endpoint=f"ipc://{folder}/nobody"),
            cameras=[
                CameraSettings(id="every", url="synthetic://line"),
                CameraSettings(id="fresh", url="synthetic://line", policy="freshest"),
            ],
            **{"deadline_ms": 60_000, "images": "none"} | more,
        )
        self.engine = self.open(bundle)
        self.results: list[Result] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.spool = Spool(folder / "spool.sqlite")
        self._emitter = Emitter(self.spool, self.settings.host, self._context)
        self.station = Station(self.settings, bundle, self.engine, self.spool, self._emitter, self.results.append)
        self.station._next_proof = time.monotonic() + 3600
        self._emitter.start()
        self.cameras = {each.id: Camera(each, []) for each in self.settings.cameras}

    def open(self, bundle: Bundle) -> Held:
        real = open_engine("onnxruntime", bundle)
        held = Held((bundle.root / "model.fp32.onnx").read_bytes(), real.spec)
        real.close()
        return held

    def take(self, *numbers: int, camera: str = "every") -> None:
        for number in numbers:
            now = time.monotonic_ns()
            trigger = CapturedTrigger(number, number, now, now, None, None)
            header = Trigger(
                edge_id="edge", spool_id="s", seq=1, run_id="r", t_wall_ns=1, part_id=f"{camera}-{number}",
                camera_id=camera, trigger_id=abs(number), frame_no=abs(number), timing=Timing(t_capture_ns=now),
            )  # fmt: skip
            self.station._pending.append(Pending(self.cameras[camera], trigger, header))  # type: ignore[arg-type]

    def advance(self) -> int:
        """As far as it goes without the engine; returns how many are under way."""
        for _ in range(len(self.station._pending) + 1):
            self.station._advance()
        return self.engine.under_way

    def until_results(self, count: int) -> None:
        until(lambda: self.station._advance() or len(self.results) >= count, f"{count} results")

    def spooled(self) -> list[Header]:
        rows = sorted(self.spool.pending(0, 0, 10_000) + self.spool.pending(1, 0, 10_000))
        return [HEADER.validate_json(row.header) for row in rows]

    def state(self) -> State:
        self.station._send_state()
        return State.model_validate_json((self.settings.state_dir / "state.json").read_bytes())

    def close(self) -> None:
        self.engine.let_go()
        self.engine.close()
        for camera in self.station._cameras:
            camera.stop()
        self._emitter.stop()
        self.spool.close()
        self._context.term()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    quality = bounds_from([see(prepare(part, Recipe()), part.shape[:2]) for part in GOOD])
    return write_bundle(tmp_path_factory.mktemp("bundle"), GOOD, thresholds=SCORES, quality=quality)


@pytest.fixture
def box(bundle: Bundle, tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, bundle)
    yield made
    made.close()


@pytest.fixture
def alone(bundle: Bundle) -> Callable[[int], float | None]:
    """The score that a part has when nothing else is under way."""
    inspector = Inspector(bundle, open_engine("onnxruntime", bundle))
    return lambda number: inspector.inspect(GOOD[number]).score


def test_the_next_part_is_prepared_while_one_infers_and_each_gets_its_own_score(
    box: Box, alone: Callable[[int], float | None]
) -> None:
    box.take(0, 1, 2, -3, 4, 5)
    assert box.advance() == SLOTS == 3
    assert box.cameras["every"].released == [0, 1, 2], "three are cut, the others wait in shared memory"
    assert not box.results
    box.engine.let_go(1)
    box.until_results(1)
    assert box.advance() == SLOTS, "the engine has its next part already"
    box.engine.let_go()
    box.until_results(6)
    assert [result.part_id for result in box.results] == [f"every-{number}" for number in (0, 1, 2, -3, 4, 5)]
    assert [result.score for result in box.results] == [alone(n) if n >= 0 else None for n in (0, 1, 2, -3, 4, 5)]
    assert box.results[3].reason == "no such picture"
    for result in box.results:
        t = result.timing
        stages = [t.t_taken_ns, t.t_prepared_ns, t.t_inferred_ns, t.t_decided_ns, t.t_spooled_ns]
        assert result.score is None or stages == sorted(stages)


def test_parts_that_wait_while_one_infers_go_through_the_next_inference_together(
    box: Box, alone: Callable[[int], float | None]
) -> None:
    box.engine.joined = box.engine._pays_from = 4
    box.take(0, 1, 2, -3, 4)
    box.take(5, camera="fresh")
    box.take(*range(6, 13))
    assert box.advance() == 8, "one at once; of the four that follow one cannot be cut; four behind them"
    until(lambda: box.engine.begun == 1, "the first one infers")
    assert len(box.station._lane) == 9 and len(box.station._pending) == 4
    box.engine.let_go(1)
    box.until_results(1)
    box.advance()
    assert len(box.station._pending) == 0, "the other four follow them"
    box.engine.let_go()
    box.until_results(13)
    assert box.engine.begun == 4
    cameras = ["fresh" if number == 5 else "every" for number in range(13)]
    numbers = [-3 if number == 3 else number for number in range(13)]
    assert [result.part_id for result in box.results] == [f"{c}-{n}" for c, n in zip(cameras, numbers, strict=True)]
    assert [result.score for result in box.results] == [
        None if number < 0 else pytest.approx(alone(number), rel=1e-4) for number in numbers
    ]
    for result in box.results:
        t = result.timing
        stages = [t.t_taken_ns, t.t_prepared_ns, t.t_inferred_ns, t.t_decided_ns, t.t_spooled_ns]
        assert result.score is None or stages == sorted(stages)


def test_fewer_parts_than_are_worth_it_are_inferred_one_by_one(box: Box) -> None:
    box.engine.joined, box.engine._pays_from = 4, 3
    box.take(0, 1, 2)
    assert box.advance() == 3, "two wait behind the first"
    box.take(3, 4, 5)
    box.engine.let_go(1)
    box.until_results(1)
    assert box.advance() == 5, "three wait"
    box.engine.let_go()
    box.until_results(6)
    assert box.engine.begun == 4


def test_an_inference_of_several_parts_that_fails_leaves_each_one_without_a_verdict(box: Box) -> None:
    box.engine.joined = box.engine._pays_from = 3
    box.take(0, 1, 2, 3)
    box.advance()
    box.engine.let_go(1)
    box.until_results(1)
    box.engine.fault = RuntimeError("no room")
    box.engine.let_go()
    box.until_results(4)
    assert [result.verdict is Verdict.NOT_INSPECTED for result in box.results] == [False, True, True, True]
    assert {result.reason for result in box.results[1:]} == {"onnxruntime: inference failed: no room"}
    assert [result.part_id for result in box.results] == [f"every-{number}" for number in range(4)]


def test_parts_of_two_recipes_and_two_of_a_camera_that_wants_the_freshest_are_never_together(
    box: Box, bundle: Bundle
) -> None:
    other = Judge(2, bundle, box.open(bundle), box.settings)
    box.engine.joined, box.engine._pays_from = 8, 2
    box.take(0, 1, 2)
    box.station._pending.append(order(other))
    box.take(3, 4)
    assert box.advance() == 3 and len(box.station._pending) == 3, "the order and what stands behind it"
    box.engine.let_go()
    other.engine.let_go()  # type: ignore[attr-defined]
    box.until_results(5)
    assert [result.recipe_number for result in box.results] == [1, 1, 1, 2, 2]
    other.engine.joined, other.engine._pays_from = 8, 2
    other.engine.permits = threading.Semaphore(0)  # type: ignore[attr-defined]
    box.take(5)
    box.take(6, 7, camera="fresh")
    box.take(8)
    box.advance()
    assert [taken.header.part_id for taken in box.station._lane] == ["every-5", "fresh-6", "every-8"]
    other.engine.let_go()  # type: ignore[attr-defined]
    box.until_results(9)
    other.engine.close()


@pytest.mark.parametrize("joined", [1, 3])
def test_a_part_s_pictures_are_its_own(bundle: Bundle, tmp_path: Path, joined: int) -> None:
    box = Box(tmp_path, bundle, images="all")
    box.engine.joined = box.engine._pays_from = joined
    try:
        box.station._pictures.start()
        box.engine.let_go()
        box.take(*range(8))
        box.until_results(8)
        box.station._pictures.stop()

        def rows_by_part() -> dict[str, Row]:
            return {HEADER.validate_json(row.header).part_id: row for row in box.spool.pending(2, 0, 100)}  # type: ignore[union-attr]

        # The emitter reads over the same connection: while it does, what was written meanwhile is not seen.
        until(lambda: len(rows_by_part()) == 8, "all pictures are in the spool")
        rows = rows_by_part()
        assert all(result.verdict is not Verdict.NOT_INSPECTED for result in box.results), box.results
        assert (len(rows), box.station._pictures.dropped) == (8, 0), sorted(rows)
        for number in range(8):
            row = rows[f"every-{number}"]
            header = HEADER.validate_json(row.header)
            assert isinstance(header, Attachment)
            shown = {
                part.role: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
                for part, data in zip(header.parts, row.parts, strict=True)
                if part.codec == "png"
            }
            np.testing.assert_array_equal(shown["image"], GOOD[number])
            np.testing.assert_array_equal(shown["reconstruction"], prepare(GOOD[number], Recipe()).tiles[0, ..., 0])
    finally:
        box.close()


def test_a_busy_engine_is_no_failed_one_and_what_is_under_way_counts_as_waiting(box: Box) -> None:
    box.take(0, 1, 2)
    box.advance()
    until(lambda: box.engine.begun == 1, "it infers")
    busy = box.state()
    assert (busy.inference, busy.waiting) == ("ok", 3) and busy.waiting_ms > 0
    box.engine.fault = RuntimeError("no")
    box.engine.let_go()
    box.until_results(3)
    assert box.state().inference == "failed" and {result.verdict for result in box.results} == {Verdict.NOT_INSPECTED}
    box.engine.fault = None
    box.take(3)
    box.until_results(4)
    assert box.state().inference == "ok"


def test_of_a_camera_that_wants_the_freshest_one_part_is_under_way_and_the_newest_follows(box: Box) -> None:
    box.take(0, camera="fresh")
    assert box.advance() == 1
    box.take(1, 2, camera="fresh")
    box.take(3)
    assert box.advance() == 2 and box.cameras["fresh"].released == [0], "the other camera's part goes past it"
    box.take(4, camera="fresh")
    box.station._advance(box.station._pass_over_superseded())
    assert box.cameras["fresh"].released == [0, 1, 2], "they give their frames back at once"
    box.engine.let_go()
    box.until_results(3)
    assert sorted(result.part_id for result in box.results) == ["every-3", "fresh-0", "fresh-4"]
    missed = [header for header in box.spooled() if isinstance(header, Missed)]
    assert [(header.part_id, header.reason) for header in missed] == [("fresh-1", SUPERSEDED), ("fresh-2", SUPERSEDED)]


def order(judge: Judge | None) -> Order:
    request = Request(
        id="i", idempotency_key="k", run_id="r", hello_ns=time.monotonic_ns(), deadline_after_hello_ms=60_000,
        what="recipe", number=2,
    )  # fmt: skip
    return Order(request, judge)


def test_a_recipe_is_exchanged_and_an_engine_proven_only_when_nothing_is_under_way(box: Box, bundle: Bundle) -> None:
    other = Judge(2, bundle, box.open(bundle), box.settings)
    seen: list[tuple[str, int]] = []
    obey, prove = box.station._obey, box.station._prove_engine
    box.station._obey = lambda each: (seen.append(("order", box.engine.under_way)), obey(each))  # type: ignore[assignment,method-assign,func-returns-value]
    box.station._prove_engine = lambda: (seen.append(("proof", box.engine.under_way)), prove())  # type: ignore[assignment,method-assign,func-returns-value]
    box.take(0, 1)
    box.station._pending.append(order(other))
    box.take(2)
    assert box.advance() == 2
    box.station._next_proof = time.monotonic() - BUSY_PROOF_S - 1
    box.take(3)
    assert box.advance() == 2 and not seen, "parts are under way"
    box.engine.let_go()
    other.engine.let_go()  # type: ignore[attr-defined]
    box.until_results(4)
    assert seen[:2] == [("proof", 0), ("order", 0)]
    assert [(result.part_id, result.recipe_number) for result in box.results] == [
        ("every-0", 1), ("every-1", 1), ("every-2", 2), ("every-3", 2),
    ]  # fmt: skip
    other.engine.close()


def test_a_card_that_is_lost_with_several_parts_under_way_leaves_each_one_end(box: Box) -> None:
    box.take(*range(6))
    box.advance()
    box.engine.fault = RuntimeError("an illegal address")
    box.engine._lost = lambda: "the card is gone"  # type: ignore[method-assign]
    box.engine.let_go()
    box.until_results(1)
    assert box.engine.lost is not None
    with pytest.raises(CardLostError, match="the card is gone"):
        box.station._fail(box.engine.lost)
    ends = Counter(header.part_id for header in box.spooled() if isinstance(header, Result))
    assert ends == {f"every-{number}": 1 for number in range(6)}
    assert {(result.verdict, result.reason) for result in box.results} == {(Verdict.NOT_INSPECTED, "the card is gone")}


def test_a_deadline_that_passes_while_it_infers_is_no_verdict(bundle: Bundle, tmp_path: Path) -> None:
    box = Box(tmp_path, bundle, deadline_ms=200)
    try:
        box.take(0)
        box.take(1)
        header = box.station._pending[1].header  # type: ignore[union-attr]
        assert box.advance() == 2
        box.take(2)
        until(lambda: box.station._late(header), "both are late")
        until(lambda: box.station._late(box.station._pending[0].header), "the third as well")  # type: ignore[union-attr]
        box.engine.let_go()
        box.until_results(3)
        assert all((result.reason or "").startswith("deadline: ") for result in box.results)
        assert [result.timing.t_inferred_ns > 0 for result in box.results] == [True, True, False]
    finally:
        box.close()


def test_a_model_that_processors_infer_is_proven_rarely_and_a_cheap_or_failing_one_every_second(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    used_s = cost_s = 0.0

    def prove() -> None:
        nonlocal used_s
        used_s += cost_s

    def pause_s() -> float:
        before = time.monotonic()
        box.station._prove_engine()
        return box.station._next_proof - before

    monkeypatch.setattr(time, "process_time", lambda: used_s)
    monkeypatch.setattr(box.engine, "prove", prove)
    assert pause_s() == pytest.approx(PROOF_S, abs=0.4)
    cost_s = 0.02
    assert pause_s() == pytest.approx(cost_s / PROOF_CPU, abs=0.4)
    cost_s = 1.0
    assert pause_s() == pytest.approx(RARE_PROOF_S, abs=0.4)
    box.engine.failing = True
    assert pause_s() == pytest.approx(PROOF_S, abs=0.4), "so that the line goes on as soon as it infers again"


def test_a_part_that_fails_brings_the_next_proof_nearer(box: Box) -> None:
    box.station._next_proof = time.monotonic() + RARE_PROOF_S
    box.engine.fault = RuntimeError("for once")
    box.engine.let_go()
    box.take(0)
    box.until_results(1)
    assert box.engine.failing and box.station._next_proof <= time.monotonic() + PROOF_S
    box.engine.fault = None
    until(lambda: box.station._advance() or not box.engine.failing, "the line goes on without another part")
