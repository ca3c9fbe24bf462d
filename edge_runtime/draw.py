"""Draws a data set from the synthetic line: parts cut from camera frames by the code that runs on the line (hop 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from contract.errors import DatasetError
from contract.images import Pixels, encode_png
from contract.locate import Box, find_parts
from edge_runtime.errors import CameraError
from edge_runtime.presence import Taken, Tracker
from edge_runtime.synthetic import DEFECTS, HEIGHT, PART_LENGTH_PX, WIDTH, SyntheticLine, line_from
from edge_runtime.synthetic import write_truth as write_rows

OTHER_SEED = 1_000_003  # far from any seed of a line: no part of the data set ever runs on one
FURTHER_SEED = 5000
FURTHER = 10_000
SIZED_SEED = 7000
APART_PX = 40  # from the part before: the others touch
Progress = Callable[[int], None]


class Drawn(NamedTuple):
    """A part cut from its frame, its class, and the exact mask of its defect (0/255, of the cut-out's size)."""

    label: str
    pixels: Pixels
    mask: Pixels


def line_of(url: str) -> SyntheticLine:
    """The line behind ``synthetic://line?...``; raises CameraError or ConfigError."""
    parts = urlsplit(url)
    if parts.scheme != "synthetic" or (parts.netloc + parts.path).strip("/") != "line":
        raise CameraError(f"{url!r}: only synthetic://line can be drawn; as in synthetic://line?seed=1&parts=50")
    return line_from(dict(parse_qsl(parts.query, keep_blank_values=True)))


def draw_dataset(
    url: str, out: Path, good: int = 160, test_good: int = 40, defective: int = 60, progress: Progress | None = None
) -> int:
    """Write a folder in the MVTec AD layout; returns how many images.

    ``progress`` is called with the number of parts drawn. The product is that of ``url``; its parts are others.
    Raises DatasetError where ``out`` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise DatasetError(f"{out}: the folder is not empty; give one that does not exist yet")
    line = line_of(url)
    done = 0
    tell = progress or (lambda done: None)
    for index, drawn in enumerate(_parts(line, 0.0, good + test_good)):
        folder = "train/good" if index < good else "test/good"
        _write(out / folder / f"{index:04d}.png", drawn.pixels)
        tell(done := done + 1)
    for index, drawn in enumerate(_parts(line, 1.0, defective)):
        _write(out / "test" / drawn.label / f"{index:04d}.png", drawn.pixels)
        _write(out / "ground_truth" / drawn.label / f"{index:04d}_mask.png", drawn.mask)
        tell(done := done + 1)
    return done


def further_parts(url: str) -> Iterator[Pixels]:
    """Good parts of the product of ``url`` that stand in no data set and run on no line of that seed."""
    like = line_of(url)
    yield from (drawn.pixels for drawn in _parts(like, 0.0, FURTHER, OTHER_SEED + 2 * like.seed + FURTHER_SEED))


class SizedParts:
    """Parts of the product of ``url`` with a defect drawn to size; they stand in no data set and run on no line."""

    def __init__(self, url: str, parts: int) -> None:
        like = line_of(url)
        seed = OTHER_SEED + 2 * like.seed + SIZED_SEED
        self._line = SyntheticLine(seed, parts, like.fps, 0.0, like.speed, like.colour)

    def draw(self, number: int, kind: str, extent_px: float) -> Drawn | None:
        """Part ``number`` with a defect of ``kind`` (of SIZED), cut from the first frames that show it whole.

        The mask's longest extent is ``extent_px`` to within EXTENT_OFF_PX, and can be measured. None for a part that
        touches another, or that the line would not take whole. Raises ConfigError where there is no such kind, or no
        place for it on this part.
        """
        line = self._line
        if self._touches(number):
            return None
        line.put(number, kind, extent_px)
        first = line.first_frame(line.parts[number])
        for frame_no in range(first + 1, first + 4):
            frame = line.render(frame_no)
            for box in find_parts(frame, part_length_px=PART_LENGTH_PX):
                found = _cut(line, Taken(box, frame_no), frame)
                if found is not None and found.label == kind:
                    return found
        return None

    def _touches(self, number: int) -> bool:
        near = self._line.parts[max(0, number - 1) : number + 2]
        return any(after.front - before.front - before.box_w < APART_PX for before, after in pairwise(near))


def write_truth(url: str, csv_path: Path) -> int:
    """Write the truth of each frame of a synthetic line as CSV; returns the number of rows."""
    return write_rows(line_of(url), csv_path)


def _parts(like: SyntheticLine, defects: float, count: int, seed: int | None = None) -> Iterator[Drawn]:
    """``count`` parts of a line like ``like``, in the frames in which the line would take them."""
    if count < 1:
        return
    seed = OTHER_SEED + 2 * like.seed + (defects > 0) if seed is None else seed
    # A few parts more than wanted: one that the line would not take whole is passed over here as well.
    line = SyntheticLine(seed, count + 8, like.fps, defects, like.speed, like.colour)
    kinds, drawn = list(DEFECTS), 0
    if defects > 0:  # every kind as often as any other
        parts = [part._replace(defect=kinds[part.number % len(kinds)]) for part in line.parts]
        line.parts[:] = parts
    for taken, frame in _taken(line):
        found = _cut(line, taken, frame)
        if found is not None:
            yield found
            drawn += 1
        if drawn == count:
            return


def _taken(line: SyntheticLine) -> Iterator[tuple[Taken, Pixels]]:
    tracker = Tracker()
    kept: dict[int, Pixels] = {}
    for number in _worth_looking(line):
        frame = line.render(number)
        kept[number] = frame
        boxes = find_parts(frame, part_length_px=PART_LENGTH_PX)
        for outcome in tracker.update(number, boxes, (HEIGHT, WIDTH)):
            if isinstance(outcome, Taken) and outcome.frame_no in kept:
                yield outcome, kept[outcome.frame_no]
        wanted = tracker.wanted()
        kept = {held: pixels for held, pixels in kept.items() if held in wanted}


def _worth_looking(line: SyntheticLine) -> Iterator[int]:
    """Frames around the moment when a part has come wholly into view; between them nothing is taken."""
    last = -1
    for part in line.parts:
        first = line.first_frame(part)
        for number in range(max(last + 1, first - 2), first + 6):
            last = number
            yield number


def _cut(line: SyntheticLine, taken: Taken, frame: Pixels) -> Drawn | None:
    """The part in the box, with its mask moved into the box; None where the box shows no whole part."""
    box = taken.box
    seen = max(line.seen(taken.frame_no), key=lambda other: other.box.overlap(box), default=None)
    if seen is None or not seen.whole or seen.box.overlap(box) < 0.8:
        return None
    whole = np.zeros((HEIGHT, WIDTH), np.uint8)
    _place(whole, line.sprite(seen.part.number).mask, seen.box)
    rows, columns = slice(box.y, box.y + box.h), slice(box.x, box.x + box.w)
    return Drawn(seen.part.defect, frame[rows, columns].copy(), whole[rows, columns].copy())


def _place(whole: Pixels, mask: Pixels, box: Box) -> None:
    whole[box.y : box.y + box.h, box.x : box.x + box.w] = mask


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels))
