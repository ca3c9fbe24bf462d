"""Which of the frames that a camera keeps is the one asked for (hop 1 -> hop 2)."""

from __future__ import annotations

from typing import NamedTuple

GONE = "its frame was given up before it could be taken: raise `slots` of the camera"


class Wanted(NamedTuple):
    """A frame by its capture time, CLOCK_MONOTONIC: the first one at or after ``t_ns``, else the ``nearest`` to it.

    ``within_ns``: how far from ``t_ns`` it may lie.
    """

    t_ns: int
    within_ns: int
    nearest: bool = False

    @property
    def until_ns(self) -> int:
        """The last capture time that would do."""
        return self.t_ns + self.within_ns

    def words(self) -> str:
        """What is asked for, for a sentence."""
        around = "of the time asked for" if self.nearest else "after it was asked for"
        return f"within {self.within_ns / 1e6:g} ms {around}"


class KeptFrame(NamedTuple):
    """A whole frame in shared memory: its slot, number and capture time."""

    slot: int
    frame_no: int
    t_capture_ns: int


def choose(wanted: Wanted, frames: list[KeptFrame], gone_ns: int) -> KeptFrame | str | None:
    """The frame; why there is none; or None while a frame that is still to come may be the one.

    ``gone_ns``: capture time of the newest frame that is not kept any more, or never could be. What it makes doubtful
    is not guessed: another frame would show another part.
    """
    later = [frame for frame in frames if frame.t_capture_ns >= wanted.t_ns]
    if not later and gone_ns < wanted.t_ns:
        return None
    candidates = frames if wanted.nearest else later
    best = min(candidates, key=lambda frame: abs(frame.t_capture_ns - wanted.t_ns), default=None)
    if best is None or _hides_another(wanted, best, gone_ns):
        return GONE
    if abs(best.t_capture_ns - wanted.t_ns) > wanted.within_ns:
        return f"no frame {wanted.words()}: the next best lies {_apart_ms(best, wanted):.0f} ms from it"
    return best


def _hides_another(wanted: Wanted, best: KeptFrame, gone_ns: int) -> bool:
    """Whether a frame that is gone would have been preferred."""
    if not wanted.nearest:
        return gone_ns >= wanted.t_ns
    return gone_ns > 0 and abs(gone_ns - wanted.t_ns) < abs(best.t_capture_ns - wanted.t_ns)


def _apart_ms(frame: KeptFrame, wanted: Wanted) -> float:
    return abs(frame.t_capture_ns - wanted.t_ns) / 1e6
