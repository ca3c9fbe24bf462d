"""Finds a known mark in a picture at any turn: coarse correlation, then least squares to a fraction of a pixel (hop 3).

Coarse: the normalised correlation of the reduced picture with the mark at every turn in steps. Fine: inverse
compositional Lucas-Kanade over shift, turn and scale, indifferent to gain and offset, from level to level.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.images import Pixels

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Spectrum = NDArray[np.complexfloating[Any, Any]]

COARSE_SIDE_PX = 14  # the mark's shorter side where every turn is tried
FINE_SIDE_PX = 192  # its longer side where it is placed at last; a smaller mark stays as it is
LEVEL_RATIO = 2.5  # between two levels, at most
RIM_STEP_PX = 1.5  # between two turns, at the mark's corner
CANDIDATES = 8  # places that the coarse search hands on
ROUNDS = 12  # of least squares at a level, at most
STILL_PX = 0.01  # moved by less than this at the mark's corner it is in place
FLAT = 2.0  # grey levels of deviation under which a picture has no structure
APART_DEG = 20.0  # turns that differ by more are two
APART = 0.3  # and places by more of the mark's shorter side
BATCH_BYTES = 64 << 20
MAX_PLACES = 50_000_000  # turns times pixels of the reduced picture: what is more takes seconds, and memory
KERNELS = 4  # sizes of pictures whose transforms are kept


class Pose(NamedTuple):
    """Where the mark's centre lies (pixels of the picture, from the first pixel's centre), and how it is turned.

    ``angle_deg``: clockwise as seen, -180 to 180. ``scale``: of the picture over the template.
    """

    x: float
    y: float
    angle_deg: float
    scale: float

    def matrix(self) -> Matrix:
        """2 x 3: from pixels about the mark's centre to pixels of the picture."""
        turn = np.radians(self.angle_deg)
        cos, sin = self.scale * np.cos(turn), self.scale * np.sin(turn)
        return np.array([[cos, -sin, self.x], [sin, cos, self.y]], np.float64)


class Found(NamedTuple):
    """The best place and its score (normalised correlation, -1 to 1), and the score of the next best other place."""

    pose: Pose
    score: float
    next_score: float
    next_pose: Pose | None


class _Level(NamedTuple):
    """The mark at one reduction: ``sampling`` 2 x 3 from its pixels to pixels about the mark's centre."""

    factor: float
    values: Floats
    sampling: Matrix
    slopes: Floats
    normal: Matrix


