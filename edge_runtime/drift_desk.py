"""The watch over drift beside the station: told of each result, it gives reports and alarms to record (hop 6).

It is asked after a verdict is on record and changes none. What goes wrong in it ends the watch, never a part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from contract.baseline import read_baseline
from contract.bundle import ROLE_BASELINE, Bundle
from contract.errors import FlawlineError
from contract.event import Drift, Result, Verdict
from edge_runtime.drift import TESTS, Reference, Watch, suspect

if TYPE_CHECKING:
    from edge_runtime.settings import EdgeSettings

STATE_FOLDER = "drift"
FORMAT = "flawline.drift/2"
MAX_STATE_BYTES = 8 << 20
KEEP_S = 5.0
MOST_KEPT = 64
"""Watches that are kept, each of a camera with one recipe and calibration: those used last."""

MONTH_S = 30 * 86400.0
LONGEST_S = 60.0
"""A pause counts as so long at most: a line that stands makes no parts, and no alarms."""

FLAGGED = (Verdict.REJECT, Verdict.REVIEW)
log = logging.getLogger(__name__)


class Held(NamedTuple):
    """Why a recipe is watched or not, and what each camera that makes parts is held against."""

    state: Literal["off", "no_baseline", "watching"]
    references: dict[str, Reference]


NOT_WATCHED = Held("off", {})


def held_against(bundle: Bundle, settings: EdgeSettings, leads: list[str]) -> Held:
    """For a recipe that is made ready to judge. Raises nothing: a bundle without a baseline judges as any other."""
    if not settings.drift.on:
        return NOT_WATCHED
    try:
        baseline = read_baseline(bundle)
        manifest = bundle.manifest
        problem = None if baseline is not None else "it was calibrated before there was any"
        if baseline is not None and settings.precision not in baseline.engine.split():
            problem = f"its scores were measured with {baseline.engine}, and {settings.precision} judges"
        if baseline is None or problem is not None or (limits := manifest.thresholds) is None:
            raise FlawlineError(problem or "it has no thresholds")
        limit = limits.reject if limits.review is None else limits.review
        share = settings.drift.defect_share
        places = manifest.places
        by_zones = (
            limits.review is not None and places is not None and any(zone.verdict == "REVIEW" for zone in places.zones)
        )
        said = [manifest.files[ROLE_BASELINE].sha256, limit, share, manifest.id, [*leads], settings.precision]
        said += ["by zones"] if by_zones else []  # what was watched before this was known begins anew
        key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
        views = manifest.recipe.views
        return Held(
            "watching",
            {
                lead: Reference(
                    baseline, {v.name: v.camera or lead for v in views}, limit, share, f"{key}-{lead}", by_zones
                )
                for lead in leads
            },
        )
    except FlawlineError as error:
        log.warning(
            "%s: drift is not watched: no baseline (%s); calibrate it again: flawline calibrate thresholds %s "
            "--data DIR",
            bundle.root, error, bundle.root,
        )  # fmt: skip
        return Held("no_baseline", {})


class _Camera:
    """One camera's watch with one recipe, and what was counted since its last report."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.of_parts = self.flagged = self.lost = 0
        self.told = False
        self.changed, self.next_keep = False, 0.0


