"""What counts the parts would notice what it looks for, and the gear under a line does what it says."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from tests.chaos.clocks import Clock
from tests.chaos.disks import tear
from tests.chaos.scene import LATE_NS, Scene, false_ok, told_twice, truth_of
from tests.needs import lacking
from tests.plugin.controller import Judged

CAPTURED_NS = 10**12


def judged(seq: int, trigger_id: int, code: int = 1) -> Judged:
    return Judged(seq, code, trigger_id, None, 0.0)


def row(trigger_id: int, verdict: str = "PASS") -> dict[str, Any]:
    timing = {"t_capture_ns": CAPTURED_NS}
    return {
        "trigger_id": trigger_id,
        "part_id": f"p{trigger_id}",
        "state": "result",
        "verdict": verdict,
        "timing": timing,
    }


def output(number: int, trigger_id: int, code: int = 1, outcome: str = "published") -> dict[str, Any]:
    named = {"trigger_id": trigger_id, "part_id": f"p{trigger_id}"}
    return named | {"number": number, "code": code, "outcome": outcome}


@pytest.mark.parametrize(
    ("rows", "outputs", "late_ns", "false"),
    [
        ([row(1)], [output(1, 1)], 0, 0),
        ([row(1)], [], 0, 1),
        ([row(1)], [output(1, 2)], 0, 1),
        ([row(1), row(2)], [output(1, 2)], 0, 1),
        ([row(1)], [output(1, 1, outcome="late")], 0, 1),
        ([row(1, "REJECT")], [], 0, 1),
        ([row(1, "REJECT")], [output(1, 1)], 0, 1),
        ([row(1)], [output(1, 1, code=4)], 0, 1),
        ([row(2)], [output(1, 1)], 0, 1),
        ([], [], 0, 1),
        ([row(1)], [output(1, 1)], LATE_NS + 1, 1),
    ],
)
def test_a_pass_that_is_none_is_counted(
    rows: list[dict[str, Any]], outputs: list[dict[str, Any]], late_ns: int, false: int
) -> None:
    assert false_ok([judged(1, 1)], [CAPTURED_NS + late_ns], rows, outputs) == false


def test_parts_and_numbers_that_come_twice_are_counted() -> None:
    outputs = [output(1, 1), output(2, 1), output(3, 3)]
    assert told_twice([judged(1, 1), judged(3, 3)], outputs) == 0
    assert told_twice([judged(1, 1), judged(2, 1)], outputs) == 1
    assert told_twice([judged(3, 3), judged(3, 4)], outputs) == 2


def test_the_truth_needs_no_drawing() -> None:
    truth = truth_of("synthetic://line?seed=3&parts=5&fps=50", 60)
    assert [part.number for part in truth.parts] == list(range(len(truth.parts))) and len(truth.parts) > 1
    assert max(max(part.boxes) for part in truth.parts) == 60


def test_a_clock_is_set_for_a_side_and_monotonic_time_goes_on(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        lacking("gcc is not installed")

    class Folder:
        folder = tmp_path

    clock = Clock("edge")
    clock.lay(cast(Scene, Folder()))
    clock.step(-7)
    words = "import time; print(time.time_ns(), time.clock_gettime_ns(time.CLOCK_REALTIME), time.monotonic_ns())"
    start = _now()
    said = subprocess.run(
        [sys.executable, "-c", words], env=dict(os.environ) | clock.environment("edge"), capture_output=True, check=True
    )
    wall_ns, real_ns, monotonic_ns = map(int, said.stdout.split())
    for told_ns in (wall_ns, real_ns):
        assert start[0] <= told_ns + 7 * 3600 * 10**9 <= _now()[0]
        assert clock.true_wall_ns(told_ns) == told_ns + 7 * 3600 * 10**9
    assert start[1] <= monotonic_ns <= _now()[1]
    assert clock.environment("host") == {}


def _now() -> tuple[int, int]:
    return time.time_ns(), time.monotonic_ns()


def test_a_torn_file_keeps_its_beginning(tmp_path: Path) -> None:
    file, whole = tmp_path / "log", bytes(range(256)) * 40
    for seed in range(20):
        file.write_bytes(whole)
        tear(file, 1000, random.Random(seed))
        assert file.read_bytes()[:1000] == whole[:1000] and file.read_bytes() != whole