class Template:
    """A mark, uint8 grey [h, w] of at least 8 x 8 pixels, ready to be searched for. Not for several threads."""

    def __init__(self, mark: Pixels, max_angle_deg: float = 180.0, scale_play: float = 0.03) -> None:
        """``scale_play``: share by which the scale may differ; 0 keeps it at 1. Raises ValueError for a flat mark."""
        if mark.dtype != np.uint8 or mark.ndim != 2 or min(mark.shape) < 8 or float(mark.std()) < FLAT:
            raise ValueError("a mark needs structure and at least 8 x 8 grey pixels")
        self.hw = (int(mark.shape[0]), int(mark.shape[1]))
        self.max_angle_deg, self.scale_play = max_angle_deg, scale_play
        self._factors = _factors(self.hw)
        self._levels = [
            _level(reduced, self.hw, factor, scale_play > 0)
            for factor, reduced in zip(self._factors, _pyramid(mark, self._factors), strict=True)
        ]
        coarse = self._levels[0]
        rim = float(np.hypot(*coarse.values.shape)) / 2
        self._angles = _turns(max_angle_deg, np.degrees(RIM_STEP_PX / rim))
        self._kernels = [_kernel(coarse, angle) for angle in self._angles]
        self._spectra: dict[tuple[int, int], tuple[Spectrum, Spectrum]] = {}

    def find(self, picture: Pixels) -> Found | None:
        """Best place in ``picture``, uint8 grey [H, W]; None where it shows nothing that could be the mark.

        Raises ValueError where the picture is too large for so small a mark.
        """
        pyramid = _pyramid(picture, self._factors)
        if pyramid[0].size * len(self._angles) > MAX_PLACES:
            raise ValueError(
                f"a mark of {self.hw[1]} x {self.hw[0]} px is too small to be searched for in {picture.shape[1]} x "
                f"{picture.shape[0]} px at {len(self._angles)} turns"
            )
        candidates = self._candidates(pyramid[0], (picture.shape[0], picture.shape[1]))
        scored = [(0.0, pose) for pose in candidates]
        for number, (level, reduced) in enumerate(zip(self._levels, pyramid, strict=True)):
            to_level = _to_level(picture.shape, reduced.shape)
            scored = [_refined(level, reduced, to_level, pose) for _, pose in scored]
            scored = self._distinct(sorted(scored, key=lambda pair: -pair[0]))
            if number + 1 < len(self._levels):
                scored = scored[: max(2, CANDIDATES // 2 ** (number + 1))]
        if not scored:
            return None
        best, others = scored[0], scored[1:]
        return Found(best[1], best[0], others[0][0] if others else -1.0, others[0][1] if others else None)

    def _distinct(self, scored: list[tuple[float, Pose]]) -> list[tuple[float, Pose]]:
        """Of those that came to lie at one place the best, in order."""
        kept: list[tuple[float, Pose]] = []
        for score, pose in scored:
            if not any(self._alike(pose, other) for _, other in kept):
                kept.append((score, pose))
        return kept

    def _alike(self, a: Pose, b: Pose) -> bool:
        turned = abs((a.angle_deg - b.angle_deg + 180) % 360 - 180)
        return turned < APART_DEG and np.hypot(a.x - b.x, a.y - b.y) < APART * min(self.hw)

    # Coarse -----------------------------------------------------------------------------------------------------------

    def _candidates(self, reduced: Pixels, picture_hw: tuple[int, int]) -> list[Pose]:
        """Places to look at more closely, best first."""
        scores, pad = self._correlation(reduced)
        scale_x, scale_y = picture_hw[1] / reduced.shape[1], picture_hw[0] / reduced.shape[0]
        reach_px = max(1, round(APART * min(self._levels[0].values.shape)))
        poses = []
        for _ in range(CANDIDATES):
            turn, row, column = np.unravel_index(int(np.argmax(scores)), scores.shape)
            if scores[turn, row, column] <= 0.1:
                break
            x, y = (column - pad + 0.5) * scale_x - 0.5, (row - pad + 0.5) * scale_y - 0.5
            poses.append(Pose(float(x), float(y), self._angles[turn], 1.0))
            rows = slice(max(0, row - reach_px), row + reach_px + 1)
            columns = slice(max(0, column - reach_px), column + reach_px + 1)
            near = [
                i for i, a in enumerate(self._angles) if abs((a - self._angles[turn] + 180) % 360 - 180) < APART_DEG
            ]
            for i in near:
                scores[i, rows, columns] = -1
        return poses

    def _correlation(self, reduced: Pixels) -> tuple[Floats, int]:
        """Normalised correlation float32 [turns, rows, columns] with the mark's centre at each pixel; and the padding.

        The picture is continued by a few pixels, since a mark at its border may be found a little outside.
        """
        side = self._kernels[0][0].shape[0]
        pad = max(2, round(0.1 * side))
        grown = cv2.copyMakeBorder(reduced, pad, pad, pad, pad, cv2.BORDER_REPLICATE).astype(np.float32)
        grown -= grown.mean()
        height, width = grown.shape
        shape = cv2.getOptimalDFTSize(height + side), cv2.getOptimalDFTSize(width + side)
        marks, supports = self._transforms(shape)
        image, squares = (np.fft.rfft2(each, shape) for each in (grown, grown * grown))
        scores = np.full((len(self._angles), height, width), -1, np.float32)
        at_once = max(1, BATCH_BYTES // (8 * shape[0] * shape[1]))
        half = side // 2
        window = np.s_[:, half : half + height, half : half + width]
        for start in range(0, len(self._angles), at_once):
            turns = slice(start, start + at_once)
            product = np.fft.irfft2(image * marks[turns], shape)[window]
            total = np.fft.irfft2(image * supports[turns], shape)[window]
            power = np.fft.irfft2(squares * supports[turns], shape)[window]
            area = np.array([kernel[1].sum() for kernel in self._kernels[turns]], np.float32)[:, None, None]
            spread = power - total * total / area
            structured = spread > FLAT**2 * area
            scores[turns] = np.where(structured, product / np.sqrt(np.maximum(spread, 1e-6)), -1)
        for index, (_, support) in enumerate(self._kernels):
            _outside(scores[index], support)
        return scores, pad

    def _transforms(self, shape: tuple[int, int]) -> tuple[Spectrum, Spectrum]:
        found = self._spectra.get(shape)
        if found is None:
            # Turned by half a circle, so that the product of the transforms is a correlation.
            flipped = [np.stack([kernel[part][::-1, ::-1] for kernel in self._kernels]) for part in (0, 1)]
            found = np.fft.rfft2(flipped[0], shape), np.fft.rfft2(flipped[1], shape)
            while len(self._spectra) >= KERNELS:
                self._spectra.pop(next(iter(self._spectra)))
            self._spectra[shape] = found
        return found


def _outside(scores: Floats, support: Floats) -> None:
    """Places at which the mark would reach beyond the (padded) picture, made impossible in place."""
    filled_y, filled_x = np.flatnonzero(support.any(axis=1)), np.flatnonzero(support.any(axis=0))
    half = support.shape[0] // 2
    scores[: max(0, half - int(filled_y[0]))] = -1
    scores[scores.shape[0] - max(0, int(filled_y[-1]) - half) :] = -1
    scores[:, : max(0, half - int(filled_x[0]))] = -1
    scores[:, scores.shape[1] - max(0, int(filled_x[-1]) - half) :] = -1


def _turns(most_deg: float, step_deg: float) -> list[float]:
    """Angles that cover -most to most; a whole circle once."""
    if most_deg >= 180 - step_deg / 2:
        count = int(np.ceil(360 / step_deg))
        return [360.0 * i / count - 180.0 for i in range(count)]
    side = int(np.ceil(most_deg / step_deg))
    return [most_deg * i / side for i in range(-side, side + 1)] if side else [0.0]


def _factors(hw: tuple[int, int]) -> list[float]:
    """Reductions from the coarsest to the finest level."""
    fine = max(1.0, max(hw) / FINE_SIDE_PX)
    coarse = max(fine, min(hw) / COARSE_SIDE_PX)
    steps = int(np.ceil(np.log(coarse / fine) / np.log(LEVEL_RATIO))) if coarse > fine else 0
    return [fine * (coarse / fine) ** (1 - i / steps) for i in range(steps)] + [fine]


def _pyramid(picture: Pixels, factors: list[float]) -> list[Pixels]:
    """The picture at each reduction, each from the one that is next finer: area means, not whole factors."""
    height, width = picture.shape
    found: list[Pixels] = []
    for factor in reversed(factors):
        size = max(2, round(width / factor)), max(2, round(height / factor))
        if (picture.shape[1], picture.shape[0]) != size:
            picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        found.append(picture)
    return found[::-1]


def _to_level(picture_hw: tuple[int, ...], level_hw: tuple[int, ...]) -> Matrix:
    """2 x 3 from pixels of the picture to those of its reduction, both counted from the first pixel's centre."""
    scale_x, scale_y = level_hw[1] / picture_hw[1], level_hw[0] / picture_hw[0]
    return np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5]], np.float64)


