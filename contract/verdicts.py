"""What leaves the host by export: judged parts, each with its probability of being shown (hop 12 to calibration).

An export is JSON lines, one ``VerdictPage`` a line; only the last has no ``next``, so that a torn file is known. Over
HTTP each page is an answer of its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contract.event import Count, Name, Verdict, Wire

FORMAT = "flawline.verdicts/1"
MAX_PAGE = 1000
MAX_PAGE_BYTES = 8 << 20
Share = Annotated[float, Field(ge=0, le=1)]


class SampledPart(Wire):
    """A part that an inspector is to judge: flagged, or passed and drawn for the audit.

    ``judged`` is what stands after corrections and what was taken back; None: nobody has judged it. ``inclusion`` is
    the probability with which a part of this verdict came before an inspector at all: 1 where it was flagged.
    ``audit_share`` is 0 where the edge audited nothing: of what passed there nobody can speak.
    """

    row: Count
    edge_id: Name
    part_id: Name
    t_wall_ns: Count
    verdict: Literal[Verdict.PASS, Verdict.REVIEW, Verdict.REJECT]
    score: float | None = None
    flags_above: float | None = Field(None, description="the limit in force: review where there was one, else reject")
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bundle_id: Name
    calibration_id: Name | None = None
    engine: Name
    audit_share: Share
    inclusion: float = Field(gt=0, le=1)
    judged: Literal["good", "defect"] | None = None
    inspector: str | None = Field(None, max_length=100)
    picture: bool = True


class Unsampled(Wire):
    """How many parts passed and were not drawn."""

    edge_id: Name
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    engine: Name
    audit_share: Share
    flags_above: float | None = None
    parts: Count


class VerdictPage(Wire):
    """Some of the store's parts, in its order. ``next``: the row to ask behind for the next page; None: the last."""

    format: Literal["flawline.verdicts/1"] = FORMAT  # type: ignore[assignment]
    parts: tuple[SampledPart, ...] = Field((), max_length=MAX_PAGE)
    passed: tuple[Unsampled, ...] = Field((), max_length=MAX_PAGE)
    next: Count | None = None
