"""The page of ``flawline calibrate capability``: what an auditor reads and signs (at the engineer's desk)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from calibration.capability import Capability, Detection
from calibration.pod import RATE, Bin, Pod
from calibration.repeats import NEAR, REPEATS, PartRepeats, Repeats
from calibration.report import (
    COLOURS,
    EXCHANGEABLE,
    MARK_COLOUR,
    evaluation_rows,
    evaluation_tables,
    page,
    summary,
    table,
)
from contract.event import Verdict
from contract.stats import Rate

WIDTH, HEIGHT, LEFT, RIM = 720, 260, 44, 30
POINTS = 120
DETECTION_HEADER = ("defects", "detected, of those inspected", "not inspected", "a50", "a90", "a90/95", "")
REPEAT_HEADER = (
    "part",
    "pictures",
    *(verdict.value for verdict in Verdict),
    "commonest verdict",
    "mean score",
    "standard deviation",
    "sigma from a limit",
)
REPEATABILITY = (
    "A part before the camera again and again. The standard deviation of a repeat's score is that of all parts by "
    "their degrees of freedom (repeatability of a gauge study; interval by chi-square). Sigma from a limit: from the "
    "part's mean to the nearest limit, in standard deviations of a repeat, the larger of its own and all parts'. A "
    f"part within {NEAR:g} of them gets different verdicts in time. What was not inspected has no score."
)
BIN_HEADER = ("size", "defects", "detected", "rate, 95 % interval")
SIGNED = (("measured by", "", "", ""), ("approved by", "", "", ""))
METHOD = (
    "Detection rate by size after MIL-HDBK-1823A, from hits and misses: the log-odds of a hit against the logarithm of "
    "size, along a line that rises and may bend (a smoothing spline) where the handbook's is straight. a90 is the size "
    "from which 90 % are detected; a90/95 is the size of which that can be said with 95 % confidence: the largest at "
    "which a rate of 90 % is not refuted by the ratio of likelihoods. A dash stands where the sizes tested do not "
    "allow to say. The points, and the rows below each curve, are the rates found with 95 % Wilson intervals; where "
    "they do not follow the curve, do not use it. A curve of all kinds together hides a kind that is never found: read "
    "the classes."
)


def capability_page(found: Capability) -> str:
    """The whole page, in one file that loads nothing."""
    manifest = found.bundle.manifest
    thresholds = manifest.thresholds
    assert thresholds is not None  # noqa: S101 - measure() refuses a bundle without
    engine = thresholds.engine if found.evaluation is None else found.evaluation.figures["engine"]
    body = (
        f'<p class="quiet">Bundle {escape(manifest.id)}, model {escape(manifest.model.name)}, sha256 '
        f"{escape(found.bundle.model_sha256[:16])}…, calibration {escape(str(manifest.calibration_id()))}, measured "
        f"with {escape(engine)}</p>"
        f'<p class="note">{EXCHANGEABLE}</p>'
        f"{_errors(found)}"
        f"<h2>Defects of the test images, by size</h2>{_detections(found.real, found.unit)}"
        f"<h2>Implanted defects, by size</h2>{_implanted(found)}"
        f'<p class="quiet">{METHOD}</p>'
        f"<h2>Repeats</h2>{_repeats(found)}"
        f"<h2>Limits in use</h2>{table(('', ''), summary(thresholds))}"
        f"<h2>Signed</h2>{table(('', 'name', 'date', 'signature'), SIGNED)}"
    )
    return page(f"Capability of {manifest.name}", body)


def error_rows(found: Capability) -> list[tuple[str, str]]:
    """Errors on the test images and agreement of repeats, for the terminal."""
    rows = [] if found.evaluation is None else evaluation_rows(found.evaluation.figures)
    if found.agreement is not None:
        rows.append(("parts whose pictures all get one verdict", found.agreement.parts.text()))
    return rows if found.repeats is None else [*rows, *repeats_rows(found.repeats)]


def detection_rows(found: Capability) -> list[tuple[str, ...]]:
    """One row for each kind of defect, real ones first."""
    return [_row(each, found.unit) for each in (*found.real, *found.implanted)]


def _row(each: Detection, unit: str) -> tuple[str, ...]:
    pod = each.pod
    sizes = (None, None, None) if pod is None else (pod.a50, pod.a90, pod.a90_95)
    counts = (each.name, each.detected.text(), str(each.not_inspected))
    return (*counts, *(_size(size, unit) for size in sizes), each.why or "")


def _size(size: float | None, unit: str) -> str:
    return "—" if size is None else f"{size:.3g} {unit}"


def _errors(found: Capability) -> str:
    if found.evaluation is None:
        return "<h2>Errors</h2><p>There are no test images.</p>"
    return f"<h2>Errors on the test images</h2>{evaluation_tables(found.evaluation.figures)}"


def _implanted(found: Capability) -> str:
    asked = found.implants
    if asked is None:
        return "<p>None were asked for (<code>--implant</code>).</p>"
    low, high = asked.sizes_px
    return (
        f"<p>{asked.defects} of each kind, {low:g} to {high:g} px, {asked.contrast:g} grey levels darker or lighter, "
        "one in five over the whole range and the others around the size of which 90 % were found until then, "
        f"drawn into {found.bases} good picture(s) that pass without them. They say how small a defect "
        f"<em>of this kind and contrast</em> is found; real ones differ.</p>{_detections(found.implanted, found.unit)}"
    )


def _detections(detections: Sequence[Detection], unit: str) -> str:
    if not detections:
        return "<p>No defective test image has a mask, so no size is known.</p>"
    curves = "".join(
        f"<h3>{escape(each.name)}</h3>{curve(each.pod, unit, COLOURS[index % len(COLOURS)])}"
        f"{table(BIN_HEADER, bin_rows(each.pod, unit))}"
        for index, each in enumerate(detections)
        if each.pod is not None
    )
    return table(DETECTION_HEADER, [_row(each, unit) for each in detections]) + curves


def repeats_rows(found: Repeats) -> list[tuple[str, str]]:
    """The lines that terminal and page both show of parts that were put before the camera again and again."""
    sigma, interval, camera = found.sigma, found.sigma_interval, found.camera
    distances = [distance for part in found.parts if (distance := found.distance(part)) is not None]
    spread = "—" if sigma is None or interval is None else f"{sigma:.4g} ({interval[0]:.4g} to {interval[1]:.4g})"
    return [
        (
            "repeats taken by",
            f"camera {camera['id']}, {camera['source']}, trigger {camera['trigger']}, fixture {camera['fixture']}; the "
            f"part {'lay still' if camera['lying'] else 'was put before it each time'}",
        ),
        ("repeated parts whose pictures all get one verdict", found.agree.text()),
        ("standard deviation of a repeat's score", spread),
        ("nearest part to a limit", f"{min(distances):.3g} sigma" if distances else "—"),
        (f"parts within {NEAR:g} sigma of a limit", found.near.text()),
    ]


def part_rows(found: Repeats) -> list[tuple[str, ...]]:
    """One row for each part, by REPEAT_HEADER."""
    return [_part_row(found, part) for part in found.parts]


def _part_row(found: Repeats, part: PartRepeats) -> tuple[str, ...]:
    figures = (part.mean, part.sigma, found.distance(part))
    return (
        str(part.part),
        str(part.verdicts.total()),
        *(str(part.verdicts[verdict]) for verdict in Verdict),
        part.commonest.text(),
        *("—" if value is None else f"{value:.4g}" for value in figures),
    )


def _again_and_again(found: Repeats) -> str:
    few = min(part.verdicts.total() for part in found.parts)
    note = f'<p class="note">Ten repeats are usual; some parts have {few}.</p>' if few < REPEATS else ""
    return (
        f"{table(('', ''), repeats_rows(found))}<p>{REPEATABILITY}</p>{note}{_scatter(found)}"
        f"{table(REPEAT_HEADER, part_rows(found))}"
    )


def _scatter(found: Repeats) -> str:
    """SVG of every score above its part, with the limits."""
    scores = [score for part in found.parts for score in part.scores]
    if not scores:
        return ""
    low, high = min(*scores, *found.limits), max(*scores, *found.limits)
    step = (WIDTH - LEFT - 10) / len(found.parts)

    def y(score: float) -> float:
        return RIM / 2 + (HEIGHT - 1.5 * RIM) * ((high - score) / (high - low) if high > low else 0.5)

    limits = "".join(
        f'<line x1="{LEFT}" y1="{y(limit):.1f}" x2="{WIDTH - 10}" y2="{y(limit):.1f}" stroke="{MARK_COLOUR}" '
        f'stroke-dasharray="5 3"/><text x="{LEFT - 6}" y="{y(limit) + 4:.1f}" text-anchor="end">{limit:.3g}</text>'
        for limit in found.limits
    )
    points = "".join(
        f'<circle cx="{LEFT + (at + 0.5) * step:.1f}" cy="{y(score):.1f}" r="3" fill="{COLOURS[0]}" '
        'fill-opacity="0.55"/>'
        for at, part in enumerate(found.parts)
        for score in part.scores
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="scores of the repeats of each part">{limits}'
        f'{points}<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">part 1 to {len(found.parts)}</text></svg>'
    )


def bin_rows(pod: Pod, unit: str) -> list[tuple[str, ...]]:
    """Defects and hits by size: what the curve rests on."""
    return [
        (f"{each.low:.3g} to {each.high:.3g} {unit}", str(each.detected.total), str(each.detected.hits), _share(each))
        for each in pod.bins
    ]


def _share(each: Bin) -> str:
    """``97.5 % (94.0 to 99.1 %)``, without the counts, which have columns of their own."""
    return each.detected.text().partition(", ")[2]


def _repeats(found: Capability) -> str:
    taken = "" if found.repeats is None else _again_and_again(found.repeats)
    if found.repeats is not None and found.agreement is None:
        return taken
    return taken + _of_test_images(found)


def _of_test_images(found: Capability) -> str:
    agreement = found.agreement
    if agreement is None:
        return (
            "<p>No part has several test pictures, so agreement was not measured. Take ten pictures of each of some "
            "parts at the line: <code>flawline calibrate repeats</code>, then <code>--repeats DIR</code>.</p>"
        )
    rows = [
        ("parts of the test images whose pictures all get one verdict", agreement.parts.text()),
        ("pairs of pictures of one part with one verdict", agreement.pairs.text()),
        ("pictures", f"{agreement.pictures}, at least {agreement.least} of a part"),
    ]
    few = f'<p class="note">Ten repeats are usual; some parts have fewer than {REPEATS}.</p>'
    return table(("", ""), rows) + (few if agreement.least < REPEATS else "")


def curve(pod: Pod, unit: str, colour: str) -> str:
    """SVG of detection rate against size, logarithmic, with the rates found and their intervals."""
    low, high = pod.bins[0].low, pod.bins[-1].high

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * math.log(size / low) / math.log(high / low)

    def y(share: float) -> float:
        return RIM / 2 + (HEIGHT - 1.5 * RIM) * (1 - share)

    sizes = [low * (high / low) ** (step / POINTS) for step in range(POINTS + 1)]
    path = " ".join(f"{x(size):.1f},{y(pod.at(size)):.1f}" for size in sizes)
    marks = [(name, size) for name, size in (("a90", pod.a90), ("a90/95", pod.a90_95)) if size is not None]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="detection rate by size">'
        + "".join(_level(share, y(share)) for share in (0.0, 0.5, RATE, 1.0))
        + "".join(_point(x(math.sqrt(each.low * each.high)), y, each.detected, colour) for each in pod.bins)
        + f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        + "".join(_mark(f"{name} {size:.3g} {unit}", x(size), row) for row, (name, size) in enumerate(marks))
        + f'<text x="{LEFT}" y="{HEIGHT - 8}">{low:.3g}</text>'
        + f'<text x="{WIDTH - 10}" y="{HEIGHT - 8}" text-anchor="end">{high:.3g} {unit}</text></svg>'
    )


def _level(share: float, y: float) -> str:
    return (
        f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 10}" y2="{y:.1f}" stroke="#d9dee3"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>'
    )


def _point(x: float, y: Callable[[float], float], found: Rate, colour: str) -> str:
    if found.rate is None or found.low is None or found.high is None:
        return ""
    return (
        f'<line x1="{x:.1f}" y1="{y(found.low):.1f}" x2="{x:.1f}" y2="{y(found.high):.1f}" stroke="{colour}" '
        f'stroke-opacity="0.5"/><circle cx="{x:.1f}" cy="{y(found.rate):.1f}" r="3.5" fill="{colour}"/>'
    )


def _mark(name: str, x: float, row: int) -> str:
    anchor, away = ("start", 5) if x < 0.7 * WIDTH else ("end", -5)
    return (
        f'<line x1="{x:.1f}" y1="{RIM / 2}" x2="{x:.1f}" y2="{HEIGHT - RIM}" stroke="{MARK_COLOUR}" '
        f'stroke-dasharray="5 3"/><text x="{x + away:.1f}" y="{HEIGHT - RIM - 8 - 16 * row:.1f}" '
        f'text-anchor="{anchor}" style="fill:{MARK_COLOUR}">{escape(name)}</text>'
    )
