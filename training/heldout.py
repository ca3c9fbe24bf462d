"""Synthetic defects that training never draws: they alone select weights and compare models (before hop 1).

Every kind is made by a procedure of its own that shares no code with ``training.defects``, so a model that has only
learnt the handwriting of its training defects does badly here. Drawn once, on good tiles that nothing was learnt from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.float32]
Region = NDArray[np.bool_]
LEAST_CHANGE = 1.5  # times the tile's own contrast, on average over the region: less is lost among natural marks
LEAST_CONTRAST = 3.0  # grey levels
MOST_CONTRAST = 40.0  # grey levels: on a pattern of black and white no defect could stand out more
LEAST_FEATURE = 4.0  # times the contrast: less is a mark like others, which nobody misses


class Exam(NamedTuple):
    """``tiles`` uint8 [M, H, W, C], ``masks`` bool [M, H, W], ``kinds`` of length M; good tiles have kind ``good``."""

    tiles: Tensor
    masks: Tensor
    kinds: list[str]


def set_exam(tiles: Tensor, seed: int, most: int = 160) -> Exam:
    """Good uint8 tiles [M, H, W, C] as they are, then defective copies of them, kinds in turn, about ``most``.

    Fewer, or none, where they would not be seen on these tiles.
    """
    random = np.random.default_rng(seed)
    originals = tiles.cpu().numpy()
    changed, masks, kinds = [], [], []
    order = random.permutation(len(originals))  # in order, a kind would meet the same places of cut parts each time
    for number in range(most):
        kind = list(KINDS)[number % len(KINDS)]
        made = _drawn(KINDS[kind], originals[order[number % len(originals)]], random)
        if made is not None:
            changed.append(made[0])
            masks.append(made[1])
            kinds.append(kind)
    good = np.zeros(originals.shape[:3], np.bool_)
    return Exam(
        torch.from_numpy(np.concatenate([originals, *(tile[np.newaxis] for tile in changed)])),
        torch.from_numpy(np.concatenate([good, *(mask[np.newaxis] for mask in masks)])),
        ["good"] * len(originals) + kinds,
    )


def _drawn(
    draw: Callable[[Picture, float, np.random.Generator], tuple[Picture, Region]],
    tile: NDArray[np.uint8],
    random: np.random.Generator,
) -> tuple[NDArray[np.uint8], Region] | None:
    """A changed copy and its region; None where ten tries changed too little to be seen."""
    original = tile.astype(np.float32)
    contrast = texture(original)
    for _ in range(10):
        picture, region = draw(original, contrast, random)
        changed = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
        difference = np.abs(changed.astype(np.float32) - tile).mean(axis=2)
        region &= cv2.blur(difference, (5, 5)) > 0.4 * LEAST_CHANGE * contrast
        if region.sum() >= 6 and difference[region].mean() >= LEAST_CHANGE * contrast:
            return changed, region
    return None


def texture(tile: Picture) -> float:
    """How strong a tile's own detail is, finer than an eighth of its side: a robust deviation, in grey levels."""
    around = 2 * (tile.shape[0] // 16) + 1
    detail = np.abs(tile - cv2.blur(tile, (around, around)).reshape(tile.shape))
    return min(MOST_CONTRAST, max(LEAST_CONTRAST, 1.48 * float(np.median(detail))))


def _place(tile: Picture, random: np.random.Generator, margin: float = 0.06) -> tuple[float, float]:
    side = tile.shape[0]
    low, high = margin * side, (1 - margin) * side
    return float(random.uniform(low, high)), float(random.uniform(low, high))


def _distance(tile: Picture, x: float, y: float) -> Picture:
    rows, columns = np.mgrid[0 : tile.shape[0], 0 : tile.shape[1]].astype(np.float32)
    return np.asarray(np.hypot(columns - x, rows - y), np.float32)


def _level(random: np.random.Generator, low: float, high: float) -> float:
    """Grey levels, darker twice as often as brighter."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))) * (-1 if random.random() < 0.67 else 1))


def pit(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """A dark round pore with a bright rim on one side."""
    x, y = _place(tile, random)
    radius = float(np.exp(random.uniform(np.log(0.012), np.log(0.05)))) * tile.shape[0]
    distance = _distance(tile, x, y)
    depth = contrast * float(np.exp(random.uniform(np.log(2), np.log(10))))
    core = np.exp(-((distance / radius) ** 4))
    side = radius * random.uniform(0.2, 0.6)
    rim = np.exp(-(((_distance(tile, x + side, y + side) - 1.15 * radius) / (0.35 * radius)) ** 2))
    change = -depth * core + 0.3 * depth * rim * (1 - core)
    return tile + change[..., None].astype(np.float32), distance < 1.2 * radius


def walk(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """A crack as a random walk with branches, drawn with antialiased strokes."""
    side = tile.shape[0]
    canvas = np.zeros((side, side), np.float32)
    paths = [(*_place(tile, random), float(random.uniform(0, 2 * np.pi)), int(random.uniform(0.08, 0.4) * side / 3))]
    while paths and len(paths) < 8:
        x, y, angle, steps = paths.pop()
        for step in range(steps):
            angle += float(random.normal(0, 0.28))
            to_x, to_y = x + 3 * np.cos(angle), y + 3 * np.sin(angle)
            ends = [(round(16 * value[0]), round(16 * value[1])) for value in ((x, y), (to_x, to_y))]
            cv2.line(canvas, ends[0], ends[1], 1.0, int(random.integers(1, 3)), cv2.LINE_AA, 4)
            x, y = to_x, to_y
            if random.random() < 0.03 and steps - step > 6:
                paths.append((x, y, angle + float(random.choice([-0.8, 0.8])), (steps - step) // 2))
    depth = contrast * _level(random, 2, 10)
    return tile + depth * cv2.GaussianBlur(canvas, (3, 3), 0)[..., None], canvas > 0.3


def swirl(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """Material pushed aside: content moved along a whirl."""
    x, y = _place(tile, random, 0.15)
    radius = float(random.uniform(0.06, 0.18)) * tile.shape[0]
    rows, columns = np.mgrid[0 : tile.shape[0], 0 : tile.shape[1]].astype(np.float32)
    distance = _distance(tile, x, y)
    angle = float(random.choice([-1, 1]) * random.uniform(0.8, 2.5)) * np.exp(-((distance / radius) ** 2))
    dx, dy = columns - x, rows - y
    source_x, source_y = x + dx * np.cos(angle) - dy * np.sin(angle), y + dx * np.sin(angle) + dy * np.cos(angle)
    moved = cv2.remap(
        tile, source_x.astype(np.float32), source_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(moved, np.float32).reshape(tile.shape), distance < 1.2 * radius


def shade(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """A wide soft patch where the surface is darker or brighter: uneven treatment."""
    x, y = _place(tile, random)
    wide, high = (float(random.uniform(0.1, 0.3)) * tile.shape[0] for _ in range(2))
    rows, columns = np.mgrid[0 : tile.shape[0], 0 : tile.shape[1]].astype(np.float32)
    bump = np.exp(-((((columns - x) / wide) ** 2 + ((rows - y) / high) ** 2) ** 2))
    return tile + contrast * _level(random, 2.5, 8) * bump[..., None], bump > 0.4


def torn(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """Frayed material: local dilation or erosion of the grey levels within a polygon."""
    side = tile.shape[0]
    x, y = _place(tile, random)
    corners = int(random.integers(4, 9))
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    reach = random.uniform(0.02, 0.12, corners) * side
    outline = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
    canvas = np.zeros((side, side), np.uint8)
    cv2.fillPoly(canvas, [np.rint(outline).astype(np.int32)], 255)
    kernel = np.ones((int(random.integers(3, 8)), int(random.integers(3, 8))), np.uint8)
    change = (cv2.erode if random.random() < 0.6 else cv2.dilate)(tile, kernel).reshape(tile.shape)
    soft = cv2.GaussianBlur(canvas.astype(np.float32) / 255, (3, 3), 0)[..., None]
    return tile + soft * (change - tile + contrast * _level(random, 0.3, 3)), canvas > 127


def hair(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """A fibre: a Bezier curve with a highlight along it."""
    side = tile.shape[0]
    at = np.array([_place(tile, random) for _ in range(3)], np.float32)
    at[1:] = at[0] + (at[1:] - at[0]) * random.uniform(0.2, 0.7)
    t = np.linspace(0, 1, 60, dtype=np.float32)[:, None]
    curve = (1 - t) ** 2 * at[0] + 2 * t * (1 - t) * at[1] + t**2 * at[2]
    points = np.rint(16 * curve).astype(np.int32)
    body, light = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    cv2.polylines(body, [points], False, 1.0, 2 if random.random() < 0.5 else 1, cv2.LINE_AA, 4)
    cv2.polylines(light, [points + 18], False, 1.0, 1, cv2.LINE_AA, 4)
    depth = contrast * _level(random, 2, 10)
    return tile + (depth * body - 0.4 * depth * light)[..., None], body > 0.3


def chip(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """A piece broken off at a border: the ground shows, with a lit fracture edge."""
    side = tile.shape[0]
    along = float(random.uniform(0.05, 0.95)) * side
    count = 24
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    size = float(random.uniform(0.03, 0.14)) * side
    reach = size * np.clip(1 + np.cumsum(random.normal(0, 0.12, count)), 0.5, 1.6)
    outline = np.rint(np.stack([along + reach * np.cos(angles), 0.7 * reach * np.sin(angles)], axis=1)).astype(np.int32)
    canvas = np.zeros((side, side), np.uint8)
    cv2.fillPoly(canvas, [outline], 255)
    canvas = np.ascontiguousarray(np.rot90(canvas, int(random.integers(4))))
    inside = cv2.GaussianBlur(canvas.astype(np.float32) / 255, (3, 3), 0)[..., None]
    ground = np.percentile(tile, 2 if random.random() < 0.7 else 98, axis=(0, 1)).astype(np.float32)
    ground = (
        ground
        + contrast * float(random.uniform(-3, 3))
        + random.normal(0, 0.4 * contrast, tile.shape).astype(np.float32)
    )
    edge = cv2.morphologyEx(canvas, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(np.float32) / 255
    return (tile + inside * (ground - tile) + 2 * contrast * edge[..., None]).astype(np.float32), canvas > 127


def gone(tile: Picture, contrast: float, random: np.random.Generator) -> tuple[Picture, Region]:
    """A feature of the part is missing: its surroundings, continued, where most is to be seen."""
    grey = tile.mean(axis=2)
    wide = tile.shape[0] // 6
    busy = np.abs(grey - cv2.blur(grey, (wide, wide)))
    margin = tile.shape[0] // 12
    busy[:margin] = busy[-margin:] = busy[:, :margin] = busy[:, -margin:] = 0
    busy = np.maximum(busy - 2 * np.median(busy), 0) + 1e-3
    at = int(random.choice(busy.size, p=(busy / busy.sum()).ravel()))
    distance = _distance(tile, at % tile.shape[1], at // tile.shape[1])
    region = distance < float(random.uniform(0.04, 0.1)) * tile.shape[0]
    levels = np.clip(tile, 0, 255).astype(np.uint8)
    around = cv2.inpaint(levels, region.astype(np.uint8), 3, cv2.INPAINT_TELEA).reshape(tile.shape)
    filled = np.asarray(around, np.float32)
    feature = float(np.abs(filled - tile).mean(axis=2)[region].mean())
    return filled, region & (feature > LEAST_FEATURE * contrast)


KINDS: dict[str, Callable[[Picture, float, np.random.Generator], tuple[Picture, Region]]] = {
    "pit": pit,
    "walk": walk,
    "swirl": swirl,
    "shade": shade,
    "torn": torn,
    "hair": hair,
    "chip": chip,
    "gone": gone,
}
