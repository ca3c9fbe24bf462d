"""A small preprocess file and shaded raw frames that it corrects, for tests of whoever reads or applies one."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.correction import GAIN_ONE, FlatField, Lens, Plane, PreprocessFile
from contract.images import Pixels, encode_png, encode_png16
from tests.bundles import SIDE, draw_part

MM_PER_PX = 0.25
DARK = 5


def lamp(side: int = SIDE) -> NDArray[np.float64]:
    """Share of the light that each pixel gets: less to the lower right."""
    ys, xs = np.mgrid[:side, :side] / side
    return 1.0 - 0.5 * (0.6 * xs + 0.4 * ys)


def flat_field(side: int = SIDE, dead: tuple[int, int] | None = None) -> FlatField:
    """What undoes ``lamp``; ``dead``: x, y of a pixel that gives nothing."""
    gain = np.rint(GAIN_ONE / lamp(side)).astype(np.uint16)
    if dead is not None:
        gain[dead[1], dead[0]] = 0
    dark = np.full((side, side), DARK, np.uint8)
    return FlatField(
        channels=1,
        dark=base64.b64encode(encode_png(dark)).decode(),
        gain=base64.b64encode(encode_png16(gain)).decode(),
    )


def content(side: int = SIDE, **changed: Any) -> PreprocessFile:
    """Even light, a little barrel, and a plane that is turned away a little: 64 x 60 px are left of 80 x 80."""
    lens = Lens(fx=100.0, fy=100.0, cx=40.2, cy=39.1, distortion=(-0.1, 0.02, 0.001, -0.001, 0.0))
    tilt = np.radians(4.0)
    along_x = MM_PER_PX * np.array([np.cos(tilt), 0.0, np.sin(tilt)])
    along_y = MM_PER_PX * np.array([0.0, 1.0, 0.0])
    origin = np.array([0.0, 0.0, 25.0]) - 31.5 * along_x - 29.5 * along_y
    plane = Plane(
        origin=tuple(origin.tolist()), along_x=tuple(along_x.tolist()), along_y=tuple(along_y.tolist()),
        size_px=(64, 60), mm_per_px=MM_PER_PX,
    )  # fmt: skip
    fields = {"created": "2026-01-01", "frame_px": (side, side), "lens": lens, "plane": plane} | {
        "flat": flat_field(side)
    }
    return PreprocessFile(**fields | changed)


def raw(picture: Pixels) -> Pixels:
    """The frame that a camera under ``lamp`` gives of a part."""
    shade = lamp(picture.shape[0])
    light = picture * (shade if picture.ndim == 2 else shade[..., np.newaxis])
    return np.clip(np.rint(light + DARK), 0, 255).astype(np.uint8)


def raw_data(folder: Path, good: int = 40, defective: int = 6) -> Path:
    """A data set of raw frames in the MVTec AD layout."""
    for name, count, first in (("train/good", good, 0), ("test/good", 6, 5000), ("test/spot", defective, 9000)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            part = draw_part(first + number)
            if "spot" in name:
                cv2.circle(part, (24 + number, 26), 3, 60, -1)  # type: ignore[call-overload]
            assert cv2.imwrite(str(folder / name / f"part_{number:03d}.png"), raw(part))
    return folder


def write_file(path: Path, made: PreprocessFile) -> Path:
    path.write_bytes(made.signed())
    return path
