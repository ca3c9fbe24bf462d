"""Figures that people act on, from the sums of quarters of an hour and the opinions given blindly (hop 11).

Nothing here is a rate without its interval. ``docs/quality.md`` defines each figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple

from contract.stats import Rate, rate
from plugin.agreement import Kappa, cohen, fleiss, table_of
from plugin.control_chart import Cause, Chart, p_chart, pareto
from plugin.looks import Known, Pair
from plugin.settings import QualitySettings
from plugin.tally import QUARTER_S, Counted

By = Literal["hour", "shift", "day"]
VERDICTS = ("PASS", "REVIEW", "REJECT", "NOT_INSPECTED")
FLAGGED = ("REVIEW", "REJECT")


class Calendar:
    """The plant's days and shifts; without shifts a day is one."""

    def __init__(self, settings: QualitySettings) -> None:
        self.zone = settings.timezone
        self._zone = settings.zone
        self._shifts = settings.parted()
        self.shifts = [name for name, _ in self._shifts]

    def at(self, quarter: int) -> datetime:
        """The local time at which a quarter of an hour begins."""
        return datetime.fromtimestamp(quarter * QUARTER_S, UTC).astimezone(self._zone)

    def shift_of(self, quarter: int) -> tuple[date, str]:
        """The day on which the shift began, and its name."""
        local = self.at(quarter)
        minute = 60 * local.hour + local.minute
        begun = [name for name, begin in self._shifts if begin <= minute]
        if begun or not self._shifts:
            return local.date(), begun[-1] if begun else ""
        return local.date() - timedelta(days=1), self._shifts[-1][0]

    def label(self, quarter: int, by: By) -> str:
        """What of a chart's axis a quarter belongs to; such texts sort in time."""
        if by == "hour":
            return self.at(quarter).strftime("%Y-%m-%d %H:00")
        if by == "day":
            return self.at(quarter).strftime("%Y-%m-%d")
        day, name = self.shift_of(quarter)
        return f"{day} {name}".strip()

    def begin_of(self, day: date) -> int:
        """The first quarter of a local day."""
        return int(datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp()) // QUARTER_S


class Sums(NamedTuple):
    """What was counted of some parts, and the figures that follow from it."""

    verdicts: dict[str, int]
    flagged: int
    called_good: int
    called_defect: int
    unsure: int
    disputed: int
    drawn: int
    drawn_good: int
    drawn_defect: int

    @property
    def inspected(self) -> int:
        return sum(n for name, n in self.verdicts.items() if name != "NOT_INSPECTED")

    @property
    def false_calls(self) -> Rate:
        """Of the flagged parts that inspectors decided, those that they called good."""
        return rate(self.called_good, self.called_good + self.called_defect)

    @property
    def escapes(self) -> Rate:
        """Of the audited passes that inspectors decided, those that are defective."""
        return rate(self.drawn_defect, self.drawn_good + self.drawn_defect)

    @property
    def overkill(self) -> Estimate:
        """Of all good parts those that were flagged; parts that passed are taken for good but for the audit's share."""
        share, passed = self.false_calls, self.verdicts["PASS"] * (1 - (self.escapes.rate or 0.0))
        return _estimate(share, lambda each: _of(each * self.flagged, passed))

    @property
    def escaped(self) -> Estimate:
        """Of all defective parts those that passed; only the audit can say."""
        if self.flagged and not self.false_calls.total:
            return Estimate()
        found, passed = self.flagged * (1 - (self.false_calls.rate or 0.0)), self.verdicts["PASS"]
        return _estimate(self.escapes, lambda each: _of(each * passed, found))


class Estimate(NamedTuple):
    """A share that was not counted but follows from others; None where nothing is known."""

    rate: float | None = None
    low: float | None = None
    high: float | None = None


def _estimate(share: Rate, of: Callable[[float], float | None]) -> Estimate:
    """What follows from a share, and from both ends of its interval."""
    if share.rate is None or share.low is None or share.high is None:
        return Estimate()
    return Estimate(of(share.rate), of(share.low), of(share.high))


def _of(some: float, others: float) -> float | None:
    return some / (some + others) if some + others > 0 else None


