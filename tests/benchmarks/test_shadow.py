"""A candidate that takes turns with nothing: which turns, who sees which part, and what is made of the turns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

from benchmarks import shadow as module
from benchmarks.shadow import SETTLE_NS, WARM_UP_NS, Switched, Turn, half_width, lost, order_of
from edge_runtime.cutting import CutPart
from edge_runtime.emitter import Emitter
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink, ShadowSettings
from edge_runtime.spool import Spool
from tests.edge_runtime.test_shadow import result

STEP_NS = 10_000_000


def test_half_of_the_pairs_begin_with_either() -> None:
    for seed in range(5):
        order = order_of(10, seed)
        pairs = list(zip(order[::2], order[1::2], strict=True))
        assert sorted(pairs) == [(False, True)] * 5 + [(True, False)] * 5
    assert order_of(10, 0) != order_of(10, 1)


def test_what_is_lost_is_told_by_pairs_whichever_is_first() -> None:
    def turn(on: bool, per_s: float) -> Turn:
        return Turn(on, [round(n * 1e9 / per_s) for n in range(100)])

    turns = [turn(True, 96), turn(False, 100), turn(False, 200), turn(True, 198)]
    assert lost(turns) == pytest.approx([0.04, 0.01], abs=1e-6)
    with pytest.raises(SystemExit, match="--turn SECONDS"):
        lost([turn(True, 96), Turn(False, [5])])


def test_the_interval_is_student_s() -> None:
    assert half_width([1, 2, 3, 4, 5, 6]) == pytest.approx(2.5706 * 1.8708 / 6**0.5, rel=2e-3)
    assert half_width([1.0]) is None


def test_parts_are_seen_in_the_turns_that_are_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10**12]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic_ns=lambda: now[0]))
    settings = EdgeSettings(
        edge_id="edge", bundle=tmp_path, state_dir=tmp_path, shadow=ShadowSettings(bundle=tmp_path),
        host=HostLink(endpoint=f"ipc://{tmp_path}/nobody"), cameras=[CameraSettings(id="top", url="synthetic://line")],
    )  # fmt: skip
    cut = CutPart(np.zeros((4, 4), np.uint8), None, {})
    with zmq.Context() as context:
        spool = Spool(tmp_path / "spool.sqlite")
        beside = Switched(settings, spool, Emitter(spool, settings.host, context), [True, False, False, True], 2.0)
        waiting = []
        for number in range((WARM_UP_NS + 9 * 10**9) // STEP_NS):
            beside.offer(result(number).model_copy(update={"recipe_number": 1}), number + 1, cut)
            waiting.append(len(beside._waiting))
            now[0] += STEP_NS
        spool.close()
    assert [len(turn.at_ns) for turn in beside.turns] == [200, 200 - SETTLE_NS // STEP_NS, 190, 200]
    assert [turn.parts_per_s for turn in beside.turns] == pytest.approx([100.0] * 4)
    assert beside.offered == 1000 and beside.offered - beside.unseen == 400
    seen = [count > 0 for count in waiting]  # nobody takes them: the turns that are on fill up
    assert seen == [False] * 100 + [True] * 200 + [False] * 400 + [True] * 200 + [False] * 100
    assert beside.dropped == 400, "what waited at the end of a turn as well"
