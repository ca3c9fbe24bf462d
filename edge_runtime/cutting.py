"""From a trigger's frame to the part that is judged: cut, in the graph's colours, upright; its code is read (hop 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from contract.correction import Correction
from contract.errors import FixtureError
from contract.event import Verdict
from contract.fixture import Affine, Placer, moved
from contract.images import Channels, Pixels, to_channels
from contract.locate import Box
from contract.preprocess import Picture, picture_of
from edge_runtime.capture import CameraProcess, CapturedTrigger
from edge_runtime.codes import CodeReader, Reading
from edge_runtime.inspector import Outcome

STRAIGHT: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class CutPart(NamedTuple):
    """A part's pixels, uint8 [H, W] or RGB [H, W, 3], or such of each view, and where they lie in the frame.

    ``to_frame`` is None where cameras are several: each has a frame of its own.
    ``fault``: why it must not be judged; ``pixels`` are then what was searched, and ``to_frame`` is that picture's.
    ``measures``: the fixture's, for the event's ``quality``. ``reading``: its code, where one is read.
    """

    pixels: Picture
    to_frame: Affine | None
    measures: dict[str, float]
    fault: str | None = None
    reading: Reading | None = None

    def pixels_of(self, view: str) -> Pixels:
        """The picture that shows ``view``."""
        return picture_of(self.pixels, view)


def cut_part(
    camera: CameraProcess,
    trigger: CapturedTrigger,
    channels: Channels,
    placer: Placer | None,
    codes: CodeReader | None,
    correction: Correction | None = None,
) -> CutPart:
    """Cut the part out of its frame, upright where there is a fixture; its code is read from here on.

    With a ``correction`` the frame is corrected whole, and its part cut out of what that gives: ``to_frame`` leads into
    the corrected picture.
    Raises RingError where there is no picture, ImageError where it does not fit the recipe.
    """
    pixels, pixel_format = camera.cut(trigger) if correction is None else camera.whole(trigger)
    reading = None
    if codes is not None:
        region = codes.settings.region
        own = region is None and correction is None  # a whole frame may show another part's code as well
        reading = codes.begin(pixels if own else camera.cut(trigger, None if region is None else Box(*region))[0])
    picture = to_channels(pixels, pixel_format, channels)
    if correction is not None:
        return _corrected(picture, camera.search(trigger), correction, placer)._replace(reading=reading)
    x, y = camera.origin(trigger)
    if placer is None:
        return CutPart(picture, moved(STRAIGHT, x, y), {}, reading=reading)
    try:
        placed = placer.place(picture)
    except FixtureError as error:
        return CutPart(picture, moved(STRAIGHT, x, y), error.measures, str(error), reading)
    return CutPart(placed.pixels, moved(placed.to_picture, x, y), placed.measures, reading=reading)


def _corrected(frame: Pixels, search: Box | None, correction: Correction, placer: Placer | None) -> CutPart:
    try:
        placed = correction.part(frame, placer, search)
    except FixtureError as error:
        return CutPart(correction.correct(frame), STRAIGHT, error.measures, str(error))
    return CutPart(placed.pixels, placed.to_picture, placed.measures)


def joined(views: Mapping[str, CutPart]) -> CutPart:
    """One part of several cameras' pictures, by the name of each view; the code is whichever was read."""
    reading = next((cut.reading for cut in views.values() if cut.reading is not None), None)
    return CutPart({view: cut.pixels_of(view) for view, cut in views.items()}, None, {}, reading=reading)


def with_cut(
    outcome: Outcome, cut: CutPart, codes: CodeReader | None, told: str | None = None
) -> tuple[Outcome, str | None]:
    """What became of the part, with what fixture and code say of it, and its serial; ``told``: by the trigger.

    A required code that is not read makes it NOT_INSPECTED, whatever it was, and so does one that says another serial
    than the trigger: one of the two is of another part.
    """
    outcome = outcome._replace(quality=outcome.quality | cut.measures)
    if codes is None:
        return outcome, None
    if cut.reading is None:
        unseen = "code: no view of the recipe is of the camera that reads it"
        serial, fault = None, unseen if codes.settings.required else None
    else:
        serial, fault = codes.result(cut.reading)
    if serial is not None and told is not None and told != serial:
        fault = f"code: reads {serial!r}, and the part was triggered as {told!r}: one of them is another part's"
        serial = None
    if fault is not None:
        reason = "; ".join(each for each in (fault, outcome.reason) if each)
        outcome = outcome._replace(verdict=Verdict.NOT_INSPECTED, reason=reason)
    return outcome, serial


def said_of(cut: CutPart | None, serial: str | None) -> dict[str, Any]:
    """Fields of the result; a serial that was not read leaves the trigger's own."""
    fields: dict[str, Any] = {} if cut is None else {"part_to_frame": cut.to_frame}
    return fields if serial is None else fields | {"serial": serial}
