"""What good parts measured, for the bundle: one value of each part, so that none counts twice (before hop 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calibration.quality import Seen
from contract.baseline import MOST_PARTS, WATCHED, Baseline
from contract.preprocess import likeness
from contract.recipe import QualityBounds

if TYPE_CHECKING:
    from calibration.calibrate import Measured


def baseline_of(measured: Measured, quality: QualityBounds) -> Baseline:
    """Scores of the held-out parts; measures of all good parts, which no network has made its own."""
    held = measured.held
    unseen = [sample.group for sample in held.unseen]
    groups = [*unseen, *(sample.group for sample in held.seen)]
    firsts = list(_firsts(groups, len(measured.pictures)))
    pictures = [measured.pictures[index] for index in firsts]
    by_zones = measured.places is not None and any(zone.verdict == "REVIEW" for zone in measured.places.rules)
    reviews = measured.reviews or measured.scores
    return Baseline(
        engine=measured.engine,
        score=_ordered(measured.scores[index] for index in _firsts(unseen, len(measured.scores))),
        review=_ordered(reviews[index] for index in _firsts(unseen, len(reviews))) if by_zones else None,
        measures={view: _measures(pictures, view, quality) for view in quality.views},
    )


def _firsts(groups: Sequence[str], count: int) -> Iterator[int]:
    """Where each part stands first: pictures of one part are no independent witnesses."""
    known: set[str] = set()
    for index, group in enumerate(groups[:count]):
        if group not in known and len(known) < MOST_PARTS:
            known.add(group)
            yield index


def _measures(pictures: Sequence[Seen], view: str, quality: QualityBounds) -> dict[str, list[float]]:
    """As the gate will measure them: its likeness is to the mean thumbnail that the bounds hold."""
    thumb = np.asarray(quality.likeness_thumb[view], np.float32)
    found = {name: _ordered(each.measures[view][name] for each in pictures) for name in WATCHED if name != "likeness"}
    return {**found, "likeness": _ordered(likeness(each.thumbs[view], thumb) for each in pictures)}


def _ordered(values: Iterable[float]) -> list[float]:
    return sorted(float(value) for value in values)