def sums(rows: Iterable[Counted]) -> Sums:
    """Add up."""
    verdicts = dict.fromkeys(VERDICTS, 0)
    flagged: dict[str, int] = {}
    drawn: dict[str, int] = {}
    for row in rows:
        verdicts[row.verdict] = verdicts.get(row.verdict, 0) + row.n
        kind = flagged if row.verdict in FLAGGED else drawn if row.audited else None
        if kind is not None:
            kind[row.review] = kind.get(row.review, 0) + row.n
    return Sums(
        verdicts,
        sum(flagged.values()),
        flagged.get("good", 0),
        flagged.get("defect", 0),
        flagged.get("unsure", 0),
        flagged.get("disputed", 0) + drawn.get("disputed", 0),
        sum(drawn.values()),
        drawn.get("good", 0),
        drawn.get("defect", 0),
    )


def grouped(rows: Iterable[Counted], key: Callable[[Counted], str]) -> dict[str, Sums]:
    """The sums of each group, in the order of the groups' names."""
    found: dict[str, list[Counted]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return {name: sums(found[name]) for name in sorted(found)}


def rejects_chart(groups: Sequence[Sums]) -> Chart:
    """Flagged parts of those inspected, of groups in which any was."""
    return p_chart([(each.flagged, each.inspected) for each in groups])


def classes(rows: Iterable[Counted], without: str) -> list[Cause]:
    """The classes that inspectors gave defects, ``without`` for those that have none."""
    found: dict[str, int] = {}
    for row in rows:
        if row.review == "defect":
            name = row.defect_class or without
            found[name] = found.get(name, 0) + row.n
    return pareto(found)


class Ages(NamedTuple):
    """Of parts that wait for an inspector: how many, and for how long, in seconds to a quarter of an hour."""

    n: int
    median_s: float | None
    p90_s: float | None
    oldest_s: float | None


def queue_ages(rows: Iterable[Counted], now_s: float) -> Ages:
    """How old what waits is, by the middle of the quarter of an hour of its capture."""
    waiting = sorted(
        (max(0.0, now_s - (row.quarter + 0.5) * QUARTER_S), row.n)
        for row in rows
        if row.review == "" and (row.verdict in FLAGGED or row.audited)
    )
    total = sum(n for _, n in waiting)
    if not total:
        return Ages(0, None, None, None)

    def at(share: float) -> float:
        so_far = 0
        for age, n in waiting:
            so_far += n
            if so_far >= share * total:
                return age
        return waiting[-1][0]

    return Ages(total, at(0.5), at(0.9), waiting[-1][0])


class Inspector(NamedTuple):
    """How an inspector compares: with the other opinion on the same parts, and with parts whose truth is known."""

    name: str
    kappa: Kappa
    missed: Rate
    false_calls: Rate
    unsure: int


def inspectors(pairs: Sequence[Pair], known: Sequence[Known]) -> list[Inspector]:
    """Each inspector of whom anything is known."""
    found = {name for pair in pairs for name in (pair.first_by, pair.second_by)} | {each.inspector for each in known}
    return [_inspector(name, pairs, [each for each in known if each.inspector == name]) for name in sorted(found)]


def _inspector(name: str, pairs: Sequence[Pair], known: Sequence[Known]) -> Inspector:
    mine = [(pair.first, pair.second) for pair in pairs if pair.first_by == name]
    mine += [(pair.second, pair.first) for pair in pairs if pair.second_by == name]
    said = {
        (truth, call): sum((each.truth, each.said) == (truth, call) for each in known)
        for truth in _CALLS
        for call in _CALLS
    }
    missed, caught = said["defect", "good"], said["defect", "defect"]
    false, passed = said["good", "defect"], said["good", "good"]
    return Inspector(
        name,
        cohen(table_of(mine)),
        rate(missed, missed + caught),
        rate(false, false + passed),
        sum(each.said == "unsure" for each in known),
    )


_CALLS = ("good", "defect")


class Couple(NamedTuple):
    """Two inspectors, their table (rows: the first's good and defect, columns: the other's) and kappa."""

    first: str
    second: str
    table: list[list[int]]
    kappa: Kappa


def couples(pairs: Sequence[Pair]) -> list[Couple]:
    """Every two inspectors who judged a part both."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair in pairs:
        if pair.first_by <= pair.second_by:
            found.setdefault((pair.first_by, pair.second_by), []).append((pair.first, pair.second))
        else:
            found.setdefault((pair.second_by, pair.first_by), []).append((pair.second, pair.first))
    return [Couple(*names, table_of(each), cohen(table_of(each))) for names, each in sorted(found.items())]


def overall(pairs: Sequence[Pair]) -> Kappa:
    """Fleiss' kappa of all second opinions together."""
    return fleiss([(pair.first, pair.second) for pair in pairs])
