"""Self-contained HTML pages of a calibration and an evaluation: inline SVG, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from calibration.methods import METHOD, METHODS, Choice, Rates, promise
from contract.bundle import Manifest
from contract.images import Pixels
from contract.places import Located
from contract.recipe import QualityBounds, Thresholds, Zone
from contract.stats import Rate, rate
from edge_runtime.places_picture import picture_of_places

EXCHANGEABLE = (
    "Promise and rates hold only while the parts on the line are exchangeable with the calibration set: same product, "
    "material, camera, lens, light and fixture. After a change of any of them, calibrate again."
)
WIDTH, HEIGHT, RIM = 720, 220, 28
BINS = 40
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568", "#975a16", "#285e61")
MARK_COLOUR = "#9b2c2c"


def page(title: str, body: str) -> str:
    """A whole page; ``body`` is HTML, ``title`` is text."""
    template = Template((files("calibration") / "templates" / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; numbers stand to the right."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, float | int):
        return f'<td class="n">{value:.4g}</td>' if isinstance(value, float) else f'<td class="n">{value}</td>'
    return f"<td>{escape('—' if value is None else str(value))}</td>"


def histogram(series: Mapping[str, Sequence[float]], marks: Mapping[str, float]) -> str:
    """SVG of one histogram a series, each as shares of its own count, with named vertical lines."""
    finite = {name: np.array([v for v in values if math.isfinite(v)]) for name, values in series.items()}
    everything = np.concatenate([*finite.values(), np.array(list(marks.values()))])
    if not len(everything):
        return "<p>Nothing was scored.</p>"
    low, high = float(everything.min()), float(everything.max())
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, BINS + 1)
    shares = {name: np.histogram(v, edges)[0] / max(1, len(v)) for name, v in finite.items()}
    top = max((float(share.max()) for share in shares.values()), default=1.0) or 1.0
    parts = [
        _bars(share, top, COLOURS[index % len(COLOURS)], f"{name} ({len(finite[name])})", index)
        for index, (name, share) in enumerate(shares.items())
    ]
    parts += [_mark(name, (value - low) / (high - low), row) for row, (name, value) in enumerate(marks.items())]
    base = HEIGHT - RIM
    parts.append(f'<line x1="0" y1="{base}" x2="{WIDTH}" y2="{base}" stroke="#56616b"/>')
    parts.append(f'<text x="0" y="{HEIGHT - 8}">{low:.4g}</text>')
    parts.append(f'<text x="{WIDTH}" y="{HEIGHT - 8}" text-anchor="end">{high:.4g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">score</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of scores">{"".join(parts)}</svg>'


def _bars(share: np.ndarray[tuple[int, ...], np.dtype[Any]], top: float, colour: str, name: str, index: int) -> str:
    width = WIDTH / len(share)
    room = HEIGHT - 2 * RIM
    bars = "".join(
        f'<rect x="{at * width:.1f}" y="{HEIGHT - RIM - room * value / top:.1f}" width="{width - 1:.1f}" '
        f'height="{room * value / top:.1f}"/>'
        for at, value in enumerate(share)
        if value > 0
    )
    legend = f'<text x="0" y="{14 + 15 * index}" style="fill:{colour}">{escape(name)}</text>'
    return f'<g fill="{colour}" fill-opacity="0.55">{bars}</g>{legend}'


def _mark(name: str, at: float, row: int) -> str:
    x = at * WIDTH
    anchor = "start" if at < 0.7 else "end"
    return (
        f'<line x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{HEIGHT - RIM}" stroke="{MARK_COLOUR}" stroke-dasharray="5 3"/>'
        f'<text x="{x + (5 if anchor == "start" else -5):.1f}" y="{14 + 15 * row}" text-anchor="{anchor}" '
        f'style="fill:{MARK_COLOUR}">{escape(name)}</text>'
    )


def calibration_page(
    manifest: Manifest,
    thresholds: Thresholds,
    quality: QualityBounds,
    scores: Sequence[float],
    places: str | None = None,
    told: Sequence[tuple[str, str]] = (),
) -> str:
    """The page that ``flawline calibrate thresholds`` leaves in the bundle.

    ``places`` is HTML that shows masks and zones, ``told`` lines on places.
    """
    marks = {"reject above": thresholds.reject}
    if thresholds.review is not None:
        marks["review above"] = thresholds.review
    rows = [*summary(thresholds), *told]
    bounds = [
        (view, name, bound.low, bound.high) for view, named in quality.views.items() for name, bound in named.items()
    ]
    body = (
        f'<p class="quiet">Bundle {escape(manifest.id)}, model {escape(manifest.model.name)}, '
        f"trained {escape(manifest.created)}</p>"
        f'<p class="note">{EXCHANGEABLE}</p>'
        f"<h2>Scores of held-out good images</h2>{histogram({'good, held out': scores}, marks)}"
        f"<h2>Thresholds</h2>{table(('', ''), rows)}{places or ''}"
        f"<h2>Bounds of a usable picture, from {quality.samples} good images</h2>"
        f"<p>A picture outside any of them is NOT_INSPECTED, with the reason.</p>"
        f"{table(('view', 'measure', 'at least', 'at most'), bounds)}"
    )
    return page(f"Calibration of {manifest.name}", body)


def shown_places(places: Located, means: Mapping[str, Pixels]) -> str:
    """HTML: masks and zones of each view over its mean good picture, and what each of them does."""
    pictures = "".join(picture_of_places(view, picture, places) for view, picture in means.items())
    rows = [(zone.name, zone.view, zone_text(zone)) for zone in places.places.zones]
    zones = f"{table(('zone', 'view', 'limits'), rows)}" if rows else ""
    note = (
        "Red is not inspected: whatever lies there changes no verdict, since the mean good picture stands in for it. "
        if places.blanks
        else ""
    )
    return (
        f"<h2>Masks and zones, over the mean good picture</h2><p>{note}Scores are measured with masks, tolerances and "
        f"zone verdicts, so that promise and rates are of the parts so judged.</p>{pictures}{zones}"
    )


def zone_text(zone: Zone) -> str:
    """What a zone does, in words."""
    said = []
    if zone.tolerance != 1:
        said.append(f"deviations count {1 / zone.tolerance:.3g} times")
    for size, unit in ((zone.smallest_mm2, "mm²"), (zone.smallest_mm, "mm long"), (zone.smallest_px, "px")):
        if size is not None:
            said.append(f"regions from {size:g} {unit}")
    if zone.verdict is not None:
        said.append(f"one wholly above the limit makes the part {zone.verdict}")
    return "; ".join(said) or "named only"


def summary(thresholds: Thresholds) -> list[tuple[str, str]]:
    """The lines that terminal and page both show."""
    lines = [("reject above", f"{thresholds.reject:.6g}")]
    if thresholds.false_reject_rate is not None:
        lines.append(("false-reject rate asked for", f"{100 * thresholds.false_reject_rate:g} %"))
    if thresholds.expected_low is not None and thresholds.expected_high is not None:
        low, high = 100 * thresholds.expected_low, 100 * thresholds.expected_high
        by = "nine in ten calibrations" if promise_of(thresholds) else "90 %, by the held-out parts"
        lines.append((f"rate to expect ({by})", f"{low:.1f} to {high:.1f} %"))
    lines.append(("promise", promise_of(thresholds) or "none"))
    lines += [("not promised", rule.caution) for rule in METHODS.values() if thresholds.method.startswith(rule.title)]
    if thresholds.review is not None:
        lines.append(("review above", f"{thresholds.review:.6g}"))
    if thresholds.review_rate is not None:
        lines.append(("good parts flagged in all", f"{100 * thresholds.review_rate:g} %"))
    level = thresholds.region_level
    cut = f"{thresholds.map:.6g}" if level is None else f"its normal level by {level:.6g} times its spread there"
    return [
        *lines,
        ("regions where the map is above", cut),
        ("held-out good parts", f"{thresholds.groups} ({thresholds.images} images)"),
        ("method", thresholds.method),
        ("measured with", thresholds.engine),
    ]


def promise_of(thresholds: Thresholds) -> str | None:
    """The promise; bundles of before promises were written down are split-conformal by their method's name."""
    if thresholds.promise is None and thresholds.method == METHOD and thresholds.false_reject_rate is not None:
        return promise(Rates(thresholds.false_reject_rate, thresholds.review_rate), Choice())
    return thresholds.promise


