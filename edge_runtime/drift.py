"""Whether a camera's parts are still like the good ones of its calibration: tests that may be read at any time (hop 6).

For each measure, in each direction, three values are set by the calibration's good parts: of n of them, 1 in 50, 1 in
10 and half lay beyond. How many of *all* good parts lie beyond is not known, but with certainty 1 - DELTA for all of
these values together it is at most the quantile of a Beta distribution (Wilks, 1941). With a share of defective parts
that may measure anything, a part lies beyond with probability at most ``share``. Against that each part bets: a factor
whose mean is at most 1 while it holds, whatever the parts before were. The products, begun anew with every part and
summed (Shiryaev and Roberts; an e-detector: Shin, Ramdas and Rinaldo, "E-detectors", 2024), grow by no more than the
time that passes, on average. So a sum that is an alarm at ``line`` months, and then begins anew, gives at most 1 / line
alarms a month on average. Nothing is ever learnt from the parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from contract.baseline import FIXTURE, PLACED, WATCHED, Baseline
from contract.event import DriftMeasure, DriftQuantile, DriftTest
from contract.stats import beta_quantile

Floats = NDArray[np.float64]
Test = Literal["picture", "score", "rejects"]
TESTS: tuple[Test, ...] = get_args(Test)

DELTA = 0.05
"""How likely it may be that a calibration's good parts were so unlike all good parts that its promise does not hold.

Half of it is for the test of rejects, half for all values of the others."""

BEYOND = (0.02, 0.1, 0.5)
"""Share of the calibration's good parts beyond each value; a few parts know none beyond the outermost."""

BETS = (0.1, 0.4, 0.85)
"""What is bet on: that of the parts that need not lie beyond, these shares do."""

PLAY = 0.25
"""Spreads that a value lies further out: a line's day is never quite that of its calibration, and no alarm yet."""

LEAST_SPREAD = {
    "mean": 1.0,
    "contrast": 1.0,
    "likeness": 0.005,
    "aspect": 0.01,
    "fixture.score": 0.005,
    "fixture.scale": 0.002,
    "fixture.angle_deg": 0.25,
}
"""Of a measure that hardly varies, in any view or by its whole name; of others a fiftieth of the median."""

SCORE = "score"
QUANTILES = (0.1, 0.5, 0.9)
"""Of the scores: a median hardly moves while a tenth of the parts becomes defective, what a tenth exceeds does."""

RECENT = 64
"""Parts whose median is shown."""

MARK_EVERY, MARKS = 64, 512
"""Which parts are remembered by name, to say since when."""

MOST = 1e100

MOVED = 1.0
"""Spreads from which on a measure is taken to have moved."""

SUSPECTS: dict[str, Literal["lamp", "lens", "fixture"]] = {
    "brightness": "lamp",
    "contrast": "lamp",
    "focus": "lens",
    "position": "fixture",
}


class Column(NamedTuple):
    """One measure: its name, whose camera's, what it is to a person, its usual value and spread, and its quantiles."""

    name: str
    camera_id: str
    what: str
    usual: float
    spread: float
    quantiles: tuple[float, ...] = ()


