"""Settings of a camera that belong to a bundle: what the pictures it learnt from were taken with (hop 1)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from contract.config import Strict

ANY = "any"
TOLERANCE = 1e-3

Value = float | str
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class CameraControls(Strict):
    """Asked of a camera at its start and read back; None: not asked for. In the units of the camera's driver.

    They are set in the order in which they stand: what is automatic is decided before the value that it would change.
    """

    pixel_format: str | None = Field(
        None, pattern=r"^[\x21-\x7e][\x20-\x7e]{3,31}$", description="four characters: MJPG; of GenICam a name: Mono8"
    )
    width: Annotated[float, Field(ge=1, le=100_000)] | None = Field(None, description="pixels")
    height: Annotated[float, Field(ge=1, le=100_000)] | None = Field(None, description="pixels")
    fps: Annotated[float, Field(gt=0, le=100_000)] | None = None
    auto_exposure: Number | None = Field(
        None, description="Video4Linux: 1 by hand, 3 by itself; GenICam: 0 Off, 2 Continuous"
    )
    exposure: Number | None = None
    gain: Number | None = None
    auto_white_balance: Number | None = None
    white_balance: Number | None = Field(None, description="Video4Linux: kelvin")
    auto_focus: Number | None = None
    focus: Number | None = None
    brightness: Number | None = None
    contrast: Number | None = None
    saturation: Number | None = None
    gamma: Number | None = None
    sharpness: Number | None = None
    region: tuple[int, int, int, int] | None = Field(
        None, description="x, y, width, height that edge.toml must cut out of the frame"
    )

    def asked(self) -> dict[str, Value]:
        """What a camera itself is asked for, in order."""
        return {name: value for name, value in self if name != "region" and value is not None}


class CameraFile(Strict):
    """A TOML file of settings: ``[cameras.ID]``, where ID is the camera's in edge.toml, or ``any``."""

    cameras: dict[str, CameraControls] = Field(max_length=64)


def agrees(asked: Value, found: Value | None) -> bool:
    """Whether a value read back is the one that was asked for; numbers to a thousandth."""
    if isinstance(asked, str) or isinstance(found, str) or found is None:
        return asked == found
    return abs(found - asked) <= TOLERANCE * max(abs(asked), TOLERANCE)


def controls_of(cameras: dict[str, CameraControls], camera_id: str) -> CameraControls | None:
    """What a bundle's ``cameras`` ask of one camera; None: nothing."""
    return cameras.get(camera_id, cameras.get(ANY))
