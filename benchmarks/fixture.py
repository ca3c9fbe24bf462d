"""How truly and how fast the fixture finds a turned part, and whether it ever cuts out what is none.

    python -m benchmarks.fixture --json FILE

Drawn plates are laid at known places and turns, other ones than the plate whose mark is searched for. ``errors``: the
distance of the cut's middle from the truth in pixels, and the turn's in degrees, by condition. ``refused``: pictures
that show no whole part of this product, each of which has to be refused. ``defects``: parts with a defect, none of
which should be. ``speed_ms``: the median of finding and cutting on one core, in processor time; what is searched is the
whole frame, or what presence would cut out of it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import cv2
import numpy as np

from benchmarks.common import machine, parser, write
from contract.errors import FixtureError
from contract.fixture import Placer, learnt_limits, make_fixture
from contract.images import Pixels
from edge_runtime.synthetic import DEFECTS
from tests.turned import FRAME_HW, Lie, Turned, anywhere, belt

REGION = (70, 80, 180, 140)
MIDDLE = Lie(160.0, 150.0, 0.0)
CONDITIONS: dict[str, dict[str, float]] = {
    "as taught": {},
    "darker, 0.6 times": {"gain": 0.6},
    "brighter, 1.35 times": {"gain": 1.35},
    "noise of 10 grey levels": {"noise": 10.0},
    "a twentieth covered": {"covered": 0.05},
}
SIZES = {"1.3 MP": (1024, 1280), "5 MP": (1944, 2592)}
PART_OF_FRAME = 0.4  # its width


def covered(frame: Pixels, lie: Lie, share: float, random: np.random.Generator) -> Pixels:
    """A dark thing over ``share`` of the part, somewhere on it."""
    side = int(np.sqrt(share * 170 * 130))
    x, y = (int(value + random.uniform(-35, 35)) for value in (lie.x, lie.y))
    cv2.rectangle(frame, (x - side // 2, y - side // 2), (x + side // 2, y + side // 2), 25, -1)
    return frame


def errors(placer: Placer, parts: Turned, count: int, look: dict[str, float]) -> dict[str, Any]:
    """Errors over ``count`` parts, and how many were refused."""
    random, look = np.random.default_rng(7), dict(look)
    share = look.pop("covered", 0.0)
    pixels, degrees, refused = [], [], 0
    middle = np.array([REGION[2] / 2, REGION[3] / 2])
    for number in range(1, count + 1):
        lie = anywhere(random)
        frame = parts.frame(number, lie, random, **look)  # type: ignore[arg-type]
        try:
            placed = placer.place(covered(frame, lie, share, random) if share else frame)
        except FixtureError:
            refused += 1
            continue
        a, b, c, d, e, f = placed.to_picture
        turn = np.radians(lie.angle_deg)
        way = lie.scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        offset = way @ (middle + np.array([REGION[0] - 0.5 - MIDDLE.x, REGION[1] - 0.5 - MIDDLE.y]))
        found = np.array([a * middle[0] + b * middle[1] + c, d * middle[0] + e * middle[1] + f])
        pixels.append(float(np.hypot(*(found - offset - np.array([lie.x + 0.5, lie.y + 0.5])))))
        degrees.append(abs((placed.measures["fixture.angle_deg"] - lie.angle_deg + 180) % 360 - 180))
    return {"parts": count, "refused": refused, "px": spread(pixels), "deg": spread(degrees)}


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest."""
    found = np.percentile(values, (50, 95, 100)) if values else (float("nan"),) * 3
    return {name: round(float(value), 4) for name, value in zip(("median", "p95", "max"), found, strict=True)}


