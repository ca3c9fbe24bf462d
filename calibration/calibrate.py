"""Held-out good images -> thresholds, quality bounds and a report in the bundle (what hops 3 and 5 decide by)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibration.conformal import expected_rate, require, threshold
from calibration.errors import CalibrationError
from calibration.holdout import HeldOut, hold_out, pattern_of
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
METHOD = "split-conformal over parts"
MAX_THREADS = 8


class Rates(NamedTuple):
    """What was asked for: shares of good parts to reject, and to flag at all (None: no review band)."""

    reject: float
    review: float | None = None


class Measured(NamedTuple):
    """Scores and map maxima of the held-out images, and what pictures of all good images look like."""

    held: HeldOut
    scores: list[float]
    peaks: list[float]
    pictures: list[Seen]
    engine: str


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
) -> Calibrated:
    """Measure with the engine and preprocessing of the line, then write thresholds and bounds into the bundle.

    Raises CalibrationError where the held-out parts are too few for the rates, and whatever its steps raise.
    """
    if rates.review is not None and not rates.reject < rates.review < 1:
        raise CalibrationError(
            f"--review-rate {rates.review:g} is the share of good parts flagged in all, REVIEW or REJECT: "
            f"it must lie above the false-reject rate of {rates.reject:g} and below 1"
        )
    bundle = open_bundle(folder)
    held = hold_out(bundle, load_dataset(data, pattern_of(bundle, pattern)))
    require(held.groups, rates.reject)
    measured = measure_good(bundle, held, engine, precision)
    thresholds = thresholds_from(measured, rates)
    quality = bounds_from(measured.pictures)
    return Calibrated(thresholds, quality, measured, write(bundle, thresholds, quality, measured))


def measure_good(bundle: Bundle, held: HeldOut, engine_name: str, precision: Precision = "fp32") -> Measured:
    """Score the unseen images and look at all; an image that cannot be read stops the calibration by its name."""
    engine = open_engine(engine_name, bundle, threads(), precision)
    check_golden(engine, without_limits(bundle))
    inspector = Inspector(bundle, engine)
    scores, peaks, pictures = [], [], []
    for sample in steps(held.unseen, "scoring held-out parts"):
        part = _read(bundle, sample)
        scored, prepared = inspector.score(part)
        scores.append(scored.score)
        peaks.append(max(float(view.values.max()) for view in scored.maps))
        pictures.append(see(prepared, part.shape[:2]))
    for sample in steps(held.seen, "looking at the other good images"):
        part = _read(bundle, sample)
        pictures.append(see(prepare(part, bundle.manifest.recipe), part.shape[:2]))
    return Measured(held, scores, peaks, pictures, engine.describe())


def without_limits(bundle: Bundle) -> Bundle:
    """The same, uncalibrated: what old limits say of golden images must not keep new ones from being measured."""
    return Bundle(bundle.root, bundle.manifest.model_copy(update={"thresholds": None}))


def _read(bundle: Bundle, sample: Sample) -> Pixels:
    return read_image(sample.path, bundle.manifest.recipe.channels)


def thresholds_from(measured: Measured, rates: Rates) -> Thresholds:
    """The limits for ``rates`` and the counts that they rest on.

    The map is cut at the wider of the two rates, so that what goes to review shows where it deviates.
    """
    groups = [sample.group for sample in measured.held.unseen]
    low, high = expected_rate(measured.held.groups, rates.reject)
    return Thresholds(
        reject=threshold(measured.scores, groups, rates.reject),
        review=None if rates.review is None else threshold(measured.scores, groups, rates.review),
        map=threshold(measured.peaks, groups, rates.review or rates.reject),
        method=METHOD,
        false_reject_rate=rates.reject,
        review_rate=rates.review,
        groups=measured.held.groups,
        images=len(groups),
        engine=measured.engine,
        expected_low=low,
        expected_high=high,
    )


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
                "metrics": {**manifest.metrics, "calibration": _metrics(manifest, measured)},
            }
        ),
    )
    if before is not None and before.path != name:
        (bundle.root / before.path).unlink(missing_ok=True)
    return bundle.root / name


def _metrics(manifest: Manifest, measured: Measured) -> dict[str, float | int | str]:
    scores = np.array(measured.scores)
    return {
        "recipe": manifest.recipe.name,
        "holdout_images": len(scores),
        "holdout_groups": measured.held.groups,
        "pictures": len(measured.pictures),
        "score_median": float(np.median(scores)),
        "score_max": float(scores.max()),
        "engine": measured.engine,
    }
