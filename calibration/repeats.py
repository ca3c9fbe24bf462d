"""The same parts before the camera again and again -> how well verdict and score repeat (hops 1 to 5, at the line).

The edge's own capture process takes and cuts the pictures. They are kept, and judged from there: what was interrupted
goes on where it stood, and another bundle can be judged by the same pictures.
"""

from __future__ import annotations

import csv
import io
import json
import math
import select
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from calibration.errors import CalibrationError
from calibration.evaluate import open_inspector
from calibration.progress import steps
from contract.bundle import ROLE_PREPROCESS, Bundle, Precision, write_atomic
from contract.camera import controls_of
from contract.errors import FixtureError
from contract.event import Verdict
from contract.fixture import Placer, placer_of
from contract.images import encode_png, to_channels
from contract.part_pictures import Line, line_of, read_corrected
from contract.recipe import Thresholds
from contract.stats import Rate, rate, rate_fields
from edge_runtime.cameras import is_live, make_camera
from edge_runtime.cameras.base import redacted
from edge_runtime.capture import OVERRUN, CameraProcess, CapturedTrigger
from edge_runtime.inspector import Inspector
from edge_runtime.settings import CameraSettings

REPEATS = 10
"""Pictures of a part that an agreement of verdicts should rest on (attribute agreement analysis, MSA)."""

FORMAT = "flawline.repeats/1"
ABOUT, LIST = "repeats.json", "repeats.csv"
COLUMNS = ("part", "repeat", "lost")
NEAR = 3.0  # standard deviations of a repeat from a limit: nearer, one part gets different verdicts in time
Z = 1.959963984540054

Say = Callable[[str], None]


class Asked(NamedTuple):
    """``parts`` are put before the camera ``repeats`` times each; ``lying``: they lie, and it takes its pictures."""

    camera: CameraSettings
    parts: int
    repeats: int = REPEATS
    lying: bool = False


class Shot(NamedTuple):
    """Picture ``repeat`` of part ``part``, both from 1; ``lost``: why there is none, else empty."""

    part: int
    repeat: int
    lost: str


class PartRepeats(NamedTuple):
    """One part: its verdicts, the scores of what was inspected, and the share that got its commonest verdict."""

    part: int
    verdicts: Counter[Verdict]
    scores: list[float]
    commonest: Rate

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def sigma(self) -> float | None:
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


class Repeats(NamedTuple):
    """All parts. ``sigma``: standard deviation of a repeat's score over all parts, with its 95 % interval.

    ``agree``: parts whose pictures all got one verdict. ``near``: parts whose mean lies within NEAR standard deviations
    of a limit, of those with scores. All are None or empty where no part has two scores.
    """

    camera: dict[str, Any]
    engine: str
    parts: list[PartRepeats]
    limits: tuple[float, ...]
    sigma: float | None
    sigma_interval: tuple[float, float] | None
    agree: Rate
    near: Rate

    def distance(self, part: PartRepeats) -> float | None:
        """Standard deviations between the part's mean score and the nearest limit; the larger of its own and all's."""
        if part.mean is None or self.sigma is None:
            return None
        sigma = max(self.sigma, part.sigma or 0.0)
        away = min(abs(part.mean - limit) for limit in self.limits)
        return away / sigma if sigma > 0 else math.inf if away > 0 else 0.0

    def fields(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {
            "format": FORMAT,
            "camera": self.camera,
            "engine": self.engine,
            "limits": self.limits,
            "score_sigma": self.sigma,
            "score_sigma_interval": self.sigma_interval,
            **rate_fields("parts_that_agree", self.agree),
            **rate_fields("parts_near_a_limit", self.near),
            "parts": [self._part_fields(part) for part in self.parts],
        }

    def _part_fields(self, part: PartRepeats) -> dict[str, Any]:
        distance = self.distance(part)
        return {
            "part": part.part,
            "verdicts": {verdict.value: part.verdicts[verdict] for verdict in Verdict},
            **rate_fields("commonest_verdict", part.commonest),
            "score_mean": part.mean,
            "score_sigma": part.sigma,
            "scores": part.scores,
            "sigmas_from_a_limit": None if distance is None or math.isinf(distance) else distance,
        }


# Taking the pictures --------------------------------------------------------------------------------------------------


def take(bundle: Bundle, asked: Asked, out: Path, say: Say, await_part: Callable[[int], None] | None = None) -> None:
    """Take what is missing in ``out``; every picture is on the disk before the next.

    ``await_part`` is called before each part and returns when it is there: what the camera saw before does not count.
    Raises CalibrationError where the camera fails or ends too early, and where ``out`` holds something else.
    """
    make_camera(asked.camera.url, asked.camera.id, out, asked.camera.stall_s)  # raises for what can never work
    about = _about(bundle, asked)
    shots = _begin(out, about)
    done = {(shot.part, shot.repeat) for shot in shots}
    wanted = [(part, repeat) for part in range(1, asked.parts + 1) for repeat in range(1, asked.repeats + 1)]
    missing = [each for each in wanted if each not in done]
    if not missing:
        return
    skip = 0
    if not about["live"]:  # a recording begins anew, and what is there already comes again
        skip = len(shots)
        if missing != wanted[skip:]:
            raise CalibrationError(f"{out}: pictures of a recording are missing in between; give a new folder")
    controls = controls_of(bundle.manifest.cameras, asked.camera.id)
    with tempfile.TemporaryDirectory() as state:
        process = CameraProcess(asked.camera, Path(state), resumed=False, controls=controls)
        try:
            process.start()
            _fill(process, asked, bundle, out, shots, missing, skip, say, await_part)
        finally:
            process.stop()


def _fill(
    process: CameraProcess,
    asked: Asked,
    bundle: Bundle,
    out: Path,
    shots: list[Shot],
    missing: Sequence[tuple[int, int]],
    skip: int,
    say: Say,
    await_part: Callable[[int], None] | None,
) -> None:
    triggers = _triggers(process, asked.lying, out)
    for _ in range(skip):
        process.release(next(triggers))
    before, since_ns = 0, 0
    for part, repeat in missing:
        if part != before and await_part is not None:
            await_part(part)
            since_ns = time.monotonic_ns()
        before = part
        trigger = next(each for each in triggers if _counts(process, each, since_ns))
        shot = Shot(part, repeat, trigger.lost or "")
        if not shot.lost:
            raw = ROLE_PREPROCESS in bundle.manifest.files  # which corrects whole frames, when they are judged
            pixels, pixel_format = process.whole(trigger) if raw else process.cut(trigger)
            path = picture_path(out, part, repeat)
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, encode_png(to_channels(pixels, pixel_format, bundle.manifest.recipe.channels)))
        process.release(trigger)
        shots.append(shot)
        _write_list(out, shots)
        say(f"part {part} of {asked.parts}, picture {repeat} of {asked.repeats}{shot.lost and f': {shot.lost}'}")


