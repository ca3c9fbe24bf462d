"""Charts as SVG, drawn here: no script, no library; colours come from the page's style (hop 11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from plugin.control_chart import Cause, Chart

WIDTH, HEIGHT = 960, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 12, 40
INNER_W, INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MAX_LABELS = 8
LEAST_POWER, MOST_POWER = -8, 2
SMALL_W, SMALL_H, SMALL_LEFT = 320, 96, 34
MOST_SHOWN = 1e15
"""No axis goes further; what an event says can be anything."""


class Bar(NamedTuple):
    """A bar's label and its parts from below: (class of the style, amount)."""

    label: str
    parts: list[tuple[str, float]]


def stacked(bars: Sequence[Bar], title: str) -> Markup:
    """Amounts over each other, a bar a label."""
    top = _count_ceiling(max((sum(n for _, n in bar.parts) for bar in bars), default=0.0))
    width = INNER_W / max(len(bars), 1)
    drawn = []
    for i, bar in enumerate(bars):
        below = 0.0
        for name, n in bar.parts:
            if n:
                drawn.append(
                    _rect(
                        name,
                        LEFT + (i + 0.5) * width - _wide(width) / 2,
                        _y(below + n, top),
                        _wide(width),
                        INNER_H * n / top,
                    )
                )
                below += n
    return _svg(title, [*_axis(top, percent=False), *drawn, *_labels([bar.label for bar in bars], width)])


def control(labels: Sequence[str], chart: Chart, title: str) -> Markup:
    """Shares with their limits; a point outside and one of a run are drawn otherwise, each in a shape of its own."""
    points = chart.points
    top = _ceiling(max([point.share for point in points] + [point.high or 0.0 for point in points], default=0.0))
    width = INNER_W / max(len(points), 1)
    xs = [LEFT + (i + 0.5) * width for i in range(len(points))]
    drawn = list(_axis(top, percent=True))
    for name, values in (("limit", [point.high for point in points]), ("limit", [point.low for point in points])):
        drawn.append(_steps(name, xs, width, [_y(value or 0.0, top) for value in values]))
    if chart.centre is not None:
        drawn.append(_steps("centre", xs, width, [_y(chart.centre, top)] * len(xs)))
    line = " ".join(f"{x:.1f},{_y(point.share, top):.1f}" for x, point in zip(xs, points, strict=True))
    drawn.append(Markup('<polyline class="line" points="{}"/>').format(line))
    for x, point in zip(xs, points, strict=True):
        drawn.append(_mark(x, _y(point.share, top), point.outside, point.run))
    return _svg(title, [*drawn, *_labels(labels, width)])


def pareto_chart(causes: Sequence[Cause], title: str) -> Markup:
    """Bars from the most frequent on, and the line of what they add up to."""
    top = _count_ceiling(max((cause.n for cause in causes), default=0))
    width = INNER_W / max(len(causes), 1)
    bars = [
        _rect(
            "bar", LEFT + (i + 0.5) * width - _wide(width) / 2, _y(cause.n, top), _wide(width), INNER_H * cause.n / top
        )
        for i, cause in enumerate(causes)
    ]
    spots = [(LEFT + (i + 0.5) * width, _y(cause.cumulative, 1.0)) for i, cause in enumerate(causes)]
    line = Markup('<polyline class="line" points="{}"/>').format(" ".join(f"{x:.1f},{y:.1f}" for x, y in spots))
    marks = [_mark(x, y, outside=False, run=False) for x, y in spots]
    return _svg(
        title, [*_axis(top, percent=False), *bars, line, *marks, *_labels([each.name for each in causes], width)]
    )


def evidence(
    labels: Sequence[str], lines: Sequence[tuple[str, Sequence[float | None]]], title: str, alarm: str
) -> Markup:
    """Evidence as powers of ten, of which the alarm line is 1; what lies far below it is drawn at the bottom."""
    width = INNER_W / max(len(labels), 1)
    drawn = []
    for power in range(LEAST_POWER, MOST_POWER + 1, 2):
        y = _power(power)
        grid = Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>')
        drawn.append(grid.format(LEFT, y, WIDTH - RIGHT, y))
        said = "1" if power == 0 else f"1e{power}"
        drawn.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, said))
    y = _power(0)
    drawn.append(Markup('<polyline class="limit" points="{},{:.1f} {},{:.1f}"/>').format(LEFT, y, WIDTH - RIGHT, y))
    drawn.append(Markup('<text x="{}" y="{:.1f}">{}</text>').format(LEFT + 6, y - 5, alarm))
    for name, values in lines:
        spots = [(LEFT + (i + 0.5) * width, value) for i, value in enumerate(values) if value is not None]
        line = " ".join(f"{x:.1f},{_power(value):.1f}" for x, value in spots)
        drawn.append(Markup('<polyline class="test {}" points="{}"/>').format(name, line))
        drawn += [_mark(x, _power(value), value >= 0, run=False) for x, value in spots if value >= 0]
        if len(spots) == 1:
            drawn.append(_mark(spots[0][0], _power(spots[0][1]), outside=False, run=False))
    return _svg(title, [*drawn, *_labels(labels, width)])


