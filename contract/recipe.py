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


class Outline(Strict):
    """A place on a view: a box (x, y, width, height) or a polygon, as fractions of the view's picture.

    ``size_px``: width and height of the picture in whose pixels the numbers are given instead. ``view``: None where
    the recipe has one view.
    """

    view: str | None = None
    box: tuple[float, float, float, float] | None = None
    polygon: list[tuple[float, float]] | None = Field(None, min_length=3, max_length=1000)
    size_px: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None

    @model_validator(mode="after")
    def _inside(self) -> Outline:
        ways = self._ways()
        if sum(given for _, given in ways) != 1:
            raise ValueError(f"expected one of {', '.join(name for name, _ in ways)}")
        for x, y in self.points():
            if not (-1e-6 <= x <= 1 + 1e-6 and -1e-6 <= y <= 1 + 1e-6):  # a NaN is not inside either
                of = "0 to 1 (fractions of the view)" if self.size_px is None else f"within {self.size_px} pixels"
                raise ValueError(f"the point ({x:g}, {y:g}) leaves the view; expected {of}, or size_px for pixels")
        if self.box is not None and not min(self.box[2:]) > 0:
            raise ValueError(f"the box {self.box} has no area; expected x, y, width, height")
        return self

    def _ways(self) -> list[tuple[str, bool]]:
        return [("box", self.box is not None), ("polygon", self.polygon is not None)]

    def points(self) -> list[tuple[float, float]]:
        """Corners as fractions of the view's picture."""
        width, height = self.size_px or (1, 1)
        if self.box is not None:
            x, y, w, h = self.box
            corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        else:
            corners = self.polygon or []
        return [(x / width, y / height) for x, y in corners]


class Mask(Outline):
    """What is not inspected: an outline, or a picture of the view, white where it is inspected, black where not."""

    picture: str | None = Field(None, max_length=1000, description="file, beside the TOML file that names it")

    def _ways(self) -> list[tuple[str, bool]]:
        return [*super()._ways(), ("picture", self.picture is not None)]


class Zone(Outline):
    """A place with limits of its own. Where two zones overlap, the first one counts.

    ``tolerance`` divides the map there: 2 allows twice the deviation, 0.5 half of it. A region under the smallest size
    is not listed. ``verdict``: a region of at least that size, all of which deviates more than the part's limit, makes
    the part REJECT or REVIEW, however small a share of the part it is.
    """

    name: str = Field(min_length=1, max_length=100)
    tolerance: float = Field(1.0, ge=0.01, le=100)
    smallest_mm2: float | None = Field(None, gt=0, description="area")
    smallest_mm: float | None = Field(None, gt=0, description="longer side of its box")
    smallest_px: float | None = Field(None, gt=0, description="area, pixels of the cut-out part")
    verdict: Literal["REVIEW", "REJECT"] | None = None

    @model_validator(mode="after")
    def _sized(self) -> Zone:
        sizes = [size for size in (self.smallest_mm2, self.smallest_mm, self.smallest_px) if size is not None]
        if len(sizes) > 1:
            raise ValueError(f"zone {self.name!r}: expected one of smallest_mm2, smallest_mm, smallest_px")
        if self.verdict is not None and not sizes:
            raise ValueError(
                f"zone {self.name!r}: verdict = {self.verdict!r} needs the smallest region that counts: smallest_mm2, "
                "smallest_mm or smallest_px"
            )
        return self


class Places(Strict):
    """What a calibration was told of places. ``top_k``: how many of a tile's highest map values make its score by
    their mean, found on the golden images; None where the score is not made of the map.
    """

    masks: list[Mask] = Field(default_factory=list, max_length=64)
    zones: list[Zone] = Field(default_factory=list, max_length=64)
    top_k: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _named(self) -> Places:
        names = [zone.name for zone in self.zones]
        if len(set(names)) != len(names):
            raise ValueError(f"two zones share a name: {names}")
        return self


class Fixture(Strict):
    """How a part is found by a mark and cut out upright; the mark's picture is the bundle's file of role ``fixture``.

    ``least_score`` and ``least_lead`` are learnt from the good pictures of a data set (``samples`` of them).
    """

    cut_px: tuple[Annotated[int, Field(ge=8, le=16384)], Annotated[int, Field(ge=8, le=16384)]] = Field(
        description="width and height of the cut-out part"
    )
    mark_px: tuple[int, int, int, int] = Field(description="x, y, width, height in pixels of the cut-out part")
    max_angle_deg: float = Field(180.0, ge=0, le=180, description="turned by at most so much, either way")
    scale_play: float = Field(0.03, ge=0, le=0.2, description="share by which the scale may differ")
    least_score: float = Field(0.5, ge=0.3, le=1, description="normalised correlation with the mark, at most 1")
    least_lead: float = Field(0.05, ge=0.01, le=1, description="of the best place's score over the next one's")
    samples: int = Field(0, ge=0, description="good pictures that the limits rest on; 0: none, they are the defaults")


LATER_FIELDS = ("promise", "confidence", "region_level", "preprocess")


class Thresholds(Strict):
    """Calibrated limits with the counts that they rest on.

    A fused score above ``reject`` is REJECT, above ``review`` (where set) REVIEW, else PASS. ``map`` is what as many
    good parts exceed somewhere on the raw map; it cuts regions, unless ``region_level`` does.
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
    region_level: float | None = Field(None, description="cuts regions of the map over its normal level at each place")
    preprocess: str | None = Field(None, description="sha256 of the preprocess file that its pictures went through")

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
