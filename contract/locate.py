"""Finds the parts on a belt: camera frame -> tight boxes, the same for drawing a data set and on the line (hop 3)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.images import Pixels

Foreground = Literal["bright", "dark"]
Direction = Literal["right", "left", "down", "up"]

WORK_SIDE_PX = 400  # longer frames are halved, thirded, ... until their longer side is about this
RIM = 0.025  # share of the frame, on either side of the belt's path, that is taken for bare belt
SPREADS = 4.5  # half inter-quartile ranges of the belt that still count as belt
LEAST_STEP = 14.0  # grey levels that a part stands out by at least
THIN = 0.04  # an edge row or column filled less than this does not belong to the part
BRIDGE = 0.2  # a part as bright as the belt for less than this share of its length still holds together
LIT = 0.25  # share of a part, or of the smallest one, that is brighter than belt
SPECK = 0.1  # blobs under this share of the smallest part are dirt, not pieces of one
LONGER = 1.15  # a box longer than so many part lengths holds more than one part


class Box(NamedTuple):
    """Pixels of the frame: left, top, width, height."""

    x: int
    y: int
    w: int
    h: int

    @property
    def area(self) -> int:
        return self.w * self.h

    def padded(self, margin_px: int, frame_hw: tuple[int, int]) -> Box:
        """The box with ``margin_px`` more on each side, as far as the frame goes."""
        x0, y0 = max(0, self.x - margin_px), max(0, self.y - margin_px)
        x1 = min(frame_hw[1], self.x + self.w + margin_px)
        y1 = min(frame_hw[0], self.y + self.h + margin_px)
        return Box(x0, y0, max(0, x1 - x0), max(0, y1 - y0))

    def overlap(self, other: Box) -> float:
        """Intersection over union, 0 to 1."""
        width = min(self.x + self.w, other.x + other.w) - max(self.x, other.x)
        height = min(self.y + self.h, other.y + other.h) - max(self.y, other.y)
        if width <= 0 or height <= 0:
            return 0.0
        return width * height / (self.area + other.area - width * height)


def find_parts(
    frame: Pixels,
    *,
    foreground: Foreground = "bright",
    threshold: int | None = None,
    min_area: float = 0.005,
    direction: Direction = "right",
    part_length_px: int | None = None,
) -> list[Box]:
    """Boxes of the parts in ``frame`` (uint8 [H, W] or [H, W, 3]), in the order of the belt, the foremost first.

    The belt's level and spread come from the frame's rims along its path. A part stands out on the ``foreground``
    side; what touches it and differs on the other side (a dark chamfer of a bright part) is still its own. Blobs
    under ``min_area`` of the frame are dropped. ``part_length_px`` parts those that touch. Raises ImageError.
    """
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or min(frame.shape[:2], default=0) < 8:
        raise ImageError(f"frame of shape {frame.shape}, {frame.dtype}: expected uint8 [H, W] or [H, W, 3], 8 px up")
    scale = _scale_of(frame)
    along_x, dark = direction in ("right", "left"), foreground == "dark"
    threshold = 255 - threshold if dark and threshold is not None else threshold
    if scale > 2 and _is_bare(_turned(_sampled(frame, scale), along_x, dark), threshold, min_area):
        return []
    small = _turned(_reduced(frame, scale), along_x, dark)
    boxes = _boxes(small, threshold, min_area, None if part_length_px is None else part_length_px / scale)
    restored = [_restored(box, scale, along_x, (frame.shape[0], frame.shape[1])) for box in boxes]
    return sorted(restored, key=lambda box: _progress(box, direction), reverse=True)


def _progress(box: Box, direction: Direction) -> int:
    return {"right": box.x + box.w, "left": -box.x, "down": box.y + box.h, "up": -box.y}[direction]


def _scale_of(frame: Pixels) -> int:
    """By how much the frame is reduced, so that its longer side comes near WORK_SIDE_PX."""
    ratio: float = max(frame.shape[:2]) / WORK_SIDE_PX
    return max(1, round(ratio)) if ratio < 3 else 2 * round(ratio / 2)


def _sampled(frame: Pixels, scale: int) -> Pixels:
    """One pixel of each block, as grey: a quarter of the memory that a mean has to read."""
    size = (frame.shape[1] // scale, frame.shape[0] // scale)
    whole = frame[: size[1] * scale, : size[0] * scale]
    return _grey(np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8))


def _reduced(frame: Pixels, scale: int) -> Pixels:
    """The frame as grey, 1 / ``scale`` as large."""
    height, width = frame.shape[:2]
    if scale > 2:  # of large frames one pixel in so many is looked at, then pairs are averaged: a third of the time
        step = scale // 2
        size = (width // step, height // step)
        whole = frame[: size[1] * step, : size[0] * step]
        frame = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    if scale > 1:
        # Whole blocks only: exact edges, and far faster; the last columns are belt, or a part that is cut anyway.
        block, size = min(scale, 2), (width // scale, height // scale)
        whole = frame[: size[1] * block, : size[0] * block]
        frame = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return _grey(frame)


def _grey(frame: Pixels) -> Pixels:
    if frame.ndim == 2:
        return frame  # else the plain mean, which does not depend on the order of the channels
    return np.asarray(cv2.transform(frame, np.full((1, 3), 1 / 3, np.float32)), dtype=np.uint8)


def _turned(small: Pixels, along_x: bool, dark: bool) -> Pixels:
    """As if bright parts moved along x."""
    small = small if along_x else np.ascontiguousarray(small.T)
    return np.asarray(cv2.bitwise_not(small), dtype=np.uint8) if dark else small


def _is_bare(sample: Pixels, threshold: int | None, min_area: float) -> bool:
    """Whether far too little of the frame is bright for even the smallest part, as of most frames.

    A part has LIT of its least area above the belt's level and spread in means of four pixels; here less than a
    quarter of that in single pixels, above a level under that one, rules it out. What is noisy is looked at in full.
    """
    rim = _rim(sample)
    level = np.bincount(rim, minlength=256).cumsum().searchsorted(rim.size / 2)  # the median
    bright = level + LEAST_STEP - 2 if threshold is None else threshold - 2
    return cv2.countNonZero(_above(sample, bright)) < LIT / 4 * min_area * sample.size


def _restored(box: Box, scale: int, along_x: bool, frame_hw: tuple[int, int]) -> Box:
    if not along_x:
        box = Box(box.y, box.x, box.h, box.w)
    x0, y0, x1, y1 = box.x * scale, box.y * scale, (box.x + box.w) * scale, (box.y + box.h) * scale
    # What reaches the last whole block reaches the border.
    x1 = frame_hw[1] if x1 > frame_hw[1] - scale else x1
    y1 = frame_hw[0] if y1 > frame_hw[0] - scale else y1
    return Box(x0, y0, x1 - x0, y1 - y0)


def _belt(small: Pixels) -> tuple[float, float]:
    """(level, step): the belt's median grey level at the rims, and how far from it the belt still reaches."""
    low, level, high = quartiles(_rim(small))
    return level, max(LEAST_STEP, SPREADS * (high - low) / 2)


