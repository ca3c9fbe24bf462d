"""Plates of the synthetic line laid on a belt at any turn and place, with known truth: what a fixture has to undo."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.images import Pixels
from edge_runtime.synthetic import SyntheticLine, _pose

FRAME_HW = (300, 320)


class Lie(NamedTuple):
    """Where a plate lies: its centre (pixels from the first pixel's centre), clockwise turn in degrees, scale."""

    x: float
    y: float
    angle_deg: float
    scale: float = 1.0


class Turned:
    """Plates of a line; ``good`` ones, or each with a defect of ``kind``."""

    def __init__(self, seed: int = 3, parts: int = 100, kind: str | None = None) -> None:
        self._line = SyntheticLine(seed, parts, defects=0.0)
        self._seed = seed
        if kind is not None:
            self._line.parts[:] = [part._replace(defect=kind) for part in self._line.parts]

    def matrix(self, number: int, lie: Lie) -> NDArray[np.float64]:
        """2 x 3, from the pixels of the drawn plate (itself turned a little) to those of the frame."""
        height, width = self._line.sprite(number).grey.shape
        turn = np.radians(lie.angle_deg + _pose(self._seed, number)["turn"])  # the line turns its plates the other way
        cos, sin = lie.scale * np.cos(turn), lie.scale * np.sin(turn)
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        turned = np.array([[cos, -sin], [sin, cos]])
        return np.column_stack([turned, np.array([lie.x, lie.y]) - turned @ middle])

    def frame(
        self,
        number: int,
        lie: Lie,
        random: np.random.Generator,
        *,
        hw: tuple[int, int] = FRAME_HW,
        gain: float = 1.0,
        noise: float = 2.0,
        bare: Pixels | None = None,
    ) -> Pixels:
        """A picture of one plate on the belt, uint8 [h, w]; ``bare``: on this picture instead."""
        sprite, matrix, size = self._line.sprite(number), self.matrix(number, lie), (hw[1], hw[0])
        grey = cv2.warpAffine(sprite.grey, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        cover = cv2.warpAffine(sprite.cover, matrix, size)
        below = belt(hw, random) if bare is None else bare.astype(np.float32)
        lit = (below + cover * (grey - below)) * gain + random.normal(0, noise, hw)
        return np.clip(np.rint(lit), 0, 255).astype(np.uint8)

    def mask(self, number: int, lie: Lie, hw: tuple[int, int] = FRAME_HW) -> Pixels:
        """Where the defect is in the frame, 0 and 255."""
        soft = cv2.warpAffine(self._line.sprite(number).mask, self.matrix(number, lie), (hw[1], hw[0]))
        return np.where(soft > 127, 255, 0).astype(np.uint8)


def belt(hw: tuple[int, int], random: np.random.Generator) -> NDArray[np.float64]:
    """A bare belt in grey levels."""
    return np.asarray(cv2.GaussianBlur(random.normal(44, 6, hw), (0, 0), 1.2), np.float64)


def anywhere(random: np.random.Generator, hw: tuple[int, int] = FRAME_HW, room_px: float = 120.0) -> Lie:
    """At any turn, with ``room_px`` to the frame's borders."""
    x, y = (float(random.uniform(min(room_px, side / 2), max(side - room_px, side / 2))) for side in (hw[1], hw[0]))
    return Lie(x, y, float(random.uniform(-180, 180)), float(random.uniform(0.99, 1.01)))
