"""``flawline calibrate replay``: an archive scored again with a candidate beside the current bundle.

At the engineer's desk. Every part of the archive is in the result once: compared, or NOT_INSPECTED with the reason
under either. What is done is kept in a folder, chunk by chunk, and read again where a replay goes on.
"""

from __future__ import annotations

import heapq
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.archive import Item, LeftOut, Place
from calibration.errors import CalibrationError
from calibration.rescoring import Row, Scorer, Scoring, refuse_other_cut, refuse_uncut_folder
from calibration.rescoring_pool import Chunk, Pool
from contract.bundle import open_bundle, write_atomic
from contract.errors import FlawlineError
from contract.event import Verdict
from contract.stats import Rate, rate, rate_fields

FORMAT = "flawline.replay/1"
CHUNK = 64
"""Parts that go to a process together, and that are done again where it dies."""

FOLDER = 1000
"""Chunks in one folder of the work."""

SHOWN = 12
"""Pictures of each kind of change."""

REASONS, MOST_REASONS = 20, 10_000
FLAGGED = (Verdict.REVIEW, Verdict.REJECT)
WORK, PARTS, LISTING, PLAN, LEFT_OUT = "work", "parts.jsonl", "parts.jsonl", "plan.json", "left_out.json"
Run = Callable[[Scoring, int, Iterable[Chunk]], Iterator[tuple[Chunk, list[Row]]]]
Heard = Callable[[int, int], None]
"""Told how many parts are done, of how many."""


class Change(NamedTuple):
    """A part whose place among the archive's scores, 0 to 1, moved; without both scores ``moved`` is 0."""

    row: Row
    moved: float


class Replay(NamedTuple):
    """What an archive says of a candidate.

    ``table``: parts by both verdicts; ``reasons``: why parts were not inspected, of the current one and the candidate;
    ``flagged``: by truth (``""`` all, ``good``, ``defective``) the rates of parts flagged, current and candidate.
    ``largest``: the largest changes from a pass and to a pass, whose pictures are worth a look.
    ``left_out``: what the archive has that is no part.
    """

    scoring: Scoring
    listed: int
    table: Counter[tuple[str, str]]
    reasons: tuple[Counter[str], Counter[str]]
    flagged: dict[str, tuple[Rate, Rate]]
    largest: dict[str, list[Change]]
    left_out: LeftOut
    resumed: int = 0

    @property
    def compared(self) -> int:
        return sum(n for (now, then), n in self.table.items() if Verdict.NOT_INSPECTED not in (now, then))

    @property
    def changed(self) -> Rate:
        """Of the parts that both inspected, those with another verdict."""
        other = [n for (now, then), n in self.table.items() if now != then and Verdict.NOT_INSPECTED not in (now, then)]
        return rate(sum(other), self.compared)

    @property
    def changed_parts(self) -> int:
        """All parts with another verdict, NOT_INSPECTED being one."""
        return sum(n for (now, then), n in self.table.items() if now != then)


