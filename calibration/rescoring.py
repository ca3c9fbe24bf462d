"""Scores parts of an archive with a candidate and with the current bundle, as the line would (hops 3 to 5).

The same in the process that was asked, in processes of this machine and on a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from calibration.archive import Archive, Item, Place, folder_of
from calibration.errors import CalibrationError
from calibration.holdout import refuse_other_fixture
from contract.bundle import Bundle, Precision, open_bundle
from contract.errors import BundleError, FlawlineError, ImageError
from contract.event import Verdict
from contract.fixture import placer_of, same_fixture
from contract.part_pictures import line_of
from contract.preprocess import Picture
from contract.recipe import Fixture
from contract.versions import installed
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.inspector import Inspector, Outcome, not_inspected
from edge_runtime.recipes import precision_fault, refuse_uncalibrated


class Side(NamedTuple):
    """What one of the two said of a part."""

    verdict: str
    score: float | None
    reason: str | None

    @property
    def inspected(self) -> bool:
        return self.verdict != Verdict.NOT_INSPECTED


class Row(NamedTuple):
    """A part and what became of it under either; ``current`` is the verdict on record where no bundle was given."""

    item: Item
    current: Side
    candidate: Side

    @property
    def compared(self) -> bool:
        return self.current.inspected and self.candidate.inspected

    @property
    def changed(self) -> bool:
        return self.current.verdict != self.candidate.verdict

    def plain(self) -> list[Any]:
        """For a file or a wire: lists, texts and numbers."""
        return [list(self.item), list(self.current), list(self.candidate)]

    @staticmethod
    def of(plain: list[Any]) -> Row:
        """The reverse; raises TypeError or ValueError where it is none."""
        item, current, candidate = plain
        return Row(Item(*item), Side(*current), Side(*candidate))


class Scoring(NamedTuple):
    """All that a process needs to score parts of an archive; ``current`` None: the verdicts on record."""

    candidate: Path
    current: Path | None
    place: Place
    engine: str = "auto"
    precision: Precision = "fp32"


class Scorer:
    """Both bundles on engines of one thread each, proven on their golden images; not thread-safe.

    Raises FlawlineError where one of them could not judge here.
    """

    def __init__(self, scoring: Scoring) -> None:
        cv2.setNumThreads(1)
        self.candidate = open_one(scoring.candidate, scoring)
        self.current = None if scoring.current is None else open_one(scoring.current, scoring)
        self._archive: Archive = scoring.place.open()
        self._of_host = scoring.place.is_host

    @property
    def judged_by(self) -> list[str]:
        """The product's version and each engine: with another one the same bundle may judge otherwise."""
        bundles = [self.candidate, *([] if self.current is None else [self.current])]
        return [installed("flawline") or "", *(inspector.engine.describe() for inspector in bundles)]

    def rows(self, items: Sequence[Item]) -> list[Row]:
        """One for each part. Raises CalibrationError where the archive itself fails."""
        return [self._row(item) for item in items]

    def _row(self, item: Item) -> Row:
        current = recorded(item) if self.current is None else said(self._outcome(item, self.current))
        return Row(item, current, said(self._outcome(item, self.candidate)))

    def _outcome(self, item: Item, inspector: Inspector) -> Outcome:
        try:
            return inspector.inspect(self.read(item, inspector))
        except CalibrationError:
            raise
        except FlawlineError as error:
            return not_inspected(str(error))
        except MemoryError:
            return not_inspected("there is not enough memory for its picture")

    def read(self, item: Item, inspector: Inspector) -> Picture:
        """The part's picture as this bundle takes it. Raises ImageError."""
        line, manifest = line_of(inspector.bundle), inspector.bundle.manifest
        picture = self._archive.read(item.key, manifest.recipe, line)
        cut_here = line.correction is not None and not self._of_host
        if manifest.fixture is not None and not cut_here:
            _refuse_uncut(picture, manifest.fixture)
        return picture


def open_one(folder: Path, scoring: Scoring) -> Inspector:
    """A bundle's inspection on one thread. Raises FlawlineError."""
    bundle = open_bundle(folder)
    refuse_uncalibrated(bundle)
    if (fault := precision_fault(bundle, scoring.precision)) is not None:
        raise BundleError(fault)
    engine = open_engine(scoring.engine, bundle, 1, scoring.precision)
    check_golden(engine, bundle)
    return Inspector(bundle, engine)


def _refuse_uncut(picture: Picture, fixture: Fixture) -> None:
    """Raise ImageError where the fixture did not make this picture.

    Where it finds no part, an edge sends what was searched, which must not be judged as a part.
    """
    width, height = fixture.cut_px
    for pixels in picture.values() if isinstance(picture, Mapping) else (picture,):
        if pixels.shape[:2] != (height, width):
            raise ImageError(
                f"{pixels.shape[1]} x {pixels.shape[0]} px, and the bundle's fixture cuts parts of {width} x {height} "
                "px: a whole frame in which no part was found, or cut by something else"
            )


def refuse_uncut_folder(bundles: Sequence[Bundle], place: Place) -> None:
    """Raise CalibrationError where a folder's pictures were cut otherwise than the line of one of them cuts."""
    if not place.is_host:
        for bundle in bundles:
            refuse_other_fixture(bundle, folder_of(place.source.url))


def refuse_other_cut(candidate: Bundle, current: Bundle, of_host: bool) -> None:
    """Raise CalibrationError where the two would have been shown pictures cut in different ways.

    Raw frames of a folder are corrected for each bundle as it asks; a host's pictures were corrected before, once.
    """
    ours, theirs = candidate.manifest.golden.preprocess, current.manifest.golden.preprocess
    if ours != theirs and (of_host or None in (ours, theirs)):
        raise CalibrationError(
            f"{candidate.root}: its pictures are corrected by another preprocess file than those of {current.root}: "
            "pictures of the archive can be of one of them alone, so that the two cannot be compared"
        )
    if not same_fixture(placer_of(candidate), placer_of(current)):
        raise CalibrationError(
            f"{candidate.root}: its pictures are cut by another fixture than those of {current.root}: pictures of the "
            "archive can be of one of them alone, so that the two cannot be compared"
        )


def recorded(item: Item) -> Side:
    """What the line was told at the time, as the archive has it."""
    if item.was is None:
        return Side(Verdict.NOT_INSPECTED.value, None, "the archive has no verdict of it")
    return Side(item.was, item.score, None if item.was != Verdict.NOT_INSPECTED else "not inspected at the time")


def said(outcome: Outcome) -> Side:
    return Side(outcome.verdict.value, None if outcome.score is None else float(outcome.score), outcome.reason)


def lost(item: Item, why: str) -> Row:
    """A part that could not be scored at all, under either bundle."""
    side = Side(Verdict.NOT_INSPECTED.value, None, why)
    return Row(item, side, side)