def refusals(placer: Placer, parts: Turned, count: int) -> dict[str, dict[str, int]]:
    """Of pictures that must be refused how many were cut out all the same."""
    random = np.random.default_rng(9)

    def empty(number: int) -> Pixels:
        return np.clip(belt(FRAME_HW, random), 0, 255).astype(np.uint8)

    def half(number: int) -> Pixels:
        frame = parts.frame(number, Lie(160, 150, float(random.uniform(-180, 180))), random)
        frame[:, 160:] = np.clip(belt(FRAME_HW, random), 0, 255).astype(np.uint8)[:, 160:]
        return frame

    def another(number: int) -> Pixels:
        frame = empty(number)
        sides = random.uniform(50, 130, 2)
        box = cv2.boxPoints(((160, 150), (float(sides[0]), float(sides[1])), float(random.uniform(0, 90))))
        cv2.fillPoly(frame, [box.astype(np.int32)], 150)
        for _ in range(3):
            x, y, radius = (int(random.uniform(low, high)) for low, high in ((120, 200), (110, 190), (5, 25)))
            cv2.circle(frame, (x, y), radius, int(random.uniform(20, 220)), -1)
        return np.asarray(cv2.GaussianBlur(frame, (3, 3), 0), np.uint8)

    def mirrored(number: int) -> Pixels:
        return np.ascontiguousarray(parts.frame(number, Lie(160, 150, 12.0), random)[:, ::-1])

    def two(number: int) -> Pixels:
        first = parts.frame(number, Lie(130, 130, float(random.uniform(-180, 180))), random, hw=(320, 560))
        second = Lie(420, 180, float(random.uniform(-180, 180)))
        return parts.frame(number + 1, second, random, hw=(320, 560), bare=first)

    kinds = {"empty belt": empty, "half a part": half, "another product": another, "its mirror image": mirrored}
    kinds |= {"two parts": two}
    found = {}
    for name, draw in kinds.items():
        cut = 0
        for number in range(1, count + 1):
            try:
                placer.place(draw(number))
                cut += 1
            except FixtureError:
                pass
        found[name] = {"pictures": count, "cut_out": cut}
    return found


def defects(placer: Placer, count: int) -> dict[str, dict[str, int]]:
    """Of parts with a defect how many are refused: they are to be rejected by their deviation instead."""
    random, found = np.random.default_rng(13), {}
    for kind in DEFECTS:
        parts, refused = Turned(parts=max(100, count + 2), kind=kind), 0
        for number in range(1, count + 1):
            try:
                placer.place(parts.frame(number, anywhere(random), random))
            except FixtureError:
                refused += 1
        found[kind] = {"pictures": count, "refused": refused}
    return found


def speed(parts: Turned, count: int) -> dict[str, dict[str, float]]:
    """Milliseconds by size of frame."""
    found = {}
    for name, hw in SIZES.items():
        size = PART_OF_FRAME * hw[1] / 170
        random = np.random.default_rng(5)
        width, height = round(178 * size), round(138 * size)
        region = ((hw[1] - width) // 2, (hw[0] - height) // 2, width, height)
        reference = parts.frame(0, Lie(hw[1] / 2, hw[0] / 2, 0.0, size), random, hw=hw)
        whole, narrow = make_fixture(reference, region), make_fixture(reference, region, max_angle_deg=5)
        small = (region[0] + width // 2, region[1] + height // 4, width // 4, height // 4)  # the engraving
        mark = make_fixture(reference, region, mark=small, max_angle_deg=180)
        times: dict[str, list[float]] = {}
        for number in range(1, count + 1):
            room = 0.62 * np.hypot(width, height)
            lie = anywhere(random, hw, room)._replace(scale=size)
            frame = parts.frame(number, lie, random, hw=hw)
            straight = parts.frame(number, lie._replace(angle_deg=2.0), random, hw=hw)
            reach = round(room)
            x, y = round(lie.x), round(lie.y)
            near = np.ascontiguousarray(frame[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach])
            for what, placer, picture in (
                ("whole frame", whole, frame),
                ("what presence cuts", whole, near),
                ("whole frame, turned by at most 5 degrees", narrow, straight),
                ("whole frame, a mark of a sixteenth of the part", mark, frame),
            ):
                start = time.process_time()
                try:
                    placer.place(picture)
                except FixtureError:
                    continue
                times.setdefault(what, []).append(1e3 * (time.process_time() - start))
        found[name] = {what: round(statistics.median(each), 2) for what, each in times.items()}
    return found


def main() -> None:
    """Measure and write."""
    options = parser(__doc__)
    options.add_argument("--parts", type=int, default=200, help="of each condition")
    options.add_argument("--rounds", type=int, default=15, help="of each size of frame")
    asked = options.parse_args()
    before = machine()
    cv2.setNumThreads(1)
    parts, random = Turned(parts=max(100, asked.parts + 2)), np.random.default_rng(1)
    first = make_fixture(parts.frame(0, MIDDLE, random), REGION)
    good = [first.place(parts.frame(number, anywhere(random), random)).measures for number in range(1, 60)]
    placer = Placer(learnt_limits(first.fixture, good), first.mark)
    figures = {
        "least_score": placer.fixture.least_score,
        "least_lead": placer.fixture.least_lead,
        "errors": {name: errors(placer, parts, asked.parts, look) for name, look in CONDITIONS.items()},
        "refused": refusals(placer, parts, asked.parts),
        "defects": defects(placer, asked.parts),
        "speed_ms": speed(parts, asked.rounds),
    }
    write(asked.json, figures, before)


if __name__ == "__main__":
    main()
