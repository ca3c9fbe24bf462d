"""What a bundle says about one product: views, tiles, thresholds and the bounds of a usable picture (hops 3 and 5)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from contract.config import Strict

Size = Annotated[int, Field(ge=8, le=4096)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Tiling(Strict):
    """How a view is cut: ``rows`` x ``columns`` tiles that share ``overlap_px`` pixels of the resized view."""

    rows: int = Field(1, ge=1, le=16)
    columns: int = Field(1, ge=1, le=16)
    overlap_px: int = Field(0, ge=0)

    @property
    def count(self) -> int:
        return self.rows * self.columns


class View(Strict):
    """One look at a part: a camera (None: the one that triggered), a region of the cut-out part, its tiles."""

    name: str = "main"
    camera: str | None = None
    region: tuple[Fraction, Fraction, Fraction, Fraction] = Field(
        (0.0, 0.0, 1.0, 1.0), description="x, y, width, height as fractions of the cut-out part"
    )
    tiling: Tiling = Field(default_factory=Tiling)
    mm_per_px: float | None = Field(None, gt=0, description="millimetres per pixel of the cut-out part")

    @model_validator(mode="after")
    def _region_inside(self) -> View:
        x, y, width, height = self.region
        if width <= 0 or height <= 0 or x + width > 1 + 1e-6 or y + height > 1 + 1e-6:
            raise ValueError(f"view {self.name!r}: region {self.region} leaves the part")
        return self


class Recipe(Strict):
    """How the pixels of one product become the graph's input: channels, tile size, views."""

    name: str = "part"
    channels: Literal[1, 3] = Field(1, description="1: grey; 3: red, green, blue, in this order (GRAPH_FORMATS)")
    tile_hw: tuple[Size, Size] = (64, 64)
    views: list[View] = Field(default_factory=lambda: [View()], min_length=1, max_length=16)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [view.name for view in self.views]
        if len(set(names)) != len(names):
            raise ValueError(f"two views share a name: {names}")
        for view in self.views:
            if view.tiling.overlap_px >= min(self.tile_hw):
                raise ValueError(f"view {view.name!r}: overlap {view.tiling.overlap_px} px is not below the tile")
        return self

    @property
    def tiles(self) -> int:
        """Tiles of one part over all its views: the batch that one part makes."""
        return sum(view.tiling.count for view in self.views)

    def canvas_hw(self, view: View) -> tuple[int, int]:
        """Size that a view is resized to before it is cut into tiles."""
        tiling = view.tiling
        height = tiling.rows * self.tile_hw[0] - (tiling.rows - 1) * tiling.overlap_px
        width = tiling.columns * self.tile_hw[1] - (tiling.columns - 1) * tiling.overlap_px
        return height, width


class Bounds(Strict):
    """Closed interval; None leaves a side open."""

    low: float | None = None
    high: float | None = None

    def breach(self, value: float) -> str | None:
        """How ``value`` leaves the interval, or None."""
        if self.low is not None and value < self.low:
            return f"{value:.4g} below {self.low:.4g}"
        if self.high is not None and value > self.high:
            return f"{value:.4g} above {self.high:.4g}"
        return None


class QualityBounds(Strict):
    """What good parts' pictures measure, widened by a margin; whatever leaves it is NOT_INSPECTED.

    Keys are the names in ``contract.preprocess.MEASURES``; ``likeness_thumb`` is the mean good view, 16 x 16,
    standardised, that ``likeness`` correlates with. One entry per view.
    """

    views: dict[str, dict[str, Bounds]]
    likeness_thumb: dict[str, list[float]]
    samples: int = Field(ge=1)


LATER_FIELDS = ("promise", "confidence")


class Thresholds(Strict):
    """Calibrated limits with the counts that they rest on.

    A fused score above ``reject`` is REJECT, above ``review`` (where set) REVIEW, else PASS; ``map`` cuts regions.
    """

    reject: float
    review: float | None = None
    map: float
    method: str
    false_reject_rate: float | None = Field(None, gt=0, lt=1, description="asked for; None: the rule has no rate")
    review_rate: float | None = None
    groups: int = Field(ge=1, description="held-out good parts that the threshold rests on")
    images: int = Field(ge=1)
    engine: str = Field(description="engine and precision that the scores were measured with")
    expected_low: float | None = Field(None, description="5 % point of the realised false-reject rate")
    expected_high: float | None = Field(None, description="95 % point of the realised false-reject rate")
    promise: str | None = Field(None, description="what holds of parts exchangeable with those held out")
    confidence: float | None = Field(None, gt=0, lt=1, description="of the promise; None: it is about the average")

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        if self.review is not None and self.review > self.reject:
            raise ValueError(f"review threshold {self.review} lies above the reject threshold {self.reject}")
        return self

    @model_serializer(mode="wrap")
    def _without_later_fields(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that an older bundle does not have are left out where unset, so that its calibration id stays."""
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if value is not None or name not in LATER_FIELDS}