def _counts(process: CameraProcess, trigger: CapturedTrigger, since_ns: int) -> bool:
    """Whether a trigger came after the part was said to be there; else its picture is given back."""
    if trigger.t_capture_ns >= since_ns:
        return True
    process.release(trigger)
    return False


def _triggers(process: CameraProcess, lying: bool, out: Path) -> Iterator[CapturedTrigger]:
    """Triggers as they come. Of a lying part, frames that only came too fast are passed over.

    Raises CalibrationError where none can follow, and where a recording went on faster than it was looked at: a pass
    that nobody saw would put every later picture under the wrong part.
    """
    live = is_live(process.settings.url)
    while True:
        select.select([process.fileno()], [], [], 0.05)
        process.supervise()
        status = process.status()
        if status.skipped and not live and not lying:
            raise CalibrationError(
                f"{process.settings.url}: {status.skipped} frame(s) passed that this machine was too slow to look at, "
                "so a part may have passed unseen; play it slower (fps=) and begin with a new folder"
            )
        found = process.drain()
        yield from (each for each in found if not (lying and each.lost == OVERRUN))
        if not found and status.state in ("ended", "failed"):
            raise CalibrationError(
                f"camera {process.settings.id}: {status.detail or status.state}; pictures are missing in "
                f"{out}. What was taken is kept: mend the camera and give the same command again"
            )


def _about(bundle: Bundle, asked: Asked) -> dict[str, Any]:
    """What must not change between two runs that fill one folder."""
    return {
        "format": FORMAT,
        "camera": {
            **asked.camera.model_dump(mode="json", exclude={"url", "slots", "policy", "stall_s", "max_frame_mb"}),
            "source": redacted(asked.camera.url),
        },
        "live": is_live(asked.camera.url),
        "lying": asked.lying,
        "channels": bundle.manifest.recipe.channels,
    }


