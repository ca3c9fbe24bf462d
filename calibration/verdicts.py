"""Limits from inspectors' verdicts on flagged parts and on audited passes, weighted by how likely each was to be shown.

Before hop 5, at the engineer's desk. Flagged parts alone are the worst of a line and say nothing about those that pass.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration import weighted
from calibration.calibrate import ROLE_REPORT, had_places
from calibration.errors import CalibrationError
from calibration.exports import Source, read_pages
from calibration.methods import Rates
from calibration.renewal import refuse_stale
from calibration.report import EXCHANGEABLE, histogram, page, summary, table
from contract.bundle import GRAPHS, Bundle, Precision, open_bundle, put_files
from contract.decision import decide
from contract.event import Verdict
from contract.recipe import Thresholds
from contract.stats import Rate, rate
from contract.verdicts import SampledPart, VerdictPage

METHOD = "weighted split-conformal over inspectors' verdicts and audited passes"
PROMISE = (
    "approximate: on average over calibrations at most {reject} % of good parts are rejected, exactly so only if parts "
    "are independent of each other and of earlier limits, inspectors are right, and what they left is like the rest"
)
LEAST_JUDGED = 0.8
USUAL_RATE = 0.05
MAX_PARTS = 2_000_000
CHANGES_HEADER = ("part", "inspector", "score", "now", "then")
Floats = NDArray[np.float64]


class Group(NamedTuple):
    """Flagged or audited parts: how many inspectors were to judge, and those that they judged."""

    shown: int
    judged: list[SampledPart]
    without_picture: int

    @property
    def factor(self) -> float:
        """What a judged part's weight is raised by, so that it stands for those that were not judged as well."""
        return self.shown / len(self.judged) if self.judged else math.inf


class Evidence(NamedTuple):
    """What an export says of one model on one engine, while passes were audited.

    ``unsampled``: parts that passed and were not drawn; ``certain``: the highest limit that was in force, above which
    every part was flagged; ``left_out``: why parts count for nothing, and how many.
    """

    engine: str
    flagged: Group
    audited: Group
    unsampled: int
    certain: float
    left_out: Counter[str]

    @property
    def passed(self) -> int:
        """All parts that passed."""
        return self.audited.shown + self.unsampled

    def weights(self, said: str) -> tuple[list[SampledPart], Floats]:
        """The parts that inspectors called so, and how many produced parts each stands for."""
        found = [
            (part, group.factor / part.inclusion)
            for group in (self.flagged, self.audited)
            for part in group.judged
            if part.judged == said
        ]
        return [part for part, _ in found], np.array([weight for _, weight in found], np.float64)

    def good(self) -> weighted.Sample:
        """The parts called good, weighted."""
        parts, weights = self.weights("good")
        return weighted.sample(scores_of(parts), weights, self.certain, max(1.0, self._flagged_factor()))

    def escapes(self) -> tuple[Rate, tuple[float, float, float] | None]:
        """Defects among audited passes that were judged, and the escape rate under the limits that were in force.

        That is the share of all defective parts that passed, with its 95 % interval from the audited parts, those
        flagged taken as counted; None where no part was called defective.
        """
        of_passed = np.array([1 / part.inclusion for part in self.audited.judged], np.float64)
        defective = np.array([part.judged == "defect" for part in self.audited.judged])
        share = float(of_passed[defective].sum() / of_passed.sum())
        size = math.floor(of_passed.sum() ** 2 / (of_passed**2).sum() + 1e-9)  # with one audit_share: as many as judged
        found = rate(min(size, math.ceil(share * size - 1e-9)), size)
        flagged = sum(part.judged == "defect" for part in self.flagged.judged) * self._flagged_factor()
        if not flagged and not defective.any():
            return found, None
        low, high = found.low or 0.0, 1.0 if found.high is None else found.high
        escaped = [self.passed * each for each in (share, low, high)]
        middle, least, most = (each / (each + flagged) if each else 0.0 for each in escaped)
        return found, (middle, least, most)

    def _flagged_factor(self) -> float:
        return self.flagged.factor if self.flagged.judged else 1.0


class Recalibration(NamedTuple):
    """What inspectors' verdicts would put into the bundle."""

    bundle: Bundle
    thresholds: Thresholds
    before: Thresholds
    evidence: Evidence


