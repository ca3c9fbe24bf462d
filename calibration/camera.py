"""Pictures of a board -> the lens and the plane in which parts lie, for the preprocess file (before hop 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.board import LEAST_CORNERS, Board, Found
from calibration.errors import CalibrationError
from contract.correction import MAX_SIDE, Lens, Plane
from contract.images import MAX_PIXELS, Pixels

LEAST_VIEWS = 6
LEAST_TILT_DEG = 15.0  # between the views that differ most: from one side alone distance and focal length are one
LEAST_COVERED = 0.6  # of the field's cells
GRID = (8, 6)  # cells of the field, columns by rows
MOST_RMS_PX, MOST_WORST_PX = 0.5, 1.0
MOST_FOCAL_ERROR = 0.01  # share of the focal length that its standard error may be
LEAST_LEFT = 0.3  # of the frame's sides that the corrected picture still shows
FIXED = cv2.CALIB_FIX_K3  # a third radial term follows noise where views are few, and industrial lenses need none
SIDE_STEPS = 200  # points on each side of the frame by which the corrected picture is bounded

Floats = NDArray[np.float64]


class Solved(NamedTuple):
    """The lens, how each view lies (rotation and translation vectors), and the figures."""

    lens: Lens
    views: list[Found]
    errors_px: list[float]
    figures: dict[str, Any]


class Limits(NamedTuple):
    """What a calibration may not exceed."""

    rms_px: float = MOST_RMS_PX
    worst_px: float = MOST_WORST_PX


def solve_lens(board: Board, found: Sequence[Found], frame_px: tuple[int, int], limits: Limits = Limits()) -> Solved:  # noqa: B008 - constants
    """The lens from views of one board. Raises CalibrationError where they do not say enough, or contradict it."""
    views = [view for view in found if len(view.pixels) >= LEAST_CORNERS]
    poor = [f"{view.name} ({len(view.pixels)})" for view in found if len(view.pixels) < LEAST_CORNERS]
    if len(views) < LEAST_VIEWS:
        shown = f"; too few corners in {', '.join(poor[:5])}{', ...' if len(poor) > 5 else ''}" if poor else ""
        raise CalibrationError(
            f"--board: {len(views)} usable view(s) of {len(found)}, at least {LEAST_VIEWS} with {LEAST_CORNERS} "
            f"corners each are needed, and 15 are better{shown}. Is the board {board.text()}? Say so with --squares, "
            "--square-mm, --marker-mm and --markers, and light it without glare"
        )
    covered = coverage(views, frame_px)
    share = float(covered.mean())
    if share < LEAST_COVERED:
        raise CalibrationError(
            f"--board: corners cover {100 * share:.0f} % of the field, at least {100 * LEAST_COVERED:.0f} % are "
            "needed: what the lens does elsewhere would be guessed. Add views with the board in the empty places, the "
            "field's corners above all"
        )
    rms, matrix, distortion, turns, _, deviations, _, errors = cv2.calibrateCameraExtended(
        [view.board_mm.astype(np.float32) for view in views],
        [view.pixels.astype(np.float32) for view in views],
        frame_px,
        np.eye(3),
        np.zeros(5),
        flags=FIXED,
    )
    errors_px = [float(value) for value in np.asarray(errors).ravel()]
    tilt = _tilt_between([np.asarray(turn) for turn in turns])
    focal_error = float(np.asarray(deviations).ravel()[:2].max() / min(matrix[0, 0], matrix[1, 1]))
    worst = int(np.argmax(errors_px))
    figures = {
        "views": len(views),
        "too_few_corners": poor,
        "corners": sum(len(view.pixels) for view in views),
        "rms_px": float(rms),
        "worst_px": errors_px[worst],
        "worst_view": views[worst].name,
        "covered": share,
        "tilt_deg": tilt,
        "focal_error": focal_error,
    }
    _refuse_bad(figures, limits)
    lens = as_lens(matrix, distortion)
    _refuse_folded(lens, frame_px)
    return Solved(lens, views, errors_px, figures)


def as_lens(matrix: Any, distortion: Any) -> Lens:
    """OpenCV's camera matrix and distortion as a lens."""
    k1, k2, p1, p2, k3 = (float(value) for value in np.asarray(distortion, np.float64).ravel()[:5])
    (fx, _, cx), (_, fy, cy), _ = np.asarray(matrix, np.float64).tolist()
    return Lens(fx=fx, fy=fy, cx=cx, cy=cy, distortion=(k1, k2, p1, p2, k3))