def whole(scoring: Scoring, workers: int, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
    """In processes of this machine."""
    with Pool(scoring, workers) as pool:
        yield from pool.run(chunks)


def replay(
    scoring: Scoring, out: Path, workers: int | None = None, run: Run = whole, heard: Heard | None = None
) -> Replay:
    """Score what is not scored yet, and sum up. Raises FlawlineError; what is done is kept then as well."""
    candidate = open_bundle(scoring.candidate)
    bundles = [candidate]
    if scoring.current is not None:
        bundles.append(open_bundle(scoring.current))
        refuse_other_cut(candidate, bundles[1], scoring.place.is_host)
    refuse_uncut_folder(bundles, scoring.place)
    judged_by = Scorer(scoring).judged_by  # whatever cannot judge is refused here, before anything is written
    work = out / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        _keep_plan(work, scoring, judged_by)
        listed = _listed(work, scoring.place)
        resumed = _score(scoring, work, listed, workers or cores(), run, heard or (lambda done, of: None))
        return _summed(scoring, work, out / PARTS, listed)._replace(resumed=resumed)
    except OSError as error:
        raise CalibrationError(f"{out}: cannot be written ({error.strerror or error})") from error


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def _keep_plan(work: Path, scoring: Scoring, judged_by: list[str]) -> None:
    """What is replayed; raises CalibrationError where the folder holds another replay."""
    bundles = [scoring.candidate, *([] if scoring.current is None else [scoring.current])]
    plan = {
        "format": FORMAT,
        "archive": scoring.place.source.url,
        "query": [list(pair) for pair in scoring.place.query],
        "bundles": [_identity(folder) for folder in bundles],
        "engine": scoring.engine,
        "precision": scoring.precision,
        "judged_by": judged_by,
        "chunk": CHUNK,
    }
    path = work / PLAN
    if not path.exists():
        write_atomic(path, json.dumps(plan, indent=1).encode())
        return
    try:
        held = json.loads(path.read_bytes())
    except ValueError as error:
        raise CalibrationError(f"{path}: is no plan of a replay; give an empty folder as --out") from error
    if held != plan:
        other = next((name for name in plan if not isinstance(held, dict) or held.get(name) != plan[name]), "more")
        raise CalibrationError(
            f"{work.parent}: holds another replay ({other} differs); give another --out, or remove {work}"
        )


def _identity(folder: Path) -> list[str]:
    """By its whole content: with another INT8 graph the same bundle judges otherwise, and its limits may stay."""
    bundle = open_bundle(folder)
    return [bundle.manifest.id, bundle.content]


def _listed(work: Path, place: Place) -> int:
    """How many parts the archive has; listed once, so that a replay that goes on goes on with the same ones."""
    listing = work / LISTING
    if not listing.exists():
        draft, archive = listing.with_suffix(".draft"), place.open()
        with draft.open("w", encoding="utf-8") as file:
            for item in archive.items():
                file.write(json.dumps(item) + "\n")  # ASCII: the names of files may be no text
            file.flush()
            os.fsync(file.fileno())
        write_atomic(work / LEFT_OUT, json.dumps(archive.left_out).encode())
        draft.replace(listing)
    with listing.open("rb") as lines:
        count = sum(1 for _ in lines)
    if not count:
        listing.unlink()
        raise CalibrationError(
            f"{place.source.url}: no parts; is this the archive, and do --since and --recipe fit it?"
        )
    return count


def _left_out(work: Path) -> LeftOut:
    """As it was when the archive was listed. Raises CalibrationError."""
    path = work / LEFT_OUT
    try:
        return {str(kind): (int(count), str(first)) for kind, (count, first) in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: not there, or not whole; remove {work} and run the replay again") from error


def _chunks(work: Path) -> Iterator[Chunk]:
    with (work / LISTING).open(encoding="utf-8") as lines:
        number = 0
        while some := list(islice(lines, CHUNK)):
            yield Chunk(number, tuple(Item(*json.loads(line)) for line in some))
            number += 1


def _file_of(work: Path, number: int) -> Path:
    return work / "chunks" / f"{number // FOLDER:05d}" / f"{number:08d}.json"


def _kept(work: Path, chunk: Chunk) -> list[Row] | None:
    """The rows of a chunk that is done; None where it is not, or its file is not whole."""
    with suppress(OSError, ValueError, TypeError):
        rows = [Row.of(row) for row in json.loads(_file_of(work, chunk.number).read_bytes())]
        if tuple(row.item for row in rows) == chunk.items:
            return rows
    return None


def _score(scoring: Scoring, work: Path, listed: int, workers: int, run: Run, heard: Heard) -> int:
    """Score every chunk that is not done; returns how many parts were done before."""
    before = 0

    def missing() -> Iterator[Chunk]:
        nonlocal before
        for chunk in _chunks(work):
            if _kept(work, chunk) is None:
                yield chunk
            else:
                before += len(chunk.items)
                heard(before + done, listed)

    done = 0
    most = max(1, min(workers, -(-listed // CHUNK)))
    for chunk, rows in run(scoring, most, missing()):
        if tuple(row.item for row in rows) != chunk.items:
            raise CalibrationError(f"chunk {chunk.number}: came back with other parts than it went with")
        path = _file_of(work, chunk.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps([row.plain() for row in rows]).encode())
        done += len(rows)
        heard(before + done, listed)
    return before


def rows_of(work: Path) -> Iterator[Row]:
    """Every part of the archive once, in its order. Raises CalibrationError where one is not done."""
    for chunk in _chunks(work):
        rows = _kept(work, chunk)
        if rows is None:
            raise CalibrationError(f"{_file_of(work, chunk.number)}: not there, or not whole; run the replay again")
        yield from rows


def _summed(scoring: Scoring, work: Path, parts: Path, listed: int) -> Replay:
    """Go through all parts twice: for the counts and the order of scores, then for what changed most."""
    table: Counter[tuple[str, str]] = Counter()
    reasons: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    truth: dict[str, Counter[tuple[bool, bool]]] = {}
    scores = (array("d"), array("d"))
    total = 0
    draft = parts.with_suffix(".draft")
    with draft.open("w", encoding="utf-8") as file:
        for row in rows_of(work):
            total += 1
            table[row.current.verdict, row.candidate.verdict] += 1
            for said, why in zip((row.current, row.candidate), reasons, strict=True):
                if not said.inspected and (said.reason in why or len(why) < MOST_REASONS):
                    why[said.reason or ""] += 1
            if row.compared:
                pair = (row.current.verdict in FLAGGED, row.candidate.verdict in FLAGGED)
                for name in _truths(row.item):
                    truth.setdefault(name, Counter())[pair] += 1
                for held, side in zip(scores, (row.current, row.candidate), strict=True):
                    held.append(math.inf if side.score is None else side.score)
            file.write(json.dumps(_line(row)) + "\n")
    if total != listed:
        raise CalibrationError(f"{listed} parts were listed and {total} are in the result")
    draft.replace(parts)
    ordered = tuple(np.sort(np.frombuffer(held, np.float64)) if held else np.zeros(0) for held in scores)
    return Replay(
        scoring,
        listed,
        table,
        reasons,
        {name: _rates(pairs) for name, pairs in sorted(truth.items())},
        _largest(rows_of(work), (ordered[0], ordered[1])),
        _left_out(work),
    )


def _truths(item: Item) -> list[str]:
    return ["", *([] if item.label is None else ["good" if item.label == "good" else "defective"])]


def _rates(pairs: Counter[tuple[bool, bool]]) -> tuple[Rate, Rate]:
    total = pairs.total()
    now = sum(n for (flagged, _), n in pairs.items() if flagged)
    then = sum(n for (_, flagged), n in pairs.items() if flagged)
    return rate(now, total), rate(then, total)


def _line(row: Row) -> dict[str, Any]:
    return {
        "part": row.item.name,
        "key": row.item.key,
        "label": row.item.label,
        "current": row.current._asdict(),
        "candidate": row.candidate._asdict(),
        "compared": row.compared,
        "changed": row.changed,
    }


Ordered = tuple[NDArray[np.float64], NDArray[np.float64]]


def _largest(rows: Iterable[Row], ordered: Ordered) -> dict[str, list[Change]]:
    """The SHOWN largest changes from a pass, to a pass, and of other kinds."""
    found: dict[str, list[tuple[float, int, Row]]] = {"passes no more": [], "passes now": [], "other": []}
    for at, row in enumerate(rows):
        if not row.changed:
            continue
        held = found[_kind(row)]
        entry = (moved(row, ordered), -at, row)  # of equal ones the first
        if len(held) < SHOWN:
            heapq.heappush(held, entry)
        else:
            heapq.heappushpop(held, entry)
    return {
        name: [Change(row, shift) for shift, _, row in sorted(held, key=lambda each: each[:2], reverse=True)]
        for name, held in found.items()
        if held
    }


def _kind(row: Row) -> str:
    if row.candidate.verdict == Verdict.PASS:
        return "passes now"
    return "passes no more" if row.current.verdict == Verdict.PASS else "other"


def moved(row: Row, ordered: Ordered) -> float:
    """How far a part moved in the order of scores, which two models have in common where their scores have not."""
    now, then = row.current.score, row.candidate.score
    if now is None or then is None or not row.compared:
        return 0.0
    places = [np.searchsorted(held, score) / len(held) for held, score in zip(ordered, (now, then), strict=True)]
    return abs(float(places[1] - places[0]))


def document(found: Replay) -> dict[str, Any]:
    """The figures as JSON."""
    scoring = found.scoring
    verdicts = [verdict.value for verdict in Verdict]
    names = {"": "all", "good": "good", "defective": "defective"}
    return {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "archive": scoring.place.source.url,
        "candidate": _named(scoring.candidate),
        "current": None if scoring.current is None else _named(scoring.current),
        "engine": scoring.engine,
        "precision": scoring.precision,
        "parts": {
            "listed": found.listed,
            "compared": found.compared,
            "not_compared": found.listed - found.compared,
            "other_verdict": found.changed_parts,
        },
        "left_out": {kind: {"count": count, "first": first} for kind, (count, first) in found.left_out.items()},
        **rate_fields("changed", found.changed),
        "verdicts": {now: {then: found.table[now, then] for then in verdicts} for now in verdicts},
        "flagged": {
            names[truth]: rate_fields("current", pair[0]) | rate_fields("candidate", pair[1])
            for truth, pair in found.flagged.items()
        },
        "not_inspected": {
            name: dict(why.most_common(REASONS))
            for name, why in zip(("current", "candidate"), found.reasons, strict=True)
        },
        "largest": {
            name: [_line(change.row) | {"moved": change.moved} for change in changes]
            for name, changes in found.largest.items()
        },
    }


def _named(folder: Path) -> dict[str, Any]:
    manifest = open_bundle(folder).manifest
    return {"folder": str(folder), "id": manifest.id, "name": manifest.name, "calibration": manifest.calibration_id()}


def pictures(found: Replay, draw: Callable[[Scorer, Row], bytes]) -> dict[str, bytes]:
    """A picture of each of the largest changes by its part's key; one that cannot be drawn is left out."""
    scorer = Scorer(found.scoring)
    drawn: dict[str, bytes] = {}
    for change in (change for changes in found.largest.values() for change in changes):
        with suppress(FlawlineError):
            drawn[change.row.item.key] = draw(scorer, change.row)
    return drawn