class Reference:
    """What parts of one camera are held against; made once for a recipe, then only read."""

    def __init__(
        self,
        baseline: Baseline,
        cameras: Mapping[str, str],
        limit: float,
        defect_share: float,
        key: str,
        by_zones: bool = False,
    ) -> None:
        """``cameras``: whose picture each view is; ``limit``: above it a part is flagged; ``key``: names all of it.

        ``by_zones``: zones flag parts too. Where the baseline does not know how many, rejects are not tested.
        """
        self.key = key
        self.parts = len(baseline.score)
        values = {f"{view}.{name}": each for view, of in baseline.measures.items() for name, each in of.items()}
        lead = next(iter(cameras.values()))
        self.columns = [_column(name, cameras.get(name.rpartition(".")[0], lead), of) for name, of in values.items()]
        self.columns.append(_column(SCORE, lead, baseline.score))
        bets = len(self.columns) * 2 * len(BEYOND) + 1
        self.which = np.repeat(np.arange(len(self.columns)), 2 * len(BEYOND))
        self.sign = np.tile(np.repeat([1.0, -1.0], len(BEYOND)), len(self.columns))
        self.bound, shares = _bounds([*values.values(), baseline.score], self.columns, DELTA / 2 / (bets - 1))
        judged = baseline.review if by_zones else baseline.score
        self.counts_rejects = judged is not None
        flagged = self.parts if judged is None else sum(value > limit for value in judged)
        good = np.append(shares, _at_most(flagged + 1, self.parts, DELTA / 2))[:, np.newaxis]
        share = defect_share + (1 - defect_share) * good
        self.rejects_at_most = float(share[-1, 0]) if self.counts_rejects else 1.0
        told = share + (1 - share) * np.array(BETS)
        self.up, self.down = told / share, (1 - told) / (1 - share)
        starts = [0, bets - 1 - 2 * len(BEYOND), bets - 1, bets]
        self.of = {test: slice(*starts[at : at + 2]) for at, test in enumerate(TESTS)}
        self.starts = np.array(starts[:-1]) * len(BETS)
        self.counts = np.diff(starts) * len(BETS)


def _column(name: str, camera_id: str, values: Sequence[float]) -> Column:
    view, _, measure = name.rpartition(".")
    usual = float(np.median(values))
    least = LEAST_SPREAD.get(name) or LEAST_SPREAD.get(measure, max(0.02 * abs(usual), 1e-9))
    spread = max(float(np.std(values)), least)
    if name == SCORE:
        return Column(name, camera_id, SCORE, usual, spread, tuple(np.quantile(values, QUANTILES).tolist()))
    placed = view == FIXTURE and measure in PLACED
    return Column(name, camera_id, "position" if placed else WATCHED[measure], usual, spread)


def _bounds(of: Sequence[Sequence[float]], columns: Sequence[Column], delta: float) -> tuple[Floats, Floats]:
    """Measure by measure the values to lie above, then those to lie below, both negative: beyond is always above.

    With each the share of good parts that lies beyond at most.
    """
    bounds, shares = [], []
    for values, column in zip(of, columns, strict=True):
        n = len(values)
        ranks = [min(n, max(1, round(share * n))) for share in BEYOND]
        bounds += [values[n - rank] + PLAY * column.spread for rank in ranks]
        bounds += [PLAY * column.spread - values[rank - 1] for rank in ranks]
        shares += [_at_most(rank, n, delta) for rank in ranks] * 2
    return np.array(bounds), np.array(shares)


def _at_most(rank: int, parts: int, delta: float) -> float:
    """The share of all good parts beyond the ``rank``-th outermost of these is at most so much, but for ``delta``.

    Exact where no two are equal; with equal ones strictly fewer lie beyond. Kept off 1, where nothing could be bet.
    """
    return min(0.999, 1.0 if rank > parts else beta_quantile(1 - delta, rank, parts - rank + 1))


class Crossed(NamedTuple):
    """A test that crossed its line, and since when by its best guess: parts of this watch before the change."""

    test: Test
    since: int