def _refuse_bad(figures: dict[str, Any], limits: Limits) -> None:
    if not figures["tilt_deg"] >= LEAST_TILT_DEG:
        raise CalibrationError(
            f"--board: the views' tilts differ by {figures['tilt_deg']:.0f} degrees at most, at least "
            f"{LEAST_TILT_DEG:.0f} are needed: seen from one side alone, a near board and a long lens are one. Tilt "
            "the board to the left and right, up and down, by 20 to 40 degrees"
        )
    if not figures["rms_px"] <= limits.rms_px:
        raise CalibrationError(
            f"--board: the reprojection error is {figures['rms_px']:.2f} px, at most {limits.rms_px:g}; the worst view "
            f"is {figures['worst_view']} with {figures['worst_px']:.2f}. Is the board flat, is it the one described, "
            "was the focus fixed? Take blurred views out"
        )
    if not figures["worst_px"] <= limits.worst_px:
        raise CalibrationError(
            f"--board: {figures['worst_view']} has a reprojection error of {figures['worst_px']:.2f} px, at most "
            f"{limits.worst_px:g}: take that view out, it is blurred or the board was moved"
        )
    if not figures["focal_error"] <= MOST_FOCAL_ERROR:
        raise CalibrationError(
            f"--board: the focal length is known to {100 * figures['focal_error']:.1f} % only, at most "
            f"{100 * MOST_FOCAL_ERROR:g} %: add views that fill the field and are tilted more"
        )


def _tilt_between(turns: Sequence[Floats]) -> float:
    """The largest angle between two views' board normals, in degrees."""
    normals = np.array([cv2.Rodrigues(turn)[0][:, 2] for turn in turns])
    return float(np.degrees(np.arccos(np.clip((normals @ normals.T).min(), -1, 1))))


def _refuse_folded(lens: Lens, frame_px: tuple[int, int]) -> None:
    """Where the distortion turns back within the frame, two points of the plane would share a pixel."""
    sides = _sides(frame_px)
    rays = lens.rays(sides)
    k1, k2, _, _, k3 = lens.distortion
    radii = np.linspace(0, float(np.linalg.norm(rays, axis=1).max()), 200)
    slope = 1 + 3 * k1 * radii**2 + 5 * k2 * radii**4 + 7 * k3 * radii**6
    if not (np.isfinite(rays).all() and slope.min() > 0):
        raise CalibrationError(
            "--board: the distortion found folds the picture at its border: views are missing in the field's corners"
        )


def coverage(views: Sequence[Found], frame_px: tuple[int, int]) -> NDArray[np.bool_]:
    """Which cells of the field have a corner of any view, bool [rows, columns]."""
    cells = np.zeros((GRID[1], GRID[0]), np.bool_)
    for view in views:
        at = np.clip((view.pixels / frame_px * GRID).astype(int), 0, (GRID[0] - 1, GRID[1] - 1))
        cells[at[:, 1], at[:, 0]] = True
    return cells


