"""What candidates in shadow would have said: added up as their events are stored, and read for the page (hop 8).

Every score stands in its event as it came; here are the sums, and the parts whose verdict would be another.
"""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any, NamedTuple

import sqlalchemy as sa

from contract.event import Shadow, Verdict
from contract.stats import Rate, rate
from plugin import tables as t
from plugin.database import Hand

FLAGGED = (Verdict.REVIEW, Verdict.REJECT)
MOST_CANDIDATES, MOST_RUNS = 100, 50
BESIDE = " | "
"""Between a candidate's bundle and calibration and those that gave the verdicts: figures of two are never added up."""

n, r, c, p = t.shadow_tally.c, t.shadow_runs.c, t.shadow_changes.c, t.parts.c
m = t.master_readings.c


class Candidate(NamedTuple):
    """The parts of a station and recipe that a candidate scored, by what they were told and by what it says."""

    edge_id: str
    recipe: str
    name: str
    counts: Counter[tuple[str, str]]

    @property
    def bundle(self) -> str:
        """Its own bundle and calibration."""
        return self.name.partition(BESIDE)[0]

    @property
    def beside(self) -> str:
        """Bundle and calibration of the verdicts that it is compared with; empty where that was not told."""
        return self.name.partition(BESIDE)[2]

    def among(self, live: tuple[str, ...], verdict: tuple[str, ...]) -> int:
        """Parts that were told one of these and would be told one of those."""
        return sum(count for (now, then), count in self.counts.items() if now in live and then in verdict)

    @property
    def changed(self) -> Rate:
        """Of the parts that both inspected, those with another verdict."""
        both = {pair: count for pair, count in self.counts.items() if Verdict.NOT_INSPECTED not in pair}
        return rate(sum(count for (now, then), count in both.items() if now != then), sum(both.values()))

    @property
    def passes(self) -> int:
        """Flagged parts that would pass."""
        return self.among(FLAGGED, (Verdict.PASS,))

    @property
    def flags(self) -> int:
        """Parts that passed and would be flagged."""
        return self.among((Verdict.PASS,), FLAGGED)

    @property
    def unlike(self) -> int:
        """Parts that one of the two did not inspect."""
        return sum(
            count for (now, then), count in self.counts.items() if now != then and Verdict.NOT_INSPECTED in (now, then)
        )


def name_of(header: Shadow) -> str:
    """A candidate's name, with what it is compared to; empty where its bundle could not be opened."""
    if header.bundle_id is None:
        return ""
    name = f"{header.bundle_id}, {header.calibration_id or '-'}"
    if header.beside_bundle_id is None:
        return name
    return f"{name}{BESIDE}{header.beside_bundle_id}, {header.beside_calibration_id or '-'}"


def add(connection: Hand, dialect: ModuleType, header: Shadow, received_ns: int) -> None:
    """Take one new event in, in the transaction that stores it; master parts are in no figure."""
    masters = _masters(connection, header)
    scores = [score for score in header.scores if score.part_id not in masters]
    candidate = name_of(header)
    whose = {"edge_id": header.edge_id, "recipe": header.recipe, "candidate": candidate}
    counts = Counter((score.live.value, score.verdict.value) for score in scores)
    if counts:
        added = dialect.insert(t.shadow_tally)
        keys = [n.edge_id, n.recipe, n.candidate, n.live, n.verdict]
        added = added.on_conflict_do_update(index_elements=keys, set_={"n": n.n + added.excluded.n})
        rows = [{**whose, "live": live, "verdict": verdict, "n": count} for (live, verdict), count in counts.items()]
        connection.execute(added, rows)
    changes = [
        {
            **whose,
            "part_id": score.part_id,
            "live": score.live.value,
            "verdict": score.verdict.value,
            "score": score.score,
            "threshold": header.threshold,
            "reason": _holdable(score.reason),
        }
        for score in scores
        if score.live is not score.verdict
    ]
    if changes:
        connection.execute(sa.insert(t.shadow_changes), changes)
    _keep_run(connection, dialect, header, {**whose, "run_id": header.run_id, "received_ns": received_ns})


def _masters(connection: Hand, header: Shadow) -> set[str]:
    """Which of its parts the store knows to be master parts by now."""
    names = [score.part_id for score in header.scores]
    asked = sa.select(m.part_id).where(m.edge_id == header.edge_id, m.part_id.in_(names))
    return {str(name) for name in connection.execute(asked).scalars()} if names else set()


def _keep_run(connection: Hand, dialect: ModuleType, header: Shadow, row: dict[str, Any]) -> None:
    """The newest counts of a run; they only rise, so that an event which comes late changes nothing."""
    counts = header.model_dump(include={"offered", "scored", "dropped", "unseen", "waiting"})
    row |= {**counts, "trouble": _holdable(header.trouble)}
    added = dialect.insert(t.shadow_runs)
    connection.execute(
        added.on_conflict_do_update(
            index_elements=[r.edge_id, r.run_id, r.recipe],
            set_={name: added.excluded[name] for name in (*counts, "trouble", "received_ns", "candidate")},
            where=r.offered <= added.excluded.offered,
        ),
        row,
    )


def _holdable(text: str | None) -> str | None:
    """Without what PostgreSQL cannot hold."""
    return text and text.replace("\0", "\ufffd")


def candidates(connection: sa.Connection) -> list[Candidate]:
    """Every candidate of every station and recipe."""
    found: dict[tuple[str, str, str], Counter[tuple[str, str]]] = {}
    rows = sa.select(n.edge_id, n.recipe, n.candidate, n.live, n.verdict, n.n)
    for edge_id, recipe, name, live, verdict, count in connection.execute(rows.order_by(n.edge_id, n.recipe)):
        found.setdefault((edge_id, recipe, name), Counter())[live, verdict] = count
    return [Candidate(*key, counts) for key, counts in found.items()][:MOST_CANDIDATES]


def runs(connection: sa.Connection) -> list[dict[str, Any]]:
    """The newest runs with their counts."""
    asked = sa.select(t.shadow_runs).order_by(r.received_ns.desc()).limit(MOST_RUNS)
    return [dict(row._mapping) for row in connection.execute(asked)]


def changes(connection: sa.Connection, limit: int) -> list[dict[str, Any]]:
    """The newest parts that would have another verdict; ``number`` leads to a part's page, None: it is not there."""
    newest = sa.select(t.shadow_changes).order_by(c.id.desc()).limit(limit).subquery()
    same = sa.and_(p.edge_id == newest.c.edge_id, p.part_id == newest.c.part_id)
    asked = sa.select(newest, p.id.label("number")).select_from(newest.outerjoin(t.parts, same))
    return [dict(row._mapping) for row in connection.execute(asked.order_by(newest.c.id.desc()))]
