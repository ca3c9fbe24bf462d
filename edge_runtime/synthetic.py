"""Draws a line that does not exist: machined plates on a moving belt, with known defects (in place of hop 1).

Every frame and every part follows from the seed and its index alone, so that any process can draw any frame.
"""

from __future__ import annotations

import csv
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.images import PixelFormat, Pixels, extent_px
from contract.locate import Box

WIDTH, HEIGHT = 640, 480
PLATE_W, PLATE_H = 170, 130
PART_LENGTH_PX = 173  # along the belt, with the usual turn: what the presence settings should say
COLUMNS = (
    "frame",
    "time_s",
    "part_index",
    "part_visible",
    "defective",
    "defect_type",
    "part_x",
    "part_y",
    "part_w",
    "part_h",
    "mask_px",
    "source_image",
)

_FINE = 2  # parts are drawn at twice their size
_PAD = 16  # room around the plate for its turn
_BELT_PERIOD = 1280
_NOISES = 4
_KEPT = 8  # part pictures kept
EXTENT_OFF_PX = 0.5  # at most, of a defect whose size was asked for
_PLACES, _TRIES = 12, 12  # looked at before a size is given up

Float = NDArray[np.float32]


class Part(NamedTuple):
    """One part: its place on the belt (pixels behind the first part's front), and what is wrong with it.

    ``defect_px``: the longest extent that its defect shall have; None: as large as it comes.
    """

    number: int
    defect: str
    front: int
    box_w: int
    box_h: int
    y: int
    defect_px: float | None = None

    @property
    def defective(self) -> bool:
        return self.defect != "good"


class Seen(NamedTuple):
    """A part in a frame: ``box`` as far as the frame shows it, ``whole`` when nothing of it lies outside."""

    part: Part
    box: Box
    whole: bool
    mask_px: int


class Sprite(NamedTuple):
    """One part's picture: grey float32 [h, w], coverage 0 to 1 float32 [h, w], defect mask uint8 0/255 [h, w]."""

    grey: Float
    cover: Float
    mask: Pixels


