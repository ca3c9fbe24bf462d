"""Bounds of a usable picture from pictures of good parts: what the quality gate of hop 3 holds every part against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.bundle import PictureSizes
from contract.preprocess import MEASURES, SHARPNESS, PartSize, Prepared, likeness, measure, size_in, thumbnail
from contract.recipe import Bounds, QualityBounds

Values = NDArray[np.float64]


class Seen(NamedTuple):
    """What is kept of one good picture: its size, and per view its measures and its thumbnail, float32 [256].

    ``placed``: by name what the fixture said of it; empty where there is none, or where it came cut out already.
    """

    measures: dict[str, dict[str, float]]
    thumbs: dict[str, NDArray[np.float32]]
    hw: PartSize
    placed: Mapping[str, float] = MappingProxyType({})


def see(prepared: Prepared, part_hw: PartSize, placed: Mapping[str, float] = MappingProxyType({})) -> Seen:
    """Measure a good picture; its likeness follows once the mean thumbnail is known."""
    views = prepared.canvases.items()
    return Seen(
        {view: measure(canvas, size_in(part_hw, view), None) for view, canvas in views},
        {view: thumbnail(canvas) for view, canvas in views},
        part_hw,
        placed,
    )


def sizes_of(pictures: Sequence[Seen]) -> PictureSizes:
    """Of at least one good picture; where cameras are several, over all of them."""
    every: list[tuple[int, int]] = []
    for picture in pictures:
        every += picture.hw.values() if isinstance(picture.hw, Mapping) else [picture.hw]
    heights, widths = zip(*every, strict=True)
    return PictureSizes(width=(min(widths), max(widths)), height=(min(heights), max(heights)))


def _spread(values: Values) -> float:
    return float(values.max() - values.min())


def _both(absolute: float, share: float = 0.25) -> Callable[[Values], Bounds]:
    """Lowest to highest good value, widened by ``share`` of the spread and by ``absolute``, each way."""

    def bounds(values: Values) -> Bounds:
        margin = share * _spread(values) + absolute
        return Bounds(low=float(values.min()) - margin, high=float(values.max()) + margin)

    return bounds


def _at_most(absolute: float, share: float = 0.5) -> Callable[[Values], Bounds]:
    return lambda values: Bounds(high=min(1.0, float(values.max()) + share * _spread(values) + absolute))


def _at_least(factor: float) -> Callable[[Values], Bounds]:
    return lambda values: Bounds(low=factor * float(values.min()))


def _contrast(values: Values) -> Bounds:
    return Bounds(low=0.7 * float(values.min()), high=1.3 * float(values.max()) + 2)


def _aspect(values: Values) -> Bounds:
    return Bounds(low=0.8 * float(values.min()), high=1.25 * float(values.max()))


def _likeness(values: Values) -> Bounds:
    return Bounds(low=float(values.min()) - 0.5 * _spread(values) - 0.05)


# What a defect can raise has no upper bound (sharpness): a bright scratch is to be rejected by its score,
# not turned away as a bad picture. Shares of dark and saturated pixels have, because lighting moves them most.
MARGINS: dict[str, Callable[[Values], Bounds]] = {
    "mean": _both(6.0),
    "contrast": _contrast,
    "dark": _at_most(0.02),
    "saturated": _at_most(0.02),
    **dict.fromkeys(SHARPNESS, _at_least(0.75)),
    "aspect": _aspect,
    "likeness": _likeness,
}


def bounds_from(pictures: Sequence[Seen], groups: Sequence[str] | None = None) -> QualityBounds:
    """Bounds per view and measure over at least one good picture; ``groups``: which show the same part."""
    views = list(pictures[0].measures)
    thumbs = {view: _standard(np.mean(_thumbs(pictures, view), axis=0)) for view in views}
    return QualityBounds(
        views={view: _view_bounds(pictures, view, groups) for view in views},
        likeness_thumb={view: [float(value) for value in thumb] for view, thumb in thumbs.items()},
        samples=len(pictures),
    )


def _view_bounds(pictures: Sequence[Seen], view: str, groups: Sequence[str] | None) -> dict[str, Bounds]:
    values = {name: np.array([picture.measures[view][name] for picture in pictures]) for name in MEASURES}
    values["likeness"] = np.array(likeness_to_others(pictures, view, groups))
    return {name: MARGINS[name](values[name]) for name in MEASURES}


def likeness_to_others(pictures: Sequence[Seen], view: str, groups: Sequence[str] | None = None) -> list[float]:
    """Of each picture the likeness to the mean of all *other* parts, which is what a new part's will be.

    A part is more like a mean that it is in itself: on surfaces without a drawing that may be all of its likeness.
    """
    of = np.unique(range(len(pictures)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    thumbs = _thumbs(pictures, view)
    counts = np.bincount(of)
    sums = np.zeros((len(counts), thumbs.shape[1]))
    np.add.at(sums, of, thumbs)
    if len(counts) > 1:  # of one part alone nothing else is known
        sums, counts = sums.sum(axis=0) - sums, len(thumbs) - counts
    means = [_standard(mean) for mean in sums / counts[:, np.newaxis]]
    return [likeness(picture.thumbs[view], means[at]) for picture, at in zip(pictures, of, strict=True)]


def _thumbs(pictures: Sequence[Seen], view: str) -> Values:
    return np.array([picture.thumbs[view] for picture in pictures], np.float64)


def _standard(mean: Values) -> NDArray[np.float32]:
    """A mean of standardised thumbnails, standardised again: a correlation needs deviation 1."""
    deviation = mean.std()
    return np.asarray(mean / deviation if deviation > 1e-3 else np.zeros_like(mean), np.float32)
