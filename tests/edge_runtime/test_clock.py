"""The wall clock watched: a step is counted, slewing and a paused process are none."""

from __future__ import annotations

import pytest

from edge_runtime import clock
from edge_runtime.clock import STA_UNSYNC, StepWatch, synchronised

S = 1_000_000_000


class Clocks:
    """Both clocks of a machine, set by hand; ``pause_ns`` passes between two reads that belong together."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.boot, self.offset, self.pause_ns = 100 * S, 1_700_000_000 * S, 1000
        patch.setattr(clock, "boot_ns", self._read)
        patch.setattr(clock.time, "time_ns", lambda: self.boot + self.offset)

    def _read(self) -> int:
        self.boot += self.pause_ns
        return self.boot


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_steps_are_counted_with_their_size(clocks: Clocks) -> None:
    watch = StepWatch()
    watch.look()
    assert (watch.steps, watch.step_ms) == (0, 0.0)
    clocks.offset += 3600 * S
    watch.look()
    watch.look()
    assert (watch.steps, watch.step_ms) == (1, pytest.approx(3_600_000, abs=1))
    clocks.offset -= 7200 * S
    watch.look()
    assert (watch.steps, watch.step_ms) == (2, pytest.approx(-7_200_000, abs=1))


def test_time_that_passes_is_no_step(clocks: Clocks) -> None:
    watch = StepWatch()
    for _ in range(1000):
        clocks.boot += 86_400 * S
        clocks.offset += 1000  # the noise of reading
        watch.look()
    assert watch.steps == 0


def test_a_process_that_was_paused_while_it_looked_looks_again_later(clocks: Clocks) -> None:
    watch = StepWatch()
    clocks.pause_ns = S
    watch.look()
    assert watch.steps == 0
    clocks.pause_ns, clocks.offset = 1000, clocks.offset + S
    watch.look()
    assert watch.steps == 1


def test_paused_at_the_very_start(clocks: Clocks) -> None:
    clocks.pause_ns = S
    watch = StepWatch()
    clocks.pause_ns = 1000
    watch.look()
    watch.look()
    assert watch.steps == 0


@pytest.mark.parametrize(
    ("status", "timesyncd", "expected"),
    [
        (0x2000, False, True),
        (STA_UNSYNC, False, False),
        (STA_UNSYNC, True, True),
        (None, True, True),
        (None, False, None),
    ],
)
def test_synchronised_as_far_as_it_is_known(
    status: int | None, timesyncd: bool, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "_kernel_status", lambda: status)
    monkeypatch.setattr(clock, "TIMESYNC", clock.Path("/" if timesyncd else "/none-such"))
    assert synchronised() is expected


def test_this_kernel_answers_or_says_that_it_may_not() -> None:
    assert synchronised() in (True, False, None)
