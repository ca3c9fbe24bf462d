"""White and dark frames -> the flat field: what makes a frame as bright as its middle everywhere (before hop 1)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from contract.correction import DEAD_SHARE, GAIN_ONE, FlatField
from contract.images import Channels, Pixels, encode_png, encode_png16
from contract.preprocess import SATURATED

MOST_GAIN = 65535 / GAIN_ONE
LEAST_WHITE, MOST_WHITE = 60.0, 245.0  # grey levels of the white frames' mean
MOST_SATURATED = 0.001
MOST_DARK = 40.0
LEAST_LIGHT = 0.125  # share of the brightest place: less cannot be made even without drowning in noise
OFF = 0.5  # of its surroundings' light: a pixel that gives less, or half as much again, is dead
LEAST_FRAMES = 3
AROUND = 5


class Measured(NamedTuple):
    """The flat field and what is to be known of it."""

    flat: FlatField
    figures: dict[str, Any]


def measure_flat(white: Sequence[Pixels], dark: Sequence[Pixels]) -> Measured:
    """From white and dark frames of one size, uint8 [H, W] or RGB. Raises CalibrationError where they are of no use."""
    for name, frames in (("--white", white), ("--dark", dark)):
        if len(frames) < LEAST_FRAMES:
            raise CalibrationError(
                f"{name}: {len(frames)} frame(s), at least {LEAST_FRAMES} are averaged and 16 are better: of one, its "
                "noise would be taken for the lamp's"
            )
    light, off = _mean(white), _mean(dark)
    level, saturated = float(light.mean()), max(float((frame >= SATURATED).mean()) for frame in white)
    if saturated > MOST_SATURATED:
        raise CalibrationError(
            f"--white: {100 * saturated:.2g} % of the pixels of a frame are saturated (from {SATURATED}), at most "
            f"{100 * MOST_SATURATED:g} % may be: a saturated pixel does not say how bright it is. Expose less"
        )
    if not LEAST_WHITE <= level <= MOST_WHITE:
        raise CalibrationError(
            f"--white: the frames' mean is {level:.0f}, expected {LEAST_WHITE:.0f} to {MOST_WHITE:.0f}: take an even "
            "white or grey sheet, out of focus, lit and exposed as parts are"
        )
    if float(off.mean()) > MOST_DARK:
        raise CalibrationError(
            f"--dark: the frames' mean is {off.mean():.0f}, at most {MOST_DARK:.0f}: cover the lens and leave exposure "
            "and gain as they are"
        )
    offset = np.round(off).astype(np.uint8)
    return _flat(light - offset, offset, {"white_mean": level, "dark_mean": float(off.mean())} | {
        "white_frames": len(white), "dark_frames": len(dark), "saturated": saturated})  # fmt: skip


def _mean(frames: Sequence[Pixels]) -> NDArray[np.float32]:
    total = np.zeros(frames[0].shape, np.float64)
    for frame in frames:
        total += frame
    return (total / len(frames)).astype(np.float32)


def _flat(light: NDArray[np.float32], offset: Pixels, figures: dict[str, Any]) -> Measured:
    planes = light[..., np.newaxis] if light.ndim == 2 else light
    dead = np.logical_or.reduce([_dead(planes[..., at]) for at in range(planes.shape[2])])
    if (share := float(dead.mean())) > DEAD_SHARE:
        raise CalibrationError(
            f"--white: {100 * share:.2g} % of the pixels are dead, hot or under dust, at most {100 * DEAD_SHARE:g} %: "
            "clean sensor and lens"
        )
    gains = []
    for at in range(planes.shape[2]):
        plane = planes[..., at]
        alive = plane[~dead]
        # Of the mean, so that an even picture stays as bright as it was; white balance is left as it is, too.
        gain = float(alive.mean()) / np.maximum(plane, 1e-3)
        if float(alive.min()) < LEAST_LIGHT * float(np.percentile(alive, 99.5)):
            raise CalibrationError(
                f"--white: the darkest place has {alive.min():.1f} levels of light and the brightest "
                f"{np.percentile(alive, 99.5):.0f}: too uneven to be made even. Mend the lighting first"
            )
        gains.append(np.where(dead, 0, np.clip(np.rint(gain * GAIN_ONE), 1, 65535)))
    gain16 = np.stack(gains, axis=2).astype(np.uint16)
    gain16 = gain16[..., 0] if light.ndim == 2 else gain16
    channels: Channels = 1 if light.ndim == 2 else 3
    flat = FlatField(
        channels=channels,
        dark=base64.b64encode(encode_png(offset)).decode(),
        gain=base64.b64encode(encode_png16(gain16)).decode(),
    )
    alive = gain16[gain16 > 0] / GAIN_ONE
    figures |= {"dead_pixels": int(dead.sum()), "gain_low": float(alive.min()), "gain_high": float(alive.max())}
    return Measured(flat, figures)


def _dead(light: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels whose light is far from their surroundings' median: dead, hot, or under a grain that lets none through."""
    around = cv2.medianBlur(light, AROUND)
    return np.asarray(np.abs(light - around) > OFF * np.maximum(around, 1.0))
