"""From a trigger's frame to the part that is judged: cut, in the graph's colours, upright; its code is read (hop 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from contract.errors import FixtureError
from contract.event import Verdict
from contract.fixture import Affine, Placer, moved
from contract.locate import Box
from contract.preprocess import Picture
from contract.recipe import Recipe
from edge_runtime.codes import CodeReader, Reading
from edge_runtime.inspector import Outcome
from edge_runtime.joining import Pending

STRAIGHT: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class CutPart(NamedTuple):
    """A part's pixels, uint8 [H, W] or RGB [H, W, 3], or by view, and where they lie in the frame.

    ``to_frame``: None where several cameras see the part. ``fault``: why it must not be judged; ``pixels`` are then
    what was searched, and ``to_frame`` is that picture's. ``measures``: the fixture's, for the event's ``quality``.
    ``reading``: its code, where one is read.
    """

    pixels: Picture
    to_frame: Affine | None
    measures: dict[str, float]
    fault: str | None = None
    reading: Reading | None = None


def cut_part(item: Pending, recipe: Recipe, placer: Placer | None, codes: Mapping[str, CodeReader]) -> CutPart:
    """Cut the part out of its frame, upright where there is a fixture; its code is read from here on.

    ``codes``: by the camera that triggers. Raises RingError where there is no picture, ImageError where it does not fit
    the recipe.
    """
    reading = _begin_reading(item, codes.get(item.camera.settings.id))
    pictures = item.pictures(recipe)
    if isinstance(pictures, Mapping):
        return CutPart(pictures, None, {}, reading=reading)
    x, y = item.camera.origin(item.trigger)
    if placer is None:
        return CutPart(pictures, moved(STRAIGHT, x, y), {}, reading=reading)
    try:
        placed = placer.place(pictures)
    except FixtureError as error:
        return CutPart(pictures, moved(STRAIGHT, x, y), error.measures, str(error), reading)
    return CutPart(placed.pixels, moved(placed.to_picture, x, y), placed.measures, reading=reading)


def _begin_reading(item: Pending, codes: CodeReader | None) -> Reading | None:
    """A copy of its own: what is inspected is not always of the whole region, or in these colours."""
    if codes is None:
        return None
    region = codes.settings.region
    return codes.begin(item.camera.cut(item.trigger, None if region is None else Box(*region))[0])


def with_cut(outcome: Outcome, cut: CutPart | None, codes: CodeReader | None) -> tuple[Outcome, str | None]:
    """What became of the part, with what fixture and code say of it, and its serial.

    A required code that is not read makes it NOT_INSPECTED, whatever it was.
    """
    if cut is None:
        return outcome, None
    outcome = outcome._replace(quality=outcome.quality | cut.measures)
    if codes is None or cut.reading is None:
        return outcome, None
    serial, fault = codes.result(cut.reading)
    if fault is not None:
        reason = "; ".join(each for each in (fault, outcome.reason) if each)
        outcome = outcome._replace(verdict=Verdict.NOT_INSPECTED, reason=reason)
    return outcome, serial


def said_of(cut: CutPart | None, serial: str | None) -> dict[str, Any]:
    """Fields of the result; a serial that was not read leaves the trigger's own."""
    fields: dict[str, Any] = {} if cut is None else {"part_to_frame": cut.to_frame}
    return fields if serial is None else fields | {"serial": serial}
