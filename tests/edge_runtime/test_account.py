"""The account against hand-made truth: duplicates, losses and gaps are each counted as what they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from contract.stats import rate
from edge_runtime.account import TruePart, Truth, account, percentile, read_truth, stage_latencies
from edge_runtime.table import print_account

FPS = 10.0
SECOND = 1_000_000_000


def part(number: int, first: int, defective: bool = False) -> TruePart:
    boxes = {frame: (10.0 * (frame - first), 0.0, 20.0, 20.0) for frame in range(first, first + 5)}
    return TruePart(number, "scratch" if defective else "good", defective, boxes)


TRUTH = Truth([part(0, 0), part(1, 10, True), part(2, 20), part(3, 30, True)], FPS)


def row(frame: int, verdict: str = "PASS", state: str = "result", x: int = 0) -> dict[str, Any]:
    wall = 100 * SECOND + int(frame / FPS * SECOND)
    return {"state": state, "verdict": verdict, "frame_no": frame, "box_px": [x, 0, 20, 20], "t_wall_ns": wall}


ALL = [row(0), row(11, "REJECT", x=10), row(20, "REJECT"), row(30)]


def test_rates_count_rejected_good_and_passed_defective_parts() -> None:
    found = account(ALL, [], TRUTH)
    assert (found.parts, found.results, found.lost, found.duplicates, found.unmatched) == (4, 4, 0, 0, 0)
    assert found.false_reject is not None
    assert found.escape is not None
    assert (found.false_reject.hits, found.false_reject.total) == (1, 2)
    assert (found.escape.hits, found.escape.total) == (1, 2)


def test_a_part_without_a_trace_is_lost_and_a_second_verdict_is_a_duplicate() -> None:
    found = account([*ALL[:2], row(12, x=20)], [], TRUTH)
    assert (found.lost, found.duplicates) == (2, 1)


def test_only_a_gap_that_covers_the_part_s_time_explains_it() -> None:
    def gap(start: float, end: float) -> list[dict[str, Any]]:
        return [{"from_wall_ns": 100 * SECOND + int(start * SECOND), "to_wall_ns": 100 * SECOND + int(end * SECOND)}]

    rows = [ALL[0], ALL[3]]
    assert account(rows, gap(0.9, 2.6), TRUTH).gap_parts == 2
    partly = account(rows, gap(1.8, 2.6), TRUTH)
    assert (partly.gap_parts, partly.lost) == (1, 1)


def test_missed_and_misplaced_rows() -> None:
    found = account([*ALL[:3], row(30, "NOT_INSPECTED", "missed"), row(7), row(0, x=400)], [], TRUTH)
    assert (found.missed, found.lost, found.unmatched) == (1, 0, 2)


def test_without_truth_a_trigger_that_has_no_end_is_lost() -> None:
    found = account([*ALL, row(40, state="triggered")], [], None)
    assert (found.parts, found.results, found.lost, found.false_reject) == (5, 4, 1, None)
    written = found.to_json()
    unknown = ("escape_rate", "gap_parts", "duplicates", "unmatched_results", "not_inspected_good")
    assert [written[name] for name in unknown] == [None] * len(unknown)


def test_a_trigger_that_never_ended_is_lost_even_within_a_gap() -> None:
    whole = [{"from_wall_ns": 0, "to_wall_ns": 1000 * SECOND}]
    found = account([*ALL[:3], row(30, state="triggered")], whole, TRUTH)
    assert (found.parts, found.results, found.lost, found.gap_parts) == (4, 3, 1, 0)
    assert account([*ALL, row(31, state="triggered", x=10)], [], TRUTH).duplicates == 1


def test_parts_that_nobody_inspected_do_not_flatter_a_rate() -> None:
    found = account([row(0, "NOT_INSPECTED"), ALL[1], ALL[2], row(30, "", "missed")], [], TRUTH)
    assert found.false_reject == rate(1, 1)
    assert found.escape == rate(0, 1)
    assert (found.not_inspected_good, found.not_inspected_defective) == (1, 1)
    nothing = account([row(frame, "NOT_INSPECTED") for frame in (0, 10, 20, 30)], [], TRUTH).to_json()
    assert (nothing["false_reject_rate"], nothing["escape_rate"], nothing["escape_of"]) == (None, None, 0)
    assert (nothing["not_inspected"], nothing["not_inspected_good"], nothing["not_inspected_defective"]) == (4, 2, 2)


@pytest.mark.parametrize("truth", [TRUTH, None])
def test_the_table_says_what_is_not_known(
    truth: Truth | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_account(account(ALL, [], truth), {}, "none", tmp_path)
    shown = capsys.readouterr().out
    lines = ("in declared gaps", "duplicates", "good parts not inspected", "defective parts not inspected")
    for line in lines:
        assert re.search(rf"{line} .*{'unknown' if truth is None else '0'}", shown), shown


def test_truth_is_read_with_several_parts_in_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "line_frames.csv"
    path.write_text(
        "frame,time_s,part_index,part_visible,defective,defect_type,part_x,part_y,part_w,part_h,mask_px,source_image\n"
        "0,0.00,0,1,0,good,5,6,7,8,0,\n0,0.00,1,1,1,chip,50,6,7,8,9,\n1,0.04,,0,0,empty_belt,,,,,,\n"
    )
    truth = read_truth(path)
    assert truth.fps == pytest.approx(25)
    assert [(p.number, p.label, p.defective) for p in truth.parts] == [(0, "good", False), (1, "chip", True)]
    assert truth.parts[1].boxes == {0: (50, 6, 7, 8)}


def test_latencies_are_stage_by_stage_and_really_seen() -> None:
    names = ("capture", "trigger", "taken", "prepared", "inferred", "decided", "spooled")
    timing = {f"t_{name}_ns": (10 + i * i) * 1_000_000 for i, name in enumerate(names)} | {"age_ms": 40.0}
    found = stage_latencies([row(0) | {"timing": timing}, row(1, state="missed")])
    assert found["trigger"]["p50"] == 1
    assert found["record"]["p99"] == 11
    assert found["send"]["p50"] == 4
    assert found["total"]["p95"] == 40
    assert [percentile([3.0, 1.0, 2.0], p) for p in (1, 50, 99)] == [1, 2, 3]