class Watch:
    """One camera's parts against a reference. ``line``: months; each of the tests is an alarm there."""

    def __init__(self, reference: Reference, line: float) -> None:
        self.reference, self.line = reference, line
        self.inspected = 0
        self.alarms: dict[Test, int] = dict.fromkeys(TESTS, 0)
        self.crossed: list[Crossed] = []
        """Since the last report."""

        self.marks: list[tuple[int, str]] = []
        self._sums = np.zeros_like(reference.up)
        self._row = np.zeros_like(reference.up)
        """The same product, begun anew whenever it falls below 1: where it last did, the change is put."""

        self._since = np.zeros(reference.up.shape, np.int64)
        self._beyond = np.zeros((len(reference.up), 1), np.bool_)
        self._peaks = np.zeros(len(TESTS))
        self._recent = np.full((RECENT, len(reference.columns)), np.nan)

    def see(self, part_id: str, measures: Sequence[float], flagged: bool | None, months: float) -> list[Crossed]:
        """One part: its measures in the order of the columns, NaN where there is none; ``flagged``: None, not judged.

        ``months``: since the part before. Returns the tests that crossed their line with it.
        """
        values = np.asarray(measures)
        if self.inspected % MARK_EVERY == 0:
            self.marks = [*self.marks[1 - MARKS :], (self.inspected, part_id)]
        self._recent[self.inspected % RECENT] = values
        reference = self.reference
        flagged = flagged if reference.counts_rejects else None
        self._beyond[:-1, 0] = values[reference.which] * reference.sign > reference.bound
        self._beyond[-1, 0] = bool(flagged)
        seen: NDArray[np.bool_] | None = None
        if flagged is None or not np.isfinite(values).all():
            seen = np.append(np.isfinite(values)[reference.which], flagged is not None)[:, np.newaxis]
        self._bet(seen, months)
        self.inspected += 1
        return self._crossings()

    def _bet(self, seen: NDArray[np.bool_] | None, months: float) -> None:
        """``seen``: which bets are on something that was measured; None: all."""
        where = True if seen is None else seen
        factor = np.where(self._beyond, self.reference.up, self.reference.down)
        np.copyto(self._since, self.inspected, where=(self._row <= 1) & where)
        np.copyto(self._row, np.clip(self._row, 1.0, MOST) * factor, where=where)
        np.copyto(self._sums, (self._sums + months) * factor, where=where)

    def _crossings(self) -> list[Crossed]:
        evidence = np.add.reduceat(self._sums.ravel(), self.reference.starts) / self.reference.counts
        np.maximum(self._peaks, evidence, out=self._peaks)
        if evidence.max() < self.line:
            return []
        crossed = []
        for test, found in zip(TESTS, evidence, strict=True):
            if found >= self.line:
                rows = self.reference.of[test]
                best = np.unravel_index(int(self._row[rows].argmax()), self._row[rows].shape)
                crossed.append(Crossed(test, int(self._since[rows][best])))
                self.alarms[test] += 1
                self._sums[rows] = self._row[rows] = 0.0
        self.crossed += crossed
        return crossed

    def tests(self) -> tuple[DriftTest, ...]:
        """How the tests stand, for a report; what was the most so far is forgotten with ``reported``."""
        crossed = {each.test for each in self.crossed}
        return tuple(
            DriftTest(name=name, evidence=_log(peak / self.line), alarm=name in crossed, alarms=self.alarms[name])
            for name, peak in zip(TESTS, self._peaks.tolist(), strict=True)
        )

    def reported(self) -> None:
        """Begin the time until the next report."""
        self._peaks[:] = 0.0
        self.crossed = []

    def since(self) -> int | None:
        """Where the earliest of the crossings puts the change; None without one."""
        return min((each.since for each in self.crossed), default=None)

    def part_before(self, number: int) -> str | None:
        """A part at or before the ``number``-th, from 0 on; None where that is too long ago."""
        return next((name for at, name in reversed(self.marks) if at <= number), None)

    def measures(self) -> tuple[DriftMeasure, ...]:
        """The medians of the last parts beside the usual ones; on an alarm of those since the change."""
        since = self.since()
        least = 0 if since is None else since
        n = min(RECENT, self.inspected, max(1, self.inspected - least))
        rows = self._recent[[(self.inspected - 1 - back) % RECENT for back in range(n)]]
        found = []
        for column, values in zip(self.reference.columns, rows.T, strict=True):
            known = values[np.isfinite(values)]
            if known.size:
                now = float(np.median(known))
                told = {**column._asdict(), "now": now, "shift": (now - column.usual) / column.spread}
                found.append(DriftMeasure.model_validate({**told, "quantiles": _quantiles(column, known)}))
        return tuple(found)

    def kept(self) -> dict[str, Any]:
        """Everything that outlives a restart, as JSON."""
        return {
            "key": self.reference.key,
            "inspected": self.inspected,
            "alarms": self.alarms,
            "marks": self.marks,
            "sums": self._sums.tolist(),
            "row": self._row.tolist(),
            "since": self._since.tolist(),
            "recent": [[None if math.isnan(x) else x for x in row] for row in self._recent.tolist()],
            "crossed": self.crossed,
            "peaks": self._peaks.tolist(),
        }

    def go_on(self, kept: Mapping[str, Any]) -> bool:
        """Take up what ``kept`` gave, if it is of the same reference and whole; False: this watch begins anew."""
        try:
            fresh = Watch(self.reference, self.line)
            fresh._restore(kept)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
            return False
        self.__dict__.update(fresh.__dict__)
        return True

    def _restore(self, kept: Mapping[str, Any]) -> None:
        """Raises what a strange file provokes."""
        if kept["key"] != self.reference.key:
            raise ValueError("of another reference")
        self.inspected = _count(kept["inspected"])
        self.alarms = {name: _count(kept["alarms"][name]) for name in TESTS}
        self._peaks = _array(kept["peaks"], self._peaks.shape, self.line * self._sums.size)
        self.marks = [(_count(at), str(name)[:100]) for at, name in kept["marks"][-MARKS:]]
        self.crossed = [Crossed(TESTS[TESTS.index(test)], _count(since)) for test, since in kept["crossed"][-100:]]
        self._sums = _array(kept["sums"], self._sums.shape, self.line * self._sums.size)
        self._row = _array(kept["row"], self._row.shape, MOST)
        self._since = _array(kept["since"], self._since.shape, self.inspected).astype(np.int64)
        rows = [[math.nan if x is None else float(x) for x in row] for row in kept["recent"]]
        recent = np.array(rows, np.float64)
        if recent.shape != self._recent.shape or np.isinf(recent).any():
            raise ValueError("not what was seen last")
        self._recent = recent