def _begin(out: Path, about: dict[str, Any]) -> list[Shot]:
    """What stands in ``out``; makes it where it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / ABOUT).exists():
        if any(out.iterdir()):
            raise CalibrationError(f"{out}: the folder holds something else; give one that does not exist yet")
        write_atomic(out / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    found = _read_about(out)
    if differing := sorted(name for name in about if found.get(name) != about[name]):
        raise CalibrationError(
            f"{out}: begun with another {', '.join(differing)} ({found.get(differing[0])}, now {about[differing[0]]}); "
            "give the camera as it was, or a new folder"
        )
    return _read_list(out)


def picture_path(out: Path, part: int, repeat: int) -> Path:
    return out / f"part-{part:03d}" / f"{repeat:02d}.png"


def _read_about(out: Path) -> dict[str, Any]:
    path = out / ABOUT
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error}); expected a folder filled by `flawline calibrate repeats`"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CalibrationError(f"{path}: not the record of repeats in the format {FORMAT!r}")
    return found


def _read_list(out: Path) -> list[Shot]:
    """The pictures of ``out``; a part whose folder was removed is to be taken again, and so are pictures."""
    path = out / LIST
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        shots = [Shot(int(row["part"]), int(row["repeat"]), row["lost"] or "") for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error!r}); expected the columns {', '.join(COLUMNS)}"
        ) from error
    places = {part: (out / f"part-{part:03d}").is_dir() for part in {shot.part for shot in shots}}
    return [
        shot
        for shot in shots
        if places[shot.part] and (shot.lost or picture_path(out, shot.part, shot.repeat).exists())
    ]


def _write_list(out: Path, shots: Sequence[Shot]) -> None:
    (out / f"part-{shots[-1].part:03d}").mkdir(exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(shots))
    write_atomic(out / LIST, text.getvalue().encode())


# Judging them ---------------------------------------------------------------------------------------------------------


def judge(bundle: Bundle, out: Path, engine: str = "auto", precision: Precision = "fp32") -> Repeats:
    """Verdicts and scores of all pictures in ``out``, as the line would give them. Raises CalibrationError."""
    thresholds = bundle.manifest.thresholds
    if thresholds is None:
        raise CalibrationError(f"{bundle.root}: has no thresholds; run `flawline calibrate thresholds` first")
    about = _read_about(out)
    shots = sorted(_read_list(out))
    if not shots:
        raise CalibrationError(f"{out}: holds no pictures; take some: flawline calibrate repeats --help")
    if about.get("channels") != bundle.manifest.recipe.channels:
        raise CalibrationError(
            f"{out}: pictures of {about.get('channels')} channel(s), the bundle expects "
            f"{bundle.manifest.recipe.channels}; take them anew with this bundle"
        )
    proven = open_inspector(bundle, engine, precision)
    inspector = Inspector(bundle, proven.engine, frozen_check=bool(about.get("live")))
    line = line_of(bundle)
    placer = placer_of(bundle) if line.correction is None else None
    verdicts: dict[int, list[tuple[Verdict, float | None]]] = {}
    for shot in steps(shots, "inspecting repeats"):
        verdicts.setdefault(shot.part, []).append(_inspect(inspector, line, placer, out, shot))
    parts = [_part(part, found) for part, found in verdicts.items()]
    return summed_up(about, proven.engine.describe(), parts, thresholds)


def _inspect(
    inspector: Inspector, line: Line, placer: Placer | None, out: Path, shot: Shot
) -> tuple[Verdict, float | None]:
    if shot.lost:
        return Verdict.NOT_INSPECTED, None
    try:
        part = read_corrected(picture_path(out, shot.part, shot.repeat), inspector.bundle.manifest.recipe, line)
        part = part if placer is None else placer.place(part).pixels
    except FixtureError:
        return Verdict.NOT_INSPECTED, None
    outcome = inspector.inspect(part)
    return outcome.verdict, outcome.score


def _part(part: int, found: Sequence[tuple[Verdict, float | None]]) -> PartRepeats:
    verdicts = Counter(verdict for verdict, _ in found)
    scores = [score for _, score in found if score is not None]
    return PartRepeats(part, verdicts, scores, rate(max(verdicts.values()), len(found)))


def summed_up(about: dict[str, Any], engine: str, parts: list[PartRepeats], thresholds: Thresholds) -> Repeats:
    """The figures over all parts: the repeat's variance is the mean of the parts' by their degrees of freedom."""
    limits = tuple(limit for limit in (thresholds.review, thresholds.reject) if limit is not None)
    freedom = sum(len(part.scores) - 1 for part in parts if part.scores)
    sigma = interval = None
    if freedom:
        squares = sum((len(part.scores) - 1) * part.sigma**2 for part in parts if part.sigma is not None)
        sigma = math.sqrt(squares / freedom)
        interval = (sigma * math.sqrt(freedom / chi2(Z, freedom)), sigma * math.sqrt(freedom / chi2(-Z, freedom)))
    several = [part for part in parts if part.verdicts.total() > 1]
    agree = rate(sum(len(part.verdicts) == 1 for part in several), len(several))
    found = Repeats(
        about["camera"] | {"lying": about["lying"]}, engine, parts, limits, sigma, interval, agree, rate(0, 0)
    )
    distances = [distance for part in parts if (distance := found.distance(part)) is not None]
    return found._replace(near=rate(sum(distance <= NEAR for distance in distances), len(distances)))


def chi2(z: float, freedom: int) -> float:
    """Quantile of chi-square at the normal quantile ``z`` (Wilson and Hilferty, PNAS 17, 1931); never below 0."""
    spread = 2 / (9 * freedom)
    return freedom * max(0.05, 1 - spread + z * math.sqrt(spread)) ** 3
