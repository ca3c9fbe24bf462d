"""The station: the only place that calls hops 2 to 6, from an announced trigger to a spooled verdict."""

from __future__ import annotations

import logging
import queue
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, NamedTuple, NoReturn

import numpy as np

from contract.bundle import Bundle
from contract.camera import controls_of
from contract.control import Status
from contract.decision import ViewMap, map_to_part
from contract.errors import FlawlineError
from contract.event import (
    MAX_PARTS,
    Attachment,
    CameraState,
    Gap,
    Missed,
    PartRef,
    Result,
    State,
    Timing,
    Trigger,
    Verdict,
    part_ref,
)
from contract.images import Pixels, encode_png, to_channels
from edge_runtime.capture import CameraProcess, CapturedTrigger
from edge_runtime.control import Control, Order
from edge_runtime.emitter import Emitter
from edge_runtime.engines.base import Engine
from edge_runtime.errors import CardLostError, SpoolError
from edge_runtime.inspector import Inspector, Outcome
from edge_runtime.recipes import NEVER_ASKED, Choice, Judge, write_choice
from edge_runtime.settings import EdgeSettings
from edge_runtime.spool import ANOTHER_BOOT_MS, Draft, Outage, Spool

ALIVE_S = 0.2
PROOF_S = 1.0
BUSY_PROOF_S = 60.0
"""While parts wait, a proof waits so much longer."""

PROOF_SHARE = 0.05
"""Most of an idle station's time that may go into proofs, so that a part hardly ever waits for one."""

ATTACHMENT_QUEUE = 32
STOPPED = "inspection is stopped by request"
STATE_FILE = "state.json"

log = logging.getLogger(__name__)
_CHANCE = random.SystemRandom()