def _quantiles(column: Column, known: Floats) -> tuple[DriftQuantile, ...]:
    """Of the last parts beside the usual ones, where the column has any."""
    return tuple(
        DriftQuantile(share=share, now=now, usual=usual, shift=(now - usual) / column.spread)
        for share, usual, now in zip(QUANTILES, column.quantiles, np.quantile(known, QUANTILES).tolist(), strict=False)
    )


def _log(evidence: float) -> float:
    """log10, for people and charts: what is nothing yet is no less than -12."""
    return round(max(-12.0, math.log10(evidence)), 4) if evidence > 0 else -12.0


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("not a count")
    return value


def _array(rows: Any, shape: tuple[int, ...], most: float) -> Floats:
    found = np.array(rows, np.float64)
    if found.shape != shape or not np.isfinite(found).all() or found.min() < 0 or found.max() > most:
        raise ValueError("not what was kept")
    return found


def suspect(
    measures: Sequence[DriftMeasure], tests: Sequence[DriftTest]
) -> Literal["lamp", "lens", "fixture", "product"] | None:
    """What most likely changed: a hint, by the measure of the picture that moved most.

    Where the pictures are an alarm, whatever it moved by; where only scores or rejects are, by far, or it is the
    product. A picture that is sharper than ever shows another surface: no lens gets better by itself.
    """
    alarms = {test.name for test in tests if test.alarm}
    least = 0.0 if "picture" in alarms else 2 * MOVED if alarms else MOVED
    moved = [each for each in measures if each.what in SUSPECTS and abs(each.shift) >= least]
    if not moved:
        return "product" if alarms else None
    most = max(moved, key=lambda each: abs(each.shift))
    return "product" if most.what == "focus" and most.shift > 0 else SUSPECTS[most.what]