def coverage_picture(solved: Solved, frame_px: tuple[int, int], behind: Pixels | None = None) -> Pixels:
    """The field with every corner, its colour by view, empty cells red; RGB, its longer side at most 1200 px."""
    scale = min(1.0, 1200 / max(frame_px))
    size = round(frame_px[0] * scale), round(frame_px[1] * scale)
    grey = np.full(size[::-1], 60, np.uint8) if behind is None else np.asarray(cv2.resize(behind, size), np.uint8) // 2
    shown = np.repeat(grey[..., np.newaxis], 3, axis=2)
    for (row, column), filled in np.ndenumerate(coverage(solved.views, frame_px)):
        if not filled:
            top, left = row * size[1] // GRID[1], column * size[0] // GRID[0]
            shown[top : (row + 1) * size[1] // GRID[1], left : (column + 1) * size[0] // GRID[0], 0] |= 120
    for number, view in enumerate(solved.views):
        hue = np.array([[[180 * number // len(solved.views), 220, 255]]], np.uint8)
        colour = tuple(int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
        for x, y in view.pixels * scale:
            cv2.circle(shown, (round(x), round(y)), 3, colour, -1, cv2.LINE_AA)
    return shown


class Pose(NamedTuple):
    """The inspected plane in the camera's axes: a point of it, its normal towards the camera, and how well it fits."""

    point: Floats
    normal: Floats
    rms_px: float


AHEAD = Pose(np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0]), 0.0)
"""The plane across the camera's axis, without a scale: it corrects the lens alone."""


def solve_plane(board: Board, lens: Lens, found: Found, height_mm: float, limits: Limits = Limits()) -> Pose:  # noqa: B008 - constants
    """The plane on which the board lies in one picture, ``height_mm`` nearer to the camera. Raises CalibrationError."""
    if len(found.pixels) < LEAST_CORNERS:
        raise CalibrationError(
            f"--plane {found.name}: {len(found.pixels)} corner(s) of the board ({board.text()}) found, at least "
            f"{LEAST_CORNERS} are needed: lay it where parts lie, flat, and light it without glare"
        )
    known, seen = found.board_mm.astype(np.float64), found.pixels.astype(np.float64)
    distortion = np.array(lens.distortion)
    good, turn, shift = cv2.solvePnP(known, seen, lens.matrix(), distortion, flags=cv2.SOLVEPNP_ITERATIVE)
    again, _ = cv2.projectPoints(known, turn, shift, lens.matrix(), distortion)
    rms = float(np.sqrt(np.mean(np.sum((np.asarray(again).reshape(-1, 2) - seen) ** 2, axis=1))))
    if not good or not rms <= limits.rms_px:
        raise CalibrationError(
            f"--plane {found.name}: the board lies {rms:.2f} px off any plane, at most {limits.rms_px:g}: is it flat, "
            "and was the focus the same as in the other pictures?"
        )
    rotation = np.asarray(cv2.Rodrigues(turn)[0], np.float64)
    point, normal = np.asarray(shift, np.float64).ravel(), rotation[:, 2]
    normal = -normal if normal @ point > 0 else normal
    return Pose(point + height_mm * normal, normal, rms)


def make_plane(lens: Lens, pose: Pose | None, frame_px: tuple[int, int], mm_per_px: float | None = None) -> Plane:
    """The corrected picture: the largest upright one without a pixel from outside of the frame, at its own scale.

    ``pose``: None corrects the lens alone. ``mm_per_px``: another scale than that in the frame's middle.
    """
    point, normal, _ = AHEAD if pose is None else pose
    middle = (np.array(frame_px, np.float64) - 1) / 2
    at = on_plane(lens, middle + np.array([[0, 0], [10, 0], [0, 10]]), point, normal)
    along_x = at[1] - at[0]
    own = math.sqrt(float(np.linalg.norm(np.cross(along_x, at[2] - at[0])))) / 10
    along_x /= np.linalg.norm(along_x)
    along_y = np.cross(normal, along_x)
    along_y = along_y if along_y @ (at[2] - at[0]) > 0 else -along_y
    step = mm_per_px or own
    sides = on_plane(lens, _sides(frame_px), point, normal) - at[0]
    across, down = (sides @ along_x / step).reshape(4, -1), (sides @ along_y / step).reshape(4, -1)
    top, right, bottom, left = range(4)
    low_x, high_x = math.ceil(across[left].max()), math.floor(across[right].min())
    low_y, high_y = math.ceil(down[top].max()), math.floor(down[bottom].min())
    size = high_x - low_x + 1, high_y - low_y + 1
    shares = [size[axis] * step / own / frame_px[axis] for axis in (0, 1)]
    if min(size) < 8 or min(shares) < LEAST_LEFT:
        raise CalibrationError(
            f"of the frame only {size[0]} x {size[1]} px are left once it is straight: the camera looks too much from "
            "the side"
        )
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        raise CalibrationError(
            f"--mm-per-px {step:g}: the corrected picture would have {size[0]} x {size[1]} px; expected about {own:.4g}"
        )
    origin = at[0] + low_x * step * along_x + low_y * step * along_y
    return Plane(
        origin=_vector(origin),
        along_x=_vector(step * along_x),
        along_y=_vector(step * along_y),
        size_px=size,
        mm_per_px=None if pose is None else step,
    )


def cropped(plane: Plane, region: tuple[int, int, int, int]) -> Plane:
    """The same showing only a region (x, y, width, height) of the corrected picture. Raises CalibrationError."""
    x, y, width, height = region
    if min(x, y) < 0 or min(width, height) < 8 or x + width > plane.size_px[0] or y + height > plane.size_px[1]:
        raise CalibrationError(
            f"--region {x},{y},{width},{height}: leaves the corrected picture of {plane.size_px[0]} x "
            f"{plane.size_px[1]} px, or is under 8 px"
        )
    origin = np.array(plane.origin) + x * np.array(plane.along_x) + y * np.array(plane.along_y)
    return plane.model_copy(update={"origin": _vector(origin), "size_px": (width, height)})


def _vector(values: Floats) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _sides(frame_px: tuple[int, int]) -> Floats:
    """Points on the frame's outermost pixels: top, right, bottom and left side, SIDE_STEPS each."""
    width, height = frame_px[0] - 1, frame_px[1] - 1
    share = np.linspace(0, 1, SIDE_STEPS)
    along = [
        np.stack([share * width, 0 * share], axis=1),
        np.stack([0 * share + width, share * height], axis=1),
        np.stack([share * width, 0 * share + height], axis=1),
        np.stack([0 * share, share * height], axis=1),
    ]
    return np.concatenate(along)


def on_plane(lens: Lens, pixels: Floats, point: Floats, normal: Floats) -> Floats:
    """Where the rays of pixels of the frame meet the plane, [N, 3]. Raises CalibrationError where one does not."""
    rays = np.column_stack([lens.rays(pixels), np.ones(len(pixels))])
    depth = (point @ normal) / (rays @ normal)
    if not (np.isfinite(depth).all() and depth.min() > 0):
        raise CalibrationError("--plane: a part of the frame looks past the plane: the camera looks from too low")
    return np.asarray(rays * depth[:, np.newaxis], np.float64)
