"""The examination of a data folder as one self-contained HTML page, pictures and histograms in it (before hop 1)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from contract.errors import ImageError
from contract.images import read_image
from training.data_check import Examination, Twin
from training.data_findings import Finding

PAIRS = 12
PICTURES = 6
SIDE = 240
WIDTH, HEIGHT, RIM, BINS = 720, 200, 26, 40
COLOURS = ("#2b6cb0", "#2f855a", "#c05621", "#6b46c1", "#b83280", "#4a5568", "#975a16", "#285e61")

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2329; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2rem }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #d9dee3 }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums }}
svg {{ width: 100%; height: auto }} svg text {{ font: 12px system-ui, sans-serif; fill: #1d2329 }}
section {{ border-left: 5px solid #56616b; padding: .3rem .9rem; margin: .8rem 0; overflow-wrap: anywhere }}
section p {{ margin: .2rem 0 }}
.error {{ border-color: #9b2c2c; background: #fdf0f0 }} .warning {{ border-color: #b7791f; background: #fff8e6 }}
.note {{ border-color: #2b6cb0; background: #f2f7fc }}
.quiet, figcaption {{ color: #56616b; font-size: .85rem }}
figure {{ display: inline-block; margin: .4rem .8rem .4rem 0; vertical-align: top; max-width: 100% }}
figure img {{ max-height: 240px; margin-right: 2px }}
</style>
</head>
<body>
"""


def page(found: Examination) -> str:
    """The whole page; pictures are scaled down to 240 px."""
    title = f"Data check of {found.root.resolve().name}"
    counts = ", ".join(f"{escape(label)} {count}" for label, count in found.counts.items())
    parts = [
        HEAD.format(title=escape(title)),
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{counts}. Parts: {escape(found.grouping)}.</p>',
        *(_finding(found.root, finding) for finding in found.findings),
        _pairs(found.root, "One part in test and in train", found.twins, "test", "train"),
        _pairs(found.root, "One part counted as two in train", found.own_twins, "train", "train"),
        _baselines(found),
        "<h2>Mean brightness</h2>",
        histogram(found.light, (0.0, 255.0), "mean level of an image"),
    ]
    if found.likeness:
        parts += [
            "<h2>Likeness of each test image to its nearest training image</h2>",
            "<p>Less what all images have in common. A heap near 1 is parts that train holds too.</p>",
            histogram({"test": found.likeness}, (0.0, 1.0), "cosine"),
        ]
    return "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"


def _finding(root: Path, finding: Finding) -> str:
    way_out = f"<p>&rarr; {escape(finding.way_out)}</p>" if finding.way_out else ""
    listed = ""
    if finding.files:
        names = "".join(f"<li>{escape(name)}</li>" for name in finding.files)
        listed = f'<details class="quiet"><summary>{len(finding.files)} file(s)</summary><ul>{names}</ul></details>'
    pictures = ""
    if finding.code.startswith(("mask", "copies", "aspect", "channels", "clipped", "orientation")):
        pictures = "".join(_figure([root / name], name) for name in finding.files[:PICTURES])
    return (
        f'<section class="{finding.level}"><p><b>{finding.level}</b> {escape(finding.what)}</p>'
        f"{way_out}{pictures}{listed}</section>"
    )


def _pairs(root: Path, title: str, twins: Sequence[Twin], left: str, right: str) -> str:
    if not twins:
        return ""
    figures = []
    for twin in twins[:PAIRS]:
        names = [path.relative_to(root).as_posix() for path in (twin.first, twin.second)]
        turned = f"; the first {twin.turned}" if twin.turned else ""
        caption = f"{names[0]} | {names[1]}: likeness {twin.likeness:.2f}, texture {twin.texture:.2f}{turned}"
        figures.append(_figure([twin.first, twin.second], caption))
    more = f'<p class="quiet">The surest {PAIRS} of {len(twins)}.</p>' if len(twins) > PAIRS else ""
    return f"<h2>{escape(title)}</h2><p>Left {left}, right {right}.</p>{''.join(figures)}{more}"


def _figure(paths: Sequence[Path], caption: str) -> str:
    images = "".join(_image(path) for path in paths)
    return f"<figure>{images}<figcaption>{escape(caption)}</figcaption></figure>" if images else ""


def _image(path: Path) -> str:
    """An ``img`` with the picture in it; empty where it cannot be read."""
    try:
        pixels = read_image(path, 3)
    except ImageError:
        return ""
    factor = min(1.0, SIDE / max(pixels.shape[:2]))
    size = tuple(max(1, round(length * factor)) for length in (pixels.shape[1], pixels.shape[0]))
    small = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    text = base64.b64encode(data.tobytes()).decode()
    return f'<img alt="{escape(path.name, quote=True)}" src="data:image/jpeg;base64,{text}">'


def _baselines(found: Examination) -> str:
    if not found.baselines:
        return ""
    classes = list(found.baselines[0].classes)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", "all", *classes))
    rows = ""
    for row in found.baselines:
        figures = [row.overall, *(row.classes[name] for name in classes)]
        cells = "".join(f'<td class="n">{figure:.3f}</td>' for figure in figures)
        rows += f"<tr><td>{escape(row.name)}{' *' if row.free else ''}</td>{cells}</tr>"
    return (
        "<h2>What needs no model</h2><p>Image AUROC on the test images; * the better of both directions. A model must "
        "beat it. These figures look at test labels: choose nothing by them.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def histogram(series: Mapping[str, Sequence[float]], span: tuple[float, float], axis: str) -> str:
    """SVG of one histogram a series over ``span``, each as shares of its own count."""
    low, high = span
    edges = np.linspace(low, high, BINS + 1)
    shares = {
        name: np.histogram(np.clip(values, low, high), edges)[0] / len(values)
        for name, values in series.items()
        if len(values)
    }
    top = max((float(share.max()) for share in shares.values()), default=1.0)
    base, room, width = HEIGHT - RIM, HEIGHT - 2 * RIM, WIDTH / BINS
    parts = []
    for index, (name, share) in enumerate(shares.items()):
        colour = COLOURS[index % len(COLOURS)]
        bars = "".join(
            f'<rect x="{at * width:.1f}" y="{base - room * value / top:.1f}" width="{width - 1:.1f}" '
            f'height="{room * value / top:.1f}"/>'
            for at, value in enumerate(share)
            if value > 0
        )
        legend = f"{escape(name)} ({len(series[name])})"
        parts.append(f'<g fill="{colour}" fill-opacity="0.5">{bars}</g>')
        parts.append(f'<text x="{WIDTH}" y="{14 + 15 * index}" text-anchor="end" style="fill:{colour}">{legend}</text>')
    parts.append(f'<line x1="0" y1="{base}" x2="{WIDTH}" y2="{base}" stroke="#56616b"/>')
    parts.append(f'<text x="0" y="{HEIGHT - 8}">{low:g}</text>')
    parts.append(f'<text x="{WIDTH}" y="{HEIGHT - 8}" text-anchor="end">{high:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axis)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axis)}">{"".join(parts)}</svg>'
