"""Small drawn parts and a small bundle trained on them, for every test that needs a real one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from calibration.calibrate import Proposal
    from calibration.methods import Rates
    from calibration.places import Where

SIDE = 80


def draw_part(number: int, defect: bool = False, colour: bool = False, side: int = SIDE) -> NDArray[np.uint8]:
    """A bright plate with a dark hole on dark ground: uint8 [side, side], or BGR [side, side, 3]; seeded by number."""
    random = np.random.default_rng(number)
    picture = np.full((side, side), 50.0, np.float32)
    edge = side // 8
    cv2.rectangle(picture, (edge, edge), (side - edge, side - edge), 170.0 + float(random.uniform(-8, 8)), -1)
    cv2.circle(picture, (side // 2, side // 2), side // 7, 35.0, -1)
    if defect:
        at = random.integers(side // 5, side - side // 5, 2)
        cv2.circle(picture, (int(at[0]), side // 4 + int(at[1]) % 6), side // 14, 60.0, -1)
    picture += random.normal(0.0, 3.0, picture.shape).astype(np.float32)
    grey = np.clip(cv2.GaussianBlur(picture, (3, 3), 0), 0, 255).astype(np.uint8)
    if not colour:
        return grey
    tint = np.array([0.7, 0.85, 1.0], np.float32)
    return (grey[..., np.newaxis] * tint).astype(np.uint8)


def draw_data(
    folder: Path, good: int = 40, test_good: int = 10, defective: int = 10, *, colour: bool = False, side: int = SIDE
) -> Path:
    """A folder in the MVTec AD layout with drawn parts; returns it."""
    sides = (("train/good", good, False), ("test/good", test_good, False), ("test/spot", defective, True))
    for offset, (name, count, defect) in enumerate(sides):
        if count:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            part = draw_part(10_000 * offset + index, defect, colour, side)
            cv2.imwrite(str(folder / name / f"part_{index:03d}.png"), part)
    return folder


def calibrated(folder: Path, data: Path, rates: Rates, engine: str = "auto", where: Where | None = None) -> Proposal:
    """Calibrate the bundle; returns what was put into it."""
    from calibration.calibrate import propose, write
    from calibration.places import Where

    found = propose(folder, data, rates, engine, where=where or Where())
    write(found)
    return found


def train_small_bundle(out: Path, data: Path, **settings: Any) -> Path:
    """Train a narrow model on ``data`` for some seconds and return the folder of its bundle."""
    from training.build import train
    from training.settings import TrainSettings

    small: dict[str, Any] = {
        "model": "ganomaly",
        "size": 64,
        "steps": 120,
        "width": 8,
        "latent": 32,
        "batch": 16,
        "learning_rate": 1e-3,
        "device": "cpu",
        "threads": 1,
        "fp16": False,  # another export takes longer than the training
    }
    return train(TrainSettings(data=data, out=out, **{**small, **settings}))
