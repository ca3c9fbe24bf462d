"""One part from pixels to verdict: prepare, quality gate, engine, decision (hops 3 to 5)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from contract.bundle import Bundle
from contract.decision import PartScore, decide, find_regions, fuse
from contract.event import Region, Verdict
from contract.images import Pixels, same_pixels
from contract.places import Located, locate
from contract.preprocess import Gate, PartSize, Picture, Prepared, prepare, size_of, tile_origins
from contract.recipe import View
from edge_runtime.engines.base import Engine
from edge_runtime.errors import EngineError

FROZEN = "frozen: the picture is identical, pixel for pixel, to that of the part before"
UNGATED = "the bundle has no quality bounds: run `flawline calibrate thresholds`"
MAX_REASON = 400


class Outcome(NamedTuple):
    """What became of one part.

    ``reason`` is None only for PASS; ``score``, ``part`` are None and ``regions`` empty where nothing was scored.
    ``quality`` is keyed ``view.measure``. Times are CLOCK_MONOTONIC nanoseconds, 0 for a step that was not reached.
    """

    verdict: Verdict
    reason: str | None
    score: float | None
    part: PartScore | None
    regions: list[Region]
    quality: dict[str, float]
    t_prepared_ns: int
    t_inferred_ns: int
    t_decided_ns: int


class Ready(NamedTuple):
    """A part that may be scored: its tiles, and what its verdict needs besides the engine's answer."""

    tiles: Pixels
    part_hw: PartSize
    quality: dict[str, float]
    t_prepared_ns: int


class Begun(NamedTuple):
    """A part whose tiles are under way in the engine: what its verdict needs besides the engine's answer.

    ``ticket``: the engine's. ``part_hw``: height and width in pixels, or those of each view.
    """

    ticket: int
    part_hw: PartSize
    quality: dict[str, float]
    t_prepared_ns: int


