"""The thread of maps and pictures: it ends in time, and what it had no time for is counted."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.decision import PartScore, ViewMap
from contract.event import Attachment, Result, Verdict
from edge_runtime import pictures
from edge_runtime.pictures import MOST, Pictures
from edge_runtime.settings import CameraSettings, EdgeSettings
from tests.processes import until

RESULT = Result(
    edge_id="e", spool_id="s", seq=7, run_id="r", t_wall_ns=1, part_id="p", camera_id="c", trigger_id=1, frame_no=1,
    verdict=Verdict.PASS, recipe="r", bundle_id="b", model_sha256="ab" * 32, engine="e",
)  # fmt: skip
OUTCOME: Any = SimpleNamespace(
    part=PartScore(1.0, "main", [ViewMap("main", np.ones((4, 4), np.float32), (0, 0, 4, 4))])
)


class Kept:
    """What of a spool and an emitter the thread asks."""

    def __init__(self) -> None:
        self.drafts: list[Any] = []

    def append(self, drafts: list[Any]) -> None:
        self.drafts += drafts

    def wake(self) -> None:
        pass


def make(kept: Any) -> Pictures:
    camera = CameraSettings(id="c", url="synthetic://line")
    settings = EdgeSettings(edge_id="e", bundle=Path("b"), images="none", cameras=[camera])
    return Pictures(kept, kept, settings)


def offer(encoder: Pictures, count: int) -> None:
    for _ in range(count):
        encoder.offer(RESULT, OUTCOME, None, None)  # type: ignore[arg-type]


def test_a_stop_waits_for_what_was_offered() -> None:
    kept = Kept()
    encoder = make(kept)
    encoder.start()
    offer(encoder, 5)
    encoder.stop()
    assert len(kept.drafts) == 5 and encoder.dropped == 0
    header = kept.drafts[0].header
    assert isinstance(header, Attachment) and header.result_seq == 7
    assert [(part.role, part.dtype, part.shape) for part in header.parts] == [("map", "float16", (4, 4))]


def test_a_stop_that_takes_too_long_drops_and_counts_what_is_left_while_the_heart_beats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "STOP_S", 0.3)
    held, begun = threading.Event(), threading.Event()
    real = pictures._attachments
    monkeypatch.setattr(pictures, "_attachments", lambda one: (begun.set(), held.wait(30), real(one))[2])
    kept, beats = Kept(), []
    encoder = make(kept)
    encoder.start()
    offer(encoder, 3)
    assert begun.wait(30)
    encoder.stop(lambda: beats.append(1))
    assert (encoder.dropped, len(kept.drafts)) == (3, 0) and len(beats) > 1
    held.set()
    until(lambda: not encoder._thread.is_alive(), "the thread ends")
    assert (encoder.dropped, len(kept.drafts)) == (3, 0), "nothing is written where the spool may be closed"


def test_what_comes_faster_than_it_is_encoded_is_dropped_and_counted() -> None:
    encoder = make(Kept())
    offer(encoder, MOST + 4)
    assert encoder.dropped == 4
    encoder.start()
    encoder.stop()


def test_large_ones_are_spooled_one_by_one_and_small_ones_together(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, sizes = Kept(), []
    kept.append = lambda drafts: sizes.append(len(drafts))  # type: ignore[method-assign]
    for bytes_each, expected in (
        (100, [6]),
        (pictures.TOGETHER_BYTES, [1] * 6),
        (pictures.TOGETHER_BYTES // 2, [2] * 3),
    ):
        draft = SimpleNamespace(parts=(b"\0" * bytes_each,))
        monkeypatch.setattr(pictures, "_attachments", lambda one, draft=draft: [draft])
        encoder = make(kept)
        offer(encoder, 6)
        encoder.start()
        encoder.stop()
        assert sizes == expected and encoder.dropped == encoder._left == 0
        sizes.clear()


def test_what_cannot_be_encoded_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_attachments", lambda one: 1 / 0)
    encoder = make(Kept())
    offer(encoder, 3)
    encoder.start()
    encoder.stop()
    assert (encoder.dropped, encoder._left) == (3, 0)
