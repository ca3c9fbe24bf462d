"""Holds what the host recorded against what really passed: every part has a result, a miss or a declared gap."""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from contract.event import Verdict
from contract.stats import Rate, rate, rate_fields

ENDED = ("result", "missed")


class TruePart(NamedTuple):
    """One part that really passed: label (``good`` or a defect), its box (x, y, width, height) in each frame."""

    number: int
    label: str
    defective: bool
    boxes: dict[int, tuple[float, float, float, float]]


class Truth(NamedTuple):
    """Parts of a line and its frame rate (frames per second)."""

    parts: list[TruePart]
    fps: float


class Account(NamedTuple):
    """The figures of one run; what only the truth can tell is None where it is not known.

    Rates are over inspected parts. Good and defective parts that were matched and never inspected stand beside them.
    """

    parts: int
    results: int
    missed: int
    lost: int
    verdicts: dict[str, int]
    gap_parts: int | None = None
    duplicates: int | None = None
    unmatched: int | None = None
    false_reject: Rate | None = None
    escape: Rate | None = None
    not_inspected_good: int | None = None
    not_inspected_defective: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys that every summary carries."""
        return {
            "parts": self.parts,
            "results": self.results,
            "missed": self.missed,
            "gap_parts": self.gap_parts,
            "duplicates": self.duplicates,
            "lost": self.lost,
            **{verdict.lower(): self.verdicts.get(verdict, 0) for verdict in Verdict},
            **rate_fields("false_reject", self.false_reject),
            **rate_fields("escape", self.escape),
            "not_inspected_good": self.not_inspected_good,
            "not_inspected_defective": self.not_inspected_defective,
            "unmatched_results": self.unmatched,
        }


def read_truth(path: Path) -> Truth:
    """Read ``<video>_frames.csv`` (frame, time_s, part_index, part_visible, defective, defect_type, part_x, ...)."""
    parts: dict[int, TruePart] = {}
    times: dict[int, float] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            frame = int(row["frame"])
            times[frame] = float(row["time_s"])
            if row["part_visible"] != "1":
                continue
            index = int(row["part_index"])
            part = parts.setdefault(index, TruePart(index, row["defect_type"], row["defective"] == "1", {}))
            part.boxes[frame] = tuple(float(row[f"part_{name}"]) for name in "xywh")  # type: ignore[assignment]
    last = max(times)
    fps = (last - min(times)) / (times[last] - times[min(times)]) if len(times) > 1 else 25.0
    return Truth([parts[index] for index in sorted(parts)], fps)


def account(rows: list[dict[str, Any]], gaps: list[dict[str, Any]], truth: Truth | None) -> Account:
    """Count one run. ``rows``: the host's parts (state, verdict, frame_no, box_px, t_wall_ns); ``gaps``: its gaps.

    A part whose trigger never ended is lost, whatever gap was declared around it.
    """
    results = [row for row in rows if row["state"] == "result"]
    missed = [row for row in rows if row["state"] == "missed"]
    open_triggers = [row for row in rows if row["state"] not in ENDED]
    verdicts = dict(Counter(str(row["verdict"]) for row in results))
    if truth is None:
        return Account(len(rows), len(results), len(missed), len(open_triggers), verdicts)
    matched, unmatched = _match([*results, *missed, *open_triggers], truth)
    in_gap = _in_gaps([part for part in truth.parts if part.number not in matched], gaps, rows, truth)
    first = {number: found[0] for number, found in matched.items() if found[0]["state"] in ENDED}
    good, defective = _told(truth, first, defective=False), _told(truth, first, defective=True)
    return Account(
        parts=len(truth.parts),
        results=len(results),
        missed=len(missed),
        lost=len(truth.parts) - len(first) - len(in_gap),
        verdicts=verdicts,
        gap_parts=len(in_gap),
        duplicates=sum(len(found) - 1 for found in matched.values()),
        unmatched=unmatched,
        false_reject=_share(good, Verdict.REJECT),
        escape=_share(defective, Verdict.PASS),
        not_inspected_good=good[Verdict.NOT_INSPECTED],
        not_inspected_defective=defective[Verdict.NOT_INSPECTED],
    )


def _told(truth: Truth, first: dict[int, dict[str, Any]], defective: bool) -> Counter[str]:
    """Verdicts of the good or of the defective parts as the line was told them: ``missed`` is NOT_INSPECTED."""
    rows = [first[part.number] for part in truth.parts if part.defective == defective and part.number in first]
    return Counter(str(row["verdict"]) if row["state"] == "result" else Verdict.NOT_INSPECTED.value for row in rows)


def _share(told: Counter[str], verdict: Verdict) -> Rate:
    """How many of the inspected parts got ``verdict``."""
    return rate(told[verdict], told.total() - told[Verdict.NOT_INSPECTED])


def _match(rows: list[dict[str, Any]], truth: Truth) -> tuple[dict[int, list[dict[str, Any]]], int]:
    """Rows by the part that stands where the trigger's box is, and how many rows fit no part."""
    by_frame: dict[int, list[TruePart]] = defaultdict(list)
    for part in truth.parts:
        for frame in part.boxes:
            by_frame[frame].append(part)
    matched: dict[int, list[dict[str, Any]]] = defaultdict(list)
    unmatched = 0
    for row in rows:
        nearest = _nearest(row, by_frame.get(int(row["frame_no"]), []))
        if nearest is None:
            unmatched += 1
        else:
            matched[nearest.number].append(row)
    return matched, unmatched


