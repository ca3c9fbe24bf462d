"""Held-out good images -> thresholds, quality bounds and a report in the bundle (what hops 3 and 5 decide by)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibration import conformal
from calibration.costs import Limits
from calibration.defects import find_defects, record
from calibration.folds import open_folds
from calibration.holdout import Copies, HeldOut, hold_out, pattern_of
from calibration.methods import (
    METHODS,
    Choice,
    Rates,
    Scores,
    check,
    describe,
    find_limits,
    promise,
    rate_to_expect,
    require,
)
from calibration.progress import steps
from calibration.quality import Seen, bounds_from, see
from calibration.report import calibration_page
from contract.bundle import Bundle, Manifest, Precision, file_entry, open_bundle, write_atomic, write_manifest
from contract.dataset import Sample, load_dataset
from contract.images import Pixels, read_image
from contract.preprocess import prepare
from contract.recipe import QualityBounds, Thresholds
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.inspector import Inspector

ROLE_REPORT = "report"
MAX_THREADS = 8


class Measured(NamedTuple):
    """Scores and map maxima of the held-out images, what pictures of all good images look like, and other scores.

    ``defects`` are scores of defective images, ``more`` those of ``more_groups`` by networks that have not seen them.
    """

    held: HeldOut
    scores: list[float]
    peaks: list[float]
    pictures: list[Seen]
    engine: str
    defects: Sequence[float] = ()
    more: Sequence[float] = ()
    more_groups: Sequence[str] = ()

    def by_part(self) -> Scores:
        groups = [sample.group for sample in self.held.unseen]
        return Scores(self.scores, groups, self.defects, self.more, self.more_groups)


class Proposal(NamedTuple):
    """What a calibration would put into the bundle, and what it rests on; defective images may have chosen a limit."""

    bundle: Bundle
    thresholds: Thresholds
    quality: QualityBounds
    measured: Measured
    chosen_by_defects: bool


class Calibrated(NamedTuple):
    """The result, as it stands in the bundle."""

    thresholds: Thresholds
    quality: QualityBounds
    measured: Measured
    report: Path


def threads() -> int:
    """Engine threads at the engineer's desk: the machine's cores, at most MAX_THREADS."""
    return min(MAX_THREADS, os.cpu_count() or 1)


def calibrate(
    folder: Path,
    data: Path,
    rates: Rates,
    engine: str = "auto",
    pattern: str | None = None,
    precision: Precision = "fp32",
    choice: Choice = Choice(),  # noqa: B008 - a tuple of constants
) -> Calibrated:
    """Measure with the engine and preprocessing of the line, then write thresholds and bounds into the bundle.

    Raises CalibrationError where the held-out parts are too few for the rates, and whatever its steps raise.
    """
    found = propose(folder, data, rates, engine, pattern, precision, choice)
    return Calibrated(*found[1:4], write(*found[:4]))


def propose(
    folder: Path,
    data: Path,
    rates: Rates,
    engine: str = "auto",
    pattern: str | None = None,
    precision: Precision = "fp32",
    choice: Choice = Choice(),  # noqa: B008 - a tuple of constants
) -> Proposal:
    """What ``calibrate`` would write; nothing is written but, for test images, the record of looks at them."""
    chooses = check(rates, choice).needs_defects or choice.costs is not None
    bundle = open_bundle(folder)
    dataset = load_dataset(data, pattern_of(bundle, pattern))
    held = hold_out(bundle, dataset)
    folds = open_folds(bundle, choice.folds, dataset)
    require(len({s.group for each in (held, *(fold[1] for fold in folds)) for s in each.unseen}), rates, choice)
    defects, looked = find_defects(choice.defects, dataset, choice.looks)
    if looked and choice.looks is not None:
        record(choice.looks, bundle, dataset, len(defects))
    measured = measure_good(bundle, held, engine, precision)
    measured = measured._replace(
        defects=score_images(bundle, defects, engine, precision, "scoring defective parts"),
        more=[
            score
            for fold, parts in folds
            for score in score_images(fold, parts.unseen, engine, precision, f"scoring by {fold.root.name}")
        ],
        more_groups=[sample.group for _, parts in folds for sample in parts.unseen],
    )
    thresholds = thresholds_from(measured, rates, choice, looked)
    return Proposal(bundle, thresholds, bounds_from(measured.pictures), measured, bool(defects) and chooses)


def measure_good(bundle: Bundle, held: HeldOut, engine_name: str, precision: Precision = "fp32") -> Measured:
    """Score the unseen images and look at all; an image that cannot be read stops the calibration by its name."""
    engine = open_engine(engine_name, bundle, threads(), precision)
    check_golden(engine, without_limits(bundle))
    inspector = Inspector(bundle, engine)
    scores, peaks, pictures = [], [], []
    copies = Copies()
    for sample in steps(held.unseen, "scoring held-out parts"):
        part = _read(bundle, sample)
        copies.add_unseen(sample, part)
        scored, prepared = inspector.score(part)
        scores.append(scored.score)
        peaks.append(max(float(view.values.max()) for view in scored.maps))
        pictures.append(see(prepared, part.shape[:2]))
    for sample in steps(held.seen, "looking at the other good images"):
        part = _read(bundle, sample)
        copies.refuse(sample, part)
        pictures.append(see(prepare(part, bundle.manifest.recipe), part.shape[:2]))
    return Measured(held, scores, peaks, pictures, engine.describe())


def score_images(
    bundle: Bundle, samples: Sequence[Sample], engine_name: str, precision: Precision, what: str
) -> list[float]:
    """Raw score of each image by the bundle's network; an engine is opened only where there are images."""
    if not samples:
        return []
    engine = open_engine(engine_name, bundle, threads(), precision)
    check_golden(engine, without_limits(bundle))
    inspector = Inspector(bundle, engine)
    return [inspector.score(_read(bundle, sample))[0].score for sample in steps(samples, what)]