class SyntheticLine:
    """A belt with ``parts`` plates, ``defects`` of them (a share) defective, moving right ``speed`` px a frame.

    With ``repeat`` each plate passes so many times, one after another, laid down anew each time: another turn and
    place, other noise. ``Part.number`` counts the passes.
    """

    def __init__(
        self,
        seed: int = 1,
        parts: int = 50,
        fps: float = 25.0,
        defects: float = 0.25,
        speed: int = 12,
        colour: bool = False,
        repeat: int = 1,
    ) -> None:
        if parts < 1 or fps <= 0 or not 0 <= defects <= 1 or not 1 <= speed <= 100 or repeat < 1:
            raise ConfigError(
                f"synthetic line: parts={parts}, fps={fps:g}, defects={defects:g}, speed={speed}, repeat={repeat}: "
                "expected 1 part or more, fps above 0, defects from 0 to 1, speed from 1 to 100 px a frame and repeat "
                "1 or more"
            )
        self.seed, self.fps, self.speed, self.colour, self.repeat = seed, fps, speed, colour, repeat
        self.source = f"synthetic://line?seed={seed}"
        self.parts = _lay_out(seed, parts, defects, repeat)
        self.frames = (self.parts[-1].front + self.parts[-1].box_w + WIDTH) // speed + 4
        self._fronts = np.array([part.front for part in self.parts])
        self._belt = _belt(seed)
        self._light = _light()
        self._noise = _noise_bank(seed)
        self._sprites: OrderedDict[int, Sprite] = OrderedDict()
        _blank()  # now, so that no frame waits for it

    @property
    def pixel_format(self) -> PixelFormat:
        return PixelFormat.RGB8 if self.colour else PixelFormat.MONO8

    def put(self, index: int, defect: str, defect_px: float | None = None) -> None:
        """Give a part another defect, of this longest extent in pixels if given: a kind of SIZED, drawn to size.

        Raises ConfigError where there is no such kind.
        """
        kinds, to_size = (("good", *DEFECTS), "") if defect_px is None else (SIZED, " to size")
        if defect not in kinds:
            raise ConfigError(f"no defect {defect!r} can be drawn{to_size}; there are: {', '.join(kinds)}")
        self.parts[index] = self.parts[index]._replace(defect=defect, defect_px=defect_px)
        self._sprites.pop(index, None)

    def sprite(self, index: int) -> Sprite:
        """The picture of a part, drawn when first asked for; the last few are kept.

        Raises ConfigError where the part's defect cannot be drawn in the size that it shall have.
        """
        found = self._sprites.get(index)
        if found is None:
            plate, again = divmod(index, self.repeat)
            part = self.parts[index]
            found = _draw_part(self.seed, plate, part.defect, again, part.defect_px)
            self._sprites[index] = found
            if len(self._sprites) > _KEPT:
                self._sprites.popitem(last=False)
        return found

    def render(self, frame: int) -> Pixels:
        """Frame ``frame`` (0 to ``frames`` - 1): uint8 [480, 640], or RGB [480, 640, 3]; the caller owns it."""
        shift = frame * self.speed % _BELT_PERIOD
        picture = np.roll(self._belt, shift, axis=1)[:, :WIDTH] if shift else self._belt[:, :WIDTH].copy()
        picture = np.ascontiguousarray(picture)
        for part, x in self._in_view(frame):
            _paste(picture, self.sprite(part.number), x, part.y)
        lit = cv2.multiply(picture, self._light, scale=1 / 128)
        rough, offset = self._noise[frame % _NOISES], (frame * 7919) % 61
        noisy = cv2.add(lit, rough[offset : offset + HEIGHT, offset : offset + WIDTH], dtype=cv2.CV_8U)
        grey = np.asarray(noisy, dtype=np.uint8)
        return _coloured(grey) if self.colour else grey

    def seen(self, frame: int) -> list[Seen]:
        """The truth of one frame, the foremost part first."""
        found = []
        for part, x in self._in_view(frame):
            x0, x1 = max(0, x), min(WIDTH, x + part.box_w)
            if x1 - x0 < 1:
                continue
            mask_px = 0
            if part.defective:
                inner = self.sprite(part.number).mask[:, x0 - x : x1 - x]
                mask_px = int(np.count_nonzero(inner))
            found.append(Seen(part, Box(x0, part.y, x1 - x0, part.box_h), x1 - x0 == part.box_w, mask_px))
        return found

    def truth(self) -> Iterator[dict[str, str]]:
        """Rows in the order of COLUMNS: one for each part in a frame, one for a frame of bare belt."""
        for frame in range(self.frames):
            stamp = {"frame": str(frame), "time_s": f"{frame / self.fps:.3f}"}
            seen = self.seen(frame)
            if not seen:
                bare = {"part_visible": "0", "defective": "0", "defect_type": "empty_belt", "mask_px": "0"}
                yield dict.fromkeys(COLUMNS, "") | stamp | bare
            for part, box, _, mask_px in seen:
                values = (
                    part.number,
                    1,
                    int(part.defective),
                    part.defect,
                    *box,
                    mask_px,
                    f"{self.source}#{part.number}",
                )
                yield stamp | dict(zip(COLUMNS[2:], map(str, values), strict=True))

    def first_frame(self, part: Part) -> int:
        """First frame that shows the part whole."""
        return -(-(part.front + part.box_w) // self.speed)

    def _in_view(self, frame: int) -> list[tuple[Part, int]]:
        """Parts with the x of their left edge, which may lie outside the frame."""
        travel = frame * self.speed
        first = int(np.searchsorted(self._fronts, travel - WIDTH - PLATE_W - 2 * _PAD))
        last = int(np.searchsorted(self._fronts, travel))
        places = [(part, travel - part.front - part.box_w) for part in self.parts[first:last]]
        return [(part, x) for part, x in places if -part.box_w < x < WIDTH]


def write_truth(line: SyntheticLine, path: Path) -> int:
    """Write the truth of every frame as CSV; returns the number of rows."""
    rows = 0
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in line.truth():
            writer.writerow(row)
            rows += 1
    return rows


# The belt ------------------------------------------------------------------------------------------------------------


def _lay_out(seed: int, parts: int, defects: float, repeat: int) -> list[Part]:
    """Where the parts lie: about one in six touches the one before it, the others follow at 40 to 330 px.

    Parts that pass again are laid down one by one, so that none touches.
    """
    found: list[Part] = []
    front = 0
    for index in range(parts * repeat):
        plate, again = divmod(index, repeat)
        rng = np.random.default_rng([seed, plate, 1])
        kind = str(rng.choice(list(DEFECTS))) if rng.random() < defects else "good"
        pose = _pose(seed, plate, again)
        box_w, box_h = _turned_size(pose)
        y = (HEIGHT - box_h) // 2 + int(pose["y"])
        if index:
            if again:
                rng = np.random.default_rng([seed, plate, 1, again])
            touches = rng.random() < 0.16 and repeat == 1
            gap = int(rng.integers(0, 3)) if touches else int(rng.integers(40, 330))
            front += found[-1].box_w + gap
        found.append(Part(index, kind, front, box_w, box_h, y))
    return found


def _belt(seed: int) -> Pixels:
    """A dark woven belt, uint8 [480, 1280], that repeats along x."""
    rng = np.random.default_rng([seed, 99])
    x, y = np.meshgrid(np.arange(_BELT_PERIOD, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    weave = 2.2 * np.sin(2 * np.pi * x / 8) * np.sin(2 * np.pi * y / 10) + 1.2 * np.sin(2 * np.pi * (x / 16 + y / 20))
    grain = _wrapped_blur(rng.standard_normal((HEIGHT, _BELT_PERIOD), np.float32), 1.2) * 5
    # Slow clouds are drawn small and enlarged.
    coarse = _wrapped_blur(rng.standard_normal((HEIGHT // 8, _BELT_PERIOD // 8), np.float32), 3.0) * 11
    clouds = cv2.resize(coarse, (_BELT_PERIOD, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(44 + weave + grain + clouds, 0, 255).astype(np.uint8)


def _wrapped_blur(values: Float, sigma: float) -> Float:
    margin = int(4 * sigma) + 1
    padded = np.concatenate([values[:, -margin:], values, values[:, :margin]], axis=1)
    return np.asarray(cv2.GaussianBlur(padded, (0, 0), sigma), dtype=np.float32)[:, margin:-margin]


def _light() -> Pixels:
    """The lamp's field, uint8 [480, 640], 128 = 1.0: brightest left of the middle, darker to the corners."""
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH, dtype=np.float32), np.linspace(-1, 1, HEIGHT, dtype=np.float32))
    field = 1.06 - 0.10 * (x + 0.25) ** 2 - 0.08 * (y + 0.1) ** 2 - 0.03 * x
    return np.asarray(np.clip(field * 128, 0, 255), dtype=np.uint8)


def _noise_bank(seed: int) -> list[NDArray[np.int8]]:
    rng = np.random.default_rng([seed, 98])
    size = (HEIGHT + 61, WIDTH + 61)
    return [np.clip(np.rint(2 * rng.standard_normal(size, np.float32)), -9, 9).astype(np.int8) for _ in range(_NOISES)]


def _paste(picture: Pixels, sprite: Sprite, x: int, y: int) -> None:
    """Lay a part on the belt, in place, as far as the frame goes."""
    height, width = sprite.grey.shape
    x0, x1 = max(0, x), min(WIDTH, x + width)
    place = picture[y : y + height, x0:x1]
    cover = sprite.cover[:, x0 - x : x1 - x]
    below = place.astype(np.float32)
    mixed = below + cover * (sprite.grey[:, x0 - x : x1 - x] - below)
    place[...] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _coloured(grey: Pixels) -> Pixels:
    """RGB: a greenish belt in the dark tones, warm metal in the bright ones."""
    return np.asarray(cv2.merge([cv2.LUT(grey, table) for table in _TINTS]), dtype=np.uint8)


def _tint(dark: float, bright: float) -> Pixels:
    tone = np.arange(256, dtype=np.float32)
    weight = np.clip((tone - 50) / 70, 0, 1)
    return np.clip(tone * (dark + (bright - dark) * weight), 0, 255).astype(np.uint8)


_TINTS = (_tint(0.86, 1.04), _tint(1.10, 1.0), _tint(0.98, 0.90))


# The part ------------------------------------------------------------------------------------------------------------


def _pose(seed: int, index: int, again: int = 0) -> dict[str, float]:
    """How a plate lies and is lit; ``again`` counts how often it was laid down before."""
    rng = np.random.default_rng([seed, index, 2])
    pose = {
        "turn": float(rng.uniform(-1.8, 1.8)),
        "scale": float(rng.uniform(0.993, 1.007)),
        "y": float(rng.integers(-22, 23)),
        "gain": float(rng.uniform(0.93, 1.06)),
        "tilt_x": float(rng.uniform(-0.05, 0.05)),
        "tilt_y": float(rng.uniform(-0.04, 0.04)),
    }
    if again:
        rng = np.random.default_rng([seed, index, 2, again])
        pose["turn"] += float(rng.uniform(-0.4, 0.4))
        pose["y"] += float(rng.integers(-4, 5))
    return pose


def _turned_size(pose: dict[str, float]) -> tuple[int, int]:
    """(width, height) of the box around the turned plate; its corners are round, so the box is that of the arcs."""
    angle, radius = np.radians(abs(pose["turn"])), _RADIUS
    inner_w, inner_h = PLATE_W - 2 * radius, PLATE_H - 2 * radius
    width = pose["scale"] * (inner_w * np.cos(angle) + inner_h * np.sin(angle) + 2 * radius)
    height = pose["scale"] * (inner_w * np.sin(angle) + inner_h * np.cos(angle) + 2 * radius)
    return round(float(width)), round(float(height))


_RADIUS = 17.0
_HOLES = ((-64.0, -44.0), (64.0, -44.0), (-64.0, 44.0), (64.0, 44.0))
_HOLE_R = 8.5
_BORE = (-22.0, 0.0, 25.0)
_SLOT = ((30.0, 10.0), (62.0, 10.0), 7.0)
_CENTRE = ((PLATE_W / 2 + _PAD) * _FINE, (PLATE_H / 2 + _PAD) * _FINE)
_CANVAS_HW = (int((PLATE_H + 2 * _PAD) * _FINE), int((PLATE_W + 2 * _PAD) * _FINE))

_GRID_X = np.arange(_CANVAS_HW[1], dtype=np.float32)[None, :]
_GRID_Y = np.arange(_CANVAS_HW[0], dtype=np.float32)[:, None]


def _at(x: float, y: float) -> tuple[int, int]:
    """A point of the plate (pixels from its centre) on the fine canvas."""
    return round(_CENTRE[0] + x * _FINE), round(_CENTRE[1] + y * _FINE)


def _disc(x: float, y: float, radius: float) -> Pixels:
    canvas = np.zeros(_CANVAS_HW, np.uint8)
    cv2.circle(canvas, _at(x, y), round(radius * _FINE), 255, -1, cv2.LINE_AA)
    return canvas


def _capsule() -> Pixels:
    canvas = np.zeros(_CANVAS_HW, np.uint8)
    cv2.line(canvas, _at(*_SLOT[0]), _at(*_SLOT[1]), 255, round(2 * _SLOT[2] * _FINE), cv2.LINE_AA)
    return canvas


def _outline() -> Pixels:
    canvas = np.zeros(_CANVAS_HW, np.uint8)
    half_w, half_h, radius = PLATE_W / 2, PLATE_H / 2, _RADIUS
    cv2.rectangle(canvas, _at(-half_w + radius, -half_h), _at(half_w - radius, half_h), 255, -1)
    cv2.rectangle(canvas, _at(-half_w, -half_h + radius), _at(half_w, half_h - radius), 255, -1)
    for sign_x in (-1, 1):
        for sign_y in (-1, 1):
            centre = _at(sign_x * (half_w - radius), sign_y * (half_h - radius))
            cv2.circle(canvas, centre, round(radius * _FINE), 255, -1, cv2.LINE_AA)
    return canvas


def _edge_light(shape: Pixels, width_px: float, inward: bool) -> Float:
    """Light of a chamfer along a shape's edge, from above left: about -1 to 1, float32 on the canvas."""
    inside = shape if inward else cv2.bitwise_not(shape)
    distance = cv2.distanceTransform(np.asarray(inside, np.uint8), cv2.DIST_L2, 5)
    smooth = cv2.GaussianBlur(distance, (0, 0), 1.5)
    slope_x = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    band = np.clip(1.25 - distance / (width_px * _FINE), 0, 1) * (distance > 0)
    return np.asarray((0.6 * slope_x + 0.8 * slope_y) * band, dtype=np.float32)


class _Blank(NamedTuple):
    """What all parts share, on the fine canvas: shading, coverage, and where the surface is (not a hole)."""

    grey: Float
    cover: Float
    surface: Float
    room: Float  # distance to the nearest edge or hole, in pixels of the canvas


def _make_blank(open_holes: tuple[bool, ...] = (True,) * 4) -> _Blank:
    outline = _outline()
    cover = (outline.astype(np.float32) / 255).astype(np.float32)
    grey: Float = np.full(_CANVAS_HW, 148, dtype=np.float32)
    grey = np.asarray(grey + 52 * _edge_light(outline, 5.5, inward=True), np.float32)
    surface: Float = cover.copy()
    holes = [_disc(x, y, _HOLE_R) for (x, y), is_open in zip(_HOLES, open_holes, strict=True) if is_open]
    for hole in [*holes, _capsule()]:
        grey, surface = _pierced(grey, surface, hole)
    seat = _disc(*_BORE)
    grey = np.asarray(grey + 40 * _edge_light(seat, 2.5, inward=False) * surface, dtype=np.float32)
    grey = np.asarray(np.where(seat > 127, grey - 16, grey), dtype=np.float32)
    grey, surface = _pierced(grey, surface, _disc(_BORE[0], _BORE[1], _BORE[2] * 0.62))
    _engrave(grey)
    room = cv2.distanceTransform((surface > 0.99).astype(np.uint8), cv2.DIST_L2, 3)
    soft = cv2.GaussianBlur(grey, (0, 0), 1.0)
    return _Blank(np.asarray(soft, np.float32), cover, surface, np.asarray(room, np.float32))


def _pierced(grey: Float, surface: Float, hole: Pixels) -> tuple[Float, Float]:
    """A through hole: a lit chamfer around it, darkness with a faint lower wall in it."""
    grey = grey + 46 * _edge_light(hole, 1.8, inward=False) * surface
    depth = hole.astype(np.float32) / 255
    wall = np.clip(-_edge_light(hole, 4.0, inward=True), 0, 1)
    left = 1 - depth
    return (grey * left + (30 + 34 * wall) * depth).astype(np.float32), (surface * left).astype(np.float32)


def _engrave(grey: Float) -> None:
    text, font, size = "FL-7", cv2.FONT_HERSHEY_SIMPLEX, 0.42 * _FINE
    x, y = _at(24, -14)
    for shift, step in ((1, 26.0), (0, -46.0)):
        mark = np.zeros(grey.shape, np.uint8)
        cv2.putText(mark, text, (x + shift, y + shift), font, size, 255, 2, cv2.LINE_AA)
        grey += step * mark.astype(np.float32) / 255


_blanks: dict[int, _Blank] = {}


def _blank(filled: int = -1) -> _Blank:
    """The shared plate, with hole ``filled`` never drilled (-1: all drilled); made once."""
    if filled not in _blanks:
        _blanks[filled] = _make_blank(tuple(i != filled for i in range(4)))
    return _blanks[filled]


def _draw_part(seed: int, index: int, defect: str, again: int = 0, defect_px: float | None = None) -> Sprite:
    """Picture of one part: brushed metal over the shared plate, the defect, then turned, sized and lit."""
    rng, pose = np.random.default_rng([seed, index, 3]), _pose(seed, index, again)
    filled = int(rng.integers(0, 4))
    blank = _blank(filled if defect == "missing_hole" else -1)
    grey = blank.grey + _brushed(rng) * blank.surface
    cover, mask = blank.cover, np.zeros(_CANVAS_HW, np.uint8)
    if defect == "missing_hole":
        mask = _disc(*_HOLES[filled], _HOLE_R)
    elif defect_px is not None:
        grey, cover, mask = _to_size(DEFECTS[defect], grey, blank, (seed, index), pose, defect_px)
    elif defect != "good":
        grey, cover, mask = DEFECTS[defect](rng, grey, blank, 1.0)
    return _posed(grey, cover, mask, pose)


def _to_size(
    defect: Defect, grey: Float, blank: _Blank, key: tuple[int, int], pose: dict[str, float], wanted_px: float
) -> tuple[Float, Float, Pixels]:
    """The defect scaled until its mask, turned as the part will be, has the extent; elsewhere where it never has."""
    for place in range(_PLACES):
        scale = 1.0
        for attempt in range(_TRIES):
            try:
                drawn = defect(np.random.default_rng([*key, 4, place]), grey, blank, scale)
            except _NoRoomError:
                break
            found_px = extent_px(_posed_mask(drawn[2], pose) > 0)
            if abs(found_px - wanted_px) <= EXTENT_OFF_PX:
                return drawn
            scale *= (wanted_px / max(found_px, 0.5)) ** (1.0 if attempt < 3 else 0.7)  # with less, once it swings
    raise ConfigError(f"a defect of {wanted_px:g} px finds no place on part {key[1]}, or is too small to be drawn")


def _brushed(rng: np.random.Generator) -> Float:
    """Brushing marks along x, and slow clouds: float32 on the canvas, about +-12 grey levels."""
    height, width = _CANVAS_HW
    rows = rng.normal(0, 1, (height, width // 16 + 2)).astype(np.float32)
    marks = cv2.resize(rows, (width, height), interpolation=cv2.INTER_LINEAR)
    fine = cv2.GaussianBlur(marks, (0, 0), sigmaX=3, sigmaY=0.7) * 7.0
    clouds = cv2.resize(rng.normal(0, 3.0, (6, 8)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine + clouds, dtype=np.float32)


def _posed(grey: Float, cover: Float, mask: Pixels, pose: dict[str, float]) -> Sprite:
    """Turn and shrink the fine canvas to the box of the plate in the frame."""
    width, height = _turned_size(pose)
    shade, covered = (_turned(layer, pose) for layer in (cv2.blur(grey, (2, 2)), cv2.blur(cover, (2, 2))))
    x, y = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    lit = shade * (pose["gain"] * (1 + pose["tilt_x"] * x + pose["tilt_y"] * y))
    return Sprite(lit.astype(np.float32), covered, _posed_mask(mask, pose))


def _posed_mask(mask: Pixels, pose: dict[str, float]) -> Pixels:
    return np.where(_turned(mask.astype(np.float32), pose) > 100, 255, 0).astype(np.uint8)


def _turned(layer: Any, pose: dict[str, float]) -> Float:
    width, height = _turned_size(pose)
    matrix = cv2.getRotationMatrix2D(_CENTRE, pose["turn"], pose["scale"] / _FINE)
    matrix[0, 2] += width / 2 - _CENTRE[0] - 0.5 / _FINE
    matrix[1, 2] += height / 2 - _CENTRE[1] - 0.5 / _FINE
    return np.asarray(cv2.warpAffine(layer, matrix, (width, height), flags=cv2.INTER_LINEAR), np.float32)


# Defects: each takes (rng, grey, blank, scale) and returns grey, coverage and the exact mask on the fine canvas -------

Defect = Callable[[np.random.Generator, Float, _Blank, float], tuple[Float, Float, Pixels]]


class _NoRoomError(Exception):
    """Nowhere on the plate is there so much room."""


def _spot(rng: np.random.Generator, blank: _Blank, room_px: float) -> tuple[int, int]:
    """A point of the surface with ``room_px`` of plate around it that is no hole, on the fine canvas."""
    if room_px * _FINE >= float(blank.room.max()):
        raise _NoRoomError
    while True:
        y, x = (int(rng.integers(0, side)) for side in _CANVAS_HW)
        if blank.room[y, x] > room_px * _FINE:
            return x, y


def _scratch(rng: np.random.Generator, grey: Float, blank: _Blank, scale: float) -> tuple[Float, Float, Pixels]:
    x, y = _spot(rng, blank, 6)
    length, heading = rng.uniform(38, 95) * _FINE * scale, rng.uniform(0, 2 * np.pi)
    bend = rng.uniform(-0.5, 0.5)
    steps = np.linspace(-0.5, 0.5, 24)
    path_x = x + length * steps * np.cos(heading + bend * steps)
    path_y = y + length * steps * np.sin(heading + bend * steps)
    points = np.stack([path_x, path_y], axis=1).round().astype(np.int32)
    line = np.zeros(_CANVAS_HW, np.uint8)
    cv2.polylines(line, [points], False, 255, int(rng.integers(3, 5)), cv2.LINE_AA)
    line = np.asarray(np.where(blank.surface > 0.5, line, 0), dtype=np.uint8)
    step = float(rng.choice([-1, 1]) * rng.uniform(48, 80))
    return (grey + step * line.astype(np.float32) / 255).astype(np.float32), blank.cover, line


def _dent(rng: np.random.Generator, grey: Float, blank: _Blank, scale: float) -> tuple[Float, Float, Pixels]:
    radius = float(rng.uniform(5, 11)) * _FINE * scale
    x, y = _spot(rng, blank, radius / _FINE + 1)
    across, down = (_GRID_X - x) / radius, (_GRID_Y - y) / (radius * float(rng.uniform(0.75, 1.0)))
    bowl = np.exp(-2.2 * (across**2 + down**2))
    shade = -150 * (0.6 * across + 0.8 * down) * bowl - 34 * bowl
    mask = np.where(across**2 + down**2 < 1.0, 255, 0).astype(np.uint8)
    return (grey + shade * blank.surface).astype(np.float32), blank.cover, mask


def _chip(rng: np.random.Generator, grey: Float, blank: _Blank, scale: float) -> tuple[Float, Float, Pixels]:
    """A bite out of an edge, away from the corners so that the plate's box stays what it was."""
    along, depth = float(rng.uniform(9, 17)) * scale, float(rng.uniform(7, 13)) * scale
    side = int(rng.integers(0, 4))
    run = float(rng.uniform(-0.55, 0.55))
    half_w, half_h = PLATE_W / 2, PLATE_H / 2
    sides = ((run * half_w, -half_h), (half_w, run * half_h), (run * half_w, half_h), (-half_w, run * half_h))
    axes = (along, depth) if side in (0, 2) else (depth, along)
    angles = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    rough = 1 + rng.normal(0, 0.12, len(angles))
    origin = np.array(_at(*sides[side]), np.float64)

    def bite(share: float) -> Pixels:
        ring = np.stack([np.cos(angles) * axes[0], np.sin(angles) * axes[1]], axis=1) * rough[:, None] * share * _FINE
        canvas = np.zeros(_CANVAS_HW, np.uint8)
        cv2.fillPoly(canvas, [(origin + ring).round().astype(np.int32)], 255, cv2.LINE_AA)
        return canvas

    gone, broken = bite(0.75).astype(np.float32) / 255, bite(1.0)
    facet = broken.astype(np.float32) / 255
    facets = 92 + cv2.GaussianBlur(rng.normal(0, 1, _CANVAS_HW).astype(np.float32), (0, 0), 2.0) * 130
    worn = grey * (1 - facet) + facets * facet
    mask = np.asarray(np.where(blank.cover > 0.5, broken, 0), dtype=np.uint8)
    return worn.astype(np.float32), (blank.cover * (1 - gone)).astype(np.float32), mask


def _stain(rng: np.random.Generator, grey: Float, blank: _Blank, scale: float) -> tuple[Float, Float, Pixels]:
    x, y = _spot(rng, blank, 8)
    radius = float(rng.uniform(11, 22)) * _FINE * scale
    blur = cv2.resize(rng.normal(0, 0.33, (9, 11)).astype(np.float32), _CANVAS_HW[::-1], interpolation=cv2.INTER_CUBIC)
    blur = np.asarray(blur - blur[y, x], np.float32)
    field = np.hypot((_GRID_X - x) / radius, (_GRID_Y - y) / radius) + blur
    depth = np.clip((1.0 - field) * 4, 0, 1) * blank.surface
    rim = np.exp(-(((field - 0.9) / 0.12) ** 2)) * blank.surface
    share = float(rng.uniform(0.2, 0.32))
    stained = grey * (1 - share * depth) - 8 * rim
    return stained.astype(np.float32), blank.cover, np.where(depth > 0.4, 255, 0).astype(np.uint8)


def _crack(rng: np.random.Generator, grey: Float, blank: _Blank, scale: float) -> tuple[Float, Float, Pixels]:
    steps = int(rng.integers(11, 20))
    for _ in range(20):  # until enough of it lies on the plate
        line = np.zeros(_CANVAS_HW, np.uint8)
        _walk(rng, line, _spot(rng, blank, 5), float(rng.uniform(0, 2 * np.pi)), steps, 3, scale)
        line = np.asarray(np.where(blank.surface > 0.5, line, 0), dtype=np.uint8)
        if np.count_nonzero(line) > 20 * steps * _FINE * scale:
            break
    dark = cv2.GaussianBlur(line.astype(np.float32) / 255, (0, 0), 0.8)
    return (grey - 88 * dark).astype(np.float32), blank.cover, line


def _walk(
    rng: np.random.Generator,
    line: Pixels,
    start: tuple[float, float],
    heading: float,
    steps: int,
    thick: int,
    scale: float,
) -> None:
    """A jagged line that now and then forks, drawn in place."""
    x, y = start
    for step in range(steps):
        heading += float(rng.normal(0, 0.42))
        stride = float(rng.uniform(3.0, 6.0)) * _FINE * scale
        next_x, next_y = x + stride * np.cos(heading), y + stride * np.sin(heading)
        cv2.line(line, (round(x), round(y)), (round(next_x), round(next_y)), 255, thick, cv2.LINE_AA)
        if thick > 2 and step > 3 and rng.random() < 0.12:
            _walk(rng, line, (next_x, next_y), heading + float(rng.choice([-0.9, 0.9])), steps // 3, 2, scale)
        x, y = next_x, next_y


def _undrilled(rng: np.random.Generator, grey: Float, blank: _Blank, scale: float) -> tuple[Float, Float, Pixels]:
    raise AssertionError("a missing hole is a plate of its own, see _draw_part")  # pragma: no cover


DEFECTS: dict[str, Defect] = {
    "scratch": _scratch,
    "dent": _dent,
    "missing_hole": _undrilled,
    "chip": _chip,
    "stain": _stain,
    "crack": _crack,
}
SIZED = tuple(kind for kind in DEFECTS if kind != "missing_hole")
"""Kinds that can be drawn to a size; a hole is drilled or it is not."""


def line_from(options: dict[str, Any]) -> SyntheticLine:
    """A line from the options of its URL (all text); raises ConfigError naming the option that is wrong."""
    kinds: dict[str, Callable[[str], Any]] = {
        "seed": int,
        "parts": int,
        "fps": float,
        "defects": float,
        "speed": int,
        "repeat": int,
        "colour": lambda text: {"0": False, "1": True}[text],
    }
    values = {}
    for name, text in options.items():
        if name not in kinds:
            raise ConfigError(f"synthetic line: unknown option {name!r}; there are: {', '.join(kinds)}")
        try:
            values[name] = kinds[name](text)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"synthetic line: {name}={text!r} cannot be read as a number") from error
    return SyntheticLine(**values)
