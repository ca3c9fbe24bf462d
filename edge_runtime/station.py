"""The station: the only place that calls hops 2 to 6, from an announced trigger to a spooled verdict."""

from __future__ import annotations

import logging
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NoReturn

import numpy as np

from contract.bundle import Bundle
from contract.camera import controls_of
from contract.control import Status
from contract.errors import BundleError, FlawlineError
from contract.event import CameraState, Gap, Missed, Result, State, Timing, Trigger, Verdict
from contract.overseer import Pulse
from edge_runtime.capture import CameraProcess, CapturedTrigger
from edge_runtime.clock import StepWatch, boot_id, boot_ns, synchronised
from edge_runtime.codes import CodeReader
from edge_runtime.control import Order, Orders
from edge_runtime.cutting import CutPart, said_of, with_cut
from edge_runtime.drift_desk import DriftDesk
from edge_runtime.emitter import Emitter
from edge_runtime.engines.base import Engine
from edge_runtime.errors import CardLostError, SpoolBlockedError, SpoolError
from edge_runtime.glimpse import Glimpse
from edge_runtime.holdout import hold_out
from edge_runtime.inspector import Outcome, Ready, not_inspected
from edge_runtime.joining import Joining, Pending
from edge_runtime.lane import Lane, Taken, failed
from edge_runtime.observer import Observer
from edge_runtime.pictures import Pictures
from edge_runtime.recipes import NEVER_ASKED, Choice, Judge, write_choice
from edge_runtime.settings import EdgeSettings
from edge_runtime.shadow import Shadow
from edge_runtime.slots import overtaken, settle
from edge_runtime.spool import ANOTHER_BOOT_MS, Draft, Outage, Spool
from edge_runtime.triggers import Triggers

IDLE_S, JOIN_S = 0.2, 0.05
"""Longest sleep: with nothing under way; and while a part waits for a frame, whose time may run out."""

LOOK_S = 0.01
"""How often camera processes, orders and clocks are looked after while parts keep the station busy."""

ALIVE_S = 0.2
KEEP_S = 1.0
"""How often the heartbeat is also written to a file; at once where it says something else than before."""

PROOF_S = 1.0
BUSY_PROOF_S = 60.0
"""While parts wait, a proof waits so much longer."""

PROOF_SHARE = 0.05
"""Most of an idle station's time that may go into proofs, so that a part hardly ever waits for one."""

PROOF_CPU = 0.003
"""Most of a core as well: a model that is inferred by processors is tried less often, RARE_PROOF_S apart at most."""

RARE_PROOF_S = 10.0

SUPERSEDED = "superseded by a fresher part"
STOP_S = 60.0
"""Longest time for the last pictures and the cameras' ends, once every part has its verdict."""

CAMERA_STOP_S = 10.0
"""Longest time for one camera's process to end; one that hangs is killed before."""

STOPPED = "inspection is stopped by request"
STATE_FILE = "state.json"

log = logging.getLogger(__name__)
_CHANCE = random.SystemRandom()


