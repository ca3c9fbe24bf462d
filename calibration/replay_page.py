"""The page of ``flawline calibrate replay``: what a candidate would change, with pictures (at the engineer's desk)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

import cv2
import numpy as np

from calibration.replay import REASONS, SHOWN, Change, Replay
from calibration.report import page, table
from calibration.rescoring import Row, Scorer, Side
from contract.bundle import open_bundle
from contract.decision import ViewMap
from contract.errors import ImageError
from contract.event import Region, Verdict
from contract.images import Pixels
from edge_runtime.inspector import Inspector
from edge_runtime.picture import Caption, compose, draw_regions, join_maps, overlay, resize, shown_size

NO_SAMPLE = (
    "The rates are of the parts of this archive, with 95 % Wilson intervals that take its parts for independent of "
    "each other. They are those of the line only if the archive is a fair sample of what the line sees. A host keeps "
    "pictures of flagged parts unless edges send all (images in edge.toml): what passed is missing there, and its "
    "parts are counted as not inspected."
)
ORDER = (
    "Two models' scores have no common scale. How far a part moved is told by its place in the order of all scores: "
    f"0 is the least deviant part of the archive, 1 the most. Of each kind the {SHOWN} that moved furthest are shown."
)
KINDS = {
    "passes now": "They pass with the candidate and did not before: look for defects that would escape",
    "passes no more": "They passed and do not with the candidate: look for good parts that would be rejected",
    "other": "Other changes",
}
TRUTHS = {"": "all parts", "good": "known good parts", "defective": "known defective parts"}
QUALITY = 85


def replay_page(found: Replay, pictures: Mapping[str, bytes]) -> str:
    """The whole page, in one file that loads nothing; ``pictures`` are JPEG by part."""
    scoring = found.scoring
    candidate = open_bundle(scoring.candidate).manifest
    current = (
        "the verdicts on record" if scoring.current is None else f"bundle {open_bundle(scoring.current).manifest.id}"
    )
    verdicts = [verdict.value for verdict in Verdict]
    counts = [(now, *(found.table[now, then] for then in verdicts)) for now in verdicts]
    body = (
        f'<p class="quiet">Candidate {escape(candidate.id)}, calibration {escape(str(candidate.calibration_id()))}, '
        f"beside {escape(current)}; archive {escape(plain(scoring.place.source.url))}</p>"
        f'<p class="note">{NO_SAMPLE}</p>'
        f"<h2>Parts</h2>{table(('', ''), rows(found))}"
        f"<h2>Verdicts: current down, candidate across</h2>{table(('', *verdicts), counts)}"
        f"<h2>Rates of flagged parts</h2>{table(('', 'current', 'candidate'), rate_rows(found))}"
        f"{_reasons(found)}<h2>Largest changes</h2><p>{ORDER}</p>{_changes(found, pictures)}"
    )
    return page(f"Replay of {candidate.name}", body)


def rows(found: Replay) -> list[tuple[str, str]]:
    """The lines that terminal and page both show."""
    return [
        ("parts of the archive", str(found.listed)),
        ("compared", str(found.compared)),
        ("not inspected under either, or both", str(found.listed - found.compared)),
        ("of those compared another verdict", found.changed.text()),
        *((f"left out: {kind}", f"{n}, first {plain(first)}") for kind, (n, first) in found.left_out.items()),
    ]


def rate_rows(found: Replay) -> list[tuple[str, str, str]]:
    """Flagged parts (REVIEW or REJECT) of those compared."""
    return [(TRUTHS[name], now.text(), then.text()) for name, (now, then) in found.flagged.items()]


def _reasons(found: Replay) -> str:
    shown = []
    for name, why in zip(("current", "candidate"), found.reasons, strict=True):
        if why:
            most = [(plain(reason), count) for reason, count in why.most_common(REASONS)]
            shown.append(f"<h3>{name}</h3>{table(('reason', 'parts'), most)}")
    return f"<h2>Why parts were not inspected</h2>{''.join(shown)}" if shown else ""


def _changes(found: Replay, pictures: Mapping[str, bytes]) -> str:
    if not found.largest:
        return "<p>No part has another verdict.</p>"
    return "".join(
        f"<h3>{KINDS[kind]}</h3>" + "".join(_change(change, pictures.get(change.row.item.key)) for change in changes)
        for kind in KINDS
        if (changes := found.largest.get(kind))
    )


def _change(change: Change, picture: bytes | None) -> str:
    row = change.row
    known = "" if row.item.label is None else f", known as {row.item.label}"
    title = f"{row.item.name}{known}: {_said(row.current)}, then {_said(row.candidate)}; moved by {change.moved:.2f}"
    shown = "<p>It has no picture that can be drawn.</p>"
    if picture is not None:
        shown = f'<img alt="" style="max-width:100%" src="data:image/jpeg;base64,{b64encode(picture).decode()}">'
    return f"<figure><figcaption>{escape(plain(title))}</figcaption>{shown}</figure>"


def _said(side: Side) -> str:
    return f"{side.verdict} ({side.reason or '—' if side.score is None else f'{side.score:.4g}'})"


def plain(text: str) -> str:
    """Text that a file can hold: names of files may be no text at all."""
    return text.encode("utf-8", "replace").decode()


def draw(scorer: Scorer, row: Row) -> bytes:
    """JPEG: what the current bundle, where there is one, and the candidate made of a part, one above the other.

    Raises ImageError where its picture cannot be had.
    """
    sheets = [_sheet(scorer, row, each) for each in (scorer.current, scorer.candidate) if each is not None]
    width = max(sheet.shape[1] for sheet in sheets)
    padded = cv2.vconcat([_padded(sheet, 4, width - sheet.shape[1]) for sheet in sheets])
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not ok:
        raise ImageError(f"{row.item.name}: the picture cannot be encoded")
    return data.tobytes()


def _sheet(scorer: Scorer, row: Row, inspector: Inspector) -> Pixels:
    part = scorer.read(row.item, inspector)
    outcome = inspector.inspect(part)
    score = "" if outcome.score is None else f"score {outcome.score:.4g}"
    caption = Caption(outcome.verdict, outcome.reason or score)
    all_maps = [] if outcome.part is None else outcome.part.maps
    if not isinstance(part, Mapping):
        return compose(_panels(part, all_maps, outcome.regions, inspector), caption)
    panels = []
    for view, pixels in part.items():
        maps = [each for each in all_maps if each.view == view]
        panels += _panels(pixels, maps, [each for each in outcome.regions if each.view == view], inspector)
    height = max(panel.shape[0] for panel in panels)
    return compose([_padded(each, height - each.shape[0], 0) for each in panels], caption)


def _padded(sheet: Pixels, below: int, right: int) -> Pixels:
    return np.pad(sheet, ((0, below), (0, right), (0, 0)), constant_values=255)


def _panels(part: Pixels, maps: Sequence[ViewMap], regions: Sequence[Region], inspector: Inspector) -> list[Pixels]:
    part_hw = (part.shape[0], part.shape[1])
    size = shown_size(part_hw)
    shown = resize(part, size)
    if not maps:
        return [shown]
    thresholds = inspector.bundle.manifest.thresholds
    marked = overlay(shown, join_maps(maps, part_hw, size), None if thresholds is None else thresholds.map)
    draw_regions(marked, regions, (size[1] / part_hw[1], size[0] / part_hw[0]))
    return [shown, marked]
