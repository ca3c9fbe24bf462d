"""Boards and flat scenes as a known camera would see them: projected, blurred and noisy, for tests and benchmarks."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.board import Board, board_picture
from contract.images import Pixels, encode_png

RAYS = 4  # a side in each pixel: with two, edges lie where the rays fall, and corners are found 0.03 px off
Floats = NDArray[np.float64]


class Truth(NamedTuple):
    """A camera: pinhole, distortion (k1, k2, p1, p2), and the size of its frames."""

    frame_px: tuple[int, int]
    focal: float
    centre: tuple[float, float]
    distortion: tuple[float, float, float, float]

    def matrix(self) -> Floats:
        return np.array([[self.focal, 0, self.centre[0]], [0, self.focal, self.centre[1]], [0, 0, 1]])

    def project(self, points: Floats, pose: Pose) -> Floats:
        """Points on the board in millimetres, [N, 2], as pixels of the frame."""
        flat = np.column_stack([points, np.zeros(len(points))])
        found, _ = cv2.projectPoints(flat, pose.turn, pose.shift, self.matrix(), np.array(self.distortion))
        return np.asarray(found, np.float64).reshape(-1, 2)


class Pose(NamedTuple):
    """How a board lies: rotation vector and the place of its origin, in the camera's axes."""

    turn: Floats
    shift: Floats


def pose_at(middle_mm: tuple[float, float], angles_deg: tuple[float, float, float], away: Floats) -> Pose:
    """The board's ``middle_mm`` at ``away``, turned about x, y and then z."""
    x, y, z = (cv2.Rodrigues(np.radians(angle) * axis)[0] for angle, axis in zip(angles_deg, np.eye(3), strict=True))
    rotation = np.asarray(z @ y @ x, np.float64)
    return Pose(np.asarray(cv2.Rodrigues(rotation)[0]).ravel(), away - rotation @ np.array([*middle_mm, 0.0]))


def camera(seed: int, width: int = 800, height: int = 600) -> Truth:
    """A lens with a barrel of some percent, its axis off the middle."""
    random = np.random.default_rng([seed, 1])
    return Truth(
        (width, height),
        width * random.uniform(1.1, 1.5),
        (width / 2 + random.uniform(-0.02, 0.02) * width, height / 2 + random.uniform(-0.02, 0.02) * height),
        tuple(float(random.uniform(*limits)) for limits in ((-0.25, -0.1), (0, 0.1), (-1e-3, 1e-3), (-1e-3, 1e-3))),
    )