class Station:
    """Takes triggers from the cameras in order, gives each one verdict, and writes it to the spool."""

    def __init__(
        self,
        settings: EdgeSettings,
        bundle: Bundle,
        engine: Engine,
        spool: Spool,
        emitter: Emitter,
        on_result: Callable[[Result], None] | None = None,
        control: Orders | None = None,
        choice: Choice | None = None,
        observer: Observer | None = None,
        glimpses: Mapping[str, Glimpse] | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self._settings = settings
        self._observer = observer or Observer()
        self._clock, self._boot_id = StepWatch(), boot_id()
        self._choice = choice or NEVER_ASKED
        self._judge = Judge(self._choice.number, bundle, engine, settings)
        self._control = control
        self._parts = self._not_inspected = 0
        self._spool = spool
        self._emitter = emitter
        self._on_result = on_result or (lambda result: None)
        self._cameras = [
            CameraProcess(
                camera,
                settings.state_dir,
                resumed=spool.outage is not None and not spool.outage.clean,
                after_stop=spool.outage is not None and spool.outage.clean,
                controls=controls_of(bundle.manifest.cameras, camera.id),
                glimpse=(glimpses or {}).get(camera.id),
            )
            for camera in settings.cameras
        ]
        self._codes = {camera.id: CodeReader(camera.code) for camera in settings.cameras if camera.code is not None}
        self._pending: deque[Pending | Order] = deque()
        self._joining = Joining(settings, self._cameras)
        self._triggers = Triggers(settings, spool, emitter, self._joining)
        if control is not None:
            control.serve_triggers(self._triggers.take)
        self._lane = Lane()
        self._watch = {camera.settings.id: _CameraWatch() for camera in self._cameras}
        self._pictures = Pictures(spool, emitter, settings)
        self._drift = DriftDesk(settings)
        self._shadow = shadow
        self.pulse = Pulse("station")
        self._state = "starting"
        self._blocked: str | None = None
        self._state_seq = 0
        self._next_look = self._next_state = self._next_alive = self._next_proof = self._next_keep = 0.0
        self._kept: tuple[object, ...] = ()
        self.stop_event = threading.Event()

    def run(self) -> None:
        """Until asked to stop or every camera has ended: watch, announce, inspect, record.

        Raises CardLostError where nothing can be inferred in this process any more; every part that was taken has its
        verdict then.
        """
        self._finish_last_run()
        self._send_state()
        for camera in self._cameras:
            camera.start()
        self._pictures.start()
        if self._shadow is not None:
            self._shadow.start()
        try:
            while not self.stop_event.is_set():
                try:
                    self._step(self._wait())
                    waiting = self._pending or self._lane or self._joining.headers()
                    ended = not waiting and all(self._ended(camera) for camera in self._cameras)
                except SpoolBlockedError as error:
                    self._hold_out(error)
                    continue
                if self._judge.engine.lost is not None:
                    self._fail(self._judge.engine.lost)
                if ended:
                    break
        except BaseException:
            for camera in self._cameras:
                camera.stop(forget=False)  # as after a kill: the next start goes on from here and declares the gap
            raise
        self._shut_down()

    @property
    def summary(self) -> str:
        """What the edge does, in a line."""
        what = self._state if self._choice.inspecting else f"{self._state}, inspection is stopped by request"
        return f"{what}: recipe {self._judge.number}, {self._parts} part(s), {self._not_inspected} NOT_INSPECTED"

    def _ended(self, camera: CameraProcess) -> bool:
        return camera.status().state == "ended" and not self._announce(camera)

    def _wait(self) -> list[CameraProcess]:
        """Sleep until a camera has something new or a part is inferred, at most IDLE_S; returns those cameras."""
        startable = (self._startable() and not self._proof_is_overdue()) or self._joining.has_news
        to_do = self._lane.ready() or startable or (self._pending and not self._lane)
        watched: list[CameraProcess | Joining | Engine] = [
            *([] if self._lane.full else self._cameras),  # what comes then is told together with the next verdict
            self._joining,
            *([self._judge.engine] if self._lane else []),
        ]
        try:
            longest_s = JOIN_S if self._joining.headers() else IDLE_S
            awake, _, _ = select.select(watched, [], [], 0 if to_do else longest_s)
        except InterruptedError:
            return []
        return [camera for camera in self._cameras if camera in awake]

    def _step(self, awake: list[CameraProcess]) -> None:
        """What the cameras have, then the parts; every LOOK_S what must be looked after, no part waits for that."""
        self._require_room()
        looks = (now := time.monotonic()) >= self._next_look
        if looks:
            self._next_look = now + LOOK_S
            for camera in self._cameras:
                camera.supervise()
                self._turn()
            awake = self._cameras  # one that was killed has rung no bell
        drafts = self._taken(awake)
        if looks and self._control is not None:
            self._joining.ordered(self._control.orders())  # behind the parts that were taken before
        drafts += self._line_up()
        self._advance(drafts)
        if looks:
            self._keep_watch()

    def _hold_out(self, error: SpoolBlockedError) -> None:
        """Until parts can be recorded again: none is taken; those that were announced become missed."""
        self._forget_parts(str(error))
        self._spool.begin_outage(time.monotonic_ns(), str(error))
        before, self._state = self._state, "failed"  # the line's heartbeat stops with it

        def beat(problem: SpoolBlockedError) -> None:
            self._blocked = str(problem)
            self.pulse.turn()
            self._beat()

        def resume(reason: str) -> None:
            self._spool.require_room()
            self._finish_announced("it was announced and its verdict could not be recorded", same_boot=True)
            if self._spool.outage is not None and self._all_have_seen():
                self._declare_outage(self._spool.outage._replace(reason=reason))

        hold_out(error, self._cameras, self.stop_event, beat, resume)
        self._state, self._blocked = before, None
        self._triggers.hold(None)

    def _forget_parts(self, reason: str) -> None:
        """No verdict is given any more to what was announced: its end will be that it was missed."""
        self._triggers.hold(reason)  # first: what is announced from here on would be ended twice
        self._lane.drop()
        self._joining.drop()
        for item in [item for item in self._pending if isinstance(item, Pending)]:
            item.release()
            self._pending.remove(item)

    def _require_room(self) -> None:
        """Raise SpoolBlockedError where no further part may be taken; those that were have their verdicts first."""
        try:
            self._spool.require_room()
        except SpoolBlockedError:
            self._end_taken()
            raise

    def _turn(self) -> None:
        """A sign of life; none where the loop goes round a part that the engine has not ended for `hang_s`."""
        oldest = next(iter(self._lane), None)
        limit_ns = self._settings.hang_s * 1e9
        if oldest is None or time.monotonic_ns() - oldest.t_taken_ns < limit_ns:
            self.pulse.turn()

    def _advance(self, drafts: list[Draft] | None = None) -> None:
        """Begin the next part and end those that are inferred; between parts, with none under way, all else.

        ``drafts`` are recorded while the engine computes, before any end.
        """
        if not self._proof_is_overdue():
            self._begin_next()
        if drafts:
            self._record(drafts)
        while self._lane.ready():
            self._end_oldest(self._taken(self._cameras) + self._line_up())
        if self._lane:
            return
        if time.monotonic() >= self._next_proof and (self._proof_is_overdue() or not self._pending):
            self._prove_engine()
        else:
            self._obey_next()

    def _proof_is_overdue(self) -> bool:
        return time.monotonic() >= self._next_proof + BUSY_PROOF_S

    def _startable(self) -> list[Pending]:
        """The parts to begin next, as one inference: the engine has room, and no order stands before them.

        One alone where the engine has nothing to do, so that it begins at once. A camera that wants the freshest part
        has one under way at most, so that the next one is chosen late.
        """
        found: list[Pending] = []
        if self._lane.full:
            return found
        engine = self._judge.engine
        most = engine.joined if self._lane else 1
        for item in self._pending:
            if isinstance(item, Order) or len(found) == most:
                break
            camera_id = item.header.camera_id
            held = self._lane.holds(camera_id) or any(each.header.camera_id == camera_id for each in found)
            if item.camera.settings.policy != "freshest" or not held:
                found.append(item)
        return found[: engine.together(len(found))]

    def _begin_next(self) -> bool:
        items = self._startable()
        for item in items:
            self._pending.remove(item)
        if items:
            self._lane.put([self._take(item) for item in items])
        return bool(items)

    def _obey_next(self) -> None:
        """The order that stands first, if one does; nothing is under way."""
        if self._pending and isinstance(order := self._pending[0], Order):
            self._pending.popleft()
            self._obey(order)

    def _line_up(self) -> list[Draft]:
        """What may be begun waits for the engine from here on; returns the ends of what never will be."""
        ready = self._joining.ready()
        self._pending.extend(ready)
        return self._pass_over_superseded() if ready else []

    def _pass_over_superseded(self) -> list[Draft]:
        """Of a camera that wants the freshest part the newest waits; returns the ends of those before it, as missed."""
        waiting = [item for item in self._pending if isinstance(item, Pending)]
        newest = {item.header.camera_id: item for item in waiting if item.camera.settings.policy == "freshest"}
        drafts = []
        for item in waiting:
            if newest.get(item.header.camera_id, item) is not item:
                self._pending.remove(item)
                item.release()
                drafts.append(Draft(_missed(item.header, SUPERSEDED), t_ref_ns=item.header.timing.t_begin_ns))
        return drafts

    def _obey(self, order: Order) -> None:
        """Do what the host asked, unless its deadline has passed meanwhile; a choice is on the disk before it holds."""
        request, judge = order.request, order.judge
        problem, idle = None, judge
        if order.late:
            problem = "its deadline passed before it could be done"
        elif self._state in ("stopping", "failed"):
            problem = f"the edge is {'stopping' if self._state == 'stopping' else 'ending: its graphics card is lost'}"
        elif judge is not None and (changed := overtaken(judge, self._settings)) is not None:
            problem = changed
        else:
            serving = self._judge if judge is None or self._is_aside(judge) else judge
            inspecting = self._choice.inspecting if judge is not None else request.what == "start"
            try:
                choice = Choice(number=serving.number, inspecting=inspecting)
                write_choice(self._settings, choice)
                if judge is not None:
                    settle(judge, self._settings)
                    idle = self._judge if serving is judge else judge
                self._choice, self._judge = choice, serving
                for camera in self._cameras:
                    camera.hold_to(controls_of(self._judge.bundle.manifest.cameras, camera.settings.id))
                log.info("recipe %d, inspection is %s", serving.number, "on" if inspecting else "stopped by request")
            except OSError as error:
                problem = f"it cannot be written to {self._settings.state_dir} ({error.strerror})"
            except BundleError as error:
                problem = str(error)
        self._send_state()
        if self._control is not None:
            self._control.finish(order, problem)
        if idle is not None:
            _close(idle)

    def _is_aside(self, judge: Judge) -> bool:
        """Whether an update is of a recipe that does not serve: its slot becomes the active one, and nothing else."""
        return judge.slot is not None and judge.number != self._judge.number

    def _prove_engine(self) -> None:
        """Between parts the engine is tried now and then: the line's heartbeat must not outlive inference."""
        start, used = time.monotonic(), time.process_time()
        was_failing = self._judge.engine.failing
        try:
            self._judge.engine.prove()
        except Exception as error:  # noqa: BLE001 - the parts that come get no verdict then; the station goes on
            self._judge.engine.failing = True
            if not was_failing:
                log.error("without a part to inspect the engine was tried: %s", error)
        took = time.monotonic() - start
        rarely = min(RARE_PROOF_S, (time.process_time() - used) / PROOF_CPU)
        pause_s = max(PROOF_S, took / PROOF_SHARE)
        self._next_proof = start + (pause_s if self._judge.engine.failing else max(pause_s, rarely))

    def _announce(self, camera: CameraProcess) -> bool:
        """Spool a Trigger for everything new of a camera; False where there is nothing."""
        drafts = self._taken([camera])
        if drafts:
            self._record(drafts)
        return bool(drafts)

    def _taken(self, cameras: Iterable[CameraProcess]) -> list[Draft]:
        """What is new joins the parts; its Triggers, to be recorded before anything else is said of these parts.

        Until then a part may be begun already: what dies with this process lies in the gap that the next one declares.
        """
        drafts = []
        for camera in cameras:
            for trigger in camera.drain():
                header = self._trigger_header(camera, trigger)
                if trigger.lost is None:
                    self._joining.taken(Pending(camera, trigger, header))
                    drafts.append(Draft(header, t_ref_ns=trigger.t_capture_ns))
                else:  # its end is known already, so that one message says all
                    drafts.append(Draft(_missed(header, trigger.lost), t_ref_ns=trigger.t_capture_ns))
        return drafts

    def _trigger_header(self, camera: CameraProcess, trigger: CapturedTrigger) -> Trigger:
        camera_id = camera.settings.id
        return Trigger(
            edge_id=self._settings.edge_id,
            spool_id=self._spool.spool_id,
            seq=1,
            run_id=self._spool.run_id,
            t_wall_ns=time.time_ns() - (time.monotonic_ns() - trigger.t_capture_ns),
            part_id=f"{camera_id}-{self._spool.run_id}-{trigger.trigger_id:06d}",
            camera_id=camera_id,
            trigger_id=trigger.trigger_id,
            frame_no=trigger.frame_no,
            box_px=trigger.box,
            timing=Timing(
                t_capture_ns=trigger.t_capture_ns, t_trigger_ns=trigger.t_trigger_ns, t_taken_ns=time.monotonic_ns()
            ),
        )

    def _take(self, item: Pending) -> Taken:
        """Cut and prepare one part; whatever goes wrong on the way is NOT_INSPECTED with the reason."""
        header, t_taken_ns = item.header, time.monotonic_ns()
        cut: CutPart | None = None
        step: Ready | Outcome
        inspector = self._judge.inspectors[header.camera_id]
        try:
            if not self._choice.inspecting:
                raise FlawlineError(STOPPED)
            if self._late(header):
                raise FlawlineError(self._deadline_text(header))
            codes = self._codes.get(header.camera_id)
            judge = self._judge
            cut = item.cut(judge.bundle.manifest.recipe, judge.placer, codes, judge.correction)
            step = inspector.ready(cut.pixels) if cut.fault is None else not_inspected(cut.fault)
        except Exception as error:  # noqa: BLE001 - whatever it was, the part has no verdict
            step = failed(header.part_id, error)
        finally:
            item.release()
        return Taken(header, inspector, cut, t_taken_ns, step)

    def _end_oldest(self, drafts: Iterable[Draft] = ()) -> None:
        """The verdict on the part that was begun first, on record together with and behind ``drafts``."""
        taken, outcome = self._lane.end()
        if self._judge.engine.failing:  # the line stands still until it infers again, perhaps with no part to try it by
            self._next_proof = min(self._next_proof, time.monotonic() + PROOF_S)
        header, serial = taken.header, None
        if taken.cut is not None:
            outcome, serial = with_cut(outcome, taken.cut, self._codes.get(header.camera_id), header.serial)
        if outcome.verdict is not Verdict.NOT_INSPECTED and self._late(header):
            outcome = outcome._replace(verdict=Verdict.NOT_INSPECTED, reason=self._deadline_text(header))
        self._parts += 1
        self._not_inspected += outcome.verdict is Verdict.NOT_INSPECTED
        result = self._result(header, outcome, taken.t_taken_ns, taken.cut, serial)
        numbers = self._record([*drafts, Draft(result, t_ref_ns=header.timing.t_begin_ns)])
        self._pictures.offer(result.model_copy(update={"seq": numbers[-1]}), outcome, taken.part, taken.inspector)
        if self._shadow is not None:
            self._shadow.offer(result, numbers[-1], taken.cut)
        with suppress(OSError, ValueError):  # nobody reads the terminal any more
            self._on_result(result)
        self._drift.note(self._judge.drift, result)
        if reports := list(self._drift.waiting):  # kept where they cannot be recorded now
            self._record([Draft(report) for report in reports])
            del self._drift.waiting[: len(reports)]

    def _late(self, header: Trigger) -> bool:
        return time.monotonic_ns() - header.timing.t_begin_ns > self._settings.deadline_ms * 1_000_000

    def _deadline_text(self, header: Trigger) -> str:
        waited_ms = (time.monotonic_ns() - header.timing.t_begin_ns) / 1e6
        return f"deadline: {waited_ms:.0f} ms since capture, at most {self._settings.deadline_ms} ms"

    def _result(
        self, header: Trigger, outcome: Outcome, t_taken_ns: int, cut: CutPart | None, serial: str | None
    ) -> Result:
        manifest = self._judge.bundle.manifest
        thresholds = manifest.thresholds
        return Result(
            **header.model_dump(exclude={"kind", "timing", "parts", "schema_id"}) | said_of(cut, serial),
            timing=header.timing.model_copy(
                update={
                    "t_taken_ns": t_taken_ns,
                    "t_prepared_ns": outcome.t_prepared_ns,
                    "t_inferred_ns": outcome.t_inferred_ns,
                    "t_decided_ns": outcome.t_decided_ns,
                    "t_spooled_ns": time.monotonic_ns(),
                }
            ),
            verdict=outcome.verdict,
            reason=None if outcome.reason is None else outcome.reason[:500],
            score=outcome.score if outcome.score is not None and np.isfinite(outcome.score) else None,
            threshold=None if thresholds is None else thresholds.reject,
            review_threshold=None if thresholds is None else thresholds.review,
            map_threshold=None if thresholds is None else thresholds.map,
            region_level=None if thresholds is None else thresholds.region_level,
            regions=tuple(outcome.regions),
            quality={name: value for name, value in outcome.quality.items() if np.isfinite(value)},
            calibration_id=self._judge.calibration_id,
            audit_share=self._settings.audit_share,
            audited=outcome.verdict is Verdict.PASS and is_drawn(self._settings.audit_share),
            **self._judge.names(),
        )

    def _record(self, drafts: list[Draft]) -> list[int]:
        try:
            numbers = self._spool.append(drafts)
        except SpoolBlockedError as error:
            since_ns = min((draft.t_ref_ns for draft in drafts if draft.t_ref_ns), default=time.monotonic_ns())
            self._spool.begin_outage(since_ns, str(error))
            raise
        self._emitter.wake()
        self._observer.recorded((draft.header for draft in drafts), numbers)
        return numbers

    def _finish_last_run(self) -> None:
        """Triggers that the last run announced and never finished become Missed: each part has one end."""
        same_boot = self._spool.outage is not None and self._spool.outage.same_boot
        self._finish_announced("the edge stopped before its verdict", same_boot)
        self._spool.note_earlier()

    def _finish_announced(self, reason: str, same_boot: bool) -> None:
        long_ago_ns = time.monotonic_ns() - int(ANOTHER_BOOT_MS * 1e6)
        drafts = [
            Draft(
                _missed(trigger, reason),
                t_ref_ns=trigger.timing.t_begin_ns if same_boot else long_ago_ns,
            )
            for trigger in self._spool.open_triggers()
        ]
        if drafts:
            self._record(drafts)

    def _keep_watch(self) -> None:
        """Declare what was not seen, mark what is, send heartbeats."""
        now = time.monotonic()
        for camera in self._cameras:
            self._watch_camera(camera)
        outage = self._spool.outage
        if outage is not None and self._all_have_seen():
            self._declare_outage(outage)
        if now >= self._next_alive:
            self._next_alive = now + ALIVE_S
            self._mark_alive()
            if not self._emitter.alive():
                raise SpoolError("the emitter has ended: verdicts would reach nobody, so the station stops")
        if now >= self._next_state:
            self._declare_all_skipped()
        self._drift.keep()
        self._beat()

    def _beat(self) -> None:
        """A heartbeat, where one is due."""
        now = time.monotonic()
        if now >= self._next_state:
            self._next_state = now + self._settings.heartbeat_ms / 1000
            self._send_state()

    def _all_have_seen(self) -> bool:
        return all(watch.first_frame_ns for watch in self._watch.values())

    def _mark_alive(self) -> None:
        """Only while every camera sees: what a blind one missed must lie behind the mark until it is declared."""
        seeing = all(w.blind_since_ns is None and w.skip_from_ns is None for w in self._watch.values())
        if seeing and self._spool.outage is None and self._state in ("running", "stopping"):
            showing = [self._watch[c.settings.id] for c in self._cameras if c.status().state != "ended"]
            seen_ns = min((watch.last_frame_ns for watch in showing if watch.last_frame_ns), default=None)
            for camera in self._cameras:  # what they announced up to that frame; a camera that is behind shows it later
                self._announce(camera)
            self._spool.mark_alive(0 if seen_ns is None else time.monotonic_ns() - seen_ns)

    def _watch_camera(self, camera: CameraProcess) -> None:
        status, watch = camera.status(), self._watch[camera.settings.id]
        if status.frames:
            watch.note_frames(status.skipped, time.monotonic_ns() - int(status.frame_age_ms * 1e6))
        if status.ready and not watch.first_frame_ns:
            watch.first_frame_ns = time.time_ns()
        if self._state == "starting" and all(watch.first_frame_ns for watch in self._watch.values()):
            self._state = "running"
            log.info("running: every camera delivers")
        restarts = status.state == "starting" and watch.first_frame_ns > 0
        if (restarts or status.state in ("stalled", "failed")) and watch.blind_since_ns is None:
            watch.blind_since_ns = time.monotonic_ns() - int(max(0.0, status.frame_age_ms) * 1e6)
            watch.detail = status.detail or status.state
            log.warning("camera %s: %s", camera.settings.id, watch.detail)
        elif status.state == "running" and watch.blind_since_ns is not None:
            self._declare_blind(camera.settings.id, watch)

    def _declare_blind(self, camera_id: str, watch: _CameraWatch) -> None:
        duration_ns = time.monotonic_ns() - (watch.blind_since_ns or 0)
        self._record([Draft(self._gap(duration_ns, f"camera {camera_id}: {watch.detail}", camera_id))])
        watch.blind_since_ns = watch.skip_from_ns = None  # one gap, not two, for what was skipped meanwhile

    def _declare_all_skipped(self) -> None:
        for camera_id, watch in self._watch.items():
            self._declare_skipped(camera_id, watch)

    def _declare_skipped(self, camera_id: str, watch: _CameraWatch) -> None:
        """Frames that nobody looked at are a gap of that camera, told once a heartbeat."""
        if watch.skip_from_ns is None:
            return
        reason = f"camera {camera_id}: {watch.skips} frame(s) not looked at: it was behind, or they were torn"
        gap = self._gap(watch.last_frame_ns - watch.skip_from_ns, reason, camera_id, watch.last_frame_ns)
        self._record([Draft(gap)])
        watch.skip_from_ns, watch.skips = None, 0

    def _declare_outage(self, outage: Outage) -> None:
        if outage.same_boot:
            duration_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - outage.since_boot_ns
        else:
            duration_ns = max(0, time.time_ns() - outage.since_wall_ns)
        reason = "the edge was stopped" if outage.clean else "the edge was down: it had not stopped cleanly"
        reason = outage.reason or reason
        gap = self._gap(duration_ns, reason, None)
        if not outage.same_boot:  # a clock that starts behind must not hide the gap
            gap = gap.model_copy(update={"from_wall_ns": min(outage.since_wall_ns, gap.to_wall_ns)})
        self._record([Draft(gap)])

    def _gap(self, duration_ns: int, reason: str, camera_id: str | None, until_ns: int | None = None) -> Gap:
        """A gap of ``duration_ns`` that ends now, or at ``until_ns`` of the monotonic clock."""
        now = time.time_ns() - (0 if until_ns is None else time.monotonic_ns() - until_ns)
        return Gap(
            edge_id=self._settings.edge_id,
            spool_id=self._spool.spool_id,
            seq=1,
            run_id=self._spool.run_id,
            t_wall_ns=now,
            reason=reason,
            camera_id=camera_id,
            from_wall_ns=now - duration_ns,
            to_wall_ns=now,
            duration_ns=duration_ns,
        )

    def _send_state(self) -> None:
        self._state_seq += 1
        self._clock.look()
        rows, size = self._spool.size
        trouble = self._emitter.trouble or (None if self._control is None else self._control.trouble)
        trouble = self._blocked or self._judge.engine.lost or trouble or self._spool.trouble
        dead, dead_removed = self._spool.dead
        waiting = [item.header for item in (*self._lane, *self._pending) if not isinstance(item, Order)]
        waiting += self._joining.headers()
        state = State(
            edge_id=self._settings.edge_id,
            spool_id=f"state-{self._spool.run_id}",
            seq=self._state_seq,
            run_id=self._spool.run_id,
            t_wall_ns=time.time_ns(),
            state=self._state,
            detail=None if trouble is None else trouble[:500],
            spool_rows=rows,
            spool_bytes=size,
            attachments_dropped=self._spool.dropped + self._pictures.dropped,
            dead_letters=dead,
            dead_removed=dead_removed,
            waiting=len(waiting),
            waiting_ms=0.0 if not waiting else (time.monotonic_ns() - waiting[0].timing.t_begin_ns) / 1e6,
            inference="failed" if self._judge.engine.failing else "ok",
            cameras=tuple(_camera_state(camera) for camera in self._cameras),
            inspecting=self._choice.inspecting,
            last_seq=self._spool.last_seq,
            events_spool_id=self._spool.spool_id,
            settled=self._spool.settled(),
            boot_id=self._boot_id,
            t_boot_ns=boot_ns(),
            clock_synchronised=synchronised(),
            clock_steps=self._clock.steps,
            clock_step_ms=self._clock.step_ms,
            drift=self._drift.state(self._judge.drift),
            **self._judge.names(),
        )
        self._observer.heartbeat(state)
        self._emitter.send_state(state)
        said = (state.state, state.detail, state.inference, state.inspecting, state.recipe_number)
        if said != self._kept or time.monotonic() >= self._next_keep:
            self._kept, self._next_keep = said, time.monotonic() + KEEP_S
            self._keep_state(state)
        if self._control is not None:
            self._control.show(self._status(rows))

    def _status(self, spool_rows: int) -> Status:
        return Status(
            state=self._state,
            inspecting=self._choice.inspecting,
            recipes=tuple(sorted(self._settings.bundle_links())),
            parts=self._parts,
            not_inspected=self._not_inspected,
            spool_rows=spool_rows,
            **self._judge.names(),
        )

    def _keep_state(self, state: State) -> None:
        """The heartbeat as a file, for `flawline edge state` on a box that its host does not let in."""
        path = self._settings.state_dir / STATE_FILE
        draft = path.with_suffix(".draft")
        with suppress(OSError):  # a full disk shows elsewhere, and a heartbeat must not end the station
            draft.write_text(state.model_dump_json(by_alias=True, indent=1))
            draft.replace(path)

    def _shut_down(self) -> None:
        self._state = "stopping"
        self._finish_parts()
        self._declare_unseen()
        self._mark_alive()
        self._drift.keep(last=True)
        self._state = "stopped"
        self._send_state()
        for camera in self._cameras:
            camera.stop()

    def _finish_parts(self) -> None:
        """Stop the cameras first, then give every trigger that was taken its verdict."""
        for camera in self._cameras:
            self.pulse.turn(CAMERA_STOP_S)
            self._beat()
            camera.stop_capture()
            self._announce(camera)
        self._triggers.close()
        self._pending.extend(self._joining.ready(last=True))
        self._end_taken()
        self.pulse.turn(STOP_S)
        self._pictures.stop(self._beat)
        if self._shadow is not None:
            self._shadow.stop()

    def _end_taken(self) -> None:
        """Verdicts for all parts that wait or are under way, and what was asked for between them."""
        while self._pending or self._lane:
            self.pulse.turn()
            self._beat()
            if self._begin_next():
                continue
            if self._lane:
                self._end_oldest()
            else:
                self._obey_next()

    def _fail(self, reason: str) -> NoReturn:
        """End as after a kill (the next start declares the gap), but with a verdict for every part that was taken."""
        log.error("%s", reason)
        self._state = "failed"
        self._send_state()  # before anything that takes time: the line's heartbeat stops with it
        self._finish_parts()
        self._send_state()
        raise CardLostError(reason)

    def _declare_unseen(self) -> None:
        """Whatever was not seen until this stop; an outage that goes on is declared at the next start."""
        for camera in self._cameras:
            watch = self._watch[camera.settings.id]
            if watch.blind_since_ns is not None:
                self._declare_blind(camera.settings.id, watch)
            self._declare_skipped(camera.settings.id, watch)
        if self._spool.outage is not None and all(camera.status().state == "ended" for camera in self._cameras):
            self._declare_outage(self._spool.outage)


def is_drawn(share: float) -> bool:
    """Whether chance draws a part for the audit: by the system's own randomness, so that nothing foretells it."""
    return _CHANCE.random() < share


def _close(judge: Judge) -> None:
    """Give a recipe's engine back; what goes wrong with one that is not used any more must not end the station."""
    try:
        judge.engine.close()
    except Exception:
        log.exception("the engine of recipe %d could not be closed", judge.number)


class _CameraWatch:
    """When a camera was first seen alive, since when it has been blind, and which frames were not looked at.

    Times are monotonic nanoseconds; the first frame's is wall time.
    """

    def __init__(self) -> None:
        self.first_frame_ns = 0
        self.blind_since_ns: int | None = None
        self.detail = ""
        self.last_frame_ns = 0
        self.skips = 0
        self.skip_from_ns: int | None = None
        self._skipped = 0

    def note_frames(self, skipped: int, frame_ns: int) -> None:
        """Take in the camera's count of skipped frames; they lie before the frame that was seen last."""
        if self.last_frame_ns and skipped > self._skipped:  # before our first frame it is the edge's own outage
            self.skips += skipped - self._skipped
            self.skip_from_ns = self.skip_from_ns or self.last_frame_ns
        self._skipped, self.last_frame_ns = skipped, frame_ns


def _missed(trigger: Trigger, reason: str) -> Missed:
    return Missed(**trigger.model_dump(exclude={"kind", "parts", "schema_id"}), reason=reason[:500])


def _camera_state(camera: CameraProcess) -> CameraState:
    status = camera.status()
    return CameraState(
        camera_id=camera.settings.id,
        state=status.state,
        frames=status.frames,
        triggers=status.triggers,
        frame_age_ms=status.frame_age_ms,
        detail=status.detail,
        skipped=status.skipped,
        restarts=status.restarts,
    )