def recalibrate(
    folder: Path, source: Source, rates: Rates, engine: str = "auto", precision: Precision = "fp32"
) -> Recalibration:
    """Limits from a host's export; nothing is written. The map's limit and picture bounds stay.

    A rate that is not given is the one that the bundle was calibrated for.

    Raises CalibrationError, BundleError.
    """
    bundle = open_bundle(folder)
    refuse_stale(bundle)
    before = bundle.manifest.thresholds
    if before is None or bundle.manifest.quality is None:
        raise CalibrationError(
            f"{folder}: was never calibrated, so that no part has a verdict by it, and the map's limit and the bounds "
            "of a picture come from images: flawline calibrate thresholds BUNDLE --data DIR first"
        )
    if had_places(bundle.manifest):
        raise CalibrationError(
            f"{folder}: has, or had before, masks or zones, which are part of a score, so that scores of one "
            "calibration are not those of another; --from-verdicts needs a bundle that never had any. Calibrate from "
            "images: --data DIR --zones FILE"
        )
    role = GRAPHS[precision]
    if role not in bundle.manifest.files:
        raise CalibrationError(f"{folder}: has no {precision} graph; it has {', '.join(sorted(bundle.manifest.files))}")
    found = collect(read_pages(source), bundle.manifest.files[role].sha256, engine, before.engine)
    wanted = Rates(rates.reject or before.false_reject_rate or USUAL_RATE, rates.review or before.review_rate)
    if before.review is not None and wanted.review is None:
        raise CalibrationError(
            f"{folder}: has a review band that did not come from a rate, and would lose it; say which share of good "
            "parts may be flagged in all: --review-rate"
        )
    return Recalibration(bundle, limits_from(found, wanted, before), before, found)


def collect(pages: Iterable[VerdictPage], model_sha256: str, engine: str, calibrated_with: str) -> Evidence:
    """Sort an export; scores of one model on one engine alone are comparable. Raises CalibrationError."""
    parts: list[SampledPart] = []
    unsampled: Counter[str] = Counter()
    limits: dict[str, float] = {}
    left: Counter[str] = Counter()
    for found in pages:
        for part in found.parts:
            if part.model_sha256 != model_sha256:
                left["shown, of another model or precision"] += 1
            elif not part.audit_share:
                left["flagged while no passed part was audited"] += 1
            elif part.score is None or part.flags_above is None:
                left["shown, without score or limit"] += 1
            else:
                parts.append(part)
                limits[part.engine] = max(part.flags_above, limits.get(part.engine, -math.inf))
        for some in found.passed:
            if some.model_sha256 != model_sha256:
                left["passed, of another model or precision"] += some.parts
            elif not some.audit_share:
                left["passed while none was audited"] += some.parts
            elif some.flags_above is None:
                left["passed, without a limit"] += some.parts
            else:
                unsampled[some.engine] += some.parts
                limits[some.engine] = max(some.flags_above, limits.get(some.engine, -math.inf))
        if len(parts) > MAX_PARTS:
            raise CalibrationError(f"over {MAX_PARTS} parts were shown to inspectors: more than this reads")
    _refuse_twins(parts)
    chosen = _choose_engine(Counter(part.engine for part in parts), engine, calibrated_with, left)
    left["shown, of another engine"] = sum(part.engine != chosen for part in parts)
    left["passed, of another engine"] = sum(count for name, count in unsampled.items() if name != chosen)
    mine = [part for part in parts if part.engine == chosen]
    return Evidence(
        chosen,
        _group([part for part in mine if part.verdict is not Verdict.PASS]),
        _group([part for part in mine if part.verdict is Verdict.PASS]),
        unsampled[chosen],
        limits[chosen],
        +left,
    )


def _refuse_twins(parts: Sequence[SampledPart]) -> None:
    """An export that holds a part twice would let it count twice."""
    seen: set[tuple[str, str]] = set()
    for part in parts:
        if (part.edge_id, part.part_id) in seen:
            raise CalibrationError(f"part {part.part_id} of {part.edge_id} is in the export twice; export it anew")
        seen.add((part.edge_id, part.part_id))