def _joined(outer: Matrix, inner: Matrix) -> Matrix:
    """First ``inner``, then ``outer``."""
    joined: Matrix = outer[:, :2] @ inner
    joined[:, 2] += outer[:, 2]
    return joined


def _level(reduced: Pixels, full_hw: tuple[int, int], factor: float, scales: bool) -> _Level:
    height, width = reduced.shape
    step_x, step_y = full_hw[1] / width, full_hw[0] / height
    sampling = np.array([[step_x, 0, (1 - width) / 2 * step_x], [0, step_y, (1 - height) / 2 * step_y]], np.float64)
    values = _normalised(reduced.astype(np.float32))
    slope_x = cv2.Sobel(values, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8) / np.float32(step_x)
    slope_y = cv2.Sobel(values, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8) / np.float32(step_y)
    x = (np.arange(width, dtype=np.float32) * step_x + sampling[0, 2]).astype(np.float32)[None, :]
    y = (np.arange(height, dtype=np.float32) * step_y + sampling[1, 2]).astype(np.float32)[:, None]
    motions = [slope_x, slope_y, slope_y * x - slope_x * y]
    motions += [slope_x * x + slope_y * y] if scales else []
    slopes: Floats = np.stack([motion.ravel() for motion in motions]).astype(np.float32)
    # Gain and offset are no motion.
    slopes = (slopes - slopes.mean(axis=1, keepdims=True)).astype(np.float32)
    slopes = (slopes - np.outer(slopes @ values.ravel(), values.ravel())).astype(np.float32)
    normal = (slopes @ slopes.T).astype(np.float64)
    return _Level(factor, values, sampling, slopes, normal)


