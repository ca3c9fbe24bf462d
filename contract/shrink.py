"""Shrinks large pictures by averaging areas, at a fraction of what OpenCV needs for it (hop 3)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.images import Pixels

LARGE_PX = 500_000
FEWER_ROWS = 6.0
"""A picture of so many pixels, and so many times as high as what it becomes, is summed row by row first."""

BAND = 16  # rows of the result made together, so that their sums stay in the processor's cache


def shrink(pixels: Pixels, width: int, height: int) -> Pixels:
    """Average ``pixels``, uint8 [H, W] or [H, W, C], over areas to [height, width] or [height, width, C].

    What ``cv2.INTER_AREA`` gives: the mean over exactly the area that a pixel of the result covers. Large pictures are
    summed along columns first, which gives the same but for the last bit of the sums: a value that lies between two
    grey levels may be rounded to the other one. Neither side may be larger than before.
    """
    if pixels.shape[0] * pixels.shape[1] < LARGE_PX or pixels.shape[0] < FEWER_ROWS * height:
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return _by_rows(pixels, width, height)


def _by_rows(pixels: Pixels, width: int, height: int) -> Pixels:
    rows, columns, planes = pixels.shape[0], pixels.shape[1], pixels.shape[2:]
    flat = pixels.reshape(rows, -1)
    factor = rows / height
    first, share = _edges(rows, height)
    cut_rows = flat[np.minimum(first, rows - 1)]  # the rows that an edge goes through
    starts = first.tolist()
    result = np.empty((height, width, *planes), np.uint8)
    sums = np.empty((BAND, flat.shape[1]), np.float32)
    cuts = np.empty((BAND + 1, flat.shape[1]), np.float32)
    for top in range(0, height, BAND):
        end = min(top + BAND, height)
        count = end - top
        for row in range(top, end):
            target = sums[row - top : row - top + 1]
            cv2.reduce(flat[starts[row] : starts[row + 1]], 0, cv2.REDUCE_SUM, dst=target, dtype=cv2.CV_32F)
        # What of a cut row lies above its edge belongs to the row of the result before.
        np.multiply(cut_rows[top : end + 1], share[top : end + 1, None], out=cuts[: count + 1])
        band = sums[:count]
        band -= cuts[:count]
        band += cuts[1 : count + 1]
        narrow = cv2.resize(band.reshape(count, columns, *planes), (width, count), interpolation=cv2.INTER_AREA)
        cv2.convertScaleAbs(narrow, dst=result[top:end], alpha=1 / factor)  # rounds as OpenCV's own does
    return result


def _edges(rows: int, height: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each edge between rows of the result: the source row that it goes through, and what share lies above it."""
    places, above = np.divmod(np.arange(height + 1) * rows, height)  # in whole numbers, so that nothing drifts
    return places.astype(np.intp), (above / height).astype(np.float32)
