"""Held-out good images -> thresholds, quality bounds and a report in the bundle (what hops 3 and 5 decide by)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from calibration import conformal
from calibration.baseline import baseline_of
from calibration.costs import Limits
from calibration.defects import find_defects
from calibration.folds import open_folds
from calibration.holdout import Copies, HeldOut, hold_out, pattern_of, refuse_learnt, refuse_other_fixture
from calibration.levels import LEAST_PARTS, Levels, find_levels, grids_of, try_levels
from calibration.looks import record
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
from calibration.places import MeanPictures, Where, locate_asked, place_files, without_places
from calibration.progress import steps
from calibration.quality import Seen, bounds_from, see, sizes_of
from calibration.renewal import renewed_golden, stamped
from calibration.report import calibration_page, shown_places, zone_text
from contract.baseline import baseline_file
from contract.bundle import ROLE_BASELINE, Bundle, Manifest, Precision, open_bundle, put_files
from contract.dataset import Sample, load_dataset
from contract.decision import ViewMap
from contract.errors import ConfigError
from contract.fixture import fixture_of_data, placed_of_data
from contract.images import Pixels
from contract.part_pictures import line_of, read_placed
from contract.places import Floats, Located
from contract.preprocess import Picture, prepare, size_of
from contract.recipe import Fixture, QualityBounds, Thresholds
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.inspector import Inspector

ROLE_REPORT = "report"
HAD_PLACES = "had_places"
MAX_THREADS = 8


class Measured(NamedTuple):
    """Scores and map maxima of the held-out images, what pictures of all good images look like, and other scores.

    ``defects`` are scores of defective images, ``more`` those of ``more_groups`` by networks that have not seen them.
    ``reviews`` are what is held against the review limit where that is another score. ``places`` are masks and zones,
    ``means`` the mean good picture of each view for the report, ``levels`` the map's normal level if it was asked for,
    ``placed`` what the fixture said of the good parts when they were cut out.
    """

    held: HeldOut
    scores: list[float]
    peaks: list[float]
    pictures: list[Seen]
    engine: str
    defects: Sequence[float] = ()
    more: Sequence[float] = ()
    more_groups: Sequence[str] = ()
    reviews: Sequence[float] = ()
    places: Located | None = None
    means: Mapping[str, Pixels] = MappingProxyType({})
    levels: Levels | None = None
    placed: Mapping[str, Sequence[float]] = MappingProxyType({})

    def levels_used(self) -> Levels | None:
        """The normal levels, unless drawn defects say that they do not serve."""
        levels = self.levels
        return levels if levels is not None and (levels.tried is None or levels.tried.worth) else None

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
    fixture: Fixture | None = None


def threads() -> int:
    """Engine threads at the engineer's desk: the machine's cores, at most MAX_THREADS."""
    return min(MAX_THREADS, os.cpu_count() or 1)


def propose(
    folder: Path,
    data: Path,
    rates: Rates,
    engine: str = "auto",
    pattern: str | None = None,
    precision: Precision = "fp32",
    choice: Choice = Choice(),  # noqa: B008 - a tuple of constants
    where: Where = Where(),  # noqa: B008 - a tuple of constants
) -> Proposal:
    """Measure with the engine and preprocessing of the line; what is found is put into the bundle by ``write``.

    Nothing is written but, for test images, the record of looks at them. Raises CalibrationError where the held-out
    parts are too few for the rates, and whatever its steps raise.
    """
    chooses = check(rates, choice).needs_defects or choice.costs is not None
    bundle = without_places(open_bundle(folder))
    refuse_other_fixture(bundle, data)
    dataset = load_dataset(data, pattern_of(bundle, pattern))
    held = hold_out(bundle, dataset)
    folds = open_folds(bundle, choice.folds, dataset)
    require(len({s.group for each in (held, *(fold[1] for fold in folds)) for s in each.unseen}), rates, choice)
    defects, looked = find_defects(choice.defects, dataset, choice.looks)
    refuse_learnt(
        bundle, defects, "a limit chosen by it would pass new ones. Give defective parts that it has not learnt"
    )
    if looked and choice.looks is not None:
        record(choice.looks, bundle, dataset, "chosen by these images", len(defects))
    measured = measure_good(bundle, held, engine, precision, where)
    places = measured.places
    _refuse_unreviewed(places, rates, choice)
    measured = measured._replace(
        defects=score_images(bundle, defects, engine, precision, "scoring defective parts", places),
        more=[
            score
            for fold, parts in folds
            for score in score_images(fold, parts.unseen, engine, precision, f"scoring by {fold.root.name}", places)
        ],
        more_groups=[sample.group for _, parts in folds for sample in parts.unseen],
        placed=placed_of_data(data),
    )
    thresholds = stamped(bundle, thresholds_from(measured, rates, choice, looked))
    cut_by = fixture_of_data(data)
    return Proposal(
        bundle,
        thresholds,
        bounds_from(measured.pictures, held.shown),
        measured,
        bool(defects) and chooses,
        bundle.manifest.fixture if cut_by is None else cut_by.fixture,
    )


def _refuse_unreviewed(places: Located | None, rates: Rates, choice: Choice) -> None:
    """A zone that sends to review needs a review band, and networks beside this one have no such score."""
    for zone in places.rules if places is not None else ():
        if zone.verdict == "REVIEW" and rates.review is None and (choice.costs is None or choice.costs.review is None):
            raise ConfigError(
                f"zone {zone.name!r} sends parts to review, and there is no review band: give --review-rate, or "
                "verdict = 'REJECT'"
            )
        if zone.verdict == "REVIEW" and choice.folds:
            raise ConfigError(f"zone {zone.name!r}: --method cross cannot calibrate verdict = 'REVIEW'")


def measure_good(
    bundle: Bundle,
    held: HeldOut,
    engine_name: str,
    precision: Precision = "fp32",
    where: Where = Where(levels="never"),  # noqa: B008 - a tuple of constants
) -> Measured:
    """Score the unseen images and look at all; an image that cannot be read stops the calibration by its name."""
    if where.levels == "auto" and len({view.camera for view in bundle.manifest.recipe.views}) > 1:
        where = where._replace(levels="never")  # whether they serve is tried with defects drawn into one picture
    engine = open_engine(engine_name, bundle, threads(), precision)
    check_golden(engine, without_limits(bundle))
    places = locate_asked(bundle, where, held.seen, engine)
    inspector = Inspector(bundle, engine, places=places)
    neutralise = None if places is None else places.neutralise
    scores, peaks, pictures, reviews, grids = [], [], [], [], []
    means = MeanPictures()
    copies = Copies()
    for sample in steps(held.unseen, "scoring held-out parts"):
        part, placed = _read(bundle, sample)
        copies.add_unseen(sample, part)
        scored, prepared = inspector.score(part)
        scores.append(scored.score)
        peaks.append(max(float(_counting(places, view).max()) for view in scored.maps))
        reviews.append(scored.highest)
        grids.append(grids_of(scored))
        means.add(prepared.canvases)
        pictures.append(see(prepared, size_of(part), placed))
    for sample in steps(held.seen, "looking at the other good images"):
        part, placed = _read(bundle, sample)
        copies.refuse(sample, part)
        pictures.append(see(prepare(part, bundle.manifest.recipe, neutralise), size_of(part), placed))
    levels = None
    if where.levels != "never":
        levels = find_levels(grids, [sample.group for sample in held.unseen], places)
    if levels is not None and where.levels == "auto":
        levels = levels._replace(tried=try_levels(inspector, held.unseen, peaks, levels))
    return Measured(
        held,
        scores,
        peaks,
        pictures,
        engine.describe(),
        reviews=reviews if reviews != scores else (),
        places=places,
        means=means.pictures(),
        levels=levels,
    )


def _counting(places: Located | None, view: ViewMap) -> Floats:
    return view.values if places is None else places.weighted(view.view, view.values)


def score_images(
    bundle: Bundle,
    samples: Sequence[Sample],
    engine_name: str,
    precision: Precision,
    what: str,
    places: Located | None = None,
) -> list[float]:
    """Raw score of each image by the bundle's network; an engine is opened only where there are images."""
    if not samples:
        return []
    engine = open_engine(engine_name, bundle, threads(), precision)
    check_golden(engine, without_limits(bundle))
    inspector = Inspector(bundle, engine, places=places)
    return [inspector.score(_read(bundle, sample)[0])[0].score for sample in steps(samples, what)]


