"""The candidate's own process: opens it, scores what lies in shared memory, and gives way to all else (hops 3 to 5).

Whatever happens here, a crash or an engine that hangs too, happens to no verdict.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel

from contract.bundle import Bundle, open_bundle
from contract.errors import BundleError, FlawlineError
from contract.fixture import placer_of, same_fixture
from contract.preprocess import Picture
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.inspector import Inspector
from edge_runtime.recipes import refuse_unfit
from edge_runtime.settings import EdgeSettings

PR_SET_PDEATHSIG = 1
NICE = 19
FIRST_TO_END = 1000
WHOLE = ""
"""In place of a view's name where a part is one picture."""


class Task(BaseModel):
    """Where a part's pictures lie in the memory: view, shape and the first byte of each."""

    pictures: list[tuple[str, tuple[int, ...], int]]


class Answer(BaseModel):
    """What the candidate says of a part, and how much of a core's time that took."""

    verdict: str
    score: float | None
    reason: str | None
    cpu_s: float


class Opened(BaseModel):
    """What was opened; ``error``: why nothing was. ``beside``: bundle and calibration whose pictures it may see."""

    error: str | None = None
    beside: tuple[str, str | None] | None = None
    bundle_id: str | None = None
    model_sha256: str | None = None
    calibration_id: str | None = None
    engine: str | None = None
    threshold: float | None = None
    review_threshold: float | None = None


class Order(BaseModel):
    """What the process is for: the first line that it is told."""

    settings: EdgeSettings
    parent_pid: int


def main(memory_fd: int) -> None:
    """A process from its beginning to its end, which is that of its standard input."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print what they like: only answers may reach the parent's pipe.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    order = Order.model_validate_json(sys.stdin.buffer.readline())
    if os.getppid() != order.parent_pid:
        os._exit(1)
    give_way()
    cv2.setNumThreads(1)
    try:
        inspector, opened = open_candidate(order.settings)
    except FlawlineError as error:
        answers.write(Opened(error=str(error)).model_dump_json() + "\n")
        return
    answers.write(opened.model_dump_json() + "\n")
    memory = mmap.mmap(memory_fd, 0, access=mmap.ACCESS_READ)
    while line := sys.stdin.buffer.readline():
        answers.write(_answer(inspector, _picture(memory, Task.model_validate_json(line))).model_dump_json() + "\n")


def give_way() -> None:
    """Leave the processor to cameras and verdicts. The kernel may share it out by sessions first, and this is one.

    Memory is the edge's own: where there is too little, this process is the one to end.
    """
    os.nice(NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_END))
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def open_candidate(settings: EdgeSettings) -> tuple[Inspector, Opened]:
    """Raises FlawlineError where the candidate could not judge the parts of this edge's recipe."""
    shadow = settings.shadow
    folder = shadow.bundle
    if folder is None:
        raise BundleError("[shadow] names no bundle")
    bundle = open_bundle(folder.resolve())
    as_candidate = {"precision": shadow.precision, "engine": shadow.engine, "mode": "trial"}
    refuse_unfit(bundle, settings.model_copy(update=as_candidate))
    live = open_bundle(settings.bundle_folders()[shadow.recipe])
    refuse_other_pictures(bundle, live)
    engine = open_engine(shadow.engine, bundle, 1, shadow.precision)
    check_golden(engine, bundle)
    thresholds = bundle.manifest.thresholds
    return Inspector(bundle, engine), Opened(
        beside=(live.manifest.id, live.manifest.calibration_id()),
        bundle_id=bundle.manifest.id,
        model_sha256=bundle.model_sha256,
        calibration_id=bundle.manifest.calibration_id(),
        engine=engine.describe(),
        threshold=None if thresholds is None else thresholds.reject,
        review_threshold=None if thresholds is None else thresholds.review,
    )


def refuse_other_pictures(candidate: Bundle, live: Bundle) -> None:
    """Raise BundleError where the candidate would be shown other pictures than it was made for."""
    ours, theirs = candidate.manifest.recipe, live.manifest.recipe
    if ours.channels != theirs.channels:
        raise BundleError(
            f"{candidate.root}: takes pictures of {ours.channels} channel(s), and the line's own are cut with "
            f"{theirs.channels}"
        )
    if {(view.name, view.camera) for view in ours.views} != {(view.name, view.camera) for view in theirs.views}:
        raise BundleError(f"{candidate.root}: has other views, or of other cameras, than {live.root}")
    if candidate.manifest.golden.preprocess != live.manifest.golden.preprocess:
        raise BundleError(
            f"{candidate.root}: its pictures are corrected by another preprocess file than those of {live.root}"
        )
    if not same_fixture(placer_of(candidate), placer_of(live)):
        raise BundleError(f"{candidate.root}: its pictures are cut by another fixture than those of {live.root}")


def _picture(memory: mmap.mmap, task: Task) -> Picture:
    found: dict[str, Any] = {
        view: np.frombuffer(memory, np.uint8, int(np.prod(shape)), at).reshape(shape)
        for view, shape, at in task.pictures
    }
    return found[WHOLE] if set(found) == {WHOLE} else found


def _answer(inspector: Inspector, part: Picture) -> Answer:
    used = time.process_time()
    outcome = inspector.inspect(part)
    score = outcome.score if outcome.score is not None and np.isfinite(outcome.score) else None
    took = time.process_time() - used
    return Answer(verdict=outcome.verdict.value, score=score, reason=outcome.reason, cpu_s=took)


if __name__ == "__main__":
    main(int(sys.argv[1]))
