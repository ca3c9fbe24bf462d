"""What the line's heartbeat rests on: each thing that can stop inspection stops it, and says which."""

from __future__ import annotations

import time
from typing import Any

import pytest

from contract.event import CameraState, State, from_frames
from plugin.liveness import Liveness
from plugin.settings import LineSettings
from plugin.transit import Arrival
from tests.plugin import synthetic as s

LINE = LineSettings(id="line-1", edges=["edge-1", "edge-2"], deadline_ms=500, silence_ms=700, frame_age_ms=1000)
OTHER = LineSettings(id="line-2")


def camera(**more: Any) -> CameraState:
    return CameraState(**{"camera_id": "top", "state": "running", "frame_age_ms": 30.0, **more})


def heard(liveness: Liveness, *states: State, ago_ms: float = 0.0) -> None:
    arrived_ns = time.monotonic_ns() - int(ago_ms * 1e6)
    liveness.note([Arrival(from_frames(s.frames(state, age_ms=0.0)), arrived_ns) for state in states])


@pytest.fixture
def liveness() -> Liveness:
    line_of = {"edge-1": LINE, "edge-2": LINE}
    made = Liveness([LINE, OTHER], lambda edge: line_of.get(edge, OTHER))
    heard(made, s.state(edge_id="edge-1"), s.state(edge_id="edge-2"))
    return made


def test_a_line_whose_edges_all_see_and_infer_is_alive(liveness: Liveness) -> None:
    assert liveness.trouble_of("line-1") is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"state": "starting"}, "is starting"),
        ({"state": "stopping"}, "is stopping"),
        ({"state": "stopped"}, "is stopped"),
        ({"state": "failed"}, "is failed"),
        ({"inspecting": False}, "stopped by request"),
        ({"inference": "failed"}, "inference fails"),
        ({"inference": "unknown"}, "does not say whether it infers"),
        ({"waiting": 1, "waiting_ms": 501.0}, "a part has waited 501 ms"),
        ({"cameras": ()}, "it has no camera"),
        ({"cameras": (camera(), camera(camera_id="side", state="stalled"))}, "camera side is stalled"),
        ({"cameras": (camera(state="ended"),)}, "camera top is ended"),
        ({"cameras": (camera(frame_age_ms=1001.0),)}, "no frame for 1001 ms"),
        ({"cameras": (camera(frame_age_ms=-1.0),)}, "no frame"),
    ],
)
def test_one_edge_in_trouble_stops_the_line(liveness: Liveness, more: dict[str, Any], words: str) -> None:
    heard(liveness, s.state(edge_id="edge-2", **more))
    assert words in (liveness.trouble_of("line-1") or "")
    assert "edge-2" in (liveness.trouble_of("line-1") or "")


def test_the_recipe_is_known_where_all_edges_say_the_same(liveness: Liveness) -> None:
    assert liveness.recipe_of("line-1") == (0, 0)
    both = {"recipe_number": 3, "model_sha256": "c0ffee01" + "0" * 56}
    heard(liveness, s.state(edge_id="edge-1", **both), s.state(edge_id="edge-2", **both))
    assert liveness.recipe_of("line-1") == (3, 0xC0FFEE01)
    heard(liveness, s.state(edge_id="edge-2", recipe_number=4, model_sha256="ab" * 32))
    assert liveness.recipe_of("line-1") == (0, 0)
    assert liveness.trouble_of("line-1") == "its edges judge by different recipes: 3, 4"


def test_an_edge_that_is_revoked_is_not_waited_for_unless_its_line_names_it(liveness: Liveness) -> None:
    heard(liveness, s.state(edge_id="old"), ago_ms=5000.0)
    heard(liveness, s.state(edge_id="new"))
    assert "old: silent" in (liveness.trouble_of("line-2") or "")
    liveness.forget(frozenset({"old", "edge-1"}))
    assert liveness.trouble_of("line-2") is None
    assert liveness.trouble_of("line-1") == "edge-1: not heard of"


def test_silence_stops_the_line_and_a_word_starts_it_again(liveness: Liveness) -> None:
    heard(liveness, s.state(edge_id="edge-2"), ago_ms=900.0)
    assert "edge-2: silent for" in (liveness.trouble_of("line-1") or "")
    heard(liveness, s.state(edge_id="edge-2"))
    assert liveness.trouble_of("line-1") is None


def test_what_lay_in_a_buffer_counts_from_when_it_was_said(liveness: Liveness) -> None:
    message = from_frames(s.frames(s.state(edge_id="edge-2"), age_ms=0.0))
    liveness.note([Arrival(message, time.monotonic_ns(), waited_ns=2 * 10**9)])
    assert "silent" in (liveness.trouble_of("line-1") or "")


def test_an_edge_that_is_named_and_never_heard_stops_the_line() -> None:
    liveness = Liveness([LINE], lambda edge: LINE)
    heard(liveness, s.state(edge_id="edge-1"))
    assert liveness.trouble_of("line-1") == "edge-2: not heard of"


def test_a_line_without_named_edges_needs_one_that_was_heard(liveness: Liveness) -> None:
    assert liveness.trouble_of("line-2") == "no edge has been heard of"
    heard(liveness, s.state(edge_id="edge-9"))
    assert liveness.trouble_of("line-2") is None
    assert liveness.edges_of("line-2") == ["edge-9"]


def test_edges_that_nobody_named_are_bounded(liveness: Liveness) -> None:
    heard(liveness, *(s.state(edge_id=f"stranger-{number}") for number in range(1200)))
    assert len(liveness.edges_of("line-2")) == 1022
    heard(liveness, s.state(edge_id="edge-1", state="failed"))  # those that are known stay heard
    assert "is failed" in (liveness.trouble_of("line-1") or "")