def see(
    truth: Truth,
    pose: Pose,
    picture: Pixels,
    px_per_mm: float,
    random: np.random.Generator,
    blur_px: float = 0.6,
    noise: float = 2.0,
) -> Pixels:
    """A flat grey picture of ``px_per_mm`` lying at ``pose``, as the camera sees it: RAYS a side in each pixel."""
    width, height = truth.frame_px
    rotation = np.asarray(cv2.Rodrigues(pose.turn)[0], np.float64)
    to_board = np.linalg.inv(np.column_stack([rotation[:, :2], pose.shift]))
    to_texels = np.array([[px_per_mm, 0, -0.5], [0, px_per_mm, -0.5], [0, 0, 1]]) @ to_board
    maps = cv2.perspectiveTransform(_rays(truth), to_texels).reshape(RAYS * height, RAYS * width, 2).astype(np.float32)
    fine = cv2.remap(picture, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=170)  # type: ignore[call-overload]
    frame = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    frame = cv2.GaussianBlur(20 + 0.8 * frame, (0, 0), blur_px) if blur_px else 20 + 0.8 * frame
    return np.clip(np.rint(frame + random.normal(0, noise, frame.shape)), 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def _rays(truth: Truth) -> Floats:
    """x / z and y / z of the rays through RAYS points a side of each pixel, [N, 1, 2]."""
    columns, rows = (RAYS * side for side in truth.frame_px)
    xs, ys = np.meshgrid((np.arange(columns) + 0.5) / RAYS - 0.5, (np.arange(rows) + 0.5) / RAYS - 0.5)
    return undistorted(truth, np.stack([xs.ravel(), ys.ravel()], axis=1))[:, np.newaxis]


def undistorted(truth: Truth, pixels: Floats) -> Floats:
    """Of pixels, [N, 2], x / z and y / z, to a millionth of a pixel."""
    k1, k2, p1, p2 = truth.distortion
    seen = (pixels - truth.centre) / truth.focal
    x, y = seen.T
    for _ in range(25):
        r2 = x * x + y * y
        radial = 1 + k1 * r2 + k2 * r2 * r2
        x, y = (
            (seen[:, 0] - 2 * p1 * x * y - p2 * (r2 + 2 * x * x)) / radial,
            (seen[:, 1] - p1 * (r2 + 2 * y * y) - 2 * p2 * x * y) / radial,
        )
    return np.stack([x, y], axis=1)


def poses(truth: Truth, board: Board, count: int, seed: int) -> list[Pose]:
    """As an engineer holds the board: all over the field, tilted this way and that, some views near."""
    random = np.random.default_rng([seed, 2])
    middle = board.columns * board.square_mm / 2, board.rows * board.square_mm / 2
    width, height = truth.frame_px
    found = []
    for number in range(count):
        tilt, way = random.uniform(15, 35) * (number > 0), 2 * np.pi * number / max(1, count - 1)
        distance = truth.focal * 2 * middle[0] / width * random.uniform(1.0, 1.4)
        place = 0.3 * np.array([np.cos(2.4 * number), np.sin(2.4 * number)]) * (number > 0)
        away = distance * np.array([place[0] * width / truth.focal, place[1] * height / truth.focal, 1.0])
        angles = float(tilt * np.cos(way)), float(tilt * np.sin(way)), float(random.uniform(-20, 20))
        found.append(pose_at(middle, angles, away))
    return found


def poses_at(truth: Truth, board: Board, where: str, count: int, seed: int) -> list[Pose]:
    """Tilted views whose board lies ``where`` the field is known least: "top left", "middle right", "middle"."""
    random = np.random.default_rng([seed, 6])
    middle = board.columns * board.square_mm / 2, board.rows * board.square_mm / 2
    place = np.array([("right" in where) - ("left" in where), ("bottom" in where) - ("top" in where)], np.float64)
    found = []
    for _ in range(count):
        distance = truth.focal * 2 * middle[0] / truth.frame_px[0] * random.uniform(1.2, 1.6)
        aside = 0.3 * place * np.array(truth.frame_px) / truth.focal
        tilt, way = random.uniform(15, 30), random.uniform(0, 2 * np.pi)
        angles = float(tilt * np.cos(way)), float(tilt * np.sin(way)), float(random.uniform(-20, 20))
        found.append(pose_at(middle, angles, distance * np.array([*aside, 1.0])))
    return found


def plane_pose(truth: Truth, board: Board, seed: int, tilt_deg: float = 8.0) -> Pose:
    """The board lying where parts lie: the camera looks at it a little from the side."""
    random = np.random.default_rng([seed, 3])
    middle = board.columns * board.square_mm / 2, board.rows * board.square_mm / 2
    away = np.array([0.0, 0.0, truth.focal * 2 * middle[0] / truth.frame_px[0] * 1.15])
    angles = float(random.uniform(-tilt_deg, tilt_deg)), float(random.uniform(-tilt_deg, tilt_deg)), 12.0
    return pose_at(middle, angles, away)


def write_views(
    folder: Path, truth: Truth, board: Board, count: int, seed: int, blur_px: float = 0.6, noise: float = 2.0
) -> tuple[Path, Path]:
    """Pictures of the board in ``folder/views``, and of it lying in the plane; their paths."""
    views, random = folder / "views", np.random.default_rng([seed, 4])
    write_poses(views, truth, board, poses(truth, board, count, seed), random, blur_px, noise)
    plane = folder / "plane.png"
    plane.write_bytes(
        encode_png(see(truth, plane_pose(truth, board, seed), board_picture(board, 8), 8, random, blur_px, noise))
    )
    return views, plane


def write_poses(
    views: Path,
    truth: Truth,
    board: Board,
    wanted: list[Pose],
    random: np.random.Generator,
    blur_px: float = 0.6,
    noise: float = 2.0,
) -> None:
    """Pictures of the board, numbered on from those that the folder has."""
    views.mkdir(parents=True, exist_ok=True)
    drawn, before = board_picture(board, 8), len(list(views.iterdir()))
    for number, pose in enumerate(wanted, before):
        (views / f"{number:02d}.png").write_bytes(encode_png(see(truth, pose, drawn, 8, random, blur_px, noise)))