def _choose_engine(parts: Counter[str], asked: str, calibrated_with: str, left: Counter[str]) -> str:
    """The one engine whose scores count: the one asked for, else the bundle's, else the only one there is."""
    fitting = [name for name in parts if asked == "auto" or re.match(rf"{re.escape(asked)}-\d", name)]
    if len(fitting) == 1:
        return fitting[0]
    if calibrated_with in fitting:
        return calibrated_with
    if not fitting:
        others = f"; of --engine {asked} none: there are {', '.join(sorted(parts))}" if parts else ""
        said = "; ".join(f"{count} {why}" for why, count in left.most_common())
        raise CalibrationError(
            f"the export has no part of this bundle's model that was shown while passes were audited{others}"
            f"{f' ({said})' if said else ''}. Set audit_share in edge.toml, for example 0.02, and let inspectors judge "
            "what comes into their queue"
        )
    told = ", ".join(f"{parts[name]} of {name!r}" for name in sorted(fitting))
    raise CalibrationError(f"scores of different engines cannot be mixed, and there are {told}: choose by --engine")


def _group(parts: list[SampledPart]) -> Group:
    judged = [part for part in parts if part.judged is not None]
    return Group(len(parts), judged, sum(not part.picture for part in parts if part.judged is None))


def limits_from(found: Evidence, rates: Rates, before: Thresholds) -> Thresholds:
    """The limits for the rates; whatever else the bundle has set stays. Raises CalibrationError."""
    if rates.reject is None or (rates.review is not None and not rates.reject < rates.review < 1):
        raise CalibrationError(
            f"--review-rate {rates.review} must lie between the false-reject rate {rates.reject} and 1: it counts all "
            "good parts that are flagged, the rejected ones among them"
        )
    refuse_biased(found)
    good = found.good()
    reject = weighted.threshold(good, rates.reject)
    review = None if rates.review is None else weighted.threshold(good, rates.review)
    low, high = weighted.expected_rate(good, reject)
    promise = PROMISE.format(reject=f"{100 * rates.reject:g}")
    if rates.review is not None:
        promise += f"; for being flagged at all the same with {100 * rates.review:g} %"
    return before.model_copy(
        update={
            "reject": reject,
            "review": None if review is None else min(review, reject),
            "method": METHOD,
            "promise": promise,
            "confidence": None,
            "false_reject_rate": rates.reject,
            "review_rate": rates.review,
            "groups": len(good.scores),
            "images": len(good.scores),
            "engine": found.engine,
            "expected_low": low,
            "expected_high": high,
        }
    )


def refuse_biased(found: Evidence) -> None:
    """Raise CalibrationError where no passes were judged, or too many parts that were shown have no verdict."""
    if not found.audited.judged:
        raise CalibrationError(
            f"no audited pass has an inspector's verdict ({found.flagged.shown} flagged and {found.audited.shown} "
            "audited parts were shown): flagged parts alone are a biased sample, of the worst, and any limit from them "
            "would be too high. Set audit_share in edge.toml, for example 0.02, and let inspectors judge those parts"
        )
    for name, group in (("flagged parts", found.flagged), ("audited passes", found.audited)):
        if len(group.judged) < LEAST_JUDGED * group.shown:
            pictures = f"; {group.without_picture} of the others have no picture" if group.without_picture else ""
            raise CalibrationError(
                f"only {len(group.judged)} of {group.shown} {name} were judged{pictures}; at least "
                f"{100 * LEAST_JUDGED:g} % are needed, since those left over are seldom like those that were taken "
                "(the queue is worked through from its worst part). Let inspectors clear it first"
            )
    if not any(part.judged == "good" for part in found.audited.judged):
        raise CalibrationError("no audited pass was called good; a limit for good parts needs such")


def scores_of(parts: Sequence[SampledPart]) -> Floats:
    """Raw scores; parts without one were left out before."""
    return np.array([math.nan if part.score is None else part.score for part in parts], np.float64)


def write(found: Recalibration) -> Path:
    """Put limits and report into the bundle, as a calibration from images does; returns the report."""
    good = found.evidence.good()
    metrics: dict[str, float | int | str] = {
        "recipe": found.bundle.manifest.recipe.name,
        "judged_good": len(good.scores),
        "judged_defective": len(found.evidence.weights("defect")[0]),
        "audited": found.evidence.audited.shown,
        "audited_judged": len(found.evidence.audited.judged),
        "flagged": found.evidence.flagged.shown,
        "flagged_judged": len(found.evidence.flagged.judged),
        "passed": found.evidence.passed,
        "effective_size": good.effective_size,
        "engine": found.evidence.engine,
    }
    made = put_files(
        found.bundle,
        {ROLE_REPORT: ("report.html", report(found).encode())},
        thresholds=found.thresholds,
        metrics={**found.bundle.manifest.metrics, "calibration": metrics},
    )
    return made[ROLE_REPORT]


