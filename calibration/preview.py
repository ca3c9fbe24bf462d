"""What a calibration would change, before it is written: parts whose verdict differs (at the engineer's desk)."""

from __future__ import annotations

from typing import NamedTuple

from calibration.calibrate import Proposal
from calibration.conformal import share_above
from contract.decision import decide
from contract.stats import rate

HEADER = ("image", "part", "score", "now", "then")


class Change(NamedTuple):
    """A held-out image with its score, and its verdict by the limits in the bundle and by the proposed ones."""

    file: str
    group: str
    score: float
    now: str
    then: str


def changes(proposal: Proposal) -> list[Change]:
    """Held-out good images whose verdict would change, highest score first."""
    now, then = proposal.bundle.manifest.thresholds, proposal.thresholds
    measured = proposal.measured
    found = [
        Change(
            sample.path.name, sample.group, score, decide(score, now)[0].value, decide(score, then, highest)[0].value
        )
        for sample, score, highest in zip(
            measured.held.unseen, measured.scores, measured.reviews or measured.scores, strict=True
        )
    ]
    return sorted((change for change in found if change.now != change.then), key=lambda change: -change.score)


def preview_rows(proposal: Proposal) -> list[tuple[str, str]]:
    """What the proposed limits mean by the held-out parts, beside the limits that the bundle has."""
    measured, then, now = proposal.measured, proposal.thresholds, proposal.bundle.manifest.thresholds
    scores = measured.by_part()
    parts = measured.held.groups
    above = share_above(scores.good, scores.groups, then.reject)
    rows = [
        ("reject above, now", "nothing: the bundle is not calibrated" if now is None else f"{now.reject:.6g}"),
        ("held-out parts above the new limit", f"{100 * above:.3g} % of {parts}"),
        ("rate for which split-conformal sets this limit", f"{100 * (above * parts + 1) / (parts + 1):.3g} %"),
    ]
    if now is not None and now.engine != then.engine:
        rows.append(("measured with, now", f"{now.engine}: verdicts differ for that as well"))
    if measured.places is not None:
        rows.append(("", "scored with the masks and zones given: verdicts now are the old limits on these scores"))
    if len(measured.defects):
        limit = then.reject if then.review is None else then.review
        passed = sum(score <= limit for score in measured.defects)
        rows.append(("of the given defective images pass", rate(passed, len(measured.defects)).text()))
        if proposal.chosen_by_defects:
            rows.append(("", "these images chose a limit, so that more of those to come will pass"))
    return rows
