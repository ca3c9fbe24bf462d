"""Which threads come before others while an engine computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.engines.precedence import STEPS

TASKS = Path("/proc/self/task")
COMPILED = """
import os, threading
from pathlib import Path
import openvino
from openvino import opset13
from edge_runtime.engines.precedence import precedence

if {drop}:
    os.setgid(65534)
    os.setuid(65534)
given = opset13.parameter([1, 4], openvino.Type.f32)
model = openvino.Model([opset13.relu(given)], [given])
ended = threading.Event()
with precedence():
    ours = threading.Thread(target=ended.wait)
    ours.start()
    compiled = openvino.Core().compile_model(model, "CPU", {{"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}})
    request = compiled.create_infer_request()
tasks = [int(each.name) for each in Path("/proc/self/task").iterdir()]
nices = {{task: os.getpriority(os.PRIO_PROCESS, task) for task in tasks}}
print(nices.pop(os.getpid()), nices.pop(ours.native_id), min(nices.values()))
ended.set()
"""

pytestmark = pytest.mark.skipif(not TASKS.exists(), reason="threads are told apart by /proc, which Linux has")


def nices(drop: bool) -> list[int]:
    """Of the main thread, of one of Python's, and the least of all others."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED.format(drop=drop)], capture_output=True, text=True, check=True, timeout=60
    )
    return [int(each) for each in done.stdout.split()]


def may_lower_it() -> bool:
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> 23 & 1)


def test_threads_of_the_engine_alone_come_before_others() -> None:
    if not may_lower_it():
        pytest.skip("CAP_SYS_NICE: this machine does not let even root lower a nice value")
    assert nices(drop=False) == [os.nice(0), os.nice(0), os.nice(0) - STEPS]


def test_who_may_not_lower_it_computes_all_the_same() -> None:
    assert set(nices(drop=os.geteuid() == 0)) == {os.nice(0)}
