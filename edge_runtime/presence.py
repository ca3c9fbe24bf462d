"""Decides when a part is taken: the boxes of each frame in, every part exactly once out (the trigger of hop 1).

Pure bookkeeping, without pixels and without a clock: time is the number of the frame.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from contract.locate import Box, Direction

COAST = 4  # frames looked at without finding a part until it counts as gone
BRIEF = 3  # over so few frames the belt may stop or start; over more it is taken to run on
MAX_TRACKS = 16
BORDER = 400  # a box nearer to the border than one of so many parts of the frame's longer side touches it


class Taken(NamedTuple):
    """A part to inspect: its box in frame ``frame_no``, which the caller has kept (see ``Tracker.wanted``)."""

    box: Box
    frame_no: int


class Lost(NamedTuple):
    """A part that was seen but cannot be inspected; ``box`` is where it was seen last, in frame ``frame_no``."""

    reason: str
    box: Box
    frame_no: int


Outcome = Taken | Lost


class Span(NamedTuple):
    """A box along the belt: distance of its back and front from the border where parts enter; open: cut by a border.

    ``side`` and ``side_size``: where it lies across the belt.
    """

    back: float
    front: float
    open_back: bool
    open_front: bool
    whole: bool
    side: int
    side_size: int


@dataclass
class Track:
    """One part that is followed; ``whole_box`` and ``whole_frame`` belong to the last frame that showed it whole."""

    box: Box
    span: Span
    frame_no: int
    seen: int = 1
    misses: int = 0
    taken: bool = False
    settled: int = 0
    whole_box: Box | None = None
    whole_frame: int | None = None


class Tracker:
    """Follows parts along the belt; ``update`` once per frame, in rising order of frame numbers (gaps allowed)."""

    def __init__(self, direction: Direction = "right", settle_frames: int = 2) -> None:
        self._direction = direction
        self._settle = settle_frames
        self._tracks: list[Track] = []
        self._frame_no: int | None = None
        self._frame_hw = (1, 1)
        self._speed: float | None = None  # pixels a frame, lately
        self._cruise = 0.0  # and when the belt moves

    def update(self, frame_no: int, boxes: list[Box], frame_hw: tuple[int, int]) -> list[Outcome]:
        """Take in one frame; returns the parts whose fate it decides. A frame that is not newer is passed over."""
        if self._frame_no is not None and frame_no <= self._frame_no:
            return []
        self._frame_no, self._frame_hw = frame_no, frame_hw
        spans = sorted(((self._span(box), box) for box in boxes), key=lambda pair: -pair[0].front)
        self._follow(frame_no, spans)
        outcomes: list[Outcome] = []
        for track in self._tracks:
            outcomes += self._settle_track(track, frame_no)
        gone = [track for track in self._tracks if self._is_gone(track, frame_no)]
        self._tracks = [track for track in self._tracks if not any(track is other for other in gone)]
        return outcomes + [outcome for track in gone for outcome in _farewell(track)]

    def wanted(self) -> set[int]:
        """Frames that may yet be taken; the caller keeps them."""
        return {track.whole_frame for track in self._tracks if not track.taken and track.whole_frame is not None}

    def finish(self) -> list[Outcome]:
        """No more frames come: what is still open is decided now."""
        tracks, self._tracks = self._tracks, []
        return [outcome for track in tracks for outcome in _farewell(track)]

    def note_taken(self, frame_no: int, box: Box, frame_hw: tuple[int, int]) -> None:
        """A part was taken that this tracker does not know to be (it was restored from an older state)."""
        self._frame_hw = frame_hw
        span = self._span(box)
        near = [track for track in self._tracks if _in_one_lane(track.span, span)]
        matched = [track for track in near if self._shift(track, span, frame_no - track.frame_no) is not None]
        best = min(matched, key=lambda track: abs(track.span.back - span.back), default=None)
        if best is None:
            self._tracks.append(Track(box, span, frame_no, taken=True))
        else:
            best.box, best.span, best.frame_no, best.taken = box, span, frame_no, True
        self._frame_no = frame_no if self._frame_no is None else max(self._frame_no, frame_no)

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width of the last frame."""
        return self._frame_hw

    def pass_over(self, frame_no: int, boxes: list[Box], frame_hw: tuple[int, int]) -> None:
        """Parts that stand in view when watching begins and may have been taken before: all but those that enter."""
        self._frame_hw = frame_hw
        for box in boxes:
            if not self._span(box).open_back:
                self.note_taken(frame_no, box, frame_hw)

    def state(self) -> dict[str, Any]:
        """Everything as plain values, for ``restore``."""
        return {
            "frame_no": self._frame_no,
            "frame_hw": self._frame_hw,
            "speed": self._speed,
            "cruise": self._cruise,
            "tracks": [asdict(track) for track in self._tracks],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``."""
        self._frame_no, self._speed, self._cruise = state["frame_no"], state["speed"], state["cruise"]
        self._frame_hw = (state["frame_hw"][0], state["frame_hw"][1])
        self._tracks = []
        for values in state["tracks"]:
            whole = values["whole_box"]
            values = values | {"box": Box(*values["box"]), "span": Span(*values["span"])}
            self._tracks.append(Track(**(values | {"whole_box": None if whole is None else Box(*whole)})))

    # Where parts are --------------------------------------------------------------------------------------------------

    @property
    def _length(self) -> int:
        """The frame's extent along the belt."""
        return self._frame_hw[1] if self._direction in ("right", "left") else self._frame_hw[0]

    def _span(self, box: Box) -> Span:
        along_x = self._direction in ("right", "left")
        start, size = (box.x, box.w) if along_x else (box.y, box.h)
        side, side_size = (box.y, box.h) if along_x else (box.x, box.w)
        across = self._frame_hw[0] if along_x else self._frame_hw[1]
        if self._direction in ("left", "up"):
            start = self._length - start - size
        near = max(1, round(max(self._frame_hw) / BORDER))
        open_back, open_front = start <= near, start + size >= self._length - near
        clear = side > 0 and side + side_size < across
        whole = clear and not open_back and not open_front
        return Span(start, start + size, open_back, open_front, whole, side, side_size)

    def _slack(self) -> float:
        return max(6.0, 0.02 * self._length)

    def _reach(self, frames: int) -> tuple[float, float, float]:
        """(least, expected, most) pixels that a part moves in ``frames`` frames."""
        slack, cruise = self._slack(), self._cruise
        speed = self._speed
        if speed is None:
            return -slack, 0.0, 0.25 * self._length * min(frames, 3) + slack
        if frames <= BRIEF:  # the belt may have stopped or started
            return -slack, speed * frames, max(2 * cruise, 0.1 * self._length) * frames + slack
        return 0.7 * speed * frames - slack, speed * frames, 1.3 * max(speed, cruise) * frames + slack

    def _shift(self, track: Track, span: Span, frames: int) -> float | None:
        """How far ``track`` would have moved to be at ``span``; None where that cannot be."""
        least, expected, most = self._reach(max(1, frames))
        old = track.span
        fronts = not (old.open_front or span.open_front)
        backs = not (old.open_back or span.open_back)
        if fronts and backs:
            shift = (span.front - old.front + span.back - old.back) / 2
        elif fronts:
            shift = span.front - old.front
        elif backs:
            shift = span.back - old.back
        else:
            # No edge in common: only a part that reached in at the back can reach out at the front now.
            reached = old.open_front or old.front + most >= self._length - self._slack()
            fits = old.open_back and span.open_front and reached and (span.open_back or span.back <= most)
            shift = expected if fits else least - 1
        return shift if least <= shift <= most else None

    def _follow(self, frame_no: int, spans: list[tuple[Span, Box]]) -> None:
        """Match the boxes with the tracks, in the order of the belt; the rest begin tracks of their own."""
        matches = self._match(frame_no, [span for span, _ in spans])
        shifts = []
        for index, track in enumerate(self._tracks):
            place = matches.get(index)
            if place is None:
                track.misses += 1
                continue
            shift, frames = self._shift(track, spans[place][0], frame_no - track.frame_no), frame_no - track.frame_no
            if shift is not None and not (track.span.open_back and track.span.open_front):
                shifts.append(shift / frames)
            track.span, track.box = spans[place]
            track.frame_no, track.seen, track.misses = frame_no, track.seen + 1, 0
        self._learn(shifts)
        fresh = [track for track in self._tracks if track.misses <= BRIEF and frame_no - track.frame_no <= COAST]
        predicted = [(track.span, self._predicted(track, frame_no)) for track in fresh]
        taken = set(matches.values())
        for place, (span, box) in enumerate(spans):
            # What lies on a known part is that part, seen badly; it is followed again when it is seen well.
            if place not in taken and not any(
                _in_one_lane(span, old) and _covered(span, now) for old, now in predicted
            ):
                self._tracks.append(Track(box, span, frame_no))
        self._tracks.sort(key=lambda track: -track.span.front)
        del self._tracks[MAX_TRACKS:]

    def _predicted(self, track: Track, frame_no: int) -> tuple[float, float]:
        _, expected, _ = self._reach(frame_no - track.frame_no)
        return track.span.back + expected, track.span.front + expected

    def _match(self, frame_no: int, spans: list[Span]) -> dict[int, int]:
        """Track index -> span index, lane by lane: beside each other parts need not keep their order."""
        matches: dict[int, int] = {}
        for lane in _lanes([track.span for track in self._tracks] + spans):
            tracks = [index for index in lane if index < len(self._tracks)]
            matches |= self._match_lane(
                frame_no, spans, tracks, [index - len(self._tracks) for index in lane[len(tracks) :]]
            )
        return matches

    def _match_lane(self, frame_no: int, spans: list[Span], tracks: list[int], places: list[int]) -> dict[int, int]:
        """As many pairs as can be, in order, each near where it is expected."""
        best: dict[tuple[int, int], tuple[float, dict[int, int]]] = {}
        for i in range(len(tracks) + 1):
            for j in range(len(places) + 1):
                options = [best[key] for key in ((i - 1, j), (i, j - 1)) if key in best]
                gain = self._gain(self._tracks[tracks[i - 1]], spans[places[j - 1]], frame_no) if i and j else None
                if gain is not None:
                    score, pairs = best[i - 1, j - 1]
                    options.append((score + gain, pairs | {tracks[i - 1]: places[j - 1]}))
                best[i, j] = max(options, key=lambda option: option[0], default=(0.0, {}))
        return best[len(tracks), len(places)][1]

    def _gain(self, track: Track, span: Span, frame_no: int) -> float | None:
        frames = frame_no - track.frame_no
        shift = self._shift(track, span, frames)
        if shift is None:
            return None
        least, expected, most = self._reach(frames)
        return 2.0 - abs(shift - expected) / max(1.0, most - least)

    def _learn(self, shifts: list[float]) -> None:
        if not shifts:
            return
        speed = max(0.0, sorted(shifts)[len(shifts) // 2])
        self._speed = speed if self._speed is None else 0.5 * (self._speed + speed)
        if speed > 0.5 * self._cruise:
            self._cruise += 0.2 * (speed - self._cruise) if self._cruise else speed

    # What becomes of them ---------------------------------------------------------------------------------------------

    def _settle_track(self, track: Track, frame_no: int) -> list[Outcome]:
        if track.taken or track.frame_no != frame_no:
            return []
        if track.span.whole:
            steady = track.whole_box is None or _alike(track.whole_box, track.box)
            track.settled = track.settled + 1 if steady else 1
            track.whole_box, track.whole_frame = track.box, frame_no
            if track.settled >= self._settle:
                track.taken = True
                return [Taken(track.box, frame_no)]
        elif track.span.open_front and track.whole_box is not None:
            return _farewell(track)
        return []

    def _is_gone(self, track: Track, frame_no: int) -> bool:
        if track.frame_no == frame_no:
            return False
        least, _, _ = self._reach(frame_no - track.frame_no)
        return track.misses >= COAST or track.span.back + max(0.0, least) > self._length


def _farewell(track: Track) -> list[Outcome]:
    """The last word on a track: taken with the frame that showed it whole, or lost."""
    if track.taken:
        return []
    track.taken = True
    if track.whole_box is not None and track.whole_frame is not None:
        return [Taken(track.whole_box, track.whole_frame)]
    if track.seen < 2:  # a glint, not a part
        return []
    return [Lost("never wholly in view", track.box, track.frame_no)]


def _in_one_lane(a: Span, b: Span) -> bool:
    shared = min(a.side + a.side_size, b.side + b.side_size) - max(a.side, b.side)
    return shared > 0.5 * min(a.side_size, b.side_size)


def _lanes(spans: list[Span]) -> list[list[int]]:
    """Indices of the spans that lie behind one another, directly or over others; in rising order."""
    lanes: list[list[int]] = []
    for index, span in enumerate(spans):
        own = [lane for lane in lanes if any(_in_one_lane(span, spans[other]) for other in lane)]
        lanes = [lane for lane in lanes if lane not in own]
        lanes.append(sorted([index, *(other for lane in own for other in lane)]))
    return lanes


def _covered(span: Span, place: tuple[float, float]) -> bool:
    shared = min(span.front, place[1]) - max(span.back, place[0])
    return shared > 0.5 * min(span.front - span.back, place[1] - place[0])


def _alike(a: Box, b: Box) -> bool:
    return abs(a.w - b.w) <= 4 + 0.05 * a.w and abs(a.h - b.h) <= 4 + 0.05 * a.h
