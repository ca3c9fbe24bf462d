"""How far places in the corrected picture may be off, from the views' own disagreement (before hop 1).

Delete-one jackknife (B. Efron, *The Jackknife, the Bootstrap and Other Resampling Plans*, 1982): the lens is solved
again without each view in turn, and what the places move says how well all views together know them. A reprojection
error cannot say that: it is of where corners were, and smallest where they were few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.board import Board, Found
from calibration.camera import AHEAD, FIXED, Limits, Solved, as_lens, on_plane, solve_plane
from contract.correction import Lens, Plane
from contract.stats import student_quantile

GRID = (9, 7)  # points across and down the corrected picture, its corners among them
OUTSIDE = 0.05  # share of calibrations in which some point may be farther off
CORNERS = 4  # of the picture: its worst point is one of them, and any of them may be

Floats = NDArray[np.float64]


class PlaceError(NamedTuple):
    """In pixels of the corrected picture: what no point exceeds in 95 % of calibrations, of which one, and the mean."""

    worst_px: float
    mean_px: float
    where: str


def place_error(
    board: Board, solved: Solved, frame_px: tuple[int, int], flat: Found | None, plane: Plane
) -> PlaceError:
    """Of points all over ``plane``; ``flat`` is the board lying in it, None where only the lens is corrected.

    A shift and a turn of all points together are no error: where a corrected picture begins is its own.
    """
    points = _grid(plane.size_px)
    frame = _in_frame(solved.lens, plane, points)
    whole = _places(board, solved.lens, flat, frame)
    moved = []
    for number in range(len(solved.views)):
        lens = _solve_without(solved, number, frame_px)
        moved.append(_apart(whole, _places(board, lens, flat, frame)))
    count = len(moved)
    step = float(np.linalg.norm(plane.along_x))
    spread = np.abs(np.array(moved) - np.mean(moved, axis=0)) ** 2
    deviation = np.sqrt((count - 1) / count * spread.sum(axis=0)) / step
    worst = int(np.argmax(deviation))
    wide = student_quantile(1 - OUTSIDE / CORNERS / 2, count - 1)
    return PlaceError(wide * float(deviation[worst]), float(deviation.mean()), _named(worst))


def _grid(size_px: tuple[int, int]) -> Floats:
    across, down = (np.linspace(0, side - 1, count) for side, count in zip(size_px, GRID, strict=True))
    return np.stack([axis.ravel() for axis in np.meshgrid(across, down)], axis=1)


def _named(number: int) -> str:
    row, column = divmod(number, GRID[0])
    down = ("top", "middle", "bottom")[min(2, 3 * row // GRID[1])]
    across = ("left", "middle", "right")[min(2, 3 * column // GRID[0])]
    return "middle" if down == across else f"{down} {across}"


def _in_frame(lens: Lens, plane: Plane, points: Floats) -> Floats:
    """Pixels of the frame that pixels of the corrected picture show."""
    rays = np.column_stack([points, np.ones(len(points))]) @ plane.homography().T
    seen, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), lens.matrix(), np.array(lens.distortion))
    return np.asarray(seen, np.float64).reshape(-1, 2)


def _solve_without(solved: Solved, number: int, frame_px: tuple[int, int]) -> Lens:
    views: Sequence[Found] = [view for index, view in enumerate(solved.views) if index != number]
    _, matrix, distortion, _, _ = cv2.calibrateCamera(
        [view.board_mm.astype(np.float32) for view in views],
        [view.pixels.astype(np.float32) for view in views],
        frame_px,
        solved.lens.matrix(),
        np.array(solved.lens.distortion),
        flags=FIXED | cv2.CALIB_USE_INTRINSIC_GUESS,
    )
    return as_lens(matrix, distortion)


def _places(board: Board, lens: Lens, flat: Found | None, frame: Floats) -> NDArray[np.complex128]:
    """Pixels of the frame on the plane, in its own axes, x + iy."""
    pose = AHEAD if flat is None else solve_plane(board, lens, flat, 0.0, Limits(rms_px=np.inf))
    points = on_plane(lens, frame, pose.point, pose.normal)
    across = np.cross([0.0, 1.0, 0.0], pose.normal)
    across /= np.linalg.norm(across)
    return np.asarray(points @ across + 1j * (points @ np.cross(pose.normal, across)), np.complex128)


def _apart(whole: NDArray[np.complex128], other: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """What is left between them after the best shift and turn."""
    a, b = whole - whole.mean(), other - other.mean()
    turn = (np.conj(b) * a).sum()
    return np.asarray(a - turn / abs(turn) * b, np.complex128)