def limit_rows(found: Recalibration) -> list[tuple[str, str]]:
    """The limits, for terminal and page; nothing was held out for them."""
    return [row for row in summary(found.thresholds) if row[0] != "held-out good parts"]


def rows(found: Recalibration) -> list[tuple[str, str]]:
    """What the verdicts say, for terminal and page, below the limits themselves."""
    evidence, good = found.evidence, found.evidence.good()
    in_passes, escaped = evidence.escapes()
    defects, _ = evidence.weights("defect")
    limit = found.thresholds.reject if found.thresholds.review is None else found.thresholds.review
    lines = [
        ("flagged parts judged", _of(evidence.flagged)),
        ("audited passes judged", f"{_of(evidence.audited)}, for {evidence.passed} that passed"),
        (
            "good parts among them",
            f"{len(good.scores)}, standing for {good.total:.0f}; effective sample size {good.effective_size:.0f}",
        ),
        ("good parts above the limit before", f"{100 * good.share_above(found.before.reject):.3g} % estimated"),
        ("defects among audited passes", in_passes.text()),
        ("escape rate until now", _escape_text(escaped)),
        ("judged defects that the new limits pass", rate(sum(scores_of(defects) <= limit), len(defects)).text()),
    ]
    lines += [("left out", f"{count} {why}") for why, count in evidence.left_out.most_common()]
    if max(
        evidence.flagged.shown - len(evidence.flagged.judged), evidence.audited.shown - len(evidence.audited.judged)
    ):
        lines.append(
            ("parts shown and not judged", "are taken to be like those judged, flagged and audited ones apart")
        )
    return lines


def _of(group: Group) -> str:
    return f"{len(group.judged)} of {group.shown}"


def _escape_text(escaped: tuple[float, float, float] | None) -> str:
    if escaped is None:
        return "unknown: no part was called defective"
    middle, low, high = (100 * each for each in escaped)
    if not middle:
        return f"none was seen; at most {high:.2g} % of defective parts, by limits that were in force"
    return f"{middle:.2g} % of defective parts ({low:.2g} to {high:.2g} %), by limits that were in force"


def changes(found: Recalibration) -> list[tuple[str, ...]]:
    """Judged parts whose verdict would change, highest score first: part, inspector's word, score, now, then."""
    parts = [part for group in (found.evidence.flagged, found.evidence.audited) for part in group.judged]
    listed = [
        (score, part.part_id, part.judged or "", decide(score, found.before)[0], decide(score, found.thresholds)[0])
        for part, score in zip(parts, scores_of(parts).tolist(), strict=True)
    ]
    return [
        (part_id, said, f"{score:.6g}", now.value, then.value)
        for score, part_id, said, now, then in sorted(listed, reverse=True)
        if now is not then
    ]


def report(found: Recalibration) -> str:
    """The page that a recalibration leaves in the bundle."""
    evidence, thresholds = found.evidence, found.thresholds
    marks = {"reject above": thresholds.reject, "before": found.before.reject}
    if thresholds.review is not None:
        marks["review above"] = thresholds.review
    series = {
        "good, flagged": _scores(evidence.flagged, "good"),
        "good, audited": _scores(evidence.audited, "good"),
        "defective": [float(score) for score in scores_of(evidence.weights("defect")[0])],
    }
    body = (
        f'<p class="quiet">Bundle {found.bundle.manifest.id}, from inspectors\' verdicts</p>'
        f'<p class="note">{EXCHANGEABLE}</p>'
        f"<h2>Scores of judged parts</h2>{histogram({name: some for name, some in series.items() if some}, marks)}"
        "<p>Each series is drawn by itself: an audited part stands for many that passed, a flagged one for itself.</p>"
        f"<h2>Thresholds</h2>{table(('', ''), limit_rows(found))}"
        f"<h2>Verdicts</h2>{table(('', ''), rows(found))}"
        "<p>The map's limit and the bounds of a usable picture are those of the calibration from images.</p>"
    )
    return page(f"Recalibration of {found.bundle.manifest.name}", body)


def _scores(group: Group, said: str) -> list[float]:
    return [float(score) for score in scores_of([part for part in group.judged if part.judged == said])]