def without_limits(bundle: Bundle) -> Bundle:
    """The same, uncalibrated: what old limits say of golden images must not keep new ones from being measured."""
    manifest = bundle.manifest.model_copy(update={"thresholds": None})
    return Bundle(bundle.root, manifest, bundle.content, bundle.exact)


def _read(bundle: Bundle, sample: Sample) -> Pixels:
    return read_image(sample.path, bundle.manifest.recipe.channels)


def thresholds_from(
    measured: Measured,
    rates: Rates,
    choice: Choice = Choice(),  # noqa: B008 - a tuple of constants
    looked: bool = False,
) -> Thresholds:
    """The limits for ``rates`` by the rule chosen, and the counts that they rest on.

    The map is cut at the wider of the two rates, so that what goes to review shows where it deviates.
    """
    scores = measured.by_part()
    limits = find_limits(scores, rates, choice)
    low, high = rate_to_expect(scores, rates, choice, limits.reject)
    return Thresholds(
        reject=limits.reject,
        review=limits.review,
        map=_map_limit(measured, scores, limits, rates, choice),
        method=describe(scores, choice, looked),
        promise=promise(rates, choice),
        confidence=choice.confidence if choice.method == "pac" else None,
        false_reject_rate=rates.reject,
        review_rate=rates.review,
        groups=len({*scores.groups, *scores.more_groups}),
        images=len(scores.groups) + len(scores.more_groups),
        engine=measured.engine,
        expected_low=low,
        expected_high=high,
    )


def _map_limit(measured: Measured, scores: Scores, limits: Limits, rates: Rates, choice: Choice) -> float:
    """The map's limit for the wider rate, or, by rules that promise none, one that as many good parts exceed."""
    wider = rates.review or rates.reject
    parts = len(set(scores.groups))
    if METHODS[choice.method].promise is not None and wider is not None and parts >= conformal.groups_needed(wider):
        return conformal.threshold(measured.peaks, scores.groups, wider)
    limit = limits.reject if limits.review is None else limits.review
    above = conformal.share_above(scores.good, scores.groups, limit)
    return conformal.level(measured.peaks, scores.groups, 1 - above)


def write(bundle: Bundle, thresholds: Thresholds, quality: QualityBounds, measured: Measured) -> Path:
    """Put the calibration into the bundle; until the manifest is replaced, the old one stays whole and valid.

    The report's name carries its hash, so that the old manifest's report is not overwritten before its time.
    """
    manifest = bundle.manifest
    page = calibration_page(manifest, thresholds, quality, measured.scores).encode()
    name = f"report-{hashlib.sha256(page).hexdigest()[:8]}.html"
    write_atomic(bundle.root / name, page)
    before = manifest.files.get(ROLE_REPORT)
    write_manifest(
        bundle.root,
        manifest.model_copy(
            update={
                "thresholds": thresholds,
                "quality": quality,
                "files": {**manifest.files, ROLE_REPORT: file_entry(bundle.root, name)},
                "metrics": {**manifest.metrics, "calibration": _metrics(manifest, thresholds, measured)},
            }
        ),
    )
    if before is not None and before.path != name:
        (bundle.root / before.path).unlink(missing_ok=True)
    return bundle.root / name


def _metrics(manifest: Manifest, thresholds: Thresholds, measured: Measured) -> dict[str, float | int | str]:
    scores = np.array(measured.scores)
    limit = thresholds.reject if thresholds.review is None else thresholds.review
    return {
        "recipe": manifest.recipe.name,
        "holdout_images": len(scores),
        "holdout_groups": measured.held.groups,
        "pictures": len(measured.pictures),
        "score_median": float(np.median(scores)),
        "score_max": float(scores.max()),
        "engine": measured.engine,
        "defects": len(measured.defects),
        "defects_passed": sum(score <= limit for score in measured.defects),
    }
