"""One self-contained HTML page about a training: curves, worst good tiles, data, what to do next (before hop 1)."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.pictures import png

WIDTH, HEIGHT, RIM = 720, 200, 30
LEFT = 56
COLOUR, MARK_COLOUR = "#2b6cb0", "#9b2c2c"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2329; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } th, td { text-align: left; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid #d9dee3; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #1d2329 }
figure { margin: 0 0 1rem } figure img { max-width: 100%; image-rendering: auto } figcaption { color: #56616b }
.note { background: #fff6dc; border-left: 4px solid #b7791f; padding: .6rem .9rem } .quiet { color: #56616b }
"""


class Shown(NamedTuple):
    """One tile for the page: a strip of tile, drawing and map, uint8 RGB [H, W, 3], and a line about it."""

    picture: NDArray[np.uint8]
    caption: str


def page(title: str, body: str) -> str:
    """A whole page that loads nothing; ``body`` is HTML, ``title`` is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; numbers stand to the right."""
    head = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{escape('—' if value is None else str(value))}</td>"
    return f'<td class="n">{value:.4g}</td>' if isinstance(value, float) else f'<td class="n">{value}</td>'


def curve(name: str, points: Sequence[tuple[float, float]], across: str, mark: float | None = None) -> str:
    """SVG of one curve; ``points`` are (x, y) in order, ``across`` names x, ``mark`` is an x to point out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) < 2:
        return f"<p>{escape(name)}: too few points for a curve.</p>"
    xs, ys = zip(*finite, strict=True)
    low, high = min(ys), max(ys)
    span, width = (high - low) or 1.0, (xs[-1] - xs[0]) or 1.0
    room, across_px = HEIGHT - 2 * RIM, WIDTH - LEFT

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + across_px * (x - xs[0]) / width, HEIGHT - RIM - room * (y - low) / span

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in finite))
    base = HEIGHT - RIM
    parts = [
        f'<polyline points="{line}" fill="none" stroke="{COLOUR}" stroke-width="2"/>',
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH}" y2="{base}" stroke="#56616b"/>',
        f'<text x="{LEFT}" y="14" font-weight="600">{escape(name)}</text>',
        f'<text x="{LEFT - 6}" y="{RIM + 4}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{xs[0]:.4g}</text>',
        f'<text x="{WIDTH}" y="{HEIGHT - 8}" text-anchor="end">{xs[-1]:.4g} {escape(across)}</text>',
    ]
    if mark is not None and xs[0] <= mark <= xs[-1]:
        x = at(mark, low)[0]
        parts.append(
            f'<line x1="{x:.1f}" y1="{RIM}" x2="{x:.1f}" y2="{base}" stroke="#9b2c2c" stroke-dasharray="5 3"/>'
        )
    label = escape(f"{name} over {across}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def figure(shown: Shown) -> str:
    """A picture inside the page."""
    data = base64.b64encode(png(shown.picture)).decode()
    return (
        f'<figure><img alt="tile, drawing, map" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(shown.caption)}</figcaption></figure>"
    )


def training_page(
    name: str,
    facts: Sequence[tuple[str, Any]],
    history: Sequence[Mapping[str, float]],
    best_step: int,
    worst: Sequence[Shown],
    defective: Sequence[Shown],
    advice: Sequence[str],
) -> str:
    """The page that ``flawline train`` leaves in the bundle."""
    names = [key for key in (history[-1] if history else {}) if key not in ("step", "share", "seconds")]
    names.sort(key=lambda key: key != "validation")
    curves = "".join(
        curve(
            "validation loss (dashed: the weights that were kept)" if key == "validation" else key,
            [(row["step"], row[key]) for row in history if key in row],
            "steps",
            best_step if key == "validation" else None,
        )
        for key in names
    )
    body = (
        f"<h2>What to do next</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in advice)}</ul>"
        f"<h2>Figures</h2>{table((), facts)}"
        f"<h2>Curves</h2>{curves}"
        "<h2>Good validation tiles that look least good</h2>"
        '<p class="quiet">Tile, what was drawn in its place, map. If one of them is not a good part, remove its image '
        "and train again. If all are good, they are what the model finds hardest.</p>"
        f"{''.join(map(figure, worst))}"
        "<h2>Synthetic defects on good validation tiles</h2>"
        '<p class="quiet">Drawn for this page, on the same scale of the map; how real defects do is for '
        "<code>flawline calibrate evaluate</code> to tell.</p>"
        f"{''.join(map(figure, defective))}"
    )
    return page(f"Training of {name}", body)


def few_shot_page(name: str, rows: Sequence[Mapping[str, Any]], sentence: str) -> str:
    """The page of ``flawline train --few-shot``: one row a number of good images."""
    cells = [[row["images"], row["parts"], row["validation_loss"], row["steps"], row["minutes"]] for row in rows]
    body = (
        f'<p class="note">{escape(sentence)}</p>'
        f"{table(('good images', 'parts', 'validation loss', 'steps', 'minutes'), cells)}"
        f"{curve('validation loss', [(row['images'], row['validation_loss']) for row in rows], 'good images')}"
    )
    return page(f"How many good images: {name}", body)
