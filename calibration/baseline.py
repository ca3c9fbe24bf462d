"""What good parts measured, for the bundle: one value of each part, so that none counts twice (before hop 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from calibration.quality import likeness_to_others
from contract.baseline import FIXTURE, MOST_PARTS, PLACED, WATCHED, Baseline

if TYPE_CHECKING:
    from calibration.calibrate import Measured


def baseline_of(measured: Measured) -> Baseline:
    """Scores of the held-out parts; measures of all good parts, which no network has made its own."""
    held = measured.held
    unseen = [sample.group for sample in held.unseen]
    groups = held.shown[: len(measured.pictures)]
    firsts = list(_firsts(groups, len(measured.pictures)))
    by_zones = measured.places is not None and any(zone.verdict == "REVIEW" for zone in measured.places.rules)
    reviews = measured.reviews or measured.scores
    return Baseline(
        engine=measured.engine,
        score=_ordered(measured.scores[index] for index in _firsts(unseen, len(measured.scores))),
        review=_ordered(reviews[index] for index in _firsts(unseen, len(reviews))) if by_zones else None,
        measures=_measures(measured, groups, firsts),
    )


def _firsts(groups: Sequence[str], count: int) -> Iterator[int]:
    """Where each part stands first: pictures of one part are no independent witnesses."""
    known: set[str] = set()
    for index, group in enumerate(groups[:count]):
        if group not in known and len(known) < MOST_PARTS:
            known.add(group)
            yield index


def _measures(measured: Measured, groups: Sequence[str], firsts: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """By view, as the gate will measure new parts; beside them what the fixture said, where it is known."""
    pictures = measured.pictures
    found = {}
    for view in pictures[0].measures:
        alike = likeness_to_others(pictures, view, groups)
        found[view] = {
            name: _ordered(alike[at] if name == "likeness" else pictures[at].measures[view][name] for at in firsts)
            for name in WATCHED
        }
    placed = {
        name: [pictures[at].placed[f"{FIXTURE}.{name}"] for at in firsts]
        for name in PLACED
        if all(f"{FIXTURE}.{name}" in pictures[at].placed for at in firsts)
    } or measured.placed
    if placed and FIXTURE not in found:
        found[FIXTURE] = {name: _ordered(values[:MOST_PARTS]) for name, values in placed.items()}
    return found


def _ordered(values: Iterable[float]) -> list[float]:
    return sorted(float(value) for value in values)
