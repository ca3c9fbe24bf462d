"""What is not inspected, and zones, drawn over the mean good part: SVG that needs no other file (after hop 5)."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from contract.images import Pixels, encode_png
from contract.places import Located

WIDTH = 480  # on the page
COLOURS = ("#2b6cb0", "#2f855a", "#6b46c1", "#975a16", "#b83280", "#4a5568")
RED = np.array([200, 30, 30], np.float32)


def picture_of_places(view: str, picture: Pixels, places: Located) -> str:
    """``picture``: uint8 [H, W] or RGB [H, W, 3] of a view's canvas. Red is not inspected, outlines are zones."""
    height, width = picture.shape[:2]
    shown = (picture if picture.ndim == 3 else np.repeat(picture[..., np.newaxis], 3, axis=2)).astype(np.float32)
    blank = places.blanks.get(view)
    if blank is not None:
        shown[~blank.keep] = 0.4 * shown[~blank.keep] + 0.6 * RED
    data = base64.b64encode(encode_png(shown.astype(np.uint8))).decode("ascii")
    outlines = "".join(
        _outline(zone.points(), zone.name, COLOURS[index % len(COLOURS)], width, height)
        for index, zone in enumerate(places.places.zones)
        if zone.view == view
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" style="width:{WIDTH}px;max-width:100%" role="img" '
        f'aria-label="view {escape(view)}"><image href="data:image/png;base64,{data}" width="{width}" '
        f'height="{height}"/>{outlines}</svg>'
        f"<figcaption>View {escape(view)}{_share(places, view)}</figcaption></figure>"
    )


def _share(places: Located, view: str) -> str:
    blank = places.blanks.get(view)
    return "" if blank is None else f": {100 * (1 - blank.inspected):.1f} % is not inspected (red)"


def _outline(points: list[tuple[float, float]], name: str, colour: str, width: int, height: int) -> str:
    corners = " ".join(f"{x * width:.1f},{y * height:.1f}" for x, y in points)
    x, y = points[0]
    size = max(4.0, height / 24)
    return (
        f'<polygon points="{corners}" fill="none" stroke="{colour}" stroke-width="{size / 6:.2f}"/>'
        f'<text x="{x * width + size / 3:.1f}" y="{y * height + size:.1f}" '
        f'style="font-size:{size:.1f}px;fill:{colour}">{escape(name)}</text>'
    )