METRICS = ("image_auroc", "image_ap", "f1_max", "pixel_auroc", "pixel_ap", "aupro", "aupro_005")


def rate_text(figures: Mapping[str, Any], name: str) -> str:
    """A rate of an evaluation with its interval, in words."""
    low, high = figures[f"{name}_interval"] or (None, None)
    return Rate(figures[f"{name}_hits"], figures[f"{name}_of"], figures[f"{name}_rate"], low, high).text()


def evaluation_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines that terminal and page both show of an evaluation."""
    counts = figures["counts"]
    return [
        ("test images", f"{counts['good']} good, {counts['defective']} defective ({counts['with_mask']} with a mask)"),
        *_learnt_rows(figures.get("learnt_defects")),
        *((name, number(figures[name])) for name in METRICS),
        ("good parts rejected, of those inspected", rate_text(figures, "false_reject")),
        *kept_rows(figures["kept"]),
        ("good parts to review", rate_text(figures, "review_good")),
        ("good parts not inspected", rate(figures["not_inspected_good"], counts["good"]).text()),
        ("defective parts passed (escapes), of those inspected", rate_text(figures, "escape")),
        ("defective parts to review", rate_text(figures, "review_defective")),
        ("defective parts not inspected", rate(figures["not_inspected_defective"], counts["defective"]).text()),
        ("median time per image", f"{figures['median_ms']:.2f} ms, {figures['engine']}"),
    ]


def _learnt_rows(learnt: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """That the model has seen defects, where it has: its figures are not those of one that knows good parts alone."""
    if learnt is None:
        return []
    classes = ", ".join(f"{name} {count}" for name, count in sorted(learnt["classes"].items()))
    return [
        (
            "learnt from labelled defects",
            f"{learnt['images']} ({classes}): figures of these classes say nothing of defects that nobody has seen",
        )
    ]


def kept_rows(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What calibration said of the rate of false rejects, and what the good test parts say; empty without either."""
    if found is None:
        return []
    asked = "" if found["asked"] is None else f", {100 * found['asked']:g} % asked for"
    return [
        (f"rate that calibration said to expect{asked}", _percent(found["expected"])),
        (
            f"rate on the {found['parts']} good test parts, counted as promised",
            f"{100 * found['rate']:.1f} % ({_percent(found['interval'])}): {found['says']}",
        ),
    ]