class Inspector:
    """Verdicts for one bundle on one engine; not thread-safe, parts end in the order in which they were begun.

    ``frozen_check``: a part whose pixels equal those of the part before is NOT_INSPECTED. For live cameras, whose
    noise never repeats; leave it off for files, where the same picture twice is no fault. ``places``: other masks and
    zones than the bundle's, while they are calibrated. Raises BundleError where those of the bundle cannot be used.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, *, frozen_check: bool = False, places: Located | None = None
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.engine = engine
        self._recipe = manifest.recipe
        self._thresholds = manifest.thresholds
        self._gate = None if manifest.quality is None else Gate(manifest.quality)
        self.places = locate(bundle) if places is None else places
        self._neutralise = self.places.neutralise if self.places is not None and self.places.blanks else None
        self._frozen_check = frozen_check
        self._before: dict[str, Pixels] = {}

    def inspect(self, part: Picture) -> Outcome:
        """Verdict on a cut-out part, uint8 [H, W] or RGB [H, W, 3], or one for each view; ``part`` is not kept.

        Raises nothing for a bad picture or a failing engine: both are NOT_INSPECTED with the reason.
        """
        begun = self.begin(part)
        return begun if isinstance(begun, Outcome) else self.end(begun)

    def begin(self, part: Picture) -> Begun | Outcome:
        """Prepare a part and start its inference, or its outcome where it must not be scored. Raises nothing."""
        ready = self.ready(part)
        return ready if isinstance(ready, Outcome) else begin_together(self.engine, [ready])[0]

    def ready(self, part: Picture) -> Ready | Outcome:
        """Prepare a part, or its outcome where it must not be scored. Raises nothing."""
        try:
            prepared = prepare(part, self._recipe, self._neutralise)
            quality, fault = self._check(part, prepared)
        except Exception as error:  # noqa: BLE001 - whatever a picture does to the code, the part has no verdict
            return not_inspected(str(error))
        t_prepared_ns = time.monotonic_ns()
        if fault is not None:
            return not_inspected(fault, quality, t_prepared_ns)
        return Ready(prepared.tiles, size_of(part), quality, t_prepared_ns)

    def end(self, begun: Begun) -> Outcome:
        """Wait for the oldest part begun on this engine, which must be this one, and decide. Raises nothing."""
        try:
            scores, maps = self.engine.finish(begun.ticket)
            scored = fuse(scores, maps, self._recipe, begun.part_hw, self.places)
        except Exception as error:  # noqa: BLE001 - an engine that fails, however, has given no verdict
            return not_inspected(str(error), begun.quality, begun.t_prepared_ns)
        t_inferred_ns = time.monotonic_ns()
        verdict, reason, regions = self._decide(scored)
        return Outcome(
            verdict,
            reason,
            scored.score,
            scored,
            regions,
            begun.quality,
            begun.t_prepared_ns,
            t_inferred_ns,
            time.monotonic_ns(),
        )

    def _check(self, part: Picture, prepared: Prepared) -> tuple[dict[str, float], str | None]:
        """Quality measures and why the picture must not be scored, or None."""
        frozen = self._frozen_check and self._is_repeated(part)
        quality, fault = ({}, None) if self._gate is None else self._gate.check(prepared, size_of(part))
        return quality, FROZEN if frozen else fault

    def _is_repeated(self, part: Picture) -> bool:
        """Whether the part, or what a view shows of it, equals the one before.

        Keeps a copy, because frames live in memory that is reused.
        """
        pictures = part if isinstance(part, Mapping) else {"": part}
        repeated = [self._is_as_before(view, picture) for view, picture in pictures.items()]  # each is to be kept
        return any(repeated)

    def _is_as_before(self, view: str, picture: Pixels) -> bool:
        before = self._before.get(view)
        if before is None or before.shape != picture.shape:
            self._before[view] = picture.copy()
            return False
        if same_pixels(picture, before):
            return True
        np.copyto(before, picture)
        return False

    def _decide(self, scored: PartScore) -> tuple[Verdict, str | None, list[Region]]:
        verdict, reason = decide(scored.score, self._thresholds, scored.review, scored.zone, scored.review_zone)
        if self._thresholds is None:
            return verdict, reason, []
        if self._gate is None:
            return Verdict.NOT_INSPECTED, UNGATED, []
        if verdict is Verdict.PASS:
            return verdict, reason, []
        limits = self._thresholds
        limit = limits.reject if limits.review is None else limits.review
        regions = find_regions(scored, limits.map, self._recipe, self.places, limits.region_level, limit)
        return verdict, reason, regions

    def score(self, part: Picture) -> tuple[PartScore, Prepared]:
        """Score without gate and thresholds, for calibration. Raises ImageError or EngineError."""
        prepared = prepare(part, self._recipe, self._neutralise)
        scores, maps = self.engine.infer(prepared.tiles)
        return fuse(scores, maps, self._recipe, size_of(part), self.places), prepared

    def reconstruction(self) -> dict[str, Pixels]:
        """What each view of the part that ended last should look like, uint8 [H', W'] or RGB, the view's canvas size.

        Raises EngineError where nothing was scored, or its memory serves another part by now.
        """
        tiles = self.engine.reconstruction()
        if len(tiles) != self._recipe.tiles:
            raise EngineError(f"{len(tiles)} reconstructed tile(s); the recipe has {self._recipe.tiles}")
        views: dict[str, Pixels] = {}
        at = 0
        for view in self._recipe.views:
            views[view.name] = self._join(tiles[at : at + view.tiling.count], view)
            at += view.tiling.count
        return views

    def _join(self, tiles: Pixels, view: View) -> Pixels:
        canvas = np.zeros((*self._recipe.canvas_hw(view), self._recipe.channels), np.uint8)
        for tile, (y, x) in zip(tiles, tile_origins(view, self._recipe), strict=True):
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        return canvas[..., 0] if self._recipe.channels == 1 else canvas


def begin_together(engine: Engine, parts: Sequence[Ready]) -> list[Begun | Outcome]:
    """Start parts of one recipe, perhaps of several cameras, as one inference. Raises nothing."""
    try:
        tickets = engine.start_together([part.tiles for part in parts])
    except Exception as error:  # noqa: BLE001 - an engine that fails, however, has given no verdict
        return [not_inspected(str(error), part.quality, part.t_prepared_ns) for part in parts]
    return [
        Begun(ticket, part.part_hw, part.quality, part.t_prepared_ns)
        for ticket, part in zip(tickets, parts, strict=True)
    ]


def not_inspected(reason: str, quality: dict[str, float] | None = None, t_prepared_ns: int = 0) -> Outcome:
    """The outcome of a part that has no verdict, for ``reason``; nothing was scored."""
    short = reason[:MAX_REASON] or "inspection failed without a message"
    return Outcome(Verdict.NOT_INSPECTED, short, None, None, [], quality or {}, t_prepared_ns, 0, time.monotonic_ns())