class DriftDesk:
    """Used by the station's thread alone. ``waiting``: what is to be recorded, oldest first; whoever has takes it out.

    A watch goes on where it was when a recipe comes back after another, and after a restart from a file of its own
    below the state folder: after a kill some seconds of parts count for nothing. A new bundle or calibration begins
    anew.
    """

    def __init__(self, settings: EdgeSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._folder = settings.state_dir / STATE_FOLDER
        leads = sum(camera.trigger != "follow" for camera in settings.cameras)
        # Every test of every camera may take its part of the edge's false alarms.
        self._line = len(TESTS) * leads / settings.drift.false_alarms_per_month
        self._cameras: OrderedDict[str, _Camera] = OrderedDict()
        """By what names the reference: the camera with its recipe and calibration. What was used last is last."""

        self._last_ns: dict[str, int] = {}
        """When each camera began its last part, of whatever recipe: no time may count for two of its watches."""

        self._broken = False
        self.waiting: list[Drift] = []

    def state(self, held: Held) -> Literal["off", "no_baseline", "watching", "failed"]:
        """For the heartbeat: how the recipe that judges now is watched."""
        return "failed" if self._broken and held.state == "watching" else held.state

    def note(self, held: Held, result: Result) -> None:
        """A part has its verdict. Raises nothing."""
        reference = held.references.get(result.camera_id)
        if reference is None or self._broken:
            return
        try:
            self._note(reference, result)
        except Exception:
            log.exception("drift is not watched any more; inspection goes on")
            self._broken = True

    def _note(self, reference: Reference, result: Result) -> None:
        camera = self._cameras.get(reference.key) or self._begin(reference)
        self._cameras.move_to_end(reference.key)
        scored = result.score is not None and result.verdict is not Verdict.NOT_INSPECTED
        judged = result.verdict in FLAGGED if scored else None
        measures = {**result.quality, **({} if result.score is None else {"score": result.score})}
        values = [measures.get(column.name, float("nan")) for column in reference.columns]
        crossed = camera.watch.see(result.part_id, values, judged, self._months(result))
        camera.of_parts += 1
        camera.flagged += result.verdict in FLAGGED
        camera.lost += result.verdict is Verdict.NOT_INSPECTED
        camera.changed = True
        # The first alarm is told at once; where it goes on, that is told with the reports that come anyway.
        if (crossed and not camera.told) or camera.of_parts >= self._settings.drift.report_parts:
            camera.told = bool(camera.watch.crossed)
            self._report(camera, result)
            camera.next_keep = 0.0  # it is on record at once, and told again after a kill until this is kept

    def _begin(self, reference: Reference) -> _Camera:
        watch = Watch(reference, self._line)
        path = self._path(reference.key)
        if (kept := _read(path)) is not None and not watch.go_on(kept):
            log.warning("%s: is no state of a watch over drift: it begins anew", path)
        if len(self._cameras) >= MOST_KEPT:
            self._write(self._cameras.popitem(last=False)[1])
        self._cameras[reference.key] = _Camera(watch)
        return self._cameras[reference.key]

    def _months(self, result: Result) -> float:
        """Time since the camera's part before, as the line's own pace has it, or as it is said to be."""
        if (pace := self._settings.drift.parts_per_month) is not None:
            return 1.0 / pace
        now_ns = result.timing.t_begin_ns
        passed_s = (now_ns - self._last_ns.get(result.camera_id, now_ns)) / 1e9
        self._last_ns[result.camera_id] = now_ns
        return min(max(passed_s, 0.0), LONGEST_S) / MONTH_S

    def _report(self, camera: _Camera, result: Result) -> None:
        watch, settings = camera.watch, self._settings.drift
        measures, tests, since = watch.measures(), watch.tests(), watch.since()
        self.waiting.append(
            Drift(
                **result.model_dump(include={"edge_id", "spool_id", "seq", "run_id", "t_wall_ns", "camera_id"}),
                **result.model_dump(include={"recipe", "recipe_number", "bundle_id", "calibration_id"}),
                inspected=watch.inspected,
                of_parts=camera.of_parts,
                flagged=camera.flagged,
                lost=camera.lost,
                tests=tests,
                measures=measures,
                suspect=suspect(measures, tests),
                since_part_id=None if since is None else watch.part_before(since),
                last_part_id=result.part_id,
                rejects_at_most=watch.reference.rejects_at_most,
                defect_share=settings.defect_share,
                false_alarms_per_month=settings.false_alarms_per_month,
                baseline_parts=watch.reference.parts,
            )
        )
        watch.reported()
        camera.of_parts = camera.flagged = camera.lost = 0

    def keep(self, last: bool = False) -> None:
        """Write what outlives a restart: of the watches that are due one, or all; nothing is raised."""
        now = self._clock()
        for camera in self._cameras.values():
            if camera.changed and (last or now >= camera.next_keep):
                camera.next_keep = now + KEEP_S
                self._write(camera)
                if not last:
                    return

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _write(self, camera: _Camera) -> None:
        camera.changed = False
        path = self._path(camera.watch.reference.key)
        with suppress(OSError):  # a full disk shows elsewhere
            new = not path.exists()
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".draft")
            draft.write_text(json.dumps({"format": FORMAT, **camera.watch.kept()}))
            draft.replace(path)
            if new:
                _forget_oldest(self._folder)


def _forget_oldest(folder: Path) -> None:
    """Recipes and calibrations come and go: their watches are not kept forever."""
    for path in sorted(folder.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)[:-MOST_KEPT]:
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """What was kept of a watch; None where nothing was, or where the file is none of ours."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STATE_BYTES + 1)
        found = json.loads(data) if len(data) <= MAX_STATE_BYTES else None
        if isinstance(found, dict) and found.get("format") == FORMAT:
            return found
        problem = "it is no such file"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    log.warning("%s: cannot be read (%.200s): this watch over drift begins anew", path, problem)
    return None