def _normalised(values: Floats) -> Floats:
    """Mean 0 and length 1; a flat picture becomes zeros."""
    values = np.asarray(values - values.mean(), np.float32)
    length = float(cv2.norm(values))
    return values / np.float32(length) if length > FLAT * np.sqrt(values.size) else np.zeros_like(values)


def _kernel(level: _Level, angle_deg: float) -> tuple[Floats, Floats]:
    """The turned mark and its support, weights 0 to 1, in a square of odd side around the mark's centre.

    Under its support the mark has mean 0 and length 1, so that its product with a picture is a correlation but for
    the picture's own spread.
    """
    height, width = level.values.shape
    side = 2 * int(np.ceil(np.hypot(height, width) / 2 + 1)) + 1
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle_deg, 1.0)
    matrix[0, 2] += (side - width) / 2
    matrix[1, 2] += (side - height) / 2
    turned = cv2.warpAffine(level.values, matrix, (side, side), flags=cv2.INTER_LINEAR)
    support = cv2.warpAffine(np.ones_like(level.values), matrix, (side, side), flags=cv2.INTER_LINEAR)
    turned = np.where(support > 0, turned / np.maximum(support, 1e-3), 0)
    turned = turned - float((turned * support).sum() / support.sum())
    turned = turned / float(np.sqrt((turned * turned * support).sum()))
    return np.asarray(turned * support, np.float32), np.asarray(support, np.float32)


# Fine -----------------------------------------------------------------------------------------------------------------


def _refined(level: _Level, reduced: Pixels, to_level: Matrix, pose: Pose) -> tuple[float, Pose]:
    """The pose moved to where the mark fits best at this level, and how well it fits there."""
    height, width = level.values.shape
    corner = float(np.hypot(*(level.sampling[:, 2])))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    motion = pose.matrix()
    best: tuple[float, Matrix] = (-1.0, motion)
    for _ in range(ROUNDS):
        way = _joined(to_level, _joined(motion, level.sampling))
        seen = cv2.warpAffine(reduced, way, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        values = _normalised(seen.astype(np.float32))
        score = float(np.dot(values.ravel(), level.values.ravel()))
        if score > best[0]:
            best = (score, motion)
        if not values.any():
            break
        misfit = values.ravel() - level.values.ravel() * np.float32(score)
        try:
            step = np.linalg.solve(level.normal, (level.slopes @ misfit).astype(np.float64) / max(score, 0.2))
        except np.linalg.LinAlgError:
            break
        if float(np.hypot(step[0], step[1]) + corner * np.abs(step[2:]).sum()) < STILL_PX * level.factor:
            break
        motion = _moved(motion, np.asarray(step, np.float64))
    return best[0], _pose_of(best[1])


def _moved(motion: Matrix, step: NDArray[np.float64]) -> Matrix:
    """The motion after the inverse of the small one that would bring the template to the picture."""
    size = 1 + (step[3] if len(step) > 3 else 0.0)
    size, turn = float(np.clip(size, 0.8, 1.25)), float(np.clip(step[2], -0.3, 0.3))
    small = np.array(
        [
            [size * np.cos(turn), -size * np.sin(turn), step[0]],
            [size * np.sin(turn), size * np.cos(turn), step[1]],
        ]
    )
    return _joined(motion, np.asarray(cv2.invertAffineTransform(small), np.float64))


def _pose_of(motion: Matrix) -> Pose:
    angle = float(np.degrees(np.arctan2(motion[1, 0], motion[0, 0])))
    return Pose(float(motion[0, 2]), float(motion[1, 2]), angle, float(np.hypot(motion[0, 0], motion[1, 0])))