class Pending(NamedTuple):
    """A trigger that was announced and waits for its verdict."""

    camera: CameraProcess
    trigger: CapturedTrigger
    header: Trigger


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
        control: Control | None = None,
        choice: Choice | None = None,
    ) -> None:
        self._settings = settings
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
            )
            for camera in settings.cameras
        ]
        self._pending: deque[Pending | Order] = deque()
        self._watch = {camera.settings.id: _CameraWatch() for camera in self._cameras}
        self._pictures = _Pictures(spool, emitter, settings)
        self._state = "starting"
        self._state_seq = 0
        self._next_state = self._next_alive = self._next_proof = 0.0
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
        try:
            while not self.stop_event.is_set():
                self._wait()
                self._step()
                if self._judge.engine.lost is not None:
                    self._fail(self._judge.engine.lost)
                if not self._pending and all(self._ended(camera) for camera in self._cameras):
                    break
        except BaseException:
            for camera in self._cameras:
                camera.stop(forget=False)  # as after a kill: the next start goes on from here and declares the gap
            raise
        self._shut_down()

    def _ended(self, camera: CameraProcess) -> bool:
        return camera.status().state == "ended" and not self._announce(camera)

    def _wait(self) -> None:
        """Sleep until a camera has something new; at most 50 ms, so that clocks and watchdogs go on."""
        if self._pending:
            return
        with suppress(InterruptedError):
            select.select([camera.fileno() for camera in self._cameras], [], [], 0.05)

    def _step(self) -> None:
        for camera in self._cameras:
            camera.supervise()
            self._announce(camera)
        if self._control is not None:
            self._pending.extend(self._control.orders())  # behind the parts that were taken before
        self._keep_watch()
        now = time.monotonic()
        if self._pending and now < self._next_proof + BUSY_PROOF_S:
            self._next()
        elif now >= self._next_proof:
            self._prove_engine()

    def _next(self) -> None:
        """One verdict, or one order between two parts."""
        item = self._pending.popleft()
        if isinstance(item, Order):
            self._obey(item)
        else:
            self._inspect(item)

    def _obey(self, order: Order) -> None:
        """Do what the host asked, unless its deadline has passed meanwhile; a choice is on the disk before it holds."""
        request, judge = order.request, order.judge
        problem, idle = None, judge
        if order.late:
            problem = "its deadline passed before it could be done"
        elif self._state in ("stopping", "failed"):
            problem = f"the edge is {'stopping' if self._state == 'stopping' else 'ending: its graphics card is lost'}"
        else:
            number = self._choice.number if judge is None else judge.number
            inspecting = self._choice.inspecting if judge is not None else request.what == "start"
            try:
                choice = Choice(number=number, inspecting=inspecting)
                write_choice(self._settings, choice)
                idle = None if judge is None else self._judge
                self._choice, self._judge = choice, judge or self._judge
                for camera in self._cameras:
                    camera.hold_to(controls_of(self._judge.bundle.manifest.cameras, camera.settings.id))
                log.info("recipe %d, inspection is %s", number, "on" if inspecting else "stopped by request")
            except OSError as error:
                problem = f"it cannot be written to {self._settings.state_dir} ({error.strerror})"
        self._send_state()
        if self._control is not None:
            self._control.finish(order, problem)
        if idle is not None:
            _close(idle)

    def _prove_engine(self) -> None:
        """Between parts the engine is tried now and then: the line's heartbeat must not outlive inference."""
        start = time.monotonic()
        was_failing = self._judge.engine.failing
        try:
            self._judge.engine.prove()
        except Exception as error:  # noqa: BLE001 - the parts that come get no verdict then; the station goes on
            self._judge.engine.failing = True
            if not was_failing:
                log.error("without a part to inspect the engine was tried: %s", error)
        took = time.monotonic() - start
        self._next_proof = start + max(PROOF_S, took / PROOF_SHARE)

    def _announce(self, camera: CameraProcess) -> bool:
        """Spool a Trigger for everything new, so that the host knows of each part before it is inspected."""
        taken = camera.drain()
        if not taken:
            return False
        drafts = []
        for trigger in taken:
            header = self._trigger_header(camera, trigger)
            if trigger.lost is None:
                self._pending.append(Pending(camera, trigger, header))
                drafts.append(Draft(header, t_ref_ns=trigger.t_capture_ns))
            else:  # its end is known already, so that one message says all
                drafts.append(Draft(_missed(header, trigger.lost), t_ref_ns=trigger.t_capture_ns))
        self._record(drafts)
        return True

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

    def _inspect(self, item: Pending) -> None:
        """One verdict for one trigger; whatever goes wrong on the way is NOT_INSPECTED with the reason."""
        header, t_taken_ns = item.header, time.monotonic_ns()
        part: Pixels | None = None
        inspector = self._judge.inspectors[header.camera_id]
        try:
            if not self._choice.inspecting:
                raise FlawlineError(STOPPED)
            if self._late(header):
                raise FlawlineError(self._deadline_text(header))
            pixels, pixel_format = item.camera.cut(item.trigger)
            part = to_channels(pixels, pixel_format, self._judge.bundle.manifest.recipe.channels)
            outcome = inspector.inspect(part)
            if outcome.verdict is not Verdict.NOT_INSPECTED and self._late(header):
                outcome = outcome._replace(verdict=Verdict.NOT_INSPECTED, reason=self._deadline_text(header))
        except FlawlineError as error:
            outcome = _not_inspected(str(error))
        except Exception as error:
            log.exception("part %s", header.part_id)
            outcome = _not_inspected(f"internal error: {type(error).__name__}: {error}")
        finally:
            item.camera.release(item.trigger)
        self._parts += 1
        self._not_inspected += outcome.verdict is Verdict.NOT_INSPECTED
        result = self._result(header, outcome, t_taken_ns)
        numbers = self._record([Draft(result, t_ref_ns=header.timing.t_capture_ns)])
        self._pictures.offer(result.model_copy(update={"seq": numbers[0]}), outcome, part, inspector)
        with suppress(OSError, ValueError):  # nobody reads the terminal any more
            self._on_result(result)

    def _late(self, header: Trigger) -> bool:
        return time.monotonic_ns() - header.timing.t_capture_ns > self._settings.deadline_ms * 1_000_000

    def _deadline_text(self, header: Trigger) -> str:
        waited_ms = (time.monotonic_ns() - header.timing.t_capture_ns) / 1e6
        return f"deadline: {waited_ms:.0f} ms since capture, at most {self._settings.deadline_ms} ms"

    def _result(self, header: Trigger, outcome: Outcome, t_taken_ns: int) -> Result:
        manifest = self._judge.bundle.manifest
        thresholds = manifest.thresholds
        return Result(
            **header.model_dump(exclude={"kind", "timing", "parts", "schema_id"}),
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
            calibration_id=manifest.calibration_id(),
            audit_share=self._settings.audit_share,
            audited=outcome.verdict is Verdict.PASS and is_drawn(self._settings.audit_share),
            **self._judge.names(),
        )

    def _record(self, drafts: list[Draft]) -> list[int]:
        numbers = self._spool.append(drafts)
        self._emitter.wake()
        return numbers

    def _finish_last_run(self) -> None:
        """Triggers that the last run announced and never finished become Missed: each part has one end."""
        same_boot = self._spool.outage is not None and self._spool.outage.same_boot
        long_ago_ns = time.monotonic_ns() - int(ANOTHER_BOOT_MS * 1e6)
        drafts = [
            Draft(
                _missed(trigger, "the edge stopped before its verdict"),
                t_ref_ns=trigger.timing.t_capture_ns if same_boot else long_ago_ns,
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
        if outage is not None and all(self._watch[camera.settings.id].first_frame_ns for camera in self._cameras):
            self._declare_outage(outage)
        if now >= self._next_alive:
            self._next_alive = now + ALIVE_S
            self._mark_alive()
            if not self._emitter.alive():
                raise SpoolError("the emitter has ended: verdicts would reach nobody, so the station stops")
        if now >= self._next_state:
            self._next_state = now + self._settings.heartbeat_ms / 1000
            self._declare_all_skipped()
            self._send_state()

    def _mark_alive(self) -> None:
        """Only while every camera sees: what a blind one missed must lie behind the mark until it is declared."""
        seeing = all(w.blind_since_ns is None and w.skip_from_ns is None for w in self._watch.values())
        if seeing and self._spool.outage is None and self._state in ("running", "stopping"):
            seen_ns = min((w.last_frame_ns for w in self._watch.values() if w.last_frame_ns), default=None)
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
        if status.state in ("stalled", "failed") and watch.blind_since_ns is None:
            watch.blind_since_ns = time.monotonic_ns() - int(max(0.0, status.frame_age_ms) * 1e6)
            watch.detail = status.detail or status.state
            log.warning("camera %s: %s", camera.settings.id, watch.detail)
        elif status.state == "running" and watch.blind_since_ns is not None:
            self._declare_blind(camera.settings.id, watch)

    def _declare_blind(self, camera_id: str, watch: _CameraWatch) -> None:
        duration_ns = time.monotonic_ns() - (watch.blind_since_ns or 0)
        watch.blind_since_ns = watch.skip_from_ns = None  # one gap, not two, for what was skipped meanwhile
        self._record([Draft(self._gap(duration_ns, f"camera {camera_id}: {watch.detail}", camera_id))])

    def _declare_all_skipped(self) -> None:
        for camera_id, watch in self._watch.items():
            self._declare_skipped(camera_id, watch)

    def _declare_skipped(self, camera_id: str, watch: _CameraWatch) -> None:
        """Frames that nobody looked at are a gap of that camera, told once a heartbeat."""
        if watch.skip_from_ns is None:
            return
        reason = f"camera {camera_id}: {watch.skips} frame(s) not looked at: it was behind, or they were torn"
        gap = self._gap(watch.last_frame_ns - watch.skip_from_ns, reason, camera_id, watch.last_frame_ns)
        watch.skip_from_ns, watch.skips = None, 0
        self._record([Draft(gap)])

    def _declare_outage(self, outage: Outage) -> None:
        if outage.same_boot:
            duration_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - outage.since_boot_ns
        else:
            duration_ns = max(0, time.time_ns() - outage.since_wall_ns)
        reason = "the edge was stopped" if outage.clean else "the edge was down: it had not stopped cleanly"
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
        rows, size = self._spool.size
        trouble = self._emitter.trouble or (None if self._control is None else self._control.trouble)
        trouble = self._judge.engine.lost or trouble
        waiting = [item.header for item in self._pending if isinstance(item, Pending)]
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
            waiting=len(waiting),
            waiting_ms=0.0 if not waiting else (time.monotonic_ns() - waiting[0].timing.t_capture_ns) / 1e6,
            inference="failed" if self._judge.engine.failing else "ok",
            cameras=tuple(_camera_state(camera) for camera in self._cameras),
            inspecting=self._choice.inspecting,
            **self._judge.names(),
        )
        self._emitter.send_state(state)
        self._keep_state(state)
        if self._control is not None:
            self._control.show(self._status(rows))

    def _status(self, spool_rows: int) -> Status:
        return Status(
            state=self._state,
            inspecting=self._choice.inspecting,
            recipes=tuple(sorted(self._settings.bundle_folders())),
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
        self._state = "stopped"
        self._send_state()
        for camera in self._cameras:
            camera.stop()

    def _finish_parts(self) -> None:
        """Stop the cameras first, then give every trigger that was taken its verdict."""
        for camera in self._cameras:
            camera.stop_capture()
            self._announce(camera)
        while self._pending:
            self._next()
        self._pictures.stop()

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


class _Picture(NamedTuple):
    result: Result
    part: Pixels | None
    maps: list[ViewMap]
    reconstruction: dict[str, Pixels]


class _Pictures:
    """Encodes maps and pictures beside the station and spools them as attachments, behind the verdicts."""

    def __init__(self, spool: Spool, emitter: Emitter, settings: EdgeSettings) -> None:
        self._spool = spool
        self._emitter = emitter
        self._images = settings.images
        self._queue: queue.Queue[_Picture | None] = queue.Queue(ATTACHMENT_QUEUE)
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def offer(self, result: Result, outcome: Outcome, part: Pixels | None, inspector: Inspector) -> None:
        """Take what belongs to a verdict; where the encoder is behind, pictures are dropped and counted."""
        shown = result.verdict is not Verdict.PASS or result.audited
        wanted = self._images == "all" or (self._images == "flagged" and shown)
        maps = [] if outcome.part is None else outcome.part.maps
        if not maps and (part is None or not wanted):
            return
        try:
            reconstruction = inspector.reconstruction() if wanted and maps and shown else {}
            self._queue.put_nowait(_Picture(result, part if wanted else None, maps, reconstruction))
        except queue.Full:
            self.dropped += 1
        except Exception:  # the verdict stands; a picture must not end the station
            self.dropped += 1
            log.exception("pictures of part %s", result.part_id)

    def _run(self) -> None:
        while (picture := self._queue.get()) is not None:
            try:
                self._spool.append([_attachment(picture)])
                self._emitter.wake()
            except Exception:  # whatever one picture does, the next one is tried
                self.dropped += 1
                log.exception("pictures of part %s", picture.result.part_id)

    def stop(self) -> None:
        with suppress(queue.Full):
            self._queue.put(None, timeout=5)
        self._thread.join(timeout=10)


def _attachment(picture: _Picture) -> Draft:
    result = picture.result
    references: list[PartRef] = []
    parts: list[bytes] = []
    for role, view, pixels in _pictures_of(picture):
        data = encode_png(pixels)
        references.append(part_ref(role, data, view=view, codec="png", shape=pixels.shape))
        parts.append(data)
    for view_map in picture.maps:
        data = np.ascontiguousarray(view_map.values, dtype="<f2").tobytes()
        references.append(
            part_ref(
                "map",
                data,
                view=view_map.view,
                codec="raw",
                dtype="float16",
                shape=view_map.values.shape,
                to_part=map_to_part(view_map),
            )
        )
        parts.append(data)
    if len(parts) > MAX_PARTS:
        log.warning("part %s: %d maps and pictures, only %d are sent", result.part_id, len(parts), MAX_PARTS)
    header = Attachment(
        **result.model_dump(include={"edge_id", "spool_id", "seq", "run_id", "part_id"}),
        t_wall_ns=time.time_ns(),
        result_seq=result.seq,
        parts=tuple(references[:MAX_PARTS]),
    )
    return Draft(header, tuple(parts[:MAX_PARTS]))


def _pictures_of(picture: _Picture) -> list[tuple[Literal["image", "reconstruction"], str, Pixels]]:
    found: list[tuple[Literal["image", "reconstruction"], str, Pixels]] = (
        [] if picture.part is None else [("image", "main", picture.part)]
    )
    found += [("reconstruction", view, pixels) for view, pixels in picture.reconstruction.items()]
    return found


def _missed(trigger: Trigger, reason: str) -> Missed:
    return Missed(**trigger.model_dump(exclude={"kind", "parts", "schema_id"}), reason=reason[:500])


def _not_inspected(reason: str) -> Outcome:
    return Outcome(Verdict.NOT_INSPECTED, reason, None, None, [], {}, 0, 0, time.monotonic_ns())


def _camera_state(camera: CameraProcess) -> CameraState:
    status = camera.status()
    return CameraState(
        camera_id=camera.settings.id,
        state=status.state,
        frames=status.frames,
        triggers=status.triggers,
        frame_age_ms=status.frame_age_ms,
        detail=status.detail,
    )