def band(values: Sequence[float | None], title: str) -> Markup:
    """One measure over time, in spreads from its usual value; the band is one spread either way. A small chart."""
    most = max([3.0, *(abs(value) for value in values if value is not None)])
    top = _ceiling(most)

    def at(value: float) -> float:
        return SMALL_H * (0.5 - 0.46 * min(max(value / top, -1.0), 1.0))

    width = (SMALL_W - SMALL_LEFT - 4) / max(len(values), 1)
    spots = [(SMALL_LEFT + (i + 0.5) * width, value) for i, value in enumerate(values) if value is not None]
    line = " ".join(f"{x:.1f},{at(value):.1f}" for x, value in spots)
    text = Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:+g}</text>')
    drawn = [
        _rect("usual", SMALL_LEFT, at(1), SMALL_W - SMALL_LEFT - 4, at(-1) - at(1)),
        Markup('<polyline class="centre" points="{},{:.1f} {},{:.1f}"/>').format(SMALL_LEFT, at(0), SMALL_W - 4, at(0)),
        text.format(SMALL_LEFT - 4, at(top) + 8, top),
        text.format(SMALL_LEFT - 4, at(-top) + 2, -top),
        Markup('<polyline class="line" points="{}"/>').format(line),
    ]
    if spots:
        drawn.append(_mark(spots[-1][0], at(spots[-1][1]), outside=False, run=False))
    return _svg(title, drawn, SMALL_W, SMALL_H)


def _power(value: float) -> float:
    """Where a power of ten lies."""
    inside = min(max(value, LEAST_POWER), MOST_POWER)
    return TOP + INNER_H * (MOST_POWER - inside) / (MOST_POWER - LEAST_POWER)


def _svg(title: str, drawn: Sequence[Markup], width: int = WIDTH, height: int = HEIGHT) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)
    return head + Markup("").join(drawn) + Markup("</svg>")


def _wide(width: float) -> float:
    """A bar's width: a few bars are no blocks."""
    return min(0.86 * width, 90.0)


def _rect(name: str, x: float, y: float, width: float, height: float) -> Markup:
    shape = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    return shape.format(name, x, y, width, height)


def _mark(x: float, y: float, outside: bool, run: bool) -> Markup:
    if outside:
        return Markup('<rect class="outside" x="{:.1f}" y="{:.1f}" width="10" height="10"/>').format(x - 5, y - 5)
    if run:
        corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y + 5:.1f} {x - 6:.1f},{y + 5:.1f}"
        return Markup('<polygon class="run" points="{}"/>').format(corners)
    return Markup('<circle class="point" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x, y)


def _steps(name: str, xs: Sequence[float], width: float, ys: Sequence[float]) -> Markup:
    spots = [(x + side * width / 2, y) for x, y in zip(xs, ys, strict=True) for side in (-1, 1)]
    return Markup('<polyline class="{}" points="{}"/>').format(name, " ".join(f"{x:.1f},{y:.1f}" for x, y in spots))


def _axis(top: float, percent: bool) -> list[Markup]:
    drawn = []
    for i in range(5):
        value = top * i / 4
        y = _y(value, top)
        text = f"{100 * value:.3g} %" if percent else f"{value:g}"
        drawn.append(
            Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(LEFT, y, WIDTH - RIGHT, y)
        )
        drawn.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, text))
    return drawn


def _labels(labels: Sequence[str], width: float) -> list[Markup]:
    step = -(-len(labels) // MAX_LABELS) or 1
    shape = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    return [
        shape.format(LEFT + (i + 0.5) * width, HEIGHT - BOTTOM + 18, escape(label[:18]))
        for i, label in enumerate(labels)
        if i % step == 0
    ]


def _y(value: float, top: float) -> float:
    return TOP + INNER_H * (1 - value / top)


def _count_ceiling(value: float) -> float:
    """The same for counts: four whole steps."""
    scale = 1.0
    while 40 * scale < value:
        scale *= 10
    return next(4 * scale * each for each in (1, 2, 3, 4, 5, 6, 8, 10) if 4 * scale * each >= value)


def _ceiling(value: float) -> float:
    """A round number at or above ``value`` for the axis to end at."""
    if value <= 0:
        return 1.0
    value = min(value, MOST_SHOWN)
    scale = 10.0 ** len(str(int(value))) if value >= 1 else 1.0
    while scale / 10 >= value:
        scale /= 10
    return next(scale * each for each in (0.1, 0.2, 0.4, 0.5, 0.8, 1.0) if scale * each >= value)