def _nearest(row: dict[str, Any], parts: list[TruePart]) -> TruePart | None:
    """The part with the largest overlap with the trigger's box; the only one there is where the box is unknown."""
    box = row.get("box_px")
    if box is None:
        return parts[0] if len(parts) == 1 else None
    frame = int(row["frame_no"])
    best = max(parts, key=lambda part: _overlap(box, part.boxes[frame]), default=None)
    return best if best is not None and _overlap(box, best.boxes[frame]) > 0 else None


def _overlap(a: Iterable[float], b: Iterable[float]) -> float:
    ax, ay, aw, ah = a
    bx, by, bw, bh = b
    width = min(ax + aw, bx + bw) - max(ax, bx)
    height = min(ay + ah, by + bh) - max(ay, by)
    return max(0.0, width) * max(0.0, height)


def _in_gaps(
    parts: list[TruePart], gaps: list[dict[str, Any]], rows: list[dict[str, Any]], truth: Truth
) -> list[TruePart]:
    """Parts in view at some time within a declared gap. The line's clock is the median over all triggers."""
    if not gaps or not rows:
        return []
    start_ns = median(row["t_wall_ns"] - row["frame_no"] * 1e9 / truth.fps for row in rows)
    frame_ns = 1e9 / truth.fps

    def touches(part: TruePart) -> bool:
        first_ns = start_ns + min(part.boxes) * frame_ns
        last_ns = start_ns + (max(part.boxes) + 1) * frame_ns
        return any(gap["from_wall_ns"] <= last_ns and first_ns <= gap["to_wall_ns"] for gap in gaps)

    return [part for part in parts if touches(part)]


def stage_latencies(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """p50, p95, p99 in milliseconds of every stage from capture to the first sending, over parts with a result."""
    stages: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        timing = row.get("timing") or {}
        if row["state"] != "result" or not timing.get("t_inferred_ns"):
            continue
        marks = [("capture", timing["t_capture_ns"])] + [
            (name, timing[f"t_{key}_ns"])
            for name, key in (
                ("trigger", "trigger"),
                ("queue", "taken"),
                ("preprocess", "prepared"),
                ("inference", "inferred"),
                ("decision", "decided"),
                ("record", "spooled"),
            )
        ]
        for (_, before), (name, after) in itertools.pairwise(marks):
            stages[name].append((after - before) / 1e6)
        if timing.get("age_ms") is not None:
            stages["send"].append(timing["age_ms"] - (timing["t_spooled_ns"] - timing["t_capture_ns"]) / 1e6)
            stages["total"].append(timing["age_ms"])
    return {name: {f"p{p}": percentile(values, p) for p in (50, 95, 99)} for name, values in stages.items()}


def percentile(values: list[float], p: float) -> float:
    """The nearest-rank percentile: a value that was really seen."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)]