def without_limits(bundle: Bundle) -> Bundle:
    """The same, uncalibrated: what old limits say of golden images must not keep new ones from being measured."""
    manifest = bundle.manifest.model_copy(update={"thresholds": None})
    return Bundle(bundle.root, manifest, bundle.content, bundle.exact)


def _read(bundle: Bundle, sample: Sample) -> tuple[Picture, Mapping[str, float]]:
    return read_placed(sample.path, bundle.manifest.recipe, line_of(bundle, renewing=True))


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
    limits = _limits(measured, scores, rates, choice)
    levels = measured.levels_used()
    low, high = rate_to_expect(scores, rates, choice, limits.reject)
    return Thresholds(
        reject=limits.reject,
        review=limits.review,
        map=_map_limit(measured.peaks, scores, limits, rates, choice),
        region_level=(None if levels is None else _map_limit(levels.peaks, scores, limits, rates, choice)),
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


def _limits(measured: Measured, scores: Scores, rates: Rates, choice: Choice) -> Limits:
    """The limits; that of review from scores of its own where a zone sends parts to review."""
    limits = find_limits(scores, rates, choice)
    if not measured.reviews:
        return limits
    review = find_limits(scores._replace(good=measured.reviews), rates, choice).review
    if review is not None and review > limits.reject:
        raise ConfigError(
            f"zones with verdict = 'REVIEW' lift the review limit to {review:.6g}, above the reject limit of "
            f"{limits.reject:.6g}: ask for a higher --review-rate, a larger smallest size, or verdict = 'REJECT'"
        )
    return Limits(limits.reject, review)


def _map_limit(peaks: Sequence[float], scores: Scores, limits: Limits, rates: Rates, choice: Choice) -> float:
    """The map's limit for the wider rate, or, by rules that promise none, one that as many good parts exceed."""
    wider = rates.review or rates.reject
    parts = len(set(scores.groups))
    if METHODS[choice.method].promise is not None and wider is not None and parts >= conformal.groups_needed(wider):
        return conformal.threshold(peaks, scores.groups, wider)
    limit = limits.reject if limits.review is None else limits.review
    above = conformal.share_above(scores.good, scores.groups, limit)
    return conformal.level(peaks, scores.groups, 1 - above)


def write(found: Proposal) -> Path:
    """Put the calibration, its places and its report into the bundle; returns the report's path."""
    bundle, thresholds, measured = found.bundle, found.thresholds, found.measured
    places, levels = measured.places, measured.levels_used()
    golden = renewed_golden(bundle, measured.held)
    shown = None if places is None else shown_places(places, measured.means)
    page = calibration_page(bundle.manifest, thresholds, found.quality, measured.scores, shown, told(measured))
    paths = put_files(
        bundle,
        {ROLE_REPORT: ("report.html", page.encode())}
        | {ROLE_BASELINE: baseline_file(baseline_of(measured))}
        | place_files(bundle, places, {} if levels is None else levels.views)
        | golden.files,
        thresholds=thresholds,
        golden=golden.manifest,
        quality=found.quality,
        fixture=found.fixture,
        places=None if places is None else places.places,
        pictures=sizes_of(measured.pictures),
        metrics={
            **bundle.manifest.metrics,
            "calibration": _metrics(bundle.manifest, thresholds, measured),
            HAD_PLACES: had_places(bundle.manifest) or places is not None,
        },
    )
    return paths[ROLE_REPORT]


def had_places(manifest: Manifest) -> bool:
    """Whether any calibration of this bundle had masks or zones: scores of that time are not those of another."""
    return manifest.places is not None or bool(manifest.metrics.get(HAD_PLACES))


def told(measured: Measured) -> list[tuple[str, str]]:
    """What the calibration says of places, for report and terminal."""
    levels, used, places = measured.levels, measured.levels_used(), measured.places
    parts = measured.held.groups
    why = "" if levels is None or levels.tried is None else f"; {levels.tried.text()}"
    if used is not None:
        near = "" if used.pooled == 1 else f", each pooled with its neighbours ({used.pooled} x {used.pooled})"
        cut = f"the map over its normal level at each place, of {parts} parts{near}{why}"
    elif levels is not None:
        cut = f"the raw map: its normal level at each place serves no better{why.replace('it cuts', 'that cuts')}"
    else:
        few = f"the raw map: {parts} parts are too few for a normal level of each place, {LEAST_PARTS} are needed"
        cut = few if parts < LEAST_PARTS else "the raw map, as asked"
    lines = [("regions are cut from", cut)]
    if places is not None:
        for view, blank in places.blanks.items():
            lines.append((f"not inspected of view {view}", f"{100 * (1 - blank.inspected):.1f} %"))
        for zone in places.places.zones:
            lines.append((f"zone {zone.name}", zone_text(zone)))
    return lines


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