def _percent(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def interval_note(figures: Mapping[str, Any]) -> str:
    """What the intervals of an evaluation are, as HTML."""
    return (
        "<p>Intervals are 95 % Wilson intervals, as wide as the parts allow: several images of one part count as less "
        f"than as many parts. Parts: {figures['counts']['parts']} ({escape(figures['grouping'])}).</p>"
    )


def class_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a defect class, under CLASS_HEADER."""
    return [
        (
            label,
            str(found["images"]),
            *(number(found[name]) for name in ("image_auroc", "pixel_auroc", "aupro")),
            rate_text(found, "escape"),
            str(found["review_defective_hits"]),
            str(found["not_inspected_defective"]),
        )
        for label, found in figures["classes"].items()
    ]


CLASS_HEADER = (
    "class",
    "images",
    "image AUROC",
    "pixel AUROC",
    "AU-PRO",
    "passed (escapes), of those inspected",
    "to review",
    "not inspected",
)


def number(value: float | None) -> str:
    """Three digits, or a dash where the test images do not give the figure."""
    return "—" if value is None else f"{value:.3f}"


def evaluation_page(figures: Mapping[str, Any], scores: Mapping[str, Sequence[float]]) -> str:
    """The page of ``flawline calibrate evaluate --html``."""
    limits = figures["thresholds"]
    marks = {} if limits is None else {"reject above": limits["reject"]}
    if limits is not None and limits["review"] is not None:
        marks["review above"] = limits["review"]
    uncalibrated = "" if limits else '<p class="note">The bundle is not calibrated: every part is NOT_INSPECTED.</p>'
    body = (
        f'<p class="quiet">Bundle {escape(figures["bundle"])}, images {escape(figures["data"])}, '
        f"{escape(figures['when'])}</p>{uncalibrated}"
        f"<h2>Scores</h2>{histogram(scores, marks)}"
        f"<h2>Figures</h2>{evaluation_tables(figures)}"
    )
    return page("Evaluation", body)


def evaluation_tables(figures: Mapping[str, Any]) -> str:
    """The figures in all and by class, with what their intervals are."""
    return (
        f"{table(('', ''), evaluation_rows(figures))}"
        f"{interval_note(figures)}"
        f"<h3>Defect classes</h3>{table(CLASS_HEADER, class_rows(figures))}"
    )