def _rim(small: Pixels) -> Pixels:
    rows = max(2, round(small.shape[0] * RIM))
    return np.concatenate([small[:rows].ravel(), small[-rows:].ravel()])


def quartiles(values: Pixels) -> list[float]:
    """Of uint8 values, as `np.percentile` gives them, counted rather than sorted: every frame asks."""
    upto = np.cumsum(np.bincount(values, minlength=256))
    found = []
    for share in (0.25, 0.5, 0.75):
        place = share * (values.size - 1)
        lower, upper = np.searchsorted(upto, (int(place), math.ceil(place)), side="right")
        found.append(float(lower + (upper - lower) * (place - int(place))))
    return found


def _boxes(small: Pixels, threshold: int | None, min_area: float, length: float | None) -> list[Box]:
    """Boxes of bright parts that move along x, in pixels of ``small``."""
    level, step = _belt(small)
    bright = level + step if threshold is None else float(threshold)
    smooth = np.asarray(cv2.medianBlur(small, 3), dtype=np.uint8)  # a median keeps edges where they are
    seed = _above(smooth, bright)
    other = cv2.bitwise_not(_above(smooth, level - step))
    mask = np.asarray(cv2.bitwise_or(seed, other), dtype=np.uint8)
    if not mask.any():  # a bare belt, as most frames are
        return []
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), dtype=np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    least = min_area * small.shape[0] * small.shape[1]
    blobs = [Box(*(int(value) for value in cv2.boundingRect(contour))) for contour in contours]
    blobs = [box for box in blobs if box.area >= SPECK * least]
    found = []
    for box in _joined(blobs, small.shape[0] * 0.02, small.shape[1]):
        lit = cv2.countNonZero(seed[box.y : box.y + box.h, box.x : box.x + box.w])
        if lit < LIT * max(least, box.area):
            continue
        found += [piece for piece in _split(_trimmed(mask, box), mask, length) if piece.area >= least]
    return found


def _above(values: Pixels, level: float) -> Pixels:
    return np.asarray(cv2.threshold(values, max(-1.0, level), 255, cv2.THRESH_BINARY)[1], dtype=np.uint8)


