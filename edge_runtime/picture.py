"""Draws what was seen, where it deviates and what it should look like, for people to look at (beside hop 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.decision import ViewMap
from contract.event import Region, Verdict
from contract.images import Pixels
from contract.preprocess import view_box
from contract.recipe import Recipe

Colour = tuple[int, int, int]

COLOURS: dict[Verdict, Colour] = {
    Verdict.PASS: (47, 133, 90),
    Verdict.REVIEW: (183, 121, 31),
    Verdict.REJECT: (155, 44, 44),
    Verdict.NOT_INSPECTED: (74, 85, 104),
}
BOX: Colour = (255, 60, 60)
WHITE: Colour = (255, 255, 255)
PANEL_PX = 384
BAND_PX = 28
GAP_PX = 6
OPACITY = 0.6


class Caption(NamedTuple):
    """The band above the panels: verdict and one line of text."""

    verdict: Verdict
    text: str


def join_maps(maps: Sequence[ViewMap], part_hw: tuple[int, int], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """All views' maps on the part, bilinear, float32 ``size_hw``; where views overlap the larger deviation counts.

    ``part_hw`` is the size of the cut-out part in which the maps' boxes are given; what no view covers has the
    smallest deviation that occurs.
    """
    lowest = min(float(view.values.min()) for view in maps)
    joined = np.full(size_hw, lowest, np.float32)
    scale_y, scale_x = size_hw[0] / part_hw[0], size_hw[1] / part_hw[1]
    for view in maps:
        x, y, width, height = view.box
        left, top = min(round(x * scale_x), size_hw[1] - 1), min(round(y * scale_y), size_hw[0] - 1)
        right = max(left + 1, min(size_hw[1], round((x + width) * scale_x)))
        bottom = max(top + 1, min(size_hw[0], round((y + height) * scale_y)))
        resized = cv2.resize(view.values, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        place = joined[top:bottom, left:right]
        np.maximum(place, resized, out=place)
    return joined


def overlay(part: Pixels, deviation: NDArray[np.float32], threshold: float | None) -> Pixels:
    """The part with its deviation in colour over it, RGB of the part's size.

    Colour begins at half the map threshold and is full at twice that threshold, so that a good part stays grey
    and pictures can be compared; without a threshold it spans the map's own range.
    """
    low, high = (
        (float(deviation.min()), float(deviation.max())) if threshold is None else (threshold / 2, 2 * threshold)
    )
    level = np.clip((deviation - low) / max(high - low, 1e-12), 0.0, 1.0)
    heat = cv2.cvtColor(cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    weight = (OPACITY * np.minimum(1.0, 4 * level))[..., np.newaxis]
    return np.asarray((1 - weight) * to_rgb(part) + weight * heat, np.uint8)


def to_rgb(pixels: Pixels) -> Pixels:
    """uint8 [H, W] or [H, W, 3] as RGB."""
    return pixels if pixels.ndim == 3 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)


def draw_regions(picture: Pixels, regions: Sequence[Region], scale: tuple[float, float]) -> None:
    """Draw the regions' boxes into an RGB picture that shows the part at ``scale`` (x, y)."""
    for region in regions:
        x, y, width, height = region.box_px
        start = (int(x * scale[0]), int(y * scale[1]))
        end = (int(np.ceil((x + width) * scale[0])), int(np.ceil((y + height) * scale[1])))
        cv2.rectangle(picture, start, end, BOX, 1)


def lay_views(views: dict[str, Pixels], recipe: Recipe, part_hw: tuple[int, int], size_hw: tuple[int, int]) -> Pixels:
    """Views' pictures (such as reconstructions) at their places on the part, RGB ``size_hw``; bare parts are grey."""
    sheet = np.full((*size_hw, 3), 90, np.uint8)
    scale_y, scale_x = size_hw[0] / part_hw[0], size_hw[1] / part_hw[1]
    for view in recipe.views:
        x, y, width, height = view_box(view, part_hw)
        left, top, right, bottom = x * scale_x, y * scale_y, (x + width) * scale_x, (y + height) * scale_y
        place = sheet[round(top) : round(bottom), round(left) : round(right)]
        if view.name in views and place.size:
            place[...] = cv2.resize(to_rgb(views[view.name]), place.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return sheet


def shown_size(part_hw: tuple[int, int]) -> tuple[int, int]:
    """Size of one panel: the part's shape with its longer side PANEL_PX."""
    factor = PANEL_PX / max(part_hw)
    return max(1, round(part_hw[0] * factor)), max(1, round(part_hw[1] * factor))


def compose(panels: Sequence[Pixels], caption: Caption) -> Pixels:
    """Panels of equal height side by side under a band in the verdict's colour, RGB."""
    height = panels[0].shape[0]
    gap = np.full((height, GAP_PX, 3), 255, np.uint8)
    row = np.concatenate([piece for panel in panels for piece in (panel, gap)][:-1], axis=1)
    band = np.full((BAND_PX, row.shape[1], 3), COLOURS[caption.verdict], np.uint8)
    plain = f"{caption.verdict.value}  {caption.text}".encode("ascii", "replace").decode()
    cv2.putText(band, plain, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, WHITE, 1, cv2.LINE_AA)
    return np.concatenate([band, row])


def resize(pixels: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """RGB of ``size_hw`` for the eye."""
    smaller = size_hw[0] < pixels.shape[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(to_rgb(pixels), size_hw[::-1], interpolation=method), np.uint8)
