"""Draws defects of known size into pictures of good parts, for what no plant has enough of (beside hop 5).

A drawn defect is no real one: what is measured with it is said of it alone, with its kind and contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from contract.images import Pixels

_FINE = 4  # drawn at four times the size, so that half a pixel of width is half a pixel
SCRATCH_PX = 2.0
Float = NDArray[np.float32]
Region = tuple[float, float, float, float]


class Implanted(NamedTuple):
    """A picture with one defect: uint8 as the good one, and the defect's mask, bool [H, W]."""

    picture: Pixels
    mask: NDArray[np.bool_]


def implant(
    picture: Pixels, kind: str, size_px: float, contrast: float, random: np.random.Generator, region: Region
) -> Implanted:
    """Draw one defect whose longest extent is ``size_px`` pixels, ``contrast`` grey levels off, darker or lighter.

    Its middle lies anywhere in ``region`` (x, y, width, height as fractions of the picture). Raises CalibrationError
    where the kind is unknown or the defect does not fit.
    """
    draw = KINDS.get(kind)
    if draw is None:
        raise CalibrationError(f"no defect {kind!r} can be implanted; there are: {', '.join(KINDS)}")
    height, width = picture.shape[:2]
    if not 0 < size_px <= min(height, width) / 2:
        raise CalibrationError(
            f"a defect of {size_px:g} px cannot be implanted in a picture of {width} x {height} px; at most half of "
            "its shorter side"
        )
    x = _inside((region[0] + region[2] * random.random()) * width, size_px / 2, width)
    y = _inside((region[1] + region[3] * random.random()) * height, size_px / 2, height)
    cover = _shrunk(draw, (height, width), (x, y), size_px, random)
    sign = _with_room(picture, cover, contrast, 1.0 if random.random() < 0.5 else -1.0)
    layer = cover if picture.ndim == 2 else cover[..., np.newaxis]
    drawn = np.clip(np.rint(picture + sign * contrast * layer), 0, 255).astype(np.uint8)
    return Implanted(drawn, cover > 0.5)


def _with_room(picture: Pixels, cover: Float, contrast: float, sign: float) -> float:
    """The sign wished for, or the other where that would be cut off at black or white, more than the other would be."""
    grey = float(picture[cover > min(0.5, float(cover.max()) / 2)].mean())
    room = {1.0: 255.0 - grey, -1.0: grey}
    return sign if room[sign] >= min(contrast, room[-sign]) else -sign


def _inside(at: float, half: float, side: int) -> float:
    """So that the whole defect lies in the picture: one that is cut off would be smaller than it is said to be."""
    return min(max(at, half), side - half)


def _shrunk(
    draw: Callable[[Pixels, tuple[float, float], float, np.random.Generator], None],
    size_hw: tuple[int, int],
    at: tuple[float, float],
    size_px: float,
    random: np.random.Generator,
) -> Float:
    """Share of each pixel that the defect covers, float32 [H, W]: drawn large, then averaged."""
    fine = np.zeros((size_hw[0] * _FINE, size_hw[1] * _FINE), np.uint8)
    draw(fine, (at[0] * _FINE, at[1] * _FINE), size_px * _FINE, random)
    shrunk = cv2.resize(fine, size_hw[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.float32) / np.float32(255)


def _spot(fine: Pixels, at: tuple[float, float], size: float, random: np.random.Generator) -> None:
    """An ellipse; its shorter axis is 70 to 100 % of the longer one."""
    axes = (size / 2, size / 2 * random.uniform(0.7, 1.0))
    cv2.ellipse(fine, ((at[0], at[1]), (2 * axes[0], 2 * axes[1]), random.uniform(0, 180)), 255, -1)


def _scratch(fine: Pixels, at: tuple[float, float], size: float, random: np.random.Generator) -> None:
    """A straight line, SCRATCH_PX wide, with square ends: round ones would make it longer."""
    turned = (at, (size, SCRATCH_PX * _FINE), math.degrees(random.uniform(0, math.pi)))
    cv2.fillConvexPoly(fine, np.rint(cv2.boxPoints(turned)).astype(np.int32), 255)


KINDS: dict[str, Callable[[Pixels, tuple[float, float], float, np.random.Generator], None]] = {
    "spot": _spot,
    "scratch": _scratch,
}