def _joined(boxes: list[Box], reach: float, frame_w: int) -> list[Box]:
    """Fragments of one part made one box: boxes that overlap, and small ones beside a box four times their size."""
    boxes = sorted(boxes, key=lambda box: -box.area)
    merged = True
    while merged:
        merged = False
        for i, first in enumerate(boxes):
            for j in range(len(boxes) - 1, i, -1):
                if _belongs(first, boxes[j], reach, frame_w):
                    first = boxes[i] = _union(first, boxes.pop(j))
                    merged = True
    return boxes


def _belongs(large: Box, small: Box, reach: float, frame_w: int) -> bool:
    gap_x = max(large.x, small.x) - min(large.x + large.w, small.x + small.w)
    gap_y = max(large.y, small.y) - min(large.y + large.h, small.y + small.h)
    if gap_x < 0 and gap_y < 0:
        return True
    if gap_x < -0.5 * min(large.w, small.w):  # across the belt from one another: pieces of one part
        return gap_y <= reach
    # Along the belt a sliver is a piece of the part that it follows, unless it is the next part coming into view.
    inside = small.x > 1 and small.x + small.w < frame_w - 1
    return inside and gap_y < -0.3 * large.h and 4 * small.area <= large.area and gap_x <= BRIDGE * large.w


def _union(a: Box, b: Box) -> Box:
    x, y = min(a.x, b.x), min(a.y, b.y)
    return Box(x, y, max(a.x + a.w, b.x + b.w) - x, max(a.y + a.h, b.y + b.h) - y)


def _trimmed(mask: Pixels, box: Box) -> Box:
    """The box without thin whiskers at its edges (compression, dust)."""
    region = mask[box.y : box.y + box.h, box.x : box.x + box.w]
    x0, x1 = _extent(cv2.reduce(region, 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel())
    y0, y1 = _extent(cv2.reduce(region, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel())
    return Box(box.x + x0, box.y + y0, x1 - x0, y1 - y0)


def _extent(fill: NDArray[Any]) -> tuple[int, int]:
    filled = np.flatnonzero(fill > 255 * THIN)
    return (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(fill))


def _split(box: Box, mask: Pixels, length: float | None) -> list[Box]:
    """The parts in a box that is longer than one part: cut where the outline is narrowest, near whole lengths."""
    if length is None or box.w <= LONGER * length:
        return [box]
    region = mask[box.y : box.y + box.h, box.x : box.x + box.w]
    profile = _widths(region)
    cuts = [0, *_cuts(profile, length, box.x <= 1, box.x + box.w >= mask.shape[1] - 1), box.w]
    pieces = []
    for start, stop in pairwise(cuts):
        if stop - start >= 2:
            pieces.append(_trimmed(mask, Box(box.x + start, box.y, stop - start, box.h)))
    return pieces


def _widths(region: Pixels) -> NDArray[np.float64]:
    """From the first to the last filled pixel of each column: holes in a part do not make it narrower."""
    filled = region > 0
    first = np.argmax(filled, axis=0)
    last = filled.shape[0] - np.argmax(filled[::-1], axis=0)
    return np.where(filled.any(axis=0), last - first, 0).astype(np.float64)


def _cuts(profile: NDArray[np.float64], length: float, open_start: bool, open_stop: bool) -> list[int]:
    """Where to cut; an open end lies at the frame's border, so that a part may go on beyond it."""
    total = len(profile)
    if open_start and open_stop:
        start = _offset(profile, length)
    elif open_start:
        start = total % length
        start = start if start > 0.08 * length else start + length
    else:
        start = length
    end = total - (0.08 if open_stop else 0.5) * length
    cuts: list[int] = []
    at = start
    while at < end:
        cut = _valley(profile, at, 0.1 * length)
        if 2 <= cut <= total - 2:
            cuts.append(cut)
        at = cut + length
    return cuts


def _offset(profile: NDArray[np.float64], length: float) -> float:
    """First cut of a row of touching parts that fills the frame: the one whose whole row of cuts is narrowest."""
    starts = np.arange(0, round(length))
    scores = [float(np.mean(profile[np.arange(start, len(profile), length).astype(int)])) for start in starts]
    return float(starts[int(np.argmin(scores))])


def _valley(profile: NDArray[np.float64], near: float, reach: float) -> int:
    start, stop = max(1, round(near - reach)), min(len(profile) - 1, round(near + reach) + 1)
    if stop <= start:
        return round(near)
    places = np.arange(start, stop)
    # Between equally narrow places the one nearest the expected length wins.
    cost = profile[start:stop] / max(1.0, float(profile.max())) + 0.05 * np.abs(places - near) / max(reach, 1.0)
    return int(places[int(np.argmin(cost))])
